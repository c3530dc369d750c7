"""Patterns of places in the sequence, in raster order where there is a grid."""

import dataclasses
import functools
from typing import Any

import numpy as np

from vit_jax.attention.algebra import Layout, Sized, Tokens


class _InSequence(Sized):
  """Queries of consecutive places share most keys."""

  def _around(self, query: Tokens, key: Layout, far: int) -> np.ndarray:
    first = max(query.place.min() - far, 0)
    last = min(query.place.max() + far + 1, key.length)
    return key.prefix + np.arange(first, last, dtype=np.int32)

  def order(self, tokens: Tokens, block: int) -> np.ndarray | None:
    """Consecutive queries."""
    return tokens.place // block


@dataclasses.dataclass(frozen=True)
class _Spaced(_InSequence):
  """Without a size it is the columns of the grid: √N in a sequence."""

  size: int | None = None

  def _of(self, layout: Layout) -> int:
    return self.size or layout.columns


class Band(_Spaced):
  """Fewer than `size` places away: |i - j| < size. Child et al. 2019."""

  def keep(self, query: Tokens, key: Tokens) -> Any:
    """See `Pattern`."""
    return abs(query.place - key.place) < self._of(key.layout)

  def candidates(self, query: Tokens, key: Layout) -> np.ndarray:
    """Those around."""
    return self._around(query, key, self._of(key) - 1)


class Chunk(_Spaced):
  """The same of consecutive chunks: ⌊i/size⌋ = ⌊j/size⌋. Child et al. 2019."""

  def keep(self, query: Tokens, key: Tokens) -> Any:
    """See `Pattern`."""
    size = self._of(key.layout)
    return query.place // size == key.place // size

  def order(self, tokens: Tokens, block: int) -> np.ndarray:
    """By chunk."""
    return tokens.place // self._of(tokens.layout)

  def candidates(self, query: Tokens, key: Layout) -> np.ndarray:
    """Those around."""
    return self._around(query, key, self._of(key) - 1)


class Strided(_Spaced):
  """Every `size`-th: (i - j) mod size = 0. Child et al. 2019."""

  def keep(self, query: Tokens, key: Tokens) -> Any:
    """See `Pattern`."""
    return (query.place - key.place) % self._of(key.layout) == 0

  def order(self, tokens: Tokens, block: int) -> np.ndarray:
    """By residue."""
    return tokens.place % self._of(tokens.layout)

  def candidates(self, query: Tokens, key: Layout) -> np.ndarray:
    """Those of the residues of the queries."""
    size = self._of(key)
    residues = np.unique(query.place % size)
    place = np.arange(0, key.length, size, dtype=np.int32)
    place = np.add.outer(place, residues).ravel()
    return key.prefix + place[place < key.length]


@dataclasses.dataclass(frozen=True)
class Summary(_Spaced):
  """The last `count` of every `size` keys: j mod size ≥ size - count.

  Child et al. 2019, the fixed pattern's second head.
  """

  count: int = 1

  def keep(self, query: Tokens, key: Tokens) -> Any:
    """See `Pattern`."""
    size = self._of(key.layout)
    return key.place % size >= size - self.count

  def order(self, tokens: Tokens, block: int) -> None:
    """All queries keep the same."""

  def candidates(self, query: Tokens, key: Layout) -> np.ndarray:
    """The summaries."""
    size = self._of(key)
    place = np.arange(key.length, dtype=np.int32)
    return key.prefix + place[place % size >= size - self.count]


@dataclasses.dataclass(frozen=True)
class Image1D(_InSequence):
  """A chunk of `size` sees itself and the `memory` places before it.

  Parmar et al. 2018, 1D local attention.
  """

  memory: int

  def keep(self, query: Tokens, key: Tokens) -> Any:
    """See `Pattern`."""
    start = query.place // self.size * self.size
    return (start - self.memory <= key.place) & (key.place < start + self.size)

  def order(self, tokens: Tokens, block: int) -> np.ndarray:
    """By chunk."""
    return tokens.place // self.size

  def candidates(self, query: Tokens, key: Layout) -> np.ndarray:
    """Those around."""
    return self._around(query, key, self.size + self.memory)


