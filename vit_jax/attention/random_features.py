"""Random feature attention: sines and cosines of random projections."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.attention.feature_maps import FeatureAttention, heads_first
from vit_jax.shapes import Array, Bool, Float

# Under the root of the norm, so that a zero vector has a gradient.
TINY = 1e-12


class RandomFeatures(FeatureAttention):
  """φ(Q)(φ(K)ᵀ V) / φ(Q)(φ(K)ᵀ 1), φ(x) = [sin, cos](W x/‖x‖)/√features.

  E φ(q)·φ(k) = exp(-‖σ ⊙ (q/‖q‖ - k/‖k‖)‖²/2): Gaussian kernel, and softmax of
  normalised queries and keys up to what a division cancels. O(N·features·D).
  Peng et al. 2021, section 3: W = W̃ diag(σ), W̃ normal and fixed (in
  'attention_state', for all heads), σ learned, one a head.

  Departure: sines may cancel, so that the divisor is near zero or below; it is
  at least `epsilon` (a weight is at most 1), where the paper divides by it as
  it is.

  Attributes:
    features: rows of W; φ has twice as many numbers.
    epsilon: the smallest divisor.
    causal, chunk: as in `FeatureAttention`.
  """

  family = 'kernel'
  published = 'N·features·D'
  cost = 'N·features·D'
  source = 'Peng et al. 2021'
  equivariant = True

  features: int = 64
  epsilon: float = 1e-2

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
    heads, width = q.shape[2:]
    draw = lambda: jax.random.normal(  # noqa: E731
      self.make_rng('params'), (self.features, width)
    )
    self.variable('attention_state', 'features', draw)
    self.param('sigma', nn.initializers.ones, (heads, width))
    return self.attend(
      self._map(q), self._map(k), v, key_mask, floor=self.epsilon
    )

  def _map(self, x):
    w = self.get_variable('attention_state', 'features')
    sigma = self.get_variable('params', 'sigma')
    x = heads_first(x)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.maximum(square, TINY))
    angles = jnp.einsum('bhnd,fd->bhnf', x * sigma[None, :, None], w)
    both = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return both * self.features**-0.5

  def init_state(
    self, batch: int, length: int, heads: int, width: int, dtype: Any
  ) -> Any:
    """Sums over the keys so far; `length` and `dtype` change nothing."""
    return self.init_features(batch, heads, 2 * self.features, width)

  def step(
    self,
    state: Any,
    q: Float[Array, 'B 1 H D'],
    k: Float[Array, 'B 1 H D'],
    v: Float[Array, 'B 1 H D'],
  ) -> tuple[Float[Array, 'B 1 H D'], Any]:
    """One token of decoding, O(features·D)."""
    return self.step_features(
      state, self._map(q), self._map(k), v, floor=self.epsilon
    )

  def flops(self, n: int, heads: int, width: int) -> float:
    """The projections, and the products with states of 2·features·D."""
    maps = 4.0 * n * heads * width * self.features
    return maps + self.feature_flops(n, heads, 2 * self.features, width)

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Angles, sines and cosines of queries and of keys."""
    return self.feature_temporary(n, heads, 3 * self.features, width)
