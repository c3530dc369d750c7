"""Positions inside attention: rotations of queries and keys, or biases.

Each is a module (q, k, positions) → (q, k, bias or None) of one sequence; a
rotation fits every attention, a bias those that honour `bias`.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import specs
from vit_jax.attention.base import refuse_other_grid, sized_param
from vit_jax.shapes import Array, Bool, Float, Int

Result = tuple[Array, Array, Array | None]


def places(
  layout: nn.Module, n: int, positions: Int[Array, 'B N'] | None = None
) -> tuple[Int[Array, '#B N'], Int[Array, '#B N'], Bool[Array, '#B N']]:
  """Row, column, and whether it lies behind the prefix, of every token.

  Without a grid the row is 0 and the column the place in the sequence.

  Args:
    layout: has the fields `grid` and `prefix`.
    n: number of tokens.
    positions: places in the full layout, prefix first; by default 0…n-1.

  Raises:
    ValueError: no positions, and prefix and grid do not make n tokens.
  """
  if positions is None:
    refuse_other_grid(layout, n)
    positions = jnp.arange(n)[None]
  place = positions - layout.prefix
  if layout.grid is None:
    return jnp.zeros_like(place), place, place >= 0
  columns = layout.grid[1]
  return place // columns, place % columns, place >= 0


def differences(x: Int[Array, 'B N']) -> Int[Array, 'B N N']:
  """x_i - x_j."""
  return x[:, :, None] - x[:, None, :]


def both(patch: Bool[Array, 'B N']) -> Bool[Array, 'B N N']:
  """Pairs of which neither token is in the prefix."""
  return patch[:, :, None] & patch[:, None, :]


class Position(nn.Module):
  """Relates the tokens of one sequence to each other, inside attention.

  Attributes:
    num_heads: H.
    grid: (rows, columns) of the patch tokens; None for a sequence.
    prefix: tokens before the grid, which have no place in it.
  """

  num_heads: int = 1
  grid: tuple[int, int] | None = None
  prefix: int = 0

  def check(self, q: Array, k: Array) -> None:
    """Raises unless q and k are of one sequence.

    Raises:
      ValueError: N ≠ M.
    """
    if q.shape[1] != k.shape[1]:
      raise ValueError(
        f'{type(self).__name__} relates tokens of one sequence, not '
        f'{q.shape[1]} queries to {k.shape[1]} keys'
      )


def rotate(
  x: Float[Array, 'B N H D'], angle: Float[Array, '#B N #H P']
) -> Float[Array, 'B N H D']:
  """Rotates the P = D/2 pairs of neighbouring channels, in float32."""
  pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
  even, odd = pairs[..., 0], pairs[..., 1]
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], -1)
  return turned.reshape(x.shape).astype(x.dtype)


class Rotary(Position):
  """Rotates q and k, so that logits depend on offsets. Su et al. 2021, eq. 34.

  Pair i turns by place · base^(-2i/D); on a grid the first half of the pairs
  by the column and the second by the row, at base^(-4i/D) (Heo et al. 2024,
  eq. 8). Prefix tokens are not rotated.

  Attributes:
    base: None is 10000 for a sequence and 100 on a grid, as in the papers.
  """

  base: float | None = None

  @nn.compact
  def __call__(
    self,
    q: Float[Array, 'B N H D'],
    k: Float[Array, 'B M H D'],
    positions: Int[Array, 'B N'] | None = None,
  ) -> Result:
    """Rotates; raises a ValueError unless pairs divide D."""
    self.check(q, k)
    width, axes = q.shape[-1], 1 if self.grid is None else 2
    if width % (2 * axes):
      raise ValueError(
        f'rotary needs a head width divisible by {2 * axes} '
        f'{"on a grid" if axes == 2 else "on a sequence"}; it is {width}'
      )
    base = self.base
    if base is None:
      base = 1e4 if axes == 1 else 1e2
    count = width // (2 * axes)
    speed = base ** (-jnp.arange(count, dtype=jnp.float32) / count)
    row, column, patch = places(self, q.shape[1], positions)
    angle = jnp.concatenate(
      [
        x[..., None].astype(jnp.float32) * speed[None, None]
        for x in (column, row)[:axes]
      ],
      axis=-1,
    )
    angle = jnp.where(patch[..., None], angle, 0.0)[:, :, None]
    return rotate(q, angle), rotate(k, angle), None


class RotaryMixed(Position):
  """Rotates by x ω_x + y ω_y, ω learned by head. Heo et al. 2024, eq. 9.

  `frequencies` [2 H D/2] start at base^(-4i/D) in two orthogonal directions,
  which are random by head. Prefix tokens are not rotated.

  Attributes:
    base: of the initial frequencies.
  """

  base: float = 10.0

  @nn.compact
  def __call__(
    self,
    q: Float[Array, 'B N H D'],
    k: Float[Array, 'B M H D'],
    positions: Int[Array, 'B N'] | None = None,
  ) -> Result:
    """Rotates; raises a ValueError without a grid, or unless 4 divides D."""
    self.check(q, k)
    width = q.shape[-1]
    if self.grid is None or width % 4:
      raise ValueError(
        'rotary_mixed needs a grid and a head width divisible by 4; they are '
        f'{self.grid} and {width}; for sequences there is rotary'
      )

    def initial(key, shape):
      speed = self.base ** (-jnp.arange(width // 4) / (width // 4))
      turn = jax.random.uniform(key, (shape[1], 1), maxval=2 * math.pi)
      turn = jnp.concatenate([turn, turn + math.pi / 2], axis=1)
      direction = jnp.stack([jnp.cos(turn), jnp.sin(turn)])[..., None]
      return (direction * speed[None, None, None]).reshape(shape)

    x, y = self.param('frequencies', initial, (2, q.shape[2], width // 2))
    row, column, patch = (
      z[:, :, None, None].astype(jnp.float32)
      for z in places(self, q.shape[1], positions)
    )
    angle = patch * (column * x[None, None] + row * y[None, None])
    return rotate(q, angle), rotate(k, angle), None


class RelativeBias(Position):
  """bias_ij = table[row_i - row_j, column_i - column_j]. Liu et al. 2021.

  Swin's, eq. 4, over the whole grid; pairs with prefix tokens have three
  entries of their own (prefix to patch, patch to prefix, prefix to prefix), as
  in BEiT. `table` [2r-1 2c-1 H] belongs to one grid; all entries start at 0.
  """

  @nn.compact
  def __call__(
    self,
    q: Float[Array, 'B N H D'],
    k: Float[Array, 'B M H D'],
    positions: Int[Array, 'B N'] | None = None,
  ) -> Result:
    """A bias [B H N N]; raises a ValueError on another grid than at init."""
    self.check(q, k)
    n, heads = q.shape[1:3]
    row, column, patch = places(self, n, positions)
    rows, columns = self.grid or (1, n - self.prefix)
    table = sized_param(
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
  to one grid.
  """

  @nn.compact
  def __call__(
    self,
    q: Float[Array, 'B N H D'],
    k: Float[Array, 'B M H D'],
    positions: Int[Array, 'B N'] | None = None,
  ) -> Result:
    """A bias [B H N N]; raises a ValueError on another grid than at init."""
    self.check(q, k)
    n, width = q.shape[1], q.shape[-1]
    *at, patch = places(self, n, positions)
    grid = self.grid or (1, n - self.prefix)
    bias = 0.0
    for name, size, place in zip(('row', 'column'), grid, at, strict=True):
      if name == 'row' and self.grid is None:
        continue
      table = sized_param(
        self, name, nn.initializers.truncated_normal(0.02),
        (2 * size - 1, width),
      )  # fmt: skip
      bias = bias + _along(q, table, differences(place) + size - 1)
    return q, k, jnp.where(both(patch)[:, None], bias, 0.0)


