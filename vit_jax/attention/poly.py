"""Poly-SA: self-attention as a third-order polynomial of its input."""

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.attention.base import Attention, sized_param
from vit_jax.attention.feature_maps import refuse_other_width
from vit_jax.shapes import Array, Bool, Float


class Poly(Attention):
  """p1_i q_i ⊙ Σ_j p2_j k_j ⊙ v_j, O(N·D). Babiloni et al. 2023.

  A third-order polynomial of the tokens whose N×M map of positions has rank
  one: p1 and p2 are learned, a number a token and head. They start as 1 and
  1/M, the pooling of the paper's Poly-NL. Nothing is normalised.

  Raises:
    ValueError: another number of tokens than the parameters'; E ≠ D.
  """

  family = 'kernel'
  published = 'N·D'
  cost = 'N·D'
  source = 'Babiloni et al. 2023'
  cross = True
  mixes_channels = True

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
    refuse_other_width(self, q, v)
    n, m, heads = q.shape[1], *k.shape[1:3]
    p1 = sized_param(self, 'p1', nn.initializers.ones, (n, heads))
    p2 = sized_param(
      self, 'p2', nn.initializers.constant(1 / m), (m, heads)
    )
    dtype = v.dtype
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    k = k * p2[None, ..., None]
    if key_mask is not None:
      k = jnp.where(key_mask[..., None, None], k, 0.0)
    sums = jnp.einsum('bmhd,bmhd->bhd', k, v)
    return (q * p1[None, ..., None] * sums[:, None]).astype(dtype)

  def flops(self, n: int, heads: int, width: int) -> float:
    """The sum of products of keys and values."""
    return 2.0 * n * heads * width

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Weighted sums; what belongs to one token is fused."""
    return 4.0 * heads * (2 * n + 4 * width)
