"""Shapes in signatures: jaxtyping's names, or inert ones where it is missing.

`Float[Array, 'B N H D']` documents a shape; the tests check every one at run
time. Models and attention must import with only jax, flax and numpy present, so
without jaxtyping the names stay and mean nothing.

Legend: B batch, N queries, M keys, H heads, D head width, E value width,
C channels, K classes.
"""

try:
  from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped
except ImportError:
  from typing import Any as Array

  class Shaped:
    """Stands for any array; `Shaped[Array, 'B N']` is documentation only."""

    def __class_getitem__(cls, item):
      return Array

  Bool = Float = Int = Shaped
  PRNGKeyArray = Array

__all__ = ['Array', 'Bool', 'Float', 'Int', 'PRNGKeyArray', 'Shaped']
