"""Attention that may begin as a convolution."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.attention.base import Attention, refuse_cross
from vit_jax.attention.dense_map import mix
from vit_jax.attention.places import both, differences, places
from vit_jax.attention.weights import keep_of, softmax_of
from vit_jax.shapes import Array, Bool, Float


class GPSA(Attention):
  """((1 - σ(λ)) softmax(Q Kᵀ / √D) + σ(λ) softmax(w·r)) V, O(N²).

  Gated positional self-attention, d'Ascoli et al. 2021 (ConViT), eq. 7: r_ij =
  (x, y, x² + y²) is the offset from query to key in the grid, and w of head h
  starts as -strength ‖r - Δ_h‖², with Δ_h over a square as a convolution's
  shifts. The paper adds its class token only after these layers; here prefix
  tokens attend and are attended to by content alone.

  Attributes:
    strength: locality at first; a convolution in the limit.
    gate: λ of each head at first.
    use_bias: adds a bias of each head to w·r, as the authors' code does; the
      softmax is unchanged by it.
    dropout_rate: of the attention weights, in training.
  """

  family = 'exact'
  published = 'N²'
  cost = 'N²'
  source = "d'Ascoli et al. 2021"

  strength: float = 1.0
  gate: float = 1.0
  use_bias: bool = False
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
    train: bool = False,
  ) -> Float[Array, 'B N H E']:
    """Attends within one grid of tokens."""
    refuse_cross(self, q, k)
    n, heads = q.shape[1:3]
    keep = keep_of(n, n, key_mask=key_mask, mask=mask)
    logits = jnp.einsum(
      'bnhd,bmhd->bhnm', q * q.shape[-1] ** -0.5, k,
      preferred_element_type=jnp.float32,
    )  # fmt: skip
    content = softmax_of(logits, keep)
    initial = lambda key, shape: self.strength * jnp.asarray(  # noqa: E731
      shifts(shape[0]), jnp.float32
    )
    w = self.param('positions', initial, (heads, 3))
    gate = self.param('gate', nn.initializers.constant(self.gate), (heads,))
    row, column, patch = places(self, n)
    # Offsets from query to key.
    y, x = (-differences(z)[:, None].astype(jnp.float32) for z in (row, column))
    w = w.T[:, None, :, None, None]
    near = both(patch)[:, None]
    near = near if keep is None else near & keep
    offset = w[0] * x + w[1] * y + w[2] * (x**2 + y**2)
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (heads,))
      offset = offset + bias[None, :, None, None]
    position = softmax_of(offset, near)
    gate = jax.nn.sigmoid(gate)[None, :, None, None] * patch[:, None, :, None]
    weights = (1 - gate) * content + gate * position
    # A patch without a patch to attend to has lost its gate's share.
    total = weights.sum(-1, keepdims=True)
    weights = weights / jnp.where(total > 0, total, 1.0)
    weights = nn.Dropout(self.dropout_rate)(weights, deterministic=not train)
    return mix(weights, v)

  def flops(self, n: int, heads: int, width: int) -> float:
    """Q Kᵀ and the weights times V."""
    return 4.0 * n * n * heads * width

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Two maps, twice each, and a few [N D] arrays."""
    return 4.0 * heads * (8 * n * n + 8 * n * width)


def shifts(heads: int) -> Float[np.ndarray, 'H 3']:
  """Coefficients of -‖r - Δ_h‖² in r, Δ_h row by row in a square.

  The square's side is √H, rounded up; ConViT's last heads, where H is no
  square, are random instead.
  """
  side = math.ceil(math.sqrt(heads))
  y, x = np.divmod(np.arange(heads), side) - np.float64((side - 1) / 2)
  return np.stack([2 * x, 2 * y, -np.ones(heads)], axis=1)
