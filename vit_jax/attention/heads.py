"""Attentions whose heads mix their maps."""

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.attention.decoding import KeyValueCache
from vit_jax.attention.dense_map import DenseMap
from vit_jax.attention.weights import softmax_of
from vit_jax.shapes import Array, Bool, Float


def _mixed(module, name, maps):
  """Maps times a learned H×H matrix, the identity at first."""
  heads = maps.shape[1]
  identity = lambda key, shape: jnp.eye(*shape)  # noqa: E731
  matrix = module.param(name, identity, (heads, heads))
  return jnp.einsum('bhnm,hg->bgnm', maps, matrix)


class TalkingHeads(KeyValueCache, DenseMap):
  """(softmax(logits P_l) P_w) V, P over heads, O(N·M). Shazeer et al. 2020.

  Both matrices start as the identity, with which it is softmax; the paper
  draws them. As in CaiT dropout comes after P_w, but P has no bias.

  Attributes:
    causal: query i sees keys up to i + M - N.
    dropout_rate: of the mixed weights, in training.
  """

  family = 'exact'
  source = 'Shazeer et al. 2020'

  causal: bool = False

  def weights(
    self,
    logits: Float[Array, 'B H N M'],
    keep: Bool[Array, '#B #H #N M'] | None,
    train: bool,
  ) -> Float[Array, 'B H N M']:
    """Mixes heads before and after the softmax."""
    weights = softmax_of(_mixed(self, 'logits_kernel', logits), keep)
    weights = _mixed(self, 'weights_kernel', weights)
    # The heads may keep different keys.
    return weights if keep is None else jnp.where(keep, weights, 0.0)

  def flops(self, n: int, heads: int, width: int) -> float:
    """Q Kᵀ, weights times V, and two products over the heads."""
    return 4.0 * n * n * heads * (width + heads)

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Logits and weights, before and after mixing."""
    return 4.0 * heads * (6 * n * n + 8 * n * width)


class ReAttention(DenseMap):
  """Norm(Θᵀ softmax(Q Kᵀ / √D)) V, Θ over heads, O(N·M). Zhou et al. 2021.

  DeepViT's equation 3. Norm is a BatchNorm of each head's map over examples,
  queries and kept keys; rows of the map no longer sum to 1. Θ starts as the
  identity. No causal form: the statistics of a batch hold its future.

  Attributes:
    norm: 'batch', whose running mean and variance are in 'batch_stats' and
      move in training; or 'none'.
    dropout_rate: of the normalised weights, in training.
  """

  family = 'exact'
  source = 'Zhou et al. 2021 (DeepViT)'

  norm: str = 'batch'

  def weights(
    self,
    logits: Float[Array, 'B H N M'],
    keep: Bool[Array, '#B #H #N M'] | None,
    train: bool,
  ) -> Float[Array, 'B H N M']:
    """Regenerates the maps; raises a ValueError for another norm."""
    if self.norm not in ('batch', 'none'):
      raise ValueError(f'norm={self.norm!r}; choices: batch, none')
    weights = _mixed(self, 'kernel', softmax_of(logits, keep))
    if self.norm == 'batch':
      # momentum and epsilon are PyTorch's, with which it was published
      weights = nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-5, axis=1,
        name='norm',
      )(weights, mask=keep)  # fmt: skip
    return weights if keep is None else jnp.where(keep, weights, 0.0)

  def flops(self, n: int, heads: int, width: int) -> float:
    """Q Kᵀ, weights times V, and one product over the heads."""
    return n * n * heads * (4.0 * width + 2.0 * heads)

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Logits and weights, before and after mixing."""
    return 4.0 * heads * (6 * n * n + 8 * n * width)
