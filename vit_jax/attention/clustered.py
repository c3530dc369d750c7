"""Clustered attention: queries alike share one row of the attention map."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.attention.base import Attention
from vit_jax.attention.weights import softmax_of
from vit_jax.shapes import Array, Bool, Float, Int

WORD = 32  # bits in an integer, by which codes are compared


class Clustered(Attention):
  """softmax(Qᶜ Kᵀ / √D) V, given to each member. Vyas et al. 2020, eq. 3–6.

  Qᶜ are the means of the queries of each cluster. O(N·clusters·D); finding the
  clusters costs N·clusters·iterations comparisons of codes, and no gradient.

  Clusters: codes sign([q; 1]·P) of `bits` random planes, and K-means in Hamming
  distance: centroids are the majority of their members' bits. The paper draws
  the first centroids at random; here they are codes of tokens at even
  distances, so that evaluation draws no random number and as many clusters as
  tokens leave each its own. Ties go to the first centroid; an even vote is 0;
  a cluster without members keeps its code. In training the planes come from the
  stream 'hash', otherwise they are
  `default_rng(seed).standard_normal((D + 1, bits))`.

  If N = M, masked tokens are taken for padding among the queries too: they
  join a cluster, but weigh in none.

  Attributes:
    clusters: number of clusters; at most N are made.
    bits: of a code; 63 in the paper.
    iterations: of K-means; 10 in the paper.
    dropout_rate: of the attention weights, in training; members share it.
    seed: of the planes in evaluation.

  Raises:
    ValueError: an option below 1.
  """

  family = 'learned pattern'
  published = 'N·clusters'
  cost = 'N·clusters'
  source = 'Vyas et al. 2020'
  cross = True

  clusters: int = 25
  bits: int = 63
  iterations: int = 10
  dropout_rate: float = 0.0
  seed: int = 0

  @nn.compact
  def __call__(
    self,
    q: Float[Array, 'B N H D'],
    k: Float[Array, 'B M H D'],
    v: Float[Array, 'B M H E'],
    *,
    key_mask: Bool[Array, 'B M'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'B N H E']:
    """Clusters the queries and attends; softmax is in float32."""
    for name in ('clusters', 'bits', 'iterations'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}={getattr(self, name)} must be at least 1')
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    weigh = jnp.ones((q.shape[0], q.shape[2]), bool)
    if key_mask is not None and q.shape[2] == k.shape[2]:
      weigh = key_mask
    cluster = self._find(q, weigh, train)
    # A member's share of its cluster's mean.
    member = jax.nn.one_hot(cluster, self._count(q), axis=2)  # [B H c N]
    member *= weigh[:, None, None]
    share = member / jnp.maximum(member.sum(axis=-1, keepdims=True), 1.0)
    centers = jnp.einsum(
      'bhcn,bhnd->bhcd', share.astype(q.dtype), q,
      preferred_element_type=jnp.float32,
    )  # fmt: skip
    logits = jnp.einsum(
      'bhcd,bhmd->bhcm', (centers * q.shape[-1] ** -0.5).astype(q.dtype), k,
      preferred_element_type=jnp.float32,
    )  # fmt: skip
    keep = None if key_mask is None else key_mask[:, None, None]
    weights = softmax_of(logits, keep)
    out = self._mix(q, k, v, weights, keep, cluster, train)
    return out.swapaxes(1, 2).astype(v.dtype)

  def flops(self, n: int, heads: int, width: int) -> float:
    """Codes, means of clusters, and clusters times keys and values."""
    clusters = min(self.clusters, n)
    return 2.0 * n * heads * ((width + 1) * self.bits + 3 * clusters * width)

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Distances, weights and shares, [clusters N] each, and bits."""
    each = 7 * min(self.clusters, n) + 3 * self.bits + 8 * width
    return 4.0 * heads * n * each

  def _count(self, q: Float[Array, 'B H N D']) -> int:
    return min(self.clusters, q.shape[2])

  def _find(self, q, weigh, train: bool) -> Int[Array, 'B H N']:
    """The cluster of each query."""
    shape = (q.shape[-1] + 1, self.bits)
    if train:
      planes = jax.random.normal(self.make_rng('hash'), shape)
    else:
      rng = np.random.default_rng(self.seed)
      planes = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    q = jax.lax.stop_gradient(q).astype(jnp.float32)
    q = jnp.concatenate([q, jnp.ones_like(q[..., :1])], axis=-1)
    codes = jnp.einsum('bhnd,de->bhne', q, planes) > 0
    one = functools.partial(
      _k_means, clusters=self._count(q), iterations=self.iterations
    )
    return jax.vmap(jax.vmap(one, (0, None)))(codes, weigh)

  def _drop(self, weights, train: bool):
    return nn.Dropout(self.dropout_rate)(weights, deterministic=not train)

  def _mix(self, q, k, v, weights, keep, cluster, train):
    """The values by the clusters' weights [B H c M], for each query."""
    out = jnp.einsum(
      'bhcm,bhme->bhce', self._drop(weights, train).astype(v.dtype), v,
      preferred_element_type=jnp.float32,
    )  # fmt: skip
    return jnp.take_along_axis(out, cluster[..., None], axis=2)


