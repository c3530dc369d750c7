"""Softmax attention with the mistakes that public code has."""

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.attention import Softmax


class WithoutScale(Softmax):
  """Logits q·k without 1/√D."""

  @nn.compact
  def __call__(
    self, q, k, v, *, key_mask=None, mask=None, bias=None, train=False
  ):
    right = Softmax(causal=self.causal, dropout_rate=self.dropout_rate)
    q = q * jnp.sqrt(q.shape[-1]).astype(q.dtype)
    return right(
      q, k, v, key_mask=key_mask, mask=mask, bias=bias, train=train
    )


class PaddingIgnored(Softmax):
  """The padding mask is taken and not used."""

  @nn.compact
  def __call__(
    self, q, k, v, *, key_mask=None, mask=None, bias=None, train=False
  ):
    right = Softmax(causal=self.causal, dropout_rate=self.dropout_rate)
    return right(q, k, v, mask=mask, bias=bias, train=train)


class SeesTheNext(Softmax):
  """The causal triangle is off by one."""

  @nn.compact
  def __call__(
    self, q, k, v, *, key_mask=None, mask=None, bias=None, train=False
  ):
    right = Softmax(dropout_rate=self.dropout_rate)
    if self.causal:
      n, m = q.shape[1], k.shape[1]
      past = jnp.tri(n, m, m - n + 1, dtype=bool)[None, None]
      mask = past if mask is None else mask & past
    return right(
      q, k, v, key_mask=key_mask, mask=mask, bias=bias, train=train
    )
