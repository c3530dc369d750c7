"""Attention over a pattern's kept pairs: tables of blocks, gathered and merged.

The queries of a block share one list of keys, the union of what they keep. The
lists are made once on the host; on the device each block gathers its keys, and
the pattern's predicate, on the gathered positions, masks the pairs of the union
that a query does not keep. Nothing of size N×N exists anywhere.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.attention.algebra import Layout, Pattern, Tokens
from vit_jax.shapes import Array, Bool, Float, Int


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


class Arrays(NamedTuple):
  """What is added to logits or masks them; as for `Attention`.

  Attributes:
    relative: (query, key) → Float[H, *pairs], a bias made of positions.
  """

  key_mask: Bool[Array, 'B M'] | None = None
  mask: Bool[Array, '#B #H N M'] | None = None
  bias: Float[Array, '#B #H N M'] | None = None
  segments: Int[Array, 'B N'] | None = None
  relative: Callable[[Tokens, Tokens], Array] | None = None

  def of_heads(
    self, heads: slice, relative: Callable[[Tokens, Tokens], Array] | None
  ) -> 'Arrays':
    """These for some of the heads, and with a bias of positions."""

    def some(x):
      return x if x is None or x.shape[1] == 1 else x[:, heads]

    if relative is None:
      bias = None
    else:
      bias = lambda query, key: relative(query, key)[heads]  # noqa: E731
    return self._replace(
      mask=some(self.mask), bias=some(self.bias), relative=bias
    )


def attend(
  q: Float[Array, 'B H N D'],
  parts: list[tuple[Part, Array, Array, Arrays]],
  drop: Callable[[Array], Array] = lambda x: x,
) -> Float[Array, 'B H N E']:
  """One softmax over the keys of all parts; a query without any gets zeros.

  Each part is (part, k [B H M D], v [B H M E], arrays), with keys of its own.
  Parts are merged by their log-sum-exp: exactly. Heads come before tokens, see
  `softmax.py`. `drop` is dropout of the unnormalised weights.
  """
  found = [_attend(q, *part, drop) for part in parts]
  out, total, top = found[0]
  for values, weight, largest in found[1:]:
    most = jnp.maximum(top, largest)
    a, b = jnp.exp(top - most), jnp.exp(largest - most)
    out = out * a[..., None] + values * b[..., None]
    total, top = total * a + weight * b, most
  out = out / jnp.where(total > 0, total, 1.0)[..., None]
  return out.astype(parts[0][2].dtype)


def _attend(q, part: Part, k, v, arrays: Arrays, drop):
  """(Σ powers·values [B H N E], Σ powers [B H N], largest logit [B H N])."""
  found = [_table_powers(q, part, t, k, v, arrays, drop) for t in part.tables]
  length = sum(t.queries.size for t in part.tables)
  if _is_all(part.rows[None], length):
    return found[0]
  # A query that is in no block has no key here.
  mode = 'fill' if part.rows.max() == length else 'clip'

  def in_place(columns, fill):
    x = jnp.concatenate(columns, axis=2) if len(columns) > 1 else columns[0]
    return jnp.take(x, part.rows, axis=2, mode=mode, fill_value=fill)

  fills = (0, 0, jnp.finfo(jnp.float32).min)
  return tuple(map(in_place, zip(*found, strict=True), fills))


# Masks of at most so many pairs are made by NumPy and compiled in, as bytes.
# Longer ones are made on the device at each call, from the tables.
CONSTANT = 2**16


def _table_powers(q, part: Part, table: Table, k, v, arrays: Arrays, drop):
  """What `_attend` says, of one table's queries in their order."""
  rows, columns = table
  if table.pairs > CONSTANT:
    # The barrier keeps XLA from evaluating the masks while it compiles.
    rows, columns = jax.lax.optimization_barrier((rows, columns))
  # Padding stands for the last token, so that patterns may index by it.
  query = part.query.tokens(rows.clip(0, part.query.n - 1)[:, :, None])
  key = part.key.tokens(columns.clip(0, part.key.n - 1)[:, None, :])
  all_rows = _is_all(table.queries, part.query.n)
  all_keys = _is_all(table.keys, part.key.n)

  def take(x, index, everything):
    if everything:
      return x[:, :, None]
    return jnp.take(x, index, axis=2, mode='clip')

  def of_pairs(x):
    if all_rows and all_keys:
      return x[:, :, None]
    return x.at[:, :, rows[:, :, None], columns[:, None]].get(mode='clip')

  def of(x, index):
    return jnp.take(x, index, axis=1, mode='clip')[:, None]

  q = take(q, rows, all_rows)
  k, v = (take(x, columns, all_keys) for x in (k, v))
  logits = jnp.einsum(
    'bhcqd,bhcud->bhcqu', q * q.shape[-1] ** -0.5, k,
    preferred_element_type=jnp.float32,
  )  # fmt: skip
  if arrays.bias is not None:
    logits += of_pairs(arrays.bias).astype(jnp.float32)
  if arrays.relative is not None:
    logits += arrays.relative(query, key).astype(jnp.float32)[None]
  keep = part.pattern.keep(query, key) & (columns < part.key.n)[:, None, :]
  always = isinstance(keep, np.ndarray) and keep.all()
  keep = [] if always else [keep[None, None]]
  if arrays.key_mask is not None:
    keep.append(of(arrays.key_mask, columns)[:, :, :, None])
  if arrays.segments is not None:
    keep.append(
      of(arrays.segments, rows)[..., None]
      == of(arrays.segments, columns)[:, :, :, None]
    )
  if arrays.mask is not None:
    keep.append(of_pairs(arrays.mask))
  keep = functools.reduce(lambda a, b: a & b, keep) if keep else None
  # As in `base.powers_of`, but the largest is needed to merge the parts.
  if keep is not None:
    logits = jnp.where(keep, logits, jnp.finfo(jnp.float32).min)
  top = jax.lax.stop_gradient(logits.max(axis=-1))
  powers = jnp.exp(logits - top[..., None])
  if keep is not None:
    powers = jnp.where(keep, powers, 0.0)
  values = jnp.einsum(
    'bhcqu,bhcue->bhcqe', drop(powers).astype(v.dtype), v,
    preferred_element_type=jnp.float32,
  )  # fmt: skip
  flat = lambda x: x.reshape(*x.shape[:2], -1, *x.shape[4:])  # noqa: E731
  return flat(values), flat(powers.sum(axis=-1)), flat(top)


def _is_all(index: np.ndarray, count: int) -> bool:
  return np.array_equal(index, np.arange(count)[None])
