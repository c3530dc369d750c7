"""Based: linear attention by the Taylor series of the exponential."""

import math

import jax.numpy as jnp

from vit_jax.attention.feature_maps import FeatureAttention, heads_first
from vit_jax.shapes import Array, Float


def taylor(x: Float[Array, 'B N H D']) -> Float[Array, 'B H N F']:
  """[1, x̂, x̂ ⊗ x̂/√2], x̂ = x·D^-¼: F = 1 + D + D² numbers."""
  x = heads_first(x) * x.shape[-1] ** -0.25
  square = (x[..., :, None] * x[..., None, :]) / math.sqrt(2)
  square = square.reshape(*x.shape[:-1], -1)
  return jnp.concatenate([jnp.ones_like(x[..., :1]), x, square], axis=-1)


class Based(FeatureAttention):
  """Weights 1 + s + s²/2 of s = q·k/√D, normalised, O(N·D³).

  The second-order Taylor series of softmax's exp(s): positive for every s, and
  near it for small ones. Arora et al. 2024, section 4.1, without its short
  convolutions and windows; there D is small (16).

  Attributes:
    causal, chunk: as in `FeatureAttention`.
  """

  family = 'kernel'
  published = 'N·D³'
  cost = 'N·D³'
  source = 'Arora et al. 2024'
  equivariant = True

  def phi(self, x: Float[Array, 'B N H D']) -> Float[Array, 'B H N F']:
    """Of a token: the terms of the series."""
    return taylor(x)

  def phi_count(self, width: int) -> int:
    """1 + D + D²."""
    return 1 + width + width**2
