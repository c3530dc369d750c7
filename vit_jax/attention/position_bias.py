"""Biases of the logits by the offset from query to key."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.attention.places import Position, both, differences, places
from vit_jax.shapes import Array, Float, Int


def table_of_grid(
  module: Position, name: str, init: Callable, shape: tuple[int, ...]
) -> Array:
  """A parameter with an entry for each offset in one grid.

  Raises:
    ValueError: it was made for another grid.
  """
  if module.has_variable('params', name):
    found = module.get_variable('params', name).shape
    if found != shape:
      raise ValueError(
        f'{type(module).__name__} has a learned {name!r} of shape {found} and '
        f'now needs {shape}: it belongs to one grid. For another size of '
        'images load the weights with image_size=…, which resizes it, or take '
        'a position of any grid: rotary, rotary_mixed, relative_keys, alibi'
      )
  return module.param(name, init, shape)


class RelativeBias(Position):
  """bias_ij = table[row_i - row_j, column_i - column_j]. Liu et al. 2021.

  Swin's, eq. 4, over the whole grid; pairs with prefix tokens have three
  entries of their own (prefix to patch, patch to prefix, prefix to prefix), as
  in BEiT. `table` [2r-1 2c-1 H] belongs to one grid (loading weights for
  another image size resizes it); all entries start at 0.
  """

  @nn.compact
  def __call__(
    self,
    q: Float[Array, 'B N H D'],
    k: Float[Array, 'B M H D'],
    positions: Int[Array, 'B N'] | None = None,
  ) -> tuple[Array, Array, Float[Array, '#B H N N']]:
    """A bias [B H N N]; raises a ValueError on another grid than at init."""
    self.check(q, k)
    n, heads = q.shape[1:3]
    row, column, patch = places(self, n, positions)
    rows, columns = self.grid or (1, n - self.prefix)
    table = table_of_grid(
      self, 'table', nn.initializers.zeros,
      (2 * rows - 1, 2 * columns - 1, heads),
    )  # fmt: skip
    # Prefix tokens have places of their own below; here they are clipped.
    y = jnp.clip(differences(row) + rows - 1, 0, 2 * rows - 2)
    x = jnp.clip(differences(column) + columns - 1, 0, 2 * columns - 2)
    bias = table[y, x]
    if self.prefix:
      rest = self.param('prefix', nn.initializers.zeros, (3, heads))
      kind = jnp.where(patch[:, None, :], 0, 2)
      kind = jnp.where(patch[:, :, None], 1, kind)
      bias = jnp.where(both(patch)[..., None], bias, rest[kind])
    return q, k, jnp.moveaxis(bias, -1, 1)


class DecomposedBias(Position):
  """bias_ij = q_i·R_row[row_i - row_j] + q_i·R_column[…]. Li et al. 2022.

  MViTv2's, eq. 4: the heads share tables `row` [2r-1 D] and `column` [2c-1 D],
  q is not scaled, and pairs with prefix tokens have no bias. The tables belong
  to one grid; loading weights for another image size resizes them.
  """

  @nn.compact
  def __call__(
    self,
    q: Float[Array, 'B N H D'],
    k: Float[Array, 'B M H D'],
    positions: Int[Array, 'B N'] | None = None,
  ) -> tuple[Array, Array, Float[Array, '#B H N N']]:
    """A bias [B H N N]; raises a ValueError on another grid than at init."""
    self.check(q, k)
    n, width = q.shape[1], q.shape[-1]
    *at, patch = places(self, n, positions)
    grid = self.grid or (1, n - self.prefix)
    bias = 0.0
    for name, size, place in zip(('row', 'column'), grid, at, strict=True):
      if name == 'row' and self.grid is None:
        continue
      table = table_of_grid(
        self, name, nn.initializers.truncated_normal(0.02),
        (2 * size - 1, width),
      )  # fmt: skip
      bias = bias + _along(q, table, differences(place) + size - 1)
    return q, k, jnp.where(both(patch)[:, None], bias, 0.0)


class RelativeKeys(Position):
  """bias_ij = q_i·w[clip(j - i, -limit, limit)] / √D. Shaw et al. 2018, eq. 5.

  On sequences of any length; `table` [2 limit + 1, D] is shared by the heads.
  On any grid it is the sum of two, `row` and `column` of the same shape, by the
  offsets along the rows' and the columns' axis, each clipped: the cross method
  of Wu et al. 2021 ("Rethinking and Improving Relative Position Encoding for
  Vision Transformer"); pairs with prefix tokens then have no bias. The paper's
  relative values are left out, as its section 4.3 finds them unnecessary.

  Attributes:
    limit: farthest offset that is told apart.
  """

  limit: int = 16

  @nn.compact
  def __call__(
    self,
    q: Float[Array, 'B N H D'],
    k: Float[Array, 'B M H D'],
    positions: Int[Array, 'B N'] | None = None,
  ) -> tuple[Array, Array, Float[Array, '#B H N N']]:
    """A bias [B H N N]."""
    self.check(q, k)
    width, limit = q.shape[-1], self.limit
    row, column, patch = places(self, q.shape[1], positions)
    axes = {'table': column}
    if self.grid is not None:
      axes = {'row': row, 'column': column}
    bias = 0.0
    for name, place in axes.items():
      table = self.param(
        name, nn.initializers.xavier_uniform(), (2 * limit + 1, width)
      )
      offset = jnp.clip(-differences(place), -limit, limit) + limit
      bias = bias + _along(q * width**-0.5, table, offset)
    if self.grid is None:
      return q, k, bias
    return q, k, jnp.where(both(patch)[:, None], bias, 0.0)


def _along(q, table, index):
  """q_i · table[index_ij] in float32, [B H N N]; index [#B N N] is clipped."""
  logits = jnp.einsum(
    'bnhd,rd->bhnr', q, table, preferred_element_type=jnp.float32
  )
  index = jnp.clip(index, 0, table.shape[0] - 1)[:, None]
  return jnp.take_along_axis(logits, index, axis=-1)


class ALiBi(Position):
  """bias_ij = -slope_h · distance(i, j). Press et al. 2021, section 3.

  The distance is |i - j| on a sequence (with causal=True the paper's) and
  Euclidean on a grid; pairs with prefix tokens are at distance 0.
  """

  @nn.compact
  def __call__(
    self,
    q: Float[Array, 'B N H D'],
    k: Float[Array, 'B M H D'],
    positions: Int[Array, 'B N'] | None = None,
  ) -> tuple[Array, Array, Float[Array, '#B H N N']]:
    """A bias [B H N N] without parameters."""
    self.check(q, k)
    row, column, patch = places(self, q.shape[1], positions)
    squared = differences(row) ** 2 + differences(column) ** 2
    distance = jnp.where(both(patch), jnp.sqrt(squared * 1.0), 0.0)
    slope = jnp.asarray(slopes(q.shape[2]), jnp.float32)
    return q, k, -slope[None, :, None, None] * distance[:, None]


def slopes(heads: int) -> list[float]:
  """ALiBi's slopes: 2^(-8h/H); for H no power of 2, the authors' rule.

  Those of the power of 2 below H, then every other one of the power above.
  """
  power = 2 ** math.floor(math.log2(heads))
  first = [2 ** (-8 * (h + 1) / power) for h in range(power)]
  second = [2 ** (-4 * (h + 1) / power) for h in range(0, 2 * power, 2)]
  return first + second[: heads - power]
