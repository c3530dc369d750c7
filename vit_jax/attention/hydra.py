"""Hydra attention: linear attention with as many heads as channels."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.attention.base import Attention, refuse_acausal
from vit_jax.attention.feature_maps import refuse_other_width
from vit_jax.shapes import Array, Bool, Float

# Under the root of a token's norm, so that a zero token has a gradient.
TINY = 1e-12


class Hydra(Attention):
  """φ(q_i) ⊙ Σ_j φ(k_j) ⊙ v_j, φ(x) = x/‖x‖, O(N·D). Bolya et al. 2022.

  Heads are channels, so the norm is over all H·D of a token and the number of
  heads changes nothing. Weights may be negative and are not normalised.

  Attributes:
    causal: query i sees keys up to i + M - N (aligned bottom-right).
  """

  family = 'kernel'
  published = 'N·D'
  cost = 'N·D'
  source = 'Bolya et al. 2022'
  cross = True
  equivariant = True
  mixes_channels = True

  causal: bool = False

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
      ValueError: E ≠ D.
    """
    refuse_other_width(self, q, v)
    n, m = q.shape[1], k.shape[1]
    dtype, v = v.dtype, v.astype(jnp.float32)
    q, k = _unit(q), _unit(k)
    if key_mask is not None:
      k = jnp.where(key_mask[..., None, None], k, 0.0)
    if self.causal:
      sums = jnp.cumsum(k * v, axis=1)
      sums = jnp.pad(sums, ((0, 0), (max(n - m, 0), 0), (0, 0), (0, 0)))
      return (q * sums[:, -n:]).astype(dtype)
    sums = jnp.einsum('bmhd,bmhd->bhd', k, v)
    return (q * sums[:, None]).astype(dtype)

  def init_state(
    self, batch: int, length: int, heads: int, width: int, dtype: Any
  ) -> Any:
    """The sum over the keys so far; `length` and `dtype` change nothing."""
    refuse_acausal(self)
    return jnp.zeros((batch, 1, heads, width))

  def step(
    self,
    state: Any,
    q: Float[Array, 'B 1 H D'],
    k: Float[Array, 'B 1 H D'],
    v: Float[Array, 'B 1 H D'],
  ) -> tuple[Float[Array, 'B 1 H D'], Any]:
    """One token of decoding, O(D)."""
    state = state + _unit(k) * v.astype(jnp.float32)
    return (_unit(q) * state).astype(v.dtype), state

  def flops(self, n: int, heads: int, width: int) -> float:
    """The sum of keys times values; causal it is no matrix product."""
    return 2.0 * n * heads * width

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Norms and sums; in the causal form a sum a token."""
    sums = 2 * n * heads * width if self.causal else 4 * heads * width
    return 4.0 * (4 * n + sums)


def _unit(x):
  x = x.astype(jnp.float32)
  square = jnp.sum(x * x, axis=(-2, -1), keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, TINY))
