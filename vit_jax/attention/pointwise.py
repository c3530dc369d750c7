"""Attentions whose weight of a pair depends on that pair alone."""

import jax
import jax.numpy as jnp

from vit_jax.attention.decoding import KeyValueCache
from vit_jax.attention.dense_map import DenseMap
from vit_jax.shapes import Array, Bool, Float


def _kept(logits, keep):
  """How many keys each query keeps, at least 1; broadcasts against logits."""
  if keep is None:
    return jnp.full((1, 1, 1, 1), logits.shape[-1], jnp.float32)
  return jnp.maximum(keep.sum(-1, keepdims=True), 1).astype(jnp.float32)


class Sigmoid(KeyValueCache, DenseMap):
  """σ(Q Kᵀ / √D - log n) V, O(N·M). Ramapuram et al. 2024, eq. 3.

  n counts the keys that a query keeps (the paper: the length), so padding and
  causal masks change no weight. Rows do not sum to 1.

  Attributes:
    causal: query i sees keys up to i + M - N.
    dropout_rate: of the attention weights, in training.
  """

  family = 'exact'
  source = 'Ramapuram et al. 2024'

  causal: bool = False

  def weights(
    self,
    logits: Float[Array, 'B H N M'],
    keep: Bool[Array, '#B #H #N M'] | None,
    train: bool,
  ) -> Float[Array, 'B H N M']:
    """Sigmoids."""
    weights = jax.nn.sigmoid(logits - jnp.log(_kept(logits, keep)))
    return weights if keep is None else jnp.where(keep, weights, 0.0)


class ReLU(KeyValueCache, DenseMap):
  """relu(Q Kᵀ / √D) V / n, O(N·M). Wortsman et al. 2023, with α = 1.

  n counts the keys that a query keeps (the paper: the length). Rows do not sum
  to 1, and a query to which no key points gets zeros.

  Attributes:
    causal: query i sees keys up to i + M - N.
    dropout_rate: of the attention weights, in training.
  """

  family = 'exact'
  source = 'Wortsman et al. 2023'

  causal: bool = False

  def weights(
    self,
    logits: Float[Array, 'B H N M'],
    keep: Bool[Array, '#B #H #N M'] | None,
    train: bool,
  ) -> Float[Array, 'B H N M']:
    """Rectified logits over the number of keys."""
    weights = jax.nn.relu(logits) / _kept(logits, keep)
    return weights if keep is None else jnp.where(keep, weights, 0.0)
