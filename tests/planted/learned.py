"""Linear attention with a mistake of public code."""

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.attention.linear import Linear


class ChunkSeesTheNext(Linear):
  """The causal chunks are off by one token."""

  @nn.compact
  def __call__(self, q, k, v, *, key_mask=None, train=False):
    if self.causal:
      k, v = (jnp.roll(x, -1, axis=1) for x in (k, v))
    return Linear.__call__.__wrapped__(
      self, q, k, v, key_mask=key_mask, train=train
    )
