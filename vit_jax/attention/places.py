"""Where the tokens are: in the sequence or in the grid behind the prefix."""

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.attention.base import refuse_other_grid
from vit_jax.shapes import Array, Bool, Int


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
