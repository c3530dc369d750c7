"""Attention whose map is a transport plan between queries and keys."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import transport
from vit_jax.attention import base
from vit_jax.attention.base import Attention
from vit_jax.attention.weights import keep_of, logits_of, softmax_of
from vit_jax.shapes import Array, Bool, Float


class Sinkformer(Attention):
  """Sinkhorn(exp(Q Kᵀ / √D + bias)) V, O(N²·iterations). Sander et al. 2022.

  Rows are divided by their sums, then columns, then rows (eq. 4): softmax
  after one normalisation, doubly stochastic in the limit. Each pair of
  normalisations adds a potential to every key's logits, which is all that the
  iterations carry.

  A masked token is padding, as query too: its row takes no part in the sums of
  the columns (and is normalised in the end as any other).

  Attributes:
    iterations: normalisations, odd: the paper's last is of rows as well, so
      that the weights of a query sum to one.
    dropout_rate: of the attention weights, in training.

  Raises:
    ValueError: M ≠ N; iterations even or less than 1.
  """

  family = 'optimal transport'
  published = 'N²'
  cost = 'N²·iterations'
  source = 'Sander et al. 2022'
  equivariant = True

  iterations: int = 3
  dropout_rate: float = 0.0

  @nn.compact
  def __call__(
    self,
    q: Float[Array, 'B N H D'],
    k: Float[Array, 'B M H D'],
    v: Float[Array, 'B M H E'],
    *,
    key_mask: Bool[Array, 'B M'] | None = None,
    mask: Bool[Array, '#B #H N M'] | None = None,
    bias: Float[Array, '#B #H N M'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'B N H E']:
    """Attends."""
    base.refuse_cross(self, q, k)
    if self.iterations < 1 or self.iterations % 2 == 0:
      raise ValueError(
        f'iterations={self.iterations} must be odd: rows are first and last'
      )
    keep = keep_of(q.shape[1], k.shape[1], key_mask=key_mask, mask=mask)
    counted = keep
    if key_mask is not None:
      counted = keep & key_mask[:, None, :, None]
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    logits = logits_of(q, k, bias)

    def step(columns, _):
      rows = log_sum(logits - columns, keep, -1)
      return log_sum(logits - rows, counted, -2), None

    # The backward pass keeps one potential a step and computes N² again.
    columns, _ = jax.lax.scan(
      jax.checkpoint(step, prevent_cse=False),
      jnp.zeros_like(logits[:, :, :1]), length=self.iterations // 2,
    )  # fmt: skip
    weights = softmax_of(logits - columns, keep)
    weights = nn.Dropout(self.dropout_rate)(weights, deterministic=not train)
    out = jnp.einsum(
      'bhnm,bhme->bhne', weights.astype(v.dtype), v,
      preferred_element_type=jnp.float32,
    )  # fmt: skip
    return out.swapaxes(1, 2).astype(v.dtype)

  def flops(self, n: int, heads: int, width: int) -> float:
    """Q Kᵀ and the weights times V; the normalisations are element-wise."""
    return 4.0 * n * n * heads * width

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Logits, weights and what a normalisation holds; some [N D] arrays."""
    return 4.0 * heads * (6 * n * n + 8 * n * width)


class LOTFormer(Attention):
  """N·Γ V with Γ = plan(Q, Z) diag(1/σ) plan(Z, K), Z learned, O(N·rank).

  The pivots Z [rank D] of a head, of masses σ = softmax(learned), carry all
  mass from queries to keys: each plan is entropic transport with the scores
  −cost = q·z / √D (that of ‖q − z‖²/2√D in the limit, its norms being
  potentials) at ε = temperature, 1/N on each token. Both plans have exact
  rows, so a query's weights sum to one, and the columns do in the limit: Γ is
  doubly stochastic of rank at most `rank`. Never formed: Γ V = P (P' V) with
  the rows of the plans divided by their masses. Shahbazi et al. 2025.

  A masked token is padding: without mass as a key and as a query (whose row
  follows from the pivots' potentials as any other).

  Attributes:
    rank: pivots a head.
    iterations: of each Sinkhorn, from potentials of zero.
    temperature: ε.

  Raises:
    ValueError: M ≠ N; rank, iterations or temperature not positive.
  """

  family = 'optimal transport'
  published = 'N·rank'
  cost = 'N·rank·iterations'
  source = 'Shahbazi et al. 2025'
  equivariant = True

  rank: int = 32
  iterations: int = 5
  temperature: float = 1.0

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
    """Attends."""
    base.refuse_cross(self, q, k)
    if self.rank < 1:
      raise ValueError(f'rank={self.rank} must be 1 or more')
    batch, n, heads, width = q.shape
    pivots = self.param(
      'pivots', nn.initializers.normal(1.0), (heads, self.rank, width)
    ).astype(q.dtype)
    masses = self.param('masses', nn.initializers.zeros, (heads, self.rank))
    log_masses = jax.nn.log_softmax(masses)[None, :, None]
    keep = jnp.ones((batch, n), bool) if key_mask is None else key_mask
    count = jnp.maximum(keep.sum(1, keepdims=True), 1)
    each = jnp.where(keep, 1 / count, 0.0)
    keep = keep[:, None, None]

    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    scores = lambda x: jnp.einsum(  # noqa: E731
      'bhnd,hrd->bhnr', x * width**-0.5, pivots,
      preferred_element_type=jnp.float32,
    )  # fmt: skip
    shared = jnp.broadcast_to(each[:, None], (batch, heads, n))
    sigma = jnp.broadcast_to(
      jnp.exp(log_masses[:, :, 0]), (batch, heads, self.rank)
    )
    onto, out_of = scores(q), scores(k).swapaxes(2, 3)
    onto = onto + self._potential(onto, shared, sigma)
    read = jax.nn.softmax(onto / self.temperature + log_masses)
    out_of = out_of + self._potential(out_of, sigma, shared)
    write = softmax_of(out_of / self.temperature, keep)
    y = jnp.einsum(
      'bhrm,bhme->bhre', write.astype(v.dtype), v,
      preferred_element_type=jnp.float32,
    )  # fmt: skip
    out = jnp.einsum(
      'bhnr,bhre->bhne', read.astype(v.dtype), y.astype(v.dtype),
      preferred_element_type=jnp.float32,
    )  # fmt: skip
    return out.swapaxes(1, 2).astype(v.dtype)

  def _potential(self, scores, a, b):
    """The columns' potentials [B H 1 ·], after which the rows are exact."""

    def one(scores, a, b):
      return transport.sinkhorn(
        -scores, a, b, self.temperature, self.iterations
      ).potentials[1][None]

    return jax.vmap(jax.vmap(one))(scores, a, b)

  def flops(self, n: int, heads: int, width: int) -> float:
    """Scores of queries and of keys, values in and out of the pivots."""
    return 8.0 * n * self.rank * heads * width

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Scores and plans twice, a few [N D] arrays."""
    return 4.0 * heads * n * (8 * self.rank + 8 * width)


def log_sum(
  logits: Float[Array, '...'], keep: Bool[Array, '...'] | None, axis: int
) -> Float[Array, '...']:
  """The log of Σ exp along an axis, which stays, over `keep`; 0 over none."""
  if keep is not None:
    logits = jnp.where(keep, logits, -1e30)
  found = jax.nn.logsumexp(logits, axis=axis, keepdims=True)
  return jnp.where(found > -1e29, found, 0.0)
