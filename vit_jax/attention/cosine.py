"""Softmax of scaled cosines."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.attention.decoding import KeyValueCache
from vit_jax.attention.dense_map import DenseMap
from vit_jax.attention.weights import softmax_of
from vit_jax.shapes import Array, Bool, Float

LARGEST = math.log(100.0)  # Liu et al. 2022: τ is at least 0.01


def unit(x: Float[Array, '*B D']) -> Float[Array, '*B D']:
  """Divides by the length of the last axis, in float32; 0 stays 0."""
  x = x.astype(jnp.float32)
  # 1e-12 is F.normalize's, here under the root so that 0 has a gradient.
  return x * jax.lax.rsqrt((x**2).sum(-1, keepdims=True) + 1e-12)


class Cosine(KeyValueCache, DenseMap):
  """softmax(exp(s) cos(Q, K) + bias) V, O(N·M). Liu et al. 2022, eq. 2.

  Swin Transformer V2's, with its learned s of each head (`log_scale`), at most
  log 100, log 10 at first.

  Attributes:
    causal: query i sees keys up to i + M - N.
    dropout_rate: of the attention weights, in training.
  """

  family = 'exact'
  source = 'Liu et al. 2022 (Swin V2)'

  causal: bool = False

  def logits(
    self, q: Float[Array, 'B H N D'], k: Float[Array, 'B H M D']
  ) -> Float[Array, 'B H N M']:
    """Scaled cosines."""
    scale = self.param(
      'log_scale', nn.initializers.constant(math.log(10.0)), (q.shape[1],)
    )
    scale = jnp.exp(jnp.minimum(scale, LARGEST))[None, :, None, None]
    return scale * jnp.einsum('bhnd,bhmd->bhnm', unit(q), unit(k))

  def weights(
    self,
    logits: Float[Array, 'B H N M'],
    keep: Bool[Array, '#B #H #N M'] | None,
    train: bool,
  ) -> Float[Array, 'B H N M']:
    """Softmax."""
    return softmax_of(logits, keep)
