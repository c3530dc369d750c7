"""Attention over the blocks of a pattern's kept pairs, gathered and merged.

Each block of `tables.py` gathers its keys, and the pattern's predicate, on the
gathered positions, masks the pairs of the block that a query does not keep.
Nothing of size N×N exists anywhere.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.attention.algebra import Tokens
from vit_jax.attention.tables import Part, Table
from vit_jax.shapes import Array, Bool, Float, Int


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
