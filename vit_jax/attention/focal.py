"""Focal attention: fine keys nearby, pooled keys farther away."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from vit_jax.attention import blocks, tables
from vit_jax.attention.algebra import Layout, Pattern, Tokens
from vit_jax.attention.base import refuse_cross
from vit_jax.attention.gathered import Gathered
from vit_jax.attention.patterns import Prefix
from vit_jax.shapes import Array, Bool, Float


@dataclasses.dataclass(frozen=True)
class Focus(Pattern):
  """Cells of `pool` × `pool` tokens that a window touches, and `reach` around.

  Queries are in windows of `size` × `size` tokens; keys are cells.
  """

  size: int
  pool: int
  reach: int

  def _ranges(self, x: Any) -> tuple[Any, Any]:
    first = x // self.size * self.size
    last = first + self.size - 1
    return first // self.pool - self.reach, last // self.pool + self.reach

  def keep(self, query: Tokens, key: Tokens) -> Any:
    """See `Pattern`."""
    top, bottom = self._ranges(query.row)
    left, right = self._ranges(query.column)
    rows = (top <= key.row) & (key.row <= bottom)
    return rows & (left <= key.column) & (key.column <= right)

  def order(self, tokens: Tokens, block: int) -> np.ndarray:
    """By window."""
    wide = tokens.layout.columns // self.size + 1
    return tokens.row // self.size * wide + tokens.column // self.size

  def candidates(self, query: Tokens, key: Layout) -> np.ndarray:
    """The box of the cells."""
    ranges = (self._ranges(x) for x in (query.row, query.column))
    return key.box([(low.min(), high.max()) for low, high in ranges])


class Focal(Gathered):
  """Softmax over nearby tokens and cells farther away, O(N·size²).

  The queries of a window see tokens up to `reach` beyond it, and at each
  coarser level cells, pooled from pool × pool tokens, up to `around` cells
  beyond it; all under one softmax. The pooling is learned, one weight a
  position, and starts as the mean; absent and masked tokens count as zeros and
  the rest is scaled up. The paper pools before its projections of keys and
  values, which differs by their biases only, and adds relative position biases,
  left out here. A sequence is laid out as the nearly square grid, so its
  neighbours depend on N. Prefix tokens see and are seen by all, as tokens.
  Yang et al. 2021, section 3.2.

  Attributes:
    size: tokens along each side of a window.
    reach: further tokens around it.
    pool: sides of the cells, of one coarser level each.
    around: further cells around the window, at each level.
  """

  family = 'fixed pattern'
  published = 'N·(size + 2·reach)² + N·Σ (size/pool + 2·around)²'
  cost = 'N·((size + 2·reach)² + Σ (size/pool + 2·around)²)'
  source = 'Yang et al. 2021'

  size: int = 7
  reach: int = 3
  pool: tuple[int, ...] = (4,)
  around: int = 3

  planar = True

  @nn.compact
  def __call__(
    self,
    q: Float[Array, 'B N H D'],
    k: Float[Array, 'B M H D'],
    v: Float[Array, 'B M H E'],
    *,
    key_mask: Bool[Array, 'B M'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'B N H E']:
    """Attends; logits and softmax are in float32 whatever the inputs are."""
    refuse_cross(self, q, k)
    layout = self.layout(q.shape[1])
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    keys = [(k, v, key_mask)]
    if key_mask is None:
      key_mask = jnp.ones((q.shape[0], layout.n), bool)
    for side in self.pool:
      start = nn.initializers.constant(side**-2)
      weights = self.param(f'pool{side}', start, (side, side))
      keys.append(_pooled(k, v, key_mask, layout, weights))
    parts = [
      (part, k, v, blocks.Arrays(key_mask=some))
      for (k, v, some), plan in zip(keys, self._levels(layout), strict=True)
      for part in plan
    ]
    return blocks.attend(q, parts, self.drop(train)).swapaxes(1, 2)

  def _levels(self, layout: Layout) -> list[tuple[tables.Part, ...]]:
    fine = Focus(self.size, 1, self.reach)
    found = [self.plan(fine | Prefix(), layout, layout)]
    for side in self.pool:
      cells = Focus(self.size, side, self.around) & ~Prefix()
      found.append(self.plan(cells, layout, _cells(layout, side)))
    return found

  def plans(
    self, n: int, heads: int
  ) -> list[tuple[int, tuple[tables.Part, ...]]]:
    """Of all levels."""
    return [(heads, plan) for plan in self._levels(self.any_layout(n))]


def _cells(layout: Layout, side: int) -> Layout:
  rows, columns = (
    max(1, -(-x // side)) for x in (layout.rows, layout.columns)
  )
  return Layout(rows * columns, 0, rows, columns, planar=True)


def _pooled(k, v, key_mask, layout: Layout, weights):
  """Keys, values [B H cells D] and which cells have a token, Bool[B cells]."""
  side = weights.shape[0]
  cells = _cells(layout, side)

  def split(x, axis):
    """Splits the tokens of the axis into rows, side, columns, side."""
    x = jnp.moveaxis(x, axis, 0)[layout.prefix :]
    short = layout.rows * layout.columns - layout.length
    x = jnp.pad(x, ((0, short), *((0, 0),) * (x.ndim - 1)))
    x = x.reshape(layout.rows, layout.columns, *x.shape[1:])
    short = (
      (0, cells.rows * side - layout.rows),
      (0, cells.columns * side - layout.columns),
    )
    x = jnp.pad(x, (*short, *((0, 0),) * (x.ndim - 2)))
    return x.reshape(cells.rows, side, cells.columns, side, *x.shape[2:])

  def pool(x, weights):
    x = (x * weights).sum((1, 3), dtype=jnp.float32)
    return x.reshape(cells.n, *x.shape[2:])

  some = split(key_mask, 1)  # [rows side columns side B]
  share = some.mean((1, 3), dtype=jnp.float32).reshape(cells.n, -1)
  scale = 1 / jnp.where(share > 0, share, 1.0)  # [cells B]
  weights = weights[None, :, None, :, None] * some
  k, v = (
    jnp.moveaxis(
      pool(split(x, 2), weights[..., None, None]) * scale[..., None, None], 0, 2
    ).astype(x.dtype)
    for x in (k, v)
  )
  return k, v, (share > 0).T
