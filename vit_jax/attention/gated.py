"""Softmax attention behind a gate."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.attention.base import Attention
from vit_jax.attention.softmax import Softmax
from vit_jax.shapes import Array, Bool, Float


class Gated(Attention):
  """σ(X W) ⊙ softmax(Q Kᵀ / √D) V, O(N·M). Qiu et al. 2025, eq. 5.

  X is the layer's input and the gate has a weight for every channel of every
  head (the paper's G1, its best place); W has a bias.

  Attributes:
    causal: query i sees keys up to i + M - N.
    dropout_rate: of the attention weights, in training.
  """

  family = 'exact'
  published = 'N²'
  cost = 'N²'
  source = 'Qiu et al. 2025'
  cross = True
  mixes_channels = True

  causal: bool = False
  dropout_rate: float = 0.0

  @nn.compact
  def __call__(
    self,
    q: Float[Array, 'B N H D'],
    k: Float[Array, 'B M H D'],
    v: Float[Array, 'B M H E'],
    *,
    x: Float[Array, 'B N C'],
    key_mask: Bool[Array, 'B M'] | None = None,
    mask: Bool[Array, '#B #H N M'] | None = None,
    bias: Float[Array, '#B #H N M'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'B N H E']:
    """Attends, then gates."""
    y = Softmax(
      causal=self.causal, dropout_rate=self.dropout_rate, name='softmax'
    )(q, k, v, key_mask=key_mask, mask=mask, bias=bias, train=train)
    gate = nn.DenseGeneral(v.shape[2:], dtype=v.dtype, name='gate')(x)
    return y * jax.nn.sigmoid(gate.astype(jnp.float32)).astype(v.dtype)

  def init_state(
    self, batch: int, length: int, heads: int, width: int, dtype: Any
  ) -> Any:
    """Refuses.

    Raises:
      ValueError: always; a step has no x.
    """
    raise ValueError(
      "Gated reads the layer's input, which a step of decoding does not have"
    )

  def flops(self, n: int, heads: int, width: int) -> float:
    """Softmax attention and the gate's projection."""
    return 4.0 * n * n * heads * width + 2.0 * n * (heads * width) ** 2

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Logits and weights, twice each, and a few [N D] arrays."""
    return 4.0 * heads * (4 * n * n + 12 * n * width)
