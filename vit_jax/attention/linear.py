"""Linear transformer attention: the feature map elu(x) + 1."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.attention.feature_maps import FeatureAttention, heads_first
from vit_jax.shapes import Array, Bool, Float


def elu_plus_one(x: Float[Array, 'B N H D']) -> Float[Array, 'B H N D']:
  """elu(x) + 1, which is x + 1 for x > 0 and eˣ below.

  Written so, for elu(x) + 1 rounds to zero below -17 in float32.
  """
  x = heads_first(x)
  return jnp.where(x > 0, x + 1, jnp.exp(jnp.minimum(x, 0.0)))


class Linear(FeatureAttention):
  """φ(Q)(φ(K)ᵀ V) / φ(Q)(φ(K)ᵀ 1), φ = elu + 1, O(N·D²).

  Katharopoulos et al. 2020, eqs. 5 to 7; causal as eqs. 8 to 12, and decoding
  with a state of D×E numbers a head, eqs. 16 to 20. The causal form goes by
  chunks, where the paper goes by tokens: the same sums, as matrix products.

  Attributes:
    causal, chunk: as in `FeatureAttention`.
  """

  family = 'kernel'
  published = 'N·D²'
  cost = 'N·D²'
  source = 'Katharopoulos et al. 2020'
  equivariant = True

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
    return self.attend(elu_plus_one(q), elu_plus_one(k), v, key_mask)

  def init_state(
    self, batch: int, length: int, heads: int, width: int, dtype: Any
  ) -> Any:
    """Sums over the keys so far; `length` and `dtype` change nothing."""
    return self.init_features(batch, heads, width, width)

  def step(
    self,
    state: Any,
    q: Float[Array, 'B 1 H D'],
    k: Float[Array, 'B 1 H D'],
    v: Float[Array, 'B 1 H D'],
  ) -> tuple[Float[Array, 'B 1 H D'], Any]:
    """One token of decoding, O(D²)."""
    return self.step_features(state, elu_plus_one(q), elu_plus_one(k), v)

  def flops(self, n: int, heads: int, width: int) -> float:
    """Two products with D×D states, one with their sums."""
    return self.feature_flops(n, heads, width, width)

  def temporary(self, n: int, heads: int, width: int) -> float:
    """A few [N D] arrays."""
    return self.feature_temporary(n, heads, width, width)
