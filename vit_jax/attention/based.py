"""Based: linear attention by the Taylor series of the exponential."""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.attention.feature_maps import FeatureAttention, heads_first
from vit_jax.shapes import Array, Bool, Float


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
    return self.attend(taylor(q), taylor(k), v, key_mask)

  def init_state(
    self, batch: int, length: int, heads: int, width: int, dtype: Any
  ) -> Any:
    """Sums over the keys so far; `length` and `dtype` change nothing."""
    return self.init_features(batch, heads, 1 + width + width**2, width)

  def step(
    self,
    state: Any,
    q: Float[Array, 'B 1 H D'],
    k: Float[Array, 'B 1 H D'],
    v: Float[Array, 'B 1 H D'],
  ) -> tuple[Float[Array, 'B 1 H D'], Any]:
    """One token of decoding, O(D³)."""
    return self.step_features(state, taylor(q), taylor(k), v)

  def flops(self, n: int, heads: int, width: int) -> float:
    """Two products with states of (1 + D + D²)·D, one with their sums."""
    return self.feature_flops(n, heads, 1 + width + width**2, width)

  def temporary(self, n: int, heads: int, width: int) -> float:
    """The squares of queries and of keys."""
    return self.feature_temporary(n, heads, 1 + width + width**2, width)
