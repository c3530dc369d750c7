"""Sorting, hashing and random features with the mistakes of public code."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.attention.linear import Linear
from vit_jax.attention.performer import Performer
from vit_jax.attention.sinkhorn import Sinkhorn


class KeysForValues(Sinkhorn):
  """The sorted keys are taken for the sorted values."""

  def _sort(self, q, kv, *args, **options):
    width = q.shape[-1]
    sorted_, mass = super()._sort(q, kv, *args, **options)
    keys = sorted_[..., :width]
    count = sorted_.shape[-1] - width
    values = jnp.resize(jnp.moveaxis(keys, -1, 0), (count, *keys.shape[:-1]))
    return jnp.concatenate([keys, jnp.moveaxis(values, 0, -1)], -1), mass


class SummedAxes(Sinkhorn):
  """The einsum sums blocks apart from P: each place holds the sum of all."""

  def _sort(self, q, kv, *args, **options):
    sorted_, mass = super()._sort(q, kv, *args, **options)
    everything = kv.sum(axis=2, keepdims=True)
    return jnp.broadcast_to(everything, sorted_.shape), mass


class NoiseAtEvaluation(Sinkhorn):
  """Gumbel noise moves the scores at evaluation too."""

  def _scores(self, *args, **options):
    scores = super()._scores(*args, **options)
    return scores + jax.random.gumbel(jax.random.key(0), scores.shape)


class SignsOfQR(Performer):
  """Directions from a QR decomposition as it comes, signs not fixed."""

  @nn.compact
  def __call__(self, q, k, v, *, key_mask=None, train=False):
    width = q.shape[-1]

    def draw():
      key, lengths = jax.random.split(self.make_rng('params'))
      blocks = -(-self.features // width)
      normal = jax.random.normal(key, (blocks, width, width))
      rows = jnp.linalg.qr(normal)[0].reshape(-1, width)[: self.features]
      squares = jax.random.chisquare(lengths, width, (self.features, 1))
      return rows * jnp.sqrt(squares)

    if self.is_initializing():
      self.variable('attention_state', 'features', draw)
      return v
    return Performer.__call__.__wrapped__(
      self, q, k, v, key_mask=key_mask, train=train
    )


class PaddingIgnoredByLinear(Linear):
  """The sums of keys run over the padding too."""

  @nn.compact
  def __call__(self, q, k, v, *, key_mask=None, train=False):
    return Linear.__call__.__wrapped__(self, q, k, v, train=train)


class ChunkSeesTheNext(Linear):
  """The causal chunks are off by one token."""

  @nn.compact
  def __call__(self, q, k, v, *, key_mask=None, train=False):
    if self.causal:
      k, v = (jnp.roll(x, -1, axis=1) for x in (k, v))
    return Linear.__call__.__wrapped__(
      self, q, k, v, key_mask=key_mask, train=train
    )
