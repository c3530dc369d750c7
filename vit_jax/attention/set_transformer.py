"""Set Transformer: blocks of attention between two sets."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.attention.multihead import Mixer, MultiHeadDotProductAttention
from vit_jax.attention.softmax import Softmax
from vit_jax.shapes import Array, Bool, Float


class MultiheadAttentionBlock(nn.Module):
  """LN(H + rFF(H)), H = LN(X + Multihead(X, Y, Y)). Lee et al. 2019, eq. 6, 7.

  rFF is one Dense with a ReLU, as in the authors' code.

  Attributes:
    norm: whether the two LayerNorms are there.
    Others as in `MultiHeadDotProductAttention`.
  """

  num_heads: int
  norm: bool = True
  use_bias: bool = True
  normalize_qk: bool = False
  dropout_rate: float = 0.0
  epsilon: float = 1e-6
  dtype: Any = jnp.float32
  kernel_init: Callable = nn.initializers.xavier_uniform()

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B N C'],
    y: Float[Array, 'B M I'],
    *,
    key_mask: Bool[Array, 'B M'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'B N C']:
    """Tokens of x attend to those of y."""
    x = x + MultiHeadDotProductAttention(
      self.num_heads, Softmax, use_bias=self.use_bias,
      normalize_qk=self.normalize_qk, dropout_rate=self.dropout_rate,
      epsilon=self.epsilon, dtype=self.dtype, kernel_init=self.kernel_init,
      name='attention',
    )(x, y, key_mask=key_mask, train=train)  # fmt: skip
    x = self._norm('attention_ln', x)
    forward = nn.Dense(
      x.shape[-1], dtype=self.dtype, kernel_init=self.kernel_init,
      name='feed_forward',
    )  # fmt: skip
    return self._norm('feed_forward_ln', x + nn.relu(forward(x)))

  def _norm(self, name, x):
    if not self.norm:
      return x
    return nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name=name)(x)


class InducedSetAttention(Mixer):
  """MAB(X, MAB(I, X)), I learned, O(N·inducing). Lee et al. 2019, eq. 9, 10.

  MAB is `MultiheadAttentionBlock`, with residuals and feed-forward layers of
  its own: in an encoder block they come on top of the block's.

  Attributes:
    inducing: number of inducing points.
    norm: whether MAB has its LayerNorms; the authors' code has an option too.
  """

  family = 'memory'
  published = 'N·m'
  cost = 'N·inducing'
  source = 'Lee et al. 2019'
  equivariant = True

  inducing: int = 32
  norm: bool = True

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B N C'],
    *,
    key_mask: Bool[Array, 'B N'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'B N C']:
    """Applies the block."""
    points = self.param(
      'inducing', nn.initializers.xavier_uniform(),
      (self.inducing, x.shape[-1]),
    )  # fmt: skip
    points = jnp.broadcast_to(points[None], (x.shape[0], *points.shape))

    def block(name):
      return MultiheadAttentionBlock(
        self.num_heads, self.norm, self.use_bias, self.normalize_qk,
        self.dropout_rate, self.epsilon, self.dtype, self.kernel_init,
        name=name,
      )  # fmt: skip

    induced = block('induce')(
      points.astype(self.dtype), x, key_mask=key_mask, train=train
    )
    return block('attend')(x, induced, train=train)

  def flops(self, n: int, heads: int, width: int) -> float:
    """Two attentions with their projections and feed-forward layers."""
    channels, m = heads * width, self.inducing
    return 10.0 * (n + m) * channels**2 + 8.0 * n * m * channels

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Logits and weights, and a few [N C] arrays."""
    return 4.0 * heads * n * (3 * self.inducing + 8 * width)
