"""Tables of the blocks of a pattern's kept pairs, made once on the host.

The queries of a block share one list of keys, the union of what they keep.
Making the lists takes time and memory proportional to the pairs in the blocks.
"""

import functools
from typing import NamedTuple

import numpy as np

from vit_jax.attention.algebra import Layout, Pattern, Tokens


class Table(NamedTuple):
  """Blocks of queries and their keys; padded with the numbers of tokens.

  Attributes:
    queries: Int[blocks Q].
    keys: Int[blocks U].
  """

  queries: np.ndarray
  keys: np.ndarray

  @property
  def pairs(self) -> int:
    """Query-key pairs that are computed."""
    return self.keys.size * self.queries.shape[1]


class Part(NamedTuple):
  """A pattern and tables that hold all its pairs.

  Attributes:
    pattern: disjoint from those of the other parts.
    query, key: layouts of the two.
    tables: a few sizes of blocks, so that padding stays small.
    rows: Int[N], where each query is in the concatenated blocks, or behind
      their end if it keeps nothing.
  """

  pattern: Pattern
  query: Layout
  key: Layout
  tables: tuple[Table, ...]
  rows: np.ndarray


def split(pattern: Pattern, tokens: Tokens, block: int):
  """[(pattern, order)]: disjoint patterns, each with an order of its own.

  The members of a union whose queries are best grouped differently (rows and
  columns) cannot share blocks: (A | B) becomes A and (B & ~A).
  """
  groups: list[tuple[Pattern, np.ndarray]] = []
  indifferent = []
  for term in pattern.terms():
    order = term.order(tokens, block)
    if order is None:
      indifferent.append(term)
      continue
    for i, (other, found) in enumerate(groups):
      if np.array_equal(order, found):
        groups[i] = (other | term, found)
        break
    else:
      groups.append((term, order))
  if not groups:
    groups = [(indifferent.pop(), tokens.index // block)]
  first, order = groups[0]
  for term in indifferent:
    first = first | term
  groups[0] = (first, order)
  before, parts = None, []
  for term, order in groups:
    parts.append((term if before is None else term & ~before, order))
    before = term if before is None else before | term
  return parts


@functools.lru_cache(maxsize=256)
def plan(
  pattern: Pattern, query: Layout, key: Layout, block: int = 0
) -> tuple[Part, ...]:
  """The parts of a pattern, by NumPy, in memory proportional to their pairs.

  `block` is the most queries that share a list of keys; 0 chooses it.
  """
  block = block or _typical(pattern, query, key)
  tokens = query.tokens(np.arange(query.n, dtype=np.int32))
  parts = [
    _part(term, query, key, np.where(tokens.place < 0, -1, order), block)
    for term, order in split(pattern, tokens, block)
  ]
  return tuple(part for part in parts if part.tables) or (_none(parts[0]),)


def whole(pattern: Pattern, query: Layout, key: Layout) -> tuple[Part, ...]:
  """The plan of one block that holds every pair."""
  rows = np.arange(query.n, dtype=np.int32)
  keys = np.arange(key.n, dtype=np.int32)
  return (Part(pattern, query, key, (Table(rows[None], keys[None]),), rows),)


def pairs(parts: tuple[Part, ...]) -> int:
  """Query-key pairs that are computed."""
  return sum(table.pairs for part in parts for table in part.tables)


def gathered(parts: tuple[Part, ...]) -> int:
  """Keys that are gathered."""
  return sum(table.keys.size for part in parts for table in part.tables)


def _kept(pattern: Pattern, query: Tokens, key: Layout):
  """(Int[U] candidate keys, Bool[Q U]) of one block of queries."""
  found = pattern.candidates(query, key)
  if found is None:
    found = np.arange(key.n, dtype=np.int32)
  keep = pattern.keep(query[:, None], key.tokens(found)[None])
  return found, np.broadcast_to(keep, (len(query.index), len(found)))


def _typical(pattern: Pattern, query: Layout, key: Layout) -> int:
  """A block as long as a query has keys: its union is about twice that.

  Shorter blocks gather each key more often, longer ones mask most pairs.
  """
  # Multiples of the golden ratio: evenly spread, and over the columns too.
  some = np.unique((np.arange(1, 12) * 0.618034 % 1 * query.n).astype(np.int32))
  counts = [
    _kept(pattern, query.tokens(i), key)[1].sum() for i in some[:, None]
  ]
  power = np.log2(max(np.median(counts), 1))
  return int(2 ** np.clip(np.round(power), 4, 7))


def _part(pattern, query: Layout, key: Layout, order, block: int) -> Part:
  blocks = []
  by_order = np.argsort(order, kind='stable').astype(np.int32)
  borders = np.flatnonzero(np.diff(order[by_order])) + 1
  for group in np.split(by_order, borders):
    for piece in np.array_split(group, -(-len(group) // block)):
      found, keep = _kept(pattern, query.tokens(piece), key)
      counts = keep.sum(axis=1)
      # Queries that see nearly everything would widen the list of the others.
      many = counts > 4 * np.median(counts)
      for rows in (many, ~many & (counts > 0)):
        if rows.any():
          blocks.append((piece[rows], found[keep[rows].any(axis=0)]))
  tables = tuple(_table(group, query.n, key.n) for group in _classes(blocks))
  flat = np.concatenate([[], *(t.queries.ravel() for t in tables)])
  rows = np.full(query.n, len(flat), np.int32)
  real = np.flatnonzero(flat < query.n)
  rows[flat[real].astype(np.int32)] = real
  return Part(pattern, query, key, tables, rows)


def _none(part: Part) -> Part:
  """Stands for a pattern that keeps nothing: one pair, of padding."""
  one = np.ones((1, 1), np.int32)
  table = Table(one * part.query.n, one * part.key.n)
  return part._replace(tables=(table,), rows=np.ones_like(part.rows))


def _table(blocks, queries: int, keys: int) -> Table:
  def padded(lists, value):
    out = np.full((len(lists), max(map(len, lists))), value, np.int32)
    for row, some in zip(out, lists, strict=True):
      row[: len(some)] = some
    return out

  rows, columns = zip(*blocks, strict=True)
  return Table(padded(rows, queries), padded(columns, keys))


def _classes(blocks, most: int = 4, waste: float = 0.05, few: int = 1024):
  """Groups of blocks of similar size: few, as each is compiled by itself.

  Neighbours in the number of keys are merged, cheapest first, while there are
  more than `most`, or it adds at most `few` pairs or `waste` of all pairs.
  """
  sizes: dict[tuple[int, int], list] = {}
  for rows, keys in blocks:
    sizes.setdefault((len(keys), len(rows)), []).append((rows, keys))
  found = [(*size, some) for size, some in sorted(sizes.items())]
  total = sum(u * q * len(some) for u, q, some in found)

  def added(a, b):
    u, q = max(a[0], b[0]), max(a[1], b[1])
    return sum((u * q - x[0] * x[1]) * len(x[2]) for x in (a, b))

  while len(found) > 1:
    costs = [added(*two) for two in zip(found[:-1], found[1:], strict=True)]
    i = int(np.argmin(costs))
    if len(found) <= most and costs[i] > max(waste * total, few):
      break
    a, b = found[i : i + 2]
    found[i : i + 2] = [(max(a[0], b[0]), max(a[1], b[1]), a[2] + b[2])]
  return [some for _, _, some in found]
