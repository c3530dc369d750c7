"""What the attentions that hold their whole N×M map have in common."""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.attention.base import Attention, causal
from vit_jax.attention.weights import keep_of, logits_of
from vit_jax.shapes import Array, Bool, Float


class DenseMap(Attention):
  """weights(Q Kᵀ / √D + bias) V, with the whole map in memory: O(N·M).

  A subclass defines `weights`, and `logits` where they are others; a `causal`
  field of it is honoured.

  Attributes:
    drops_last: whether dropout comes after `weights`; if not, it is in there.
    dropout_rate: of the attention weights, in training.
  """

  published = 'N²'
  cost = 'N²'
  cross = True
  equivariant = True
  drops_last: ClassVar[bool] = True

  dropout_rate: float = 0.0

  def logits(
    self, q: Float[Array, 'B H N D'], k: Float[Array, 'B H M D']
  ) -> Float[Array, 'B H N M']:
    """Q Kᵀ / √D in float32."""
    return logits_of(q, k)

  def weights(
    self,
    logits: Float[Array, 'B H N M'],
    keep: Bool[Array, '#B #H #N M'] | None,
    train: bool,
  ) -> Float[Array, 'B H N M']:
    """The map of the values, exactly 0 where `keep` is False."""
    raise NotImplementedError(f'{type(self).__name__} defines no weights')

  @nn.compact
  def __call__(
    self,
    q: Float[Array, 'B N H D'],
    k: Float[Array, 'B M H D'],
    v: Float[Array, 'B M H E'],
    *,
    key_mask: Bool[Array, 'B M'] | None = None,
    mask: Bool[Array, '#B #H N M'] | None = None,
    bias: Float[Array, '#B #H N M'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'B N H E']:
    """Attends; logits and weights are in float32 whatever the inputs are."""
    keep = keep_of(
      q.shape[1], k.shape[1], causal=causal(self), key_mask=key_mask,
      mask=mask,
    )  # fmt: skip
    logits = self.logits(q.swapaxes(1, 2), k.swapaxes(1, 2))
    if bias is not None:
      logits = logits + bias.astype(jnp.float32)
    weights = self.weights(logits, keep, train)
    if self.drops_last:
      weights = nn.Dropout(self.dropout_rate)(weights, deterministic=not train)
    return mix(weights, v)

  def flops(self, n: int, heads: int, width: int) -> float:
    """Q Kᵀ and the weights times V."""
    return 4.0 * n * n * heads * width

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Logits and weights, twice each, and a few [N D] arrays."""
    return 4.0 * heads * (4 * n * n + 8 * n * width)


def mix(
  weights: Float[Array, 'B H N M'], v: Float[Array, 'B M H E']
) -> Float[Array, 'B N H E']:
  """The weighted sums of the values, accumulated in float32."""
  out = jnp.einsum(
    'bhnm,bhme->bhne', weights.astype(v.dtype), v.swapaxes(1, 2),
    preferred_element_type=jnp.float32,
  )  # fmt: skip
  return out.swapaxes(1, 2).astype(v.dtype)
