"""Axial attention: along the rows, then along the columns."""

from typing import Any

import flax.linen as nn
import numpy as np

from vit_jax.attention import tables
from vit_jax.attention.algebra import Pattern
from vit_jax.attention.base import put
from vit_jax.attention.patterned import Patterned
from vit_jax.attention.patterns import Column, Row, kept
from vit_jax.shapes import Array, Bool, Float, Int


class Axial(Patterned):
  """A_column A_row V: two softmaxes in sequence, O(N·√N).

  On a grid of rows × columns, O(N·(rows + columns)). Both share queries and
  keys, so one layer reaches every token; the paper has a layer for each axis.
  A sequence is laid out as the nearly square grid, so its neighbours depend on
  N. Causal, both axes see only what is before in raster order, which misses the
  earlier rows' later columns (the paper adds shifted layers for them). A mask
  or bias of pairs has no meaning for a product of two maps: not honoured.
  Ho et al. 2019, section 4.
  """

  family = 'fixed pattern'
  published = 'N·√N'
  cost = 'N·√N'
  source = 'Ho et al. 2019'

  planar = True

  def pattern(self) -> Pattern:
    """What the first of the two sees; see `passes`."""
    return Row()

  def passes(self) -> tuple[Pattern, Pattern]:
    """What is seen along the rows, and then along the columns."""
    return self.complete(Row()), self.complete(Column())

  @nn.compact
  def __call__(
    self,
    q: Float[Array, 'B N H D'],
    k: Float[Array, 'B M H D'],
    v: Float[Array, 'B M H E'],
    *,
    key_mask: Bool[Array, 'B M'] | None = None,
    segments: Int[Array, 'B N'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'B N H E']:
    """Attends along the rows, and with the result along the columns."""
    for one in self.passes():
      v = self.attend(
        q, k, v, (one,), train, key_mask=key_mask, segments=segments
      )
    return v

  def plans(
    self, n: int, heads: int
  ) -> list[tuple[int, tuple[tables.Part, ...]]]:
    """Of both, one after the other."""
    layout = self.any_layout(n)
    return [(heads, self.plan(one, layout, layout)) for one in self.passes()]

  def support(self, n: int) -> np.ndarray:
    """What reaches a query by way of its column."""
    layout = self.layout(n)
    row, column = (kept(p, layout) for p in self.passes())
    return column.astype(np.float32) @ row.astype(np.float32) > 0

  def init_state(
    self, batch: int, length: int, heads: int, width: int, dtype: Any
  ) -> Any:
    """An empty cache of keys, values, and results along the rows."""
    state = super().init_state(batch, length, heads, width, dtype)
    return {**state, 'rows': state['v']}

  def step(
    self,
    state: Any,
    q: Float[Array, 'B 1 H D'],
    k: Float[Array, 'B 1 H D'],
    v: Float[Array, 'B 1 H D'],
  ) -> tuple[Float[Array, 'B 1 H D'], Any]:
    """Two rows over the cached tokens, O(length)."""
    t = state['step']
    row, column = self.passes()
    k, v = put(state['k'], k, t), put(state['v'], v, t)
    rows = put(state['rows'], self.row(q, k, v, t, (row,)), t)
    out = self.row(q, k, rows, t, (column,))
    return out, {'step': t + 1, 'k': k, 'v': v, 'rows': rows}
