"""The fixed patterns, as papers name them, and how to write them in a string.

`parse('sliding(size=9) | row & causal')` reads one. Distances are between
`axes`: rows and columns on a grid, places in a sequence; patterns that say
"sequence" count places in raster order on a grid too. The prefix has negative
places: kernels join `Prefix` to every pattern, so that it sees and is seen.
"""

import ast
import dataclasses
import functools
import math
from typing import Any

import numpy as np

from vit_jax import specs
from vit_jax.attention.algebra import (
  And,
  Layout,
  Not,
  Or,
  Pattern,
  PerHead,
  Tokens,
)


def _all(conditions: Any) -> Any:
  return functools.reduce(lambda a, b: a & b, conditions)


@dataclasses.dataclass(frozen=True)
class _Sized(Pattern):
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


class _Near(_Sized):
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


class _InSequence(_Sized):
  """A pattern of places in the sequence, whether or not there is a grid."""

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
class Image2D(_Sized):
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
    return Strided(key.columns).candidates(query, key)


@dataclasses.dataclass(frozen=True)
class Full(Pattern):
  """Every key."""

  def keep(self, query: Tokens, key: Tokens) -> Any:
    """See `Pattern`."""
    return key.index >= 0


@dataclasses.dataclass(frozen=True)
class Causal(Pattern):
  """The query itself and what is before it."""

  def keep(self, query: Tokens, key: Tokens) -> Any:
    """See `Pattern`."""
    return key.index <= query.index


@dataclasses.dataclass(frozen=True)
class Prefix(Pattern):
  """All pairs with a prefix token among them."""

  def keep(self, query: Tokens, key: Tokens) -> Any:
    """See `Pattern`."""
    return (query.place < 0) | (key.place < 0)

  def candidates(self, query: Tokens, key: Layout) -> np.ndarray | None:
    """The prefix, if no query is in it."""
    some = query.place.min() < 0
    return None if some else np.arange(key.prefix, dtype=np.int32)


@dataclasses.dataclass(frozen=True)
class Global(Pattern):
  """All pairs with one of the first `count` tokens after the prefix."""

  count: int

  def keep(self, query: Tokens, key: Tokens) -> Any:
    """See `Pattern`."""
    first = lambda x: (x >= 0) & (x < self.count)  # noqa: E731
    return first(query.place) | first(key.place)

  def candidates(self, query: Tokens, key: Layout) -> np.ndarray | None:
    """The global tokens, if no query is one."""
    if query.place.min() < self.count:
      return None
    return key.prefix + np.arange(min(self.count, key.length), dtype=np.int32)


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


PATTERNS: dict[str, type[Pattern]] = {
  'full': Full,
  'causal': Causal,
  'prefix': Prefix,
  'globals': Global,  # `global` is a word of Python
  'window': Window,
  'sliding': Sliding,
  'neighborhood': Neighborhood,
  'dilated': Dilated,
  'row': Row,
  'column': Column,
  'band': Band,
  'chunk': Chunk,
  'strided': Strided,
  'summary': Summary,
  'image1d': Image1D,
  'image2d': Image2D,
  'blocks': Blocks,
  'ends': Ends,
  'random': Random,
}


def parse(text: str | tuple[str, ...]) -> Pattern | PerHead:
  """Reads `'sliding(size=9) | strided(size=4) & causal'`.

  Operators bind as in Python: ~, then &, then |. Several texts are one a head.

  Raises:
    ValueError: anything but names of `PATTERNS` with literal options.
  """
  if not isinstance(text, str):
    return PerHead(tuple(parse(t) for t in text))
  try:
    tree = ast.parse(text.strip(), mode='eval').body
  except SyntaxError as e:
    raise ValueError(
      f'cannot read the pattern {text!r} ({e.msg}); write names with options, '
      f'joined by &, | and ~; {specs.nearest("", PATTERNS)}'
    ) from None
  return _read(tree)


def _read(node: ast.expr) -> Pattern:
  for operator, join in ((ast.BitOr, Or), (ast.BitAnd, And)):
    if isinstance(node, ast.BinOp) and isinstance(node.op, operator):
      return join(_read(node.left), _read(node.right))
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
    return Not(_read(node.operand))
  return specs.build(ast.unparse(node), PATTERNS, 'pattern')


def mask(
  pattern: Any,
  n: int,
  grid: tuple[int, int] | None = None,
  prefix: int = 0,
  planar: bool = False,
) -> np.ndarray:
  """The pattern as Bool[N N], query × key; of a `PerHead`, Bool[P N N].

  Prefix tokens see and are seen by all. An attention by a pattern may be given
  instead: then layout and causality are the attention's own.
  """
  if hasattr(pattern, 'support'):
    return pattern.support(n)
  if isinstance(pattern, PerHead):
    found = [mask(p, n, grid, prefix, planar) for p in pattern.patterns]
    return np.stack(found)
  layout = Layout.of(n, grid, prefix, planar)
  return kept(pattern | Prefix() if prefix else pattern, layout)


def kept(pattern: Pattern, layout: Layout) -> np.ndarray:
  """The pattern, as it is written, as Bool[N N]; in memory O(N²)."""
  tokens = layout.tokens(np.arange(layout.n, dtype=np.int32))
  found = pattern.keep(tokens[:, None], tokens[None])
  return np.broadcast_to(found, (layout.n, layout.n))


__all__ = [
  'PATTERNS', 'Layout', 'Pattern', 'PerHead', 'Tokens', 'kept', 'mask', 'parse',
]  # fmt: skip
