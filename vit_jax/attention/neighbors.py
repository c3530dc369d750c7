"""Patterns of neighbours along axes: rows and columns, or the sequence."""

import dataclasses
import functools
import math
from typing import Any

import numpy as np

from vit_jax.attention.algebra import Layout, Pattern, Sized, Tokens


def _all(conditions: Any) -> Any:
  return functools.reduce(lambda a, b: a & b, conditions)


class _Near(Sized):
  """Keys within `reach` of the query along each axis, or some of them."""

  def reach(self) -> int:
    """The largest distance along an axis."""
    raise NotImplementedError

  def order(self, tokens: Tokens, block: int) -> np.ndarray:
    """Square tiles: their queries share most keys."""
    sides = tokens.layout.sides
    label = np.zeros_like(tokens.index)
    target = block if len(sides) == 1 else math.isqrt(block)
    for x, side in zip(tokens.axes, sides, strict=True):
      tiles = -(-side // target)
      tile = -(-side // max(tiles, 1))
      label = label * tiles + x // max(tile, 1)
    return label

  def candidates(self, query: Tokens, key: Layout) -> np.ndarray:
    """The box around the queries."""
    far = self.reach()
    return key.box([(x.min() - far, x.max() + far) for x in query.axes])


@dataclasses.dataclass(frozen=True)
class Window(_Near):
  """Non-overlapping windows: ⌊(x - shift)/size⌋ equal along each axis.

  With a shift they are those of Swin's cyclic shift with its mask, since the
  mask cuts the windows that wrap around: what is left are plain windows that
  begin `shift` later. A window that covers a side is not shifted along it.
  Liu et al. 2021, section 3.2.
  """

  shift: int = 0

  def reach(self) -> int:
    """See `_Near`."""
    return self.size - 1

  def _windows(self, tokens: Tokens) -> list[Any]:
    return [
      (x - (self.shift if self.size < side else 0)) // self.size
      for x, side in zip(tokens.axes, tokens.layout.sides, strict=True)
    ]

  def keep(self, query: Tokens, key: Tokens) -> Any:
    """See `Pattern`."""
    pairs = zip(self._windows(query), self._windows(key), strict=True)
    return _all(a == b for a, b in pairs)

  def order(self, tokens: Tokens, block: int) -> np.ndarray:
    """By window."""
    label = np.zeros_like(tokens.index)
    sides = tokens.layout.sides
    for u, side in zip(self._windows(tokens), sides, strict=True):
      label = label * (side // self.size + 3) + u + 1
    return label


class Sliding(_Near):
  """|x - y| ≤ size // 2 along each axis; cut off at the borders."""

  def reach(self) -> int:
    """See `_Near`."""
    return self.size // 2

  def keep(self, query: Tokens, key: Tokens) -> Any:
    """See `Pattern`."""
    pairs = zip(query.axes, key.axes, strict=True)
    return _all(abs(a - b) <= self.reach() for a, b in pairs)


class Neighborhood(_Near):
  """The `size` nearest along each axis: moved inwards at the borders.

  Every query has the same number of keys. A side shorter than `size` is kept
  whole. Hassani et al. 2023, eq. 1.
  """

  def __post_init__(self):
    super().__post_init__()
    if self.size % 2 == 0:
      raise ValueError(
        f'Neighborhood is centred on its query, so size is odd, not {self.size}'
      )

  def reach(self) -> int:
    """See `_Near`."""
    return self.size - 1

  def keep(self, query: Tokens, key: Tokens) -> Any:
    """See `Pattern`."""
    conditions = []
    for a, b, side in zip(query.axes, key.axes, key.layout.sides, strict=True):
      size = min(self.size, side)
      start = (a - size // 2).clip(0, side - size)
      conditions.append((start <= b) & (b < start + size))
    return _all(conditions)


@dataclasses.dataclass(frozen=True)
class Dilated(_Near):
  """Every `dilation`-th of a sliding window: `size // 2` to each side.

  Beltagy et al. 2020, figure 2c.
  """

  dilation: int = 2

  def reach(self) -> int:
    """See `_Near`."""
    return self.size // 2 * self.dilation

  def keep(self, query: Tokens, key: Tokens) -> Any:
    """See `Pattern`."""
    return _all(
      (abs(a - b) <= self.reach()) & ((a - b) % self.dilation == 0)
      for a, b in zip(query.axes, key.axes, strict=True)
    )

  def order(self, tokens: Tokens, block: int) -> np.ndarray:
    """Tiles of one residue along each axis, which is a grid of its own."""
    label = super().order(tokens, block * self.dilation ** len(tokens.axes))
    for x in tokens.axes:
      label = label * self.dilation + x % self.dilation
    return label


@dataclasses.dataclass(frozen=True)
class Image2D(Sized):
  """A square of `size` sees itself extended to the top, left and right.

  By `memory` rows and columns. Parmar et al. 2018, 2D local attention.
  """

  memory: int

  def keep(self, query: Tokens, key: Tokens) -> Any:
    """See `Pattern`."""
    top = query.row // self.size * self.size
    left = query.column // self.size * self.size
    return (
      (top - self.memory <= key.row)
      & (key.row < top + self.size)
      & (left - self.memory <= key.column)
      & (key.column < left + self.size + self.memory)
    )

  def order(self, tokens: Tokens, block: int) -> np.ndarray:
    """By square."""
    wide = tokens.layout.columns // self.size + 1
    return tokens.row // self.size * wide + tokens.column // self.size

  def candidates(self, query: Tokens, key: Layout) -> np.ndarray:
    """The rows around."""
    far = self.size + self.memory
    first = max(query.row.min() - far, 0) * key.columns
    last = min((query.row.max() + far) * key.columns, key.length)
    return key.prefix + np.arange(first, last, dtype=np.int32)


@dataclasses.dataclass(frozen=True)
class Row(Pattern):
  """Keys in the query's row."""

  def keep(self, query: Tokens, key: Tokens) -> Any:
    """See `Pattern`."""
    return query.row == key.row

  def order(self, tokens: Tokens, block: int) -> np.ndarray:
    """By row."""
    return tokens.row

  def candidates(self, query: Tokens, key: Layout) -> np.ndarray:
    """The rows of the queries."""
    first = max(query.row.min(), 0) * key.columns
    last = min((query.row.max() + 1) * key.columns, key.length)
    return key.prefix + np.arange(first, last, dtype=np.int32)


@dataclasses.dataclass(frozen=True)
class Column(Pattern):
  """Keys in the query's column."""

  def keep(self, query: Tokens, key: Tokens) -> Any:
    """See `Pattern`."""
    return query.column == key.column

  def order(self, tokens: Tokens, block: int) -> np.ndarray:
    """By column."""
    return tokens.column

  def candidates(self, query: Tokens, key: Layout) -> np.ndarray:
    """The columns of the queries."""
    columns = np.unique(query.column)
    place = np.arange(0, key.length, key.columns, dtype=np.int32)
    place = np.add.outer(place, columns).ravel()
    return key.prefix + place[place < key.length]