class ImprovedClustered(Clustered):
  """Clustered attention, exact on its largest keys. Vyas et al. 2020, eq. 7–10.

  Of each cluster's weights Aᶜ, the topk largest keys T keep their sum
  m = Σ_{l∈T} Aᶜ_l but are weighted anew for each member, m·softmax_T(q_i·k_l /
  √D); the other keys keep Aᶜ. O(N·(clusters + topk)·D): closer to softmax than
  `Clustered` (proposition 2). The gathered keys take N·topk·D memory, which the
  paper's own CUDA kernel avoids.

  Attributes:
    topk: keys weighted anew; 32 in the paper.
  """

  published = 'N·(clusters + topk)'
  cost = 'N·(clusters + topk)'

  topk: int = 32

  def flops(self, n: int, heads: int, width: int) -> float:
    """As clustered, and topk keys and values for each query."""
    return super().flops(n, heads, width) + self._pairs(n, heads, width)

  def temporary(self, n: int, heads: int, width: int) -> float:
    """As clustered, and the gathered keys and values."""
    return super().temporary(n, heads, width) + 2.0 * self._pairs(
      n, heads, width + 4
    )

  def _pairs(self, n: int, heads: int, width: int) -> float:
    return 4.0 * n * heads * min(self.topk, n) * width

  def _mix(self, q, k, v, weights, keep, cluster, train):
    """The topk keys by each query's own weights, the others as before."""
    if self.topk < 1:
      raise ValueError(f'topk={self.topk} must be at least 1')
    topk = min(self.topk, k.shape[2])
    # Chosen without gradient, as the paper's; their sum has one.
    _, index = jax.lax.top_k(jax.lax.stop_gradient(weights), topk)
    chosen = jnp.put_along_axis(
      jnp.zeros(weights.shape, bool), index, True, axis=-1, inplace=False
    )
    rest = jnp.where(chosen, 0.0, weights)
    mass = jnp.where(chosen, weights, 0.0).sum(axis=-1, keepdims=True)
    take = jax.vmap(jax.vmap(lambda x, i: x[i]))
    own, allowed = take(index, cluster), None  # [B H N topk]
    if keep is not None:
      keep = jnp.broadcast_to(keep[:, :, 0], (*k.shape[:3],))
      allowed = take(keep, own)
    logits = jnp.einsum(
      'bhnd,bhnkd->bhnk', q * q.shape[-1] ** -0.5, take(k, own),
      preferred_element_type=jnp.float32,
    )  # fmt: skip
    exact = softmax_of(logits, allowed) * take(mass, cluster)
    out = jnp.einsum(
      'bhnk,bhnke->bhne', self._drop(exact, train).astype(v.dtype),
      take(v, own), preferred_element_type=jnp.float32,
    )  # fmt: skip
    return out + super()._mix(q, k, v, rest, keep, cluster, train)


def _pack(bits: Bool[Array, 'N b']) -> Array:
  """Codes as words of 32 bits, [words N]."""
  bits = jnp.pad(bits, ((0, 0), (0, -bits.shape[1] % WORD)))
  words = bits.reshape(len(bits), -1, WORD).astype(jnp.uint32)
  shifts = jnp.arange(WORD, dtype=jnp.uint32)[None, None]
  return (words << shifts).sum(axis=-1, dtype=jnp.uint32).T


def _k_means(
  codes: Bool[Array, 'N b'],
  weigh: Bool[Array, 'N'],
  *,
  clusters: int,
  iterations: int,
) -> Int[Array, 'N']:
  """Hamming K-means: the cluster of each code."""
  real = jnp.argsort(~weigh)  # the tokens that weigh, in order, first
  first = real[jnp.arange(clusters) * weigh.sum() // clusters]
  words = _pack(codes)
  votes = jnp.where(weigh[:, None], jnp.where(codes, 1, -1), 0)

  def nearest(centers):
    apart = words[:, :, None] ^ _pack(centers)[:, None]
    return jnp.argmin(jax.lax.population_count(apart).sum(axis=0), axis=-1)

  def step(centers, _):
    cluster = nearest(centers)
    total = jnp.zeros((clusters, codes.shape[1]), votes.dtype)
    total = total.at[cluster].add(votes)
    empty = jnp.zeros((clusters,), bool).at[cluster].max(weigh) ^ True
    return jnp.where(empty[:, None], centers, total > 0), None

  centers, _ = jax.lax.scan(step, codes[first], length=iterations)
  return nearest(centers)
