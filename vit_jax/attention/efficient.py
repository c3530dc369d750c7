"""Efficient attention: a softmax over channels and one over tokens."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.attention.base import Attention
from vit_jax.attention.feature_maps import heads_first
from vit_jax.attention.weights import softmax_of
from vit_jax.shapes import Array, Bool, Float


class Efficient(Attention):
  """softmax_D(Q) (softmax_M(K)ᵀ V), O(N·D²). Shen et al. 2021, section 3.

  Every row of the effective map sums to one, so nothing is divided.
  """

  family = 'kernel'
  published = 'N·D²'
  cost = 'N·D²'
  source = 'Shen et al. 2021'
  cross = True
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
    keep = None if key_mask is None else key_mask[:, None, None]
    rows = jax.nn.softmax(heads_first(q), axis=-1)
    columns = softmax_of(heads_first(k).swapaxes(2, 3), keep)
    context = jnp.einsum('bhdm,bhme->bhde', columns, heads_first(v))
    out = jnp.einsum('bhnd,bhde->bhne', rows, context)
    return out.swapaxes(1, 2).astype(v.dtype)

  def flops(self, n: int, heads: int, width: int) -> float:
    """The context and its product with the queries."""
    return 4.0 * n * heads * width * width

  def temporary(self, n: int, heads: int, width: int) -> float:
    """A few [N D] arrays."""
    return 4.0 * heads * (8 * n * width + 2 * width * width)
