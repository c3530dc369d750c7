"""Windows over a grid of tokens, shifted or not, for attention inside them."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vit_jax.shapes import Array, Float, Int


class Windows(NamedTuple):
  """Non-overlapping windows of a grid that zeros fill up to whole windows.

  Zeros come at the bottom and at the right; what attends to them is the
  caller's affair.

  Attributes:
    grid: (rows, columns) of the tokens.
    size: (rows, columns) of a window.
    shift: rows and columns by which the map is rolled up and left, so that
      windows cross the borders of the unshifted ones; its first rows and
      columns then share windows with its last ones, see `regions`.
    roll_first: roll before filling up, as timm does; what is rolled to the end
      then lies before the zeros. The original fills up first.
  """

  grid: tuple[int, int]
  size: tuple[int, int]
  shift: tuple[int, int] = (0, 0)
  roll_first: bool = False

  @property
  def count(self) -> tuple[int, int]:
    """Rows and columns of windows."""
    (rows, columns), (high, wide) = self.grid, self.size
    return -(-rows // high), -(-columns // wide)

  def split(self, x: Float[Array, 'B N C']) -> Float[Array, 'W A C']:
    """The tokens of each window, W = B · windows, A = rows · columns."""
    batch, _, width = x.shape
    (down, right), (high, wide) = self.count, self.size
    rows, columns = self.grid
    x = x.reshape(batch, rows, columns, width)
    if self.roll_first:
      x = self._roll(x, -1)
    fill = ((0, down * high - rows), (0, right * wide - columns))
    x = jnp.pad(x, ((0, 0), *fill, (0, 0)))
    if not self.roll_first:
      x = self._roll(x, -1)
    x = x.reshape(batch, down, high, right, wide, width)
    return x.swapaxes(2, 3).reshape(-1, high * wide, width)

  def join(self, x: Float[Array, 'W A C']) -> Float[Array, 'B N C']:
    """The inverse of `split`."""
    (down, right), (high, wide) = self.count, self.size
    rows, columns = self.grid
    width = x.shape[-1]
    x = x.reshape(-1, down, right, high, wide, width).swapaxes(2, 3)
    x = x.reshape(-1, down * high, right * wide, width)
    if not self.roll_first:
      x = self._roll(x, 1)
    x = x[:, :rows, :columns]
    if self.roll_first:
      x = self._roll(x, 1)
    return x.reshape(-1, rows * columns, width)

  def regions(self) -> Int[np.ndarray, 'V A']:
    """Numbers of the parts of the V windows: those alike were neighbours."""
    (down, right), (high, wide) = self.count, self.size
    row, column = np.arange(down * high), np.arange(right * wide)
    late = row >= len(row) - self.shift[0]
    right_of = column >= len(column) - self.shift[1]
    number = 2 * late[:, None] + right_of[None]
    number = number.reshape(down, high, right, wide)
    return number.swapaxes(1, 2).reshape(down * right, high * wide)

  def offsets(
    self, table: tuple[int, int] | None = None
  ) -> Int[np.ndarray, 'A A']:
    """Row of a table of biases for each query and key of a window.

    (Δrow + rows - 1) · (2·columns - 1) + Δcolumn + columns - 1 by the offset
    from key to query, where (rows, columns) is the window that the table is
    for, `size` if not told.
    """
    rows, columns = table or self.size
    y, x = np.mgrid[: self.size[0], : self.size[1]].reshape(2, -1)
    down = y[:, None] - y[None] + rows - 1
    right = x[:, None] - x[None] + columns - 1
    return down * (2 * columns - 1) + right

  def _roll(self, x, sign: int):
    if not any(self.shift):
      return x
    return jnp.roll(x, [sign * s for s in self.shift], axis=(1, 2))
