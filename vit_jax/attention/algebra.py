"""Algebra of patterns: which keys a query keeps, joined by &, | and ~.

A pattern is a predicate on the positions of queries and keys, so that NumPy
lists the blocks to compute and the kernel evaluates the same predicate on just
those pairs. The patterns themselves are in `patterns.py`.
"""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where n tokens lie: a prefix, then a grid in raster order.

  A sequence is a grid too: the smallest nearly square one, with
  columns = ⌈√(n - prefix)⌉, whose last row may be shorter.

  Attributes:
    n: number of tokens, the prefix included.
    prefix: tokens before the grid.
    rows, columns: of the grid.
    planar: whether neighbours are those on the grid, not in the sequence.
  """

  n: int
  prefix: int
  rows: int
  columns: int
  planar: bool

  @classmethod
  def of(
    cls,
    n: int,
    grid: tuple[int, int] | None = None,
    prefix: int = 0,
    planar: bool = False,
  ) -> 'Layout':
    """The layout of n tokens; `planar` asks for a grid even of a sequence.

    Raises:
      ValueError: prefix and grid do not make n tokens.
    """
    length = n - prefix
    if length < 0 or (grid is not None and math.prod(grid) != length):
      raise ValueError(
        f'prefix={prefix} and grid={grid} do not make {n} tokens'
      )
    if grid is None:
      columns = max(1, math.isqrt(max(0, length - 1)) + 1)
      grid = (-(-length // columns), columns)
    else:
      planar = True
    return cls(n, prefix, *grid, planar)

  @property
  def length(self) -> int:
    """Tokens after the prefix."""
    return self.n - self.prefix

  @property
  def sides(self) -> tuple[int, ...]:
    """(rows, columns) of a plane, (length,) of a sequence."""
    return (self.rows, self.columns) if self.planar else (self.length,)

  def tokens(self, index: Any) -> 'Tokens':
    """The tokens with these indices, a NumPy or JAX array of int32."""
    place = index - self.prefix
    return Tokens(
      index, place, place // self.columns, place % self.columns, self
    )

  def box(self, ranges: Any) -> np.ndarray:
    """Indices of the tokens inside inclusive ranges, one a side."""
    inside = [
      np.arange(max(low, 0), min(high + 1, side), dtype=np.int32)
      for (low, high), side in zip(ranges, self.sides, strict=True)
    ]
    place = inside[-1]
    if self.planar:
      place = (inside[0][:, None] * self.columns + place).ravel()
    return self.prefix + place[place < self.length]


@dataclasses.dataclass(frozen=True)
class Tokens:
  """Positions of some tokens; each an array, all of one shape.

  Attributes:
    index: among all tokens.
    place: in the sequence after the prefix; negative in the prefix.
    row, column: on the grid; meaningless in the prefix.
    layout: of all tokens.
  """

  index: Any
  place: Any
  row: Any
  column: Any
  layout: Layout

  @property
  def axes(self) -> tuple[Any, ...]:
    """(row, column) on a plane, (place,) in a sequence."""
    return (self.row, self.column) if self.layout.planar else (self.place,)

  def __getitem__(self, at: Any) -> 'Tokens':
    return Tokens(
      self.index[at], self.place[at], self.row[at], self.column[at], self.layout
    )


class Pattern:
  """Which keys each query keeps; a subclass is a frozen dataclass.

  Only `keep` says what the pattern is. `order` and `candidates` are hints that
  make it cheap, and cannot make it wrong.
  """

  def keep(self, query: Tokens, key: Tokens) -> Any:
    """Bool array, NumPy or JAX, that broadcasts to the shape of the pairs."""
    raise NotImplementedError

  def order(self, tokens: Tokens, block: int) -> np.ndarray | None:
    """A number a token: queries with equal ones have nearly the same keys.

    The kernel gathers keys once for such a group of queries (or for a piece of
    it, of at most `block`). None: any grouping is as good.
    """
    del tokens, block

  def candidates(self, query: Tokens, key: Layout) -> np.ndarray | None:
    """Indices of keys, some too many, among which are all that are kept.

    None: all keys.
    """
    del query, key

  def terms(self) -> tuple['Pattern', ...]:
    """Patterns whose union this is, each with an order of its own."""
    return (self,)

  def __and__(self, other: 'Pattern') -> 'Pattern':
    return And(self, other)

  def __or__(self, other: 'Pattern') -> 'Pattern':
    return Or(self, other)

  def __invert__(self) -> 'Pattern':
    return Not(self)


def _first(a: Pattern, b: Pattern, tokens: Tokens, block: int):
  found = a.order(tokens, block)
  return b.order(tokens, block) if found is None else found


@dataclasses.dataclass(frozen=True)
class And(Pattern):
  """Keys that both keep."""

  a: Pattern
  b: Pattern

  def keep(self, query: Tokens, key: Tokens) -> Any:
    """See `Pattern`."""
    return self.a.keep(query, key) & self.b.keep(query, key)

  def order(self, tokens: Tokens, block: int) -> np.ndarray | None:
    """Of the first that has one."""
    return _first(self.a, self.b, tokens, block)

  def candidates(self, query: Tokens, key: Layout) -> np.ndarray | None:
    """The common ones."""
    a, b = self.a.candidates(query, key), self.b.candidates(query, key)
    if a is None or b is None:
      return b if a is None else a
    return np.intersect1d(a, b)

  def terms(self) -> tuple[Pattern, ...]:
    """(A | B) & C = (A & C) | (B & C), unless that makes many."""
    a, b = self.a.terms(), self.b.terms()
    if len(a) * len(b) > 8:
      return (self,)
    return tuple(And(x, y) for x, y in itertools.product(a, b))


@dataclasses.dataclass(frozen=True)
class Or(Pattern):
  """Keys that either keeps."""

  a: Pattern
  b: Pattern

  def keep(self, query: Tokens, key: Tokens) -> Any:
    """See `Pattern`."""
    return self.a.keep(query, key) | self.b.keep(query, key)

  def order(self, tokens: Tokens, block: int) -> np.ndarray | None:
    """Of the first that has one."""
    return _first(self.a, self.b, tokens, block)

  def candidates(self, query: Tokens, key: Layout) -> np.ndarray | None:
    """Those of both."""
    a, b = self.a.candidates(query, key), self.b.candidates(query, key)
    return None if a is None or b is None else np.union1d(a, b)

  def terms(self) -> tuple[Pattern, ...]:
    """Those of both."""
    return self.a.terms() + self.b.terms()


@dataclasses.dataclass(frozen=True)
class Not(Pattern):
  """Keys that the pattern does not keep."""

  a: Pattern

  def keep(self, query: Tokens, key: Tokens) -> Any:
    """See `Pattern`."""
    return ~self.a.keep(query, key)


@dataclasses.dataclass(frozen=True)
class PerHead:
  """Head h keeps what `patterns[h % len(patterns)]` keeps."""

  patterns: tuple[Pattern, ...]


@dataclasses.dataclass(frozen=True)
class Sized(Pattern):
  """A pattern of one size, at least 1."""

  size: int

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value, least = getattr(self, field.name), self._least(field.name)
      if value is not None and value < least:
        raise ValueError(
          f'{type(self).__name__} needs {field.name} ≥ {least}, not {value}'
        )

  @staticmethod
  def _least(name: str) -> int:
    return 0 if name in ('shift', 'memory', 'reach', 'seed') else 1