class RelativeKeys(Position):
  """bias_ij = q_i·w[clip(j - i, -limit, limit)] / √D. Shaw et al. 2018, eq. 5.

  On sequences of any length; `table` [2 limit + 1, D] is shared by the heads.
  The paper's relative values are left out, as its section 4.3 finds them
  unnecessary.

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
  ) -> Result:
    """A bias [B H N N]; raises a ValueError on a grid."""
    self.check(q, k)
    if self.grid is not None:
      raise ValueError(
        f'relative_keys is for sequences, not for the grid {self.grid}; on a '
        'grid there is decomposed_bias'
      )
    width, limit = q.shape[-1], self.limit
    table = self.param(
      'table', nn.initializers.xavier_uniform(), (2 * limit + 1, width)
    )
    _, column, _ = places(self, q.shape[1], positions)
    offset = jnp.clip(-differences(column), -limit, limit) + limit
    return q, k, _along(q * width**-0.5, table, offset)


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
  ) -> Result:
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


class Several(Position):
  """One position after another; biases add up."""

  parts: tuple[tuple[str, Callable], ...] = ()

  @nn.compact
  def __call__(
    self,
    q: Float[Array, 'B N H D'],
    k: Float[Array, 'B M H D'],
    positions: Int[Array, 'B N'] | None = None,
  ) -> Result:
    """Applies the parts in order."""
    bias = None
    for name, part in self.parts:
      q, k, more = part(
        num_heads=self.num_heads, grid=self.grid, prefix=self.prefix,
        name=name,
      )(q, k, positions)  # fmt: skip
      bias = add(bias, more)
    return q, k, bias


def add(
  bias: Float[Array, '...'] | None, more: Float[Array, '...'] | None
) -> Float[Array, '...'] | None:
  """The sum of two biases, of which either may be None."""
  if bias is None or more is None:
    return more if bias is None else bias
  return bias + more


POSITIONS: dict[str, type[Position]] = {
  'rotary': Rotary,  # Su et al. 2021; on a grid Heo et al. 2024 (axial)
  'rotary_mixed': RotaryMixed,  # Heo et al. 2024
  'relative_bias': RelativeBias,  # Liu et al. 2021, Bao et al. 2021; one grid
  'decomposed_bias': DecomposedBias,  # Li et al. 2022 (MViTv2); one grid
  'relative_keys': RelativeKeys,  # Shaw et al. 2018; sequences
  'alibi': ALiBi,  # Press et al. 2021
}


def layer(text: str) -> Callable[..., Position] | None:
  """What `MultiHeadDotProductAttention(position=…)` takes, of a spec.

  Several specs, comma separated, apply in order; none is None.

  Raises:
    ValueError: unknown name or option, or a name that is given twice.
  """
  parts = {}
  for spec in specs.parse(text):
    entry = specs.lookup(POSITIONS, spec.name, 'position')
    specs.check_options(entry, spec.options, f'the position {spec.name!r}')
    if spec.name in parts:
      raise ValueError(f'the position {spec.name!r} is twice in {text!r}')
    parts[spec.name] = functools.partial(entry, **spec.options)
  if len(parts) < 2:
    return next(iter(parts.values()), None)
  return functools.partial(Several, parts=tuple(parts.items()))
