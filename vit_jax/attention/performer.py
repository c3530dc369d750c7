"""Performer: softmax attention by positive orthogonal random features."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.attention.feature_maps import (
  LOWEST, FeatureAttention, heads_first,
)  # fmt: skip
from vit_jax.shapes import Array, Bool, Float, PRNGKeyArray


def draw_features(
  key: PRNGKeyArray, features: int, width: int, orthogonal: bool = True
) -> Float[Array, 'F D']:
  """Rows that are each normal(0, I); orthogonal within blocks of D rows.

  The blocks are Haar distributed (a QR decomposition with the signs of R's
  diagonal fixed; without them the kernel is biased), and the rows' lengths are
  chi distributed. Choromanski et al. 2021, section 2.4.
  """
  if not orthogonal:
    return jax.random.normal(key, (features, width))
  directions, lengths = jax.random.split(key)
  blocks = -(-features // width)
  # As jax.random.orthogonal, with one factorisation after the other: on a CPU
  # a batch of them waits for threads of the pool that it runs in, and as many
  # layers as there are threads wait for each other forever (jaxlib 0.10.2).
  normal = jax.random.normal(directions, (blocks, width, width))
  rows, r = jax.lax.map(jnp.linalg.qr, normal)
  rows = rows * jnp.sign(jnp.diagonal(r, axis1=1, axis2=2))[:, None]
  squares = jax.random.chisquare(lengths, width, (features, 1))
  return rows.reshape(-1, width)[:features] * jnp.sqrt(squares)


def log_features(
  x: Float[Array, 'B N H D'], w: Float[Array, 'F D']
) -> Float[Array, 'B H N F']:
  """Exponents: log √F φ(x) = W x̂ - ‖x̂‖²/2, x̂ = x·D^-¼.

  E φ(q)·φ(k) = exp(q·k/√D). Choromanski et al. 2021, lemma 1.
  """
  x = heads_first(x) * x.shape[-1] ** -0.25
  half = 0.5 * jnp.sum(x * x, axis=-1, keepdims=True)
  return jnp.einsum('bhnd,fd->bhnf', x, w) - half


class Performer(FeatureAttention):
  """φ(Q)(φ(K)ᵀ V) / φ(Q)(φ(K)ᵀ 1), φ random, O(N·features·D).

  kernel='softmax' (FAVOR+): φ(x) = exp(W x̂ - ‖x̂‖²/2)/√features, unbiased for
  exp(q·k/√D), Choromanski et al. 2021, section 2; kernel='relu' (generalised
  attention): φ(x) = relu(W x̂) + epsilon; x̂ = x·D^-¼.

  Departures: exponents are shifted by what cancels exactly, without the paper's
  code's additive ε. Without `causal` the largest key exponent of each feature
  goes to the queries, so that the divisor is at least 1; with it, keys are
  shifted by the running maximum, which no later key enters, and the sums so far
  fade as it grows.

  The rows W are in 'attention_state', drawn with the parameters, one W for all
  heads (as in the paper's code).

  Attributes:
    features: rows of W.
    kernel: 'softmax' or 'relu'.
    orthogonal: rows are orthogonal in blocks of D; else independent.
    redraw: W is drawn anew in each training step (stream 'features') and kept
      for evaluation.
    epsilon: what the relu kernel adds.
    causal, chunk: as in `FeatureAttention`.
  """

  family = 'kernel'
  published = 'N·features·D'
  cost = 'N·features·D'
  source = 'Choromanski et al. 2021'
  equivariant = True

  features: int = 256
  kernel: str = 'softmax'
  orthogonal: bool = True
  redraw: bool = False
  epsilon: float = 1e-3

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
    """Attends.

    Raises:
      ValueError: unknown kernel.
    """
    if self.kernel not in ('softmax', 'relu'):
      raise ValueError(
        f"kernel={self.kernel!r}; choices: 'softmax' and 'relu'"
      )
    draw = lambda stream: draw_features(  # noqa: E731
      self.make_rng(stream), self.features, q.shape[-1], self.orthogonal
    )
    stored = self.variable('attention_state', 'features', draw, 'params')
    w = stored.value
    if train and self.redraw and not self.is_initializing():
      w = draw('features')
      if self.is_mutable_collection('attention_state'):
        stored.value = w
    level = None
    if self.kernel == 'relu':
      q, k = self._relu(q, w), self._relu(k, w)
      return self.attend(q, k, v, key_mask)
    q, k = log_features(q, w), log_features(k, w)
    if key_mask is not None:
      k = jnp.where(key_mask[:, None, :, None], k, LOWEST)
    if self.causal:
      level = jax.lax.cummax(jax.lax.stop_gradient(k.max(-1)), axis=2)
      k = k - level[..., None]
    else:
      shift = jax.lax.stop_gradient(k.max(axis=2, keepdims=True))
      q, k = q + shift, k - shift
    return self.attend(_powers(q), jnp.exp(k), v, key_mask, level)

  def _relu(self, x, w):
    x = heads_first(x) * x.shape[-1] ** -0.25
    return nn.relu(jnp.einsum('bhnd,fd->bhnf', x, w)) + self.epsilon

  def init_state(
    self, batch: int, length: int, heads: int, width: int, dtype: Any
  ) -> Any:
    """Sums over the keys so far; `length` and `dtype` change nothing."""
    return self.init_features(
      batch, heads, self.features, width, level=self.kernel == 'softmax'
    )

  def step(
    self,
    state: Any,
    q: Float[Array, 'B 1 H D'],
    k: Float[Array, 'B 1 H D'],
    v: Float[Array, 'B 1 H D'],
  ) -> tuple[Float[Array, 'B 1 H D'], Any]:
    """One token of decoding, O(features·D)."""
    w = self.get_variable('attention_state', 'features')
    if self.kernel == 'relu':
      return self.step_features(state, self._relu(q, w), self._relu(k, w), v)
    q, k = log_features(q, w), log_features(k, w)
    level = jnp.maximum(state['level'][..., None], k.max(-1))
    k = jnp.exp(k - level[..., None])
    return self.step_features(state, _powers(q), k, v, level)

  def flops(self, n: int, heads: int, width: int) -> float:
    """The features, and the products with their states."""
    maps = 4.0 * n * heads * width * self.features
    return maps + self.feature_flops(n, heads, self.features, width)

  def temporary(self, n: int, heads: int, width: int) -> float:
    """[N features] arrays of queries and of keys."""
    return self.feature_temporary(n, heads, self.features, width)


def _powers(exponents):
  """exp, up to a factor a query, which its division cancels."""
  largest = jax.lax.stop_gradient(exponents.max(-1, keepdims=True))
  return jnp.exp(exponents - largest)
