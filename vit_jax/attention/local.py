"""Local attention: windows, sliding windows, neighbourhoods, memory blocks."""

from collections.abc import Callable

from vit_jax.attention import patterns
from vit_jax.attention.algebra import Layout, Pattern, Tokens
from vit_jax.attention.patterned import Patterned, offset_bias
from vit_jax.shapes import Array


class Window(Patterned):
  """Softmax inside non-overlapping windows, O(N·size²).

  Of size × size tokens on a grid, of `size` in a sequence (chunks); those at
  the border are smaller. Liu et al. 2021, section 3.2, without shift and bias;
  Qiu et al. 2020's blocks.

  Attributes:
    size: tokens along each side of a window.
  """

  family = 'fixed pattern'
  published = 'N·size²'
  cost = 'N·size²'
  source = 'Liu et al. 2021'

  size: int = 7

  def pattern(self) -> Pattern:
    """Windows."""
    return patterns.Window(self.size)


class Sliding(Patterned):
  """Softmax over tokens at most size // 2 away along each axis, O(N·size²).

  A square on a grid, O(N·size) in a sequence; cut off at the borders.
  Beltagy et al. 2020, section 3.1; Ramachandran et al. 2019, section 3.

  Attributes:
    size: tokens along each side of the window; an even one counts as the next
      odd one, so that the window is centred.
  """

  family = 'fixed pattern'
  published = 'N·size²'
  cost = 'N·size²'
  source = 'Ramachandran et al. 2019'

  size: int = 7

  def pattern(self) -> Pattern:
    """A sliding window."""
    return patterns.Sliding(self.size)


class Neighborhood(Patterned):
  """Softmax over the nearest `size` tokens along each axis, O(N·size²).

  At the borders the window is moved inwards, so that every query has as many
  keys: size² on a grid, `size` in a sequence, less only where a side is
  shorter. Its last windows depend on N. Hassani et al. 2023, eq. 1 to 4.

  Attributes:
    size: odd; tokens along each side.
    relative_bias: a learned bias by offset, [(2·size - 1) ** axes, H].
  """

  family = 'fixed pattern'
  published = 'N·size²'
  cost = 'N·size²'
  source = 'Hassani et al. 2023'

  size: int = 7
  relative_bias: bool = False

  def pattern(self) -> Pattern:
    """Clamped windows."""
    return patterns.Neighborhood(self.size)

  def relative(
    self, heads: int, layout: Layout
  ) -> Callable[[Tokens, Tokens], Array] | None:
    """By offset, as NATTEN's."""
    if not self.relative_bias:
      return None
    count = (2 * self.size - 1) ** len(layout.sides)
    return offset_bias(self.table('relative_bias', (count, heads)), self.size)


class Dilated(Patterned):
  """A sliding window with gaps, O(N·size²).

  size // 2 tokens to each side along each axis, `dilation` apart.
  Beltagy et al. 2020, section 3.1.

  Attributes:
    size: tokens along each side of the window.
    dilation: distance between them.
  """

  family = 'fixed pattern'
  published = 'N·size²'
  cost = 'N·size²'
  source = 'Beltagy et al. 2020'

  size: int = 7
  dilation: int = 2

  def pattern(self) -> Pattern:
    """A dilated window."""
    return patterns.Dilated(self.size, self.dilation)


class Image1D(Patterned):
  """Chunks see themselves and the memory before, O(N·(size + memory)).

  In raster order, prefix aside. Parmar et al. 2018, section 3.3, 1D local
  attention; there causal, here also not.

  Attributes:
    size: length of a chunk of queries.
    memory: further keys before the chunk.
  """

  family = 'fixed pattern'
  published = 'N·(size + memory)'
  cost = 'N·(size + memory)'
  source = 'Parmar et al. 2018'

  size: int = 32
  memory: int = 32

  def pattern(self) -> Pattern:
    """Chunks and what is before them."""
    return patterns.Image1D(self.size, self.memory)


class Image2D(Patterned):
  """Squares see themselves extended to three sides, O(N·(size + memory)²).

  By `memory` to the top, left and right. A sequence is laid out as the nearly
  square grid, so its neighbours depend on N. Parmar et al. 2018, section 3.3,
  2D local attention. Causal is in raster order of the whole grid here; in the
  paper images are generated square by square.

  Attributes:
    size: side of a square of queries.
    memory: rows and columns around it.
  """

  family = 'fixed pattern'
  published = 'N·(size + memory)·(size + 2·memory)'
  cost = 'N·(size + memory)·(size + 2·memory)'
  source = 'Parmar et al. 2018'

  size: int = 8
  memory: int = 4

  planar = True

  def pattern(self) -> Pattern:
    """Squares and what is around them."""
    return patterns.Image2D(self.size, self.memory)
