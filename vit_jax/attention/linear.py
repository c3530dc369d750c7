"""Linear transformer attention: the feature map elu(x) + 1."""

import jax.numpy as jnp

from vit_jax.attention.feature_maps import FeatureAttention, heads_first
from vit_jax.shapes import Array, Float


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

  def phi(self, x: Float[Array, 'B N H D']) -> Float[Array, 'B H N F']:
    """Of a token: elu(x) + 1, F = D."""
    return elu_plus_one(x)

  def phi_count(self, width: int) -> int:
    """D."""
    return width