@dataclasses.dataclass(frozen=True)
class Blocks(_InSequence):
  """Blocks of `size` see those at most `reach` blocks away.

  Zaheer et al. 2020, section 2: u - 1, u and u + 1.
  """

  reach: int = 1

  def keep(self, query: Tokens, key: Tokens) -> Any:
    """See `Pattern`."""
    distance = query.place // self.size - key.place // self.size
    return abs(distance) <= self.reach

  def order(self, tokens: Tokens, block: int) -> np.ndarray:
    """By block."""
    return tokens.place // self.size

  def candidates(self, query: Tokens, key: Layout) -> np.ndarray:
    """Those around."""
    return self._around(query, key, self.size * (self.reach + 1))


class Ends(_InSequence):
  """All pairs with a token of the first or the last block of `size`.

  BigBird's global tokens. Zaheer et al. 2020, section 2.
  """

  def _at_end(self, tokens: Tokens) -> Any:
    last = (tokens.layout.length - 1) // self.size
    block = tokens.place // self.size
    return (block == 0) | (block == last)

  def keep(self, query: Tokens, key: Tokens) -> Any:
    """See `Pattern`."""
    return self._at_end(query) | self._at_end(key)

  def order(self, tokens: Tokens, block: int) -> None:
    """All queries but those at the ends keep the same."""

  def candidates(self, query: Tokens, key: Layout) -> np.ndarray | None:
    """The ends, if no query is there."""
    if self._at_end(query).any():
      return None
    place = np.arange(key.length, dtype=np.int32)
    last = (key.length - 1) // self.size
    ends = (place < self.size) | (place >= last * self.size)
    return key.prefix + place[ends]


@dataclasses.dataclass(frozen=True)
class Random(_InSequence):
  """Every block of `size` sees `count` others, drawn once by `seed`.

  They are neither its neighbours nor the ends, which BigBird has anyway; where
  fewer are left, all of them. Zaheer et al. 2020, section 2.
  """

  count: int = 3
  seed: int = 0

  def _picks(self, length: int) -> np.ndarray:
    blocks = max(-(-length // self.size), 1)
    return _random_blocks(blocks, self.count, self.seed)

  def keep(self, query: Tokens, key: Tokens) -> Any:
    """See `Pattern`."""
    picks = self._picks(key.layout.length)
    u, v = query.place // self.size, key.place // self.size
    # NumPy's arrays cannot be indexed by traced ones: the namespace is u's.
    picks = u.__array_namespace__().asarray(picks)
    found = (u < 0) & (v < 0)
    for column in range(picks.shape[1]):
      found = found | (picks[u.clip(0), column] == v)
    return found & (u >= 0)

  def order(self, tokens: Tokens, block: int) -> np.ndarray:
    """By block."""
    return tokens.place // self.size

  def candidates(self, query: Tokens, key: Layout) -> np.ndarray:
    """The drawn blocks."""
    u = np.unique((query.place // self.size).clip(0))
    drawn = np.unique(self._picks(key.length)[u])
    place = drawn[drawn >= 0, None] * self.size + np.arange(self.size)
    place = place.ravel().astype(np.int32)
    return key.prefix + place[place < key.length]


@functools.lru_cache(maxsize=64)
def _random_blocks(blocks: int, count: int, seed: int) -> np.ndarray:
  """Int[blocks, ≤ count]: the drawn blocks of each, -1 where none is left."""
  picks = np.full((blocks, max(0, min(count, blocks - 3))), -1, np.int32)
  for u in range(blocks):
    rng = np.random.default_rng((seed, u))
    others = np.arange(1, blocks - 1)
    others = others[abs(others - u) > 1]
    drawn = rng.choice(others, min(picks.shape[1], len(others)), replace=False)
    picks[u, : len(drawn)] = np.sort(drawn)
  return picks
