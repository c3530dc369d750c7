"""Swin's windows: shifted, with a bias by relative position."""

from collections.abc import Callable

from vit_jax.attention import patterns
from vit_jax.attention.algebra import Layout, Pattern, Tokens
from vit_jax.attention.patterned import Patterned, offset_bias
from vit_jax.shapes import Array


class Swin(Patterned):
  """softmax(Q Kᵀ / √D + B) V inside shifted windows, O(N·size²).

  B is a learned bias by the offset of query and key, (2·size - 1)² a head, the
  same in every window. Layers alternate shift=0 and shift=size // 2; the mask
  of the cyclic shift leaves plain windows that begin `shift` tokens later. A
  window that covers a side of the grid is not shifted along it.

  Windows at the border are smaller where size does not divide the grid; the
  original pads there and attends to the padding. A sequence is laid out as the
  nearly square grid, so its neighbours depend on N. Liu et al. 2021, eq. 4.

  Attributes:
    size: tokens along each side of a window.
    shift: rows and columns by which the windows are shifted.
    relative_bias: the bias B, parameter [(2·size - 1)², H].
  """

  family = 'fixed pattern'
  published = 'N·size²'
  cost = 'N·size²'
  source = 'Liu et al. 2021'

  size: int = 7
  shift: int = 0
  relative_bias: bool = True

  planar = True

  def pattern(self) -> Pattern:
    """Shifted windows.

    Raises:
      ValueError: the shift is not below the size.
    """
    if not 0 <= self.shift < self.size:
      raise ValueError(
        f'shift={self.shift} is not between 0 and size - 1 = {self.size - 1}'
      )
    return patterns.Window(self.size, self.shift)

  def relative(
    self, heads: int, layout: Layout
  ) -> Callable[[Tokens, Tokens], Array] | None:
    """By offset."""
    del layout
    if not self.relative_bias:
      return None
    shape = ((2 * self.size - 1) ** 2, heads)
    return offset_bias(self.table('relative_bias', shape), self.size)
