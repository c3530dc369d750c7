"""The fixed patterns by name, and how to write them in a string.

`parse('sliding(size=9) | row & causal')` reads one. Distances are between
`axes`: rows and columns on a grid, places in a sequence; patterns of
`sequential.py` count places in raster order on a grid too. The prefix has
negative places: kernels join `Prefix` to every pattern, so that it sees and is
seen.
"""

import ast
import dataclasses
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
from vit_jax.attention.neighbors import (
  Column,
  Dilated,
  Image2D,
  Neighborhood,
  Row,
  Sliding,
  Window,
)
from vit_jax.attention.sequential import (
  Band,
  Blocks,
  Chunk,
  Ends,
  Image1D,
  Random,
  Strided,
  Summary,
)


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
  except (SyntaxError, ValueError) as e:  # of a null byte, before 3.11.4
    raise ValueError(
      f'cannot read the pattern {text!r} ({e.args[0]}); write names with '
      f'options, joined by &, | and ~; {specs.nearest("", PATTERNS)}'
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
  'PATTERNS', 'Band', 'Blocks', 'Causal', 'Chunk', 'Column', 'Dilated', 'Ends',
  'Full', 'Global', 'Image1D', 'Image2D', 'Layout', 'Neighborhood', 'Pattern',
  'PerHead', 'Prefix', 'Random', 'Row', 'Sliding', 'Strided', 'Summary',
  'Tokens', 'Window', 'kept', 'mask', 'parse',
]  # fmt: skip
