"""Reformer: tokens that hash alike attend to each other."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.attention.multihead import Mixer, project, project_out
from vit_jax.shapes import Array, Bool, Float, Int


class Reformer(Mixer):
  """Shared-QK attention within hash buckets. Kitaev et al. 2020, section 2.

  Queries are keys, k_j = q_j / ‖q_j‖. Of each round r the bucket of a token is
  h_r(q) = argmax [qR; -qR]. Tokens are sorted by (bucket, position) to places
  s_r and cut into chunks of m; a token sees

    P_i^r = {j : h_r(j) = h_r(i), 0 ≤ ⌊s_r(i)/m⌋ - ⌊s_r(j)/m⌋ ≤ 1}   (eq. 9)

  and itself only if nothing else (its logit minus 1e5). Rounds are merged by
  log-sum-exp, each pair divided by the rounds that hold it (appendix A), so the
  result is one softmax of q_i·k_j / √D over ∪_r P_i^r. Costs rounds·N·chunk,
  comparing pairs rounds²·N·chunk without products, N log N for sorting and
  N·√(N/chunk) for hashing.

  Departures. Causal: s_r(i) depends on how many *later* tokens fall in earlier
  buckets, so the paper's chunks leak the future through their borders; here
  the causal form sees 0 ≤ s_r(i) - s_r(j) ≤ m, itself and the m tokens before
  it in its bucket, which no later token can change. Masked tokens are a last
  bucket, never attended to; they get no value. Prefix tokens are tokens like
  the others.

  Rotations are drawn anew from the stream 'hash' in training; in evaluation
  they are `default_rng(seed).standard_normal((rounds, H, D, Σ b/2))`, b being
  the factors of the buckets.

  Attributes:
    chunk: m.
    buckets: hash buckets, an even number or 1; several factors hash each alone
      and count as their product. None: 2N / chunk as in the paper (1 if one
      chunk holds all), in two factors, so that hashing is no N² product.
    rounds: hashes; 4 as in the paper's language models.
    causal: see above.
    seed: of the rotations in evaluation.

  Raises:
    ValueError: an odd number of buckets other than 1; normalize_qk, since keys
      are normalised already.
  """

  family = 'learned pattern'
  published = 'N·log N'
  cost = 'rounds·N·(chunk + √(N/chunk))'
  source = 'Kitaev et al. 2020'

  chunk: int = 64
  buckets: int | tuple[int, ...] | None = None
  rounds: int = 4
  causal: bool = False
  seed: int = 0

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B N C'],
    *,
    key_mask: Bool[Array, 'B N'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'B N C']:
    """Projects, attends within buckets, merges the rounds and projects."""
    self.refuse_fields('normalize_qk')
    n, width = x.shape[1:]
    q = project(self, 'query', x, width).swapaxes(1, 2)
    v = project(self, 'value', x, width).swapaxes(1, 2)
    q32 = q.astype(jnp.float32)
    norm = jax.lax.rsqrt((q32**2).sum(-1, keepdims=True) + 1e-12)
    k = (q32 * norm).astype(q.dtype)

    factors = self._factors(n)
    bucket = self._hash(q32, factors, train)  # [B H R N]
    masked = math.prod(factors)
    if key_mask is not None:
      bucket = jnp.where(key_mask[:, None, None], bucket, masked)
    size = min(self.chunk, n)
    order = jnp.argsort(bucket, axis=-1)
    place = jnp.put_along_axis(  # the inverse of the order
      jnp.zeros_like(order), order,
      jnp.broadcast_to(jnp.arange(n), order.shape), axis=-1, inplace=False,
    )  # fmt: skip

    # Sorted slots, in chunks: [B H R chunks size …], the last slots empty.
    ahead = -n % size
    chunks = lambda a: a.reshape(  # noqa: E731
      *a.shape[:3], -1, size, *a.shape[4:]
    )
    fill = lambda a, value: jnp.pad(  # noqa: E731
      a, ((0, 0),) * 3 + ((0, ahead),), constant_values=value
    )
    token = fill(order, 0)
    slots = jnp.broadcast_to(jnp.arange(n + ahead), token.shape)
    sorted_bucket = fill(jnp.take_along_axis(bucket, order, axis=-1), masked)
    mine = chunks(token), chunks(sorted_bucket), chunks(slots)
    theirs = tuple(
      _with_previous(a, value)
      for a, value in zip(mine, (0, masked, n), strict=True)
    )
    keep = self._sees(*(a[..., None] for a in mine[1:]),
                      *(a[..., None, :] for a in theirs[1:]))  # fmt: skip
    keep &= mine[1][..., None] < masked

    logits = jnp.einsum(
      'bhrcid,bhrcjd->bhrcij', _take(q * q.shape[-1] ** -0.5, mine[0]),
      _with_previous(_take(k, mine[0])), preferred_element_type=jnp.float32,
    )  # fmt: skip
    if self.rounds > 1:
      logits -= jnp.log(self._rounds_with(bucket, place, mine[0], theirs[0]))
    alone = mine[0][..., None] == theirs[0][..., None, :]
    logits = jnp.where(alone, logits - 1e5, logits)
    logits = jnp.where(keep, logits, jnp.finfo(jnp.float32).min)
    # The largest cancels in the quotient, so its gradient is zero.
    largest = jax.lax.stop_gradient(logits.max(axis=-1))
    powers = jnp.where(keep, jnp.exp(logits - largest[..., None]), 0.0)
    total = powers.sum(axis=-1)
    powers = nn.Dropout(self.dropout_rate)(powers, deterministic=not train)
    out = jnp.einsum(
      'bhrcij,bhrcjd->bhrcid', powers.astype(v.dtype),
      _with_previous(_take(v, mine[0])), preferred_element_type=jnp.float32,
    )  # fmt: skip

    # Back to the tokens' order, then one softmax over all rounds.
    back = lambda a: jnp.take_along_axis(  # noqa: E731
      a.reshape(*a.shape[:3], n + ahead, -1), place[..., None], axis=3
    )
    out, total, largest = back(out), back(total), back(largest)
    weight = jnp.exp(largest - largest.max(axis=2, keepdims=True))
    total = (weight * total).sum(axis=2)
    out = (weight * out).sum(axis=2) / jnp.where(total > 0, total, 1.0)
    return project_out(self, out.swapaxes(1, 2).astype(v.dtype), width)

  def flops(self, n: int, heads: int, width: int) -> float:
    """Three projections, hashing, and 2·chunk keys a token and round."""
    size = min(self.chunk, n)
    slots = n + -n % size
    hashing = n * self.rounds * sum(b // 2 for b in self._factors(n))
    pairs = self.rounds * slots * 2 * size
    inner = heads * width
    return 6.0 * n * inner**2 + (2.0 * hashing + 4.0 * pairs) * inner

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Logits, weights and counts of all rounds, and rotated tokens."""
    size = min(self.chunk, n)
    slots = self.rounds * (n + -n % size)
    hashed = self.rounds * n * sum(self._factors(n))
    return 4.0 * heads * (slots * (8 * size + 12 * width) + 2 * hashed)

  def _factors(self, n: int) -> tuple[int, ...]:
    """The even factors of the number of buckets; () for a single bucket."""
    factors = self.buckets
    if factors is None:
      half = -(-n // self.chunk)  # half the paper's 2N / chunk
      first = 2 * round(math.sqrt(half / 2))
      factors = (first, 2 * -(-half // first))
      if half <= 32:  # one hash costs less than half of the logits
        factors = () if half == 1 else (2 * half,)
    elif isinstance(factors, int):
      factors = () if factors == 1 else (factors,)
    for b in factors:
      if b < 2 or b % 2:
        raise ValueError(
          f'buckets={self.buckets!r}: argmax [qR; -qR] has an even number of '
          'values; choose even factors, or 1 for no hashing'
        )
    return tuple(factors)

  def _hash(self, q: Any, factors: tuple[int, ...], train: bool) -> Any:
    """Buckets [B H R N] of the queries [B H N D]."""
    shape = (self.rounds, q.shape[1], q.shape[3], sum(b // 2 for b in factors))
    if train:
      rotations = jax.random.normal(self.make_rng('hash'), shape)
    else:
      rng = np.random.default_rng(self.seed)
      rotations = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    q = jax.lax.stop_gradient(q)
    found = jnp.einsum('bhnd,rhdf->bhrnf', q, rotations)
    bucket = jnp.zeros(found.shape[:-1], jnp.int32)
    begin = 0
    for b in factors:
      part = found[..., begin : begin + b // 2]
      index = jnp.argmax(jnp.concatenate([part, -part], -1), axis=-1)
      bucket, begin = bucket * b + index, begin + b // 2
    return bucket

  def _sees(self, bucket, place, other_bucket, other_place):
    """Whether j is in P_i, by their buckets and places of one round."""
    if self.causal:
      apart, most = place - other_place, self.chunk
    else:
      apart, most = place // self.chunk - other_place // self.chunk, 1
    return (bucket == other_bucket) & (apart >= 0) & (apart <= most)

  def _rounds_with(
    self,
    bucket: Int[Array, 'B H R N'],
    place: Int[Array, 'B H R N'],
    mine: Int[Array, 'B H R c i'],
    theirs: Int[Array, 'B H R c j'],
  ) -> Float[Array, 'B H R c i j']:
    """In how many rounds each pair of tokens sees itself, at least 1."""

    def add(count, one):
      ids = [_take(a, i) for i in (mine, theirs) for a in one]
      ids = [a[..., None] for a in ids[:2]] + [a[..., None, :] for a in ids[2:]]
      return count + self._sees(*ids), None

    rounds = tuple(jnp.moveaxis(a, 2, 0) for a in (bucket, place))
    count = jnp.zeros((*mine.shape, theirs.shape[-1]), jnp.int32)
    count, _ = jax.lax.scan(add, count, rounds)
    return jnp.maximum(count, 1).astype(jnp.float32)


def _take(a, index):
  """a[b, h, index[b, h]]."""
  return jax.vmap(jax.vmap(lambda a, i: a[i]))(a, index)


def _with_previous(a, value=0):
  """[… chunks size …] → [… chunks 2·size …]: the chunk before, then it."""
  before = jnp.pad(
    a[:, :, :, :-1], [(0, 0)] * 3 + [(1, 0)] + [(0, 0)] * (a.ndim - 4),
    constant_values=value,
  )  # fmt: skip
  return jnp.concatenate([before, a], axis=4)
