"""Attentions whose heads mix their maps."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import specs
from vit_jax.attention.decoding import KeyValueCache
from vit_jax.attention.dense_map import DenseMap
from vit_jax.attention.weights import softmax_of
from vit_jax.shapes import Array, Bool, Float


def _uniform(key, shape):
  bound = shape[-1] ** -0.5
  return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


# How the H×H matrices and the biases [H] start.
STARTS: dict[str, tuple[Callable, Callable]] = {
  'identity': (lambda key, shape: jnp.eye(*shape), nn.initializers.zeros),
  'normal': (nn.initializers.normal(0.02), nn.initializers.zeros),
  'uniform': (_uniform, _uniform),  # in ±1/√H, PyTorch's convolutions
}


def _mixed(module, name, maps):
  """Maps times a learned H×H matrix, and the bias of the same name."""
  batch, heads, n, m = maps.shape
  matrix_start, bias_start = specs.lookup(STARTS, module.start, 'start')
  matrix = module.param(name, matrix_start, (heads, heads))
  # A product for each example leaves the maps as they lie in memory: on two
  # CPU cores half the time of an einsum, whose result is transposed.
  matrix = jnp.broadcast_to(matrix.T[None], (batch, heads, heads))
  out = jnp.einsum('bgh,bhx->bgx', matrix, maps.reshape(batch, heads, -1))
  out = out.reshape(batch, heads, n, m)
  if not module.use_bias:
    return out
  bias = module.param(name.replace('kernel', 'bias'), bias_start, (heads,))
  return out + bias[None, :, None, None]


class TalkingHeads(KeyValueCache, DenseMap):
  """(softmax(logits P_l) P_w) V, P over heads, O(N·M). Shazeer et al. 2020.

  Both matrices start as the identity, with which it is softmax; the paper
  draws them. Dropout comes after P_w, as in CaiT, which is
  'talking_heads(use_bias=True, start="normal")'.

  Attributes:
    causal: query i sees keys up to i + M - N.
    dropout_rate: of the mixed weights, in training.
    use_bias: adds a number to every map after each matrix (CaiT's code).
    start: of the matrices and biases, a key of `STARTS`: 'identity', 'normal'
      (deviation .02, CaiT's code) or 'uniform'.
  """

  family = 'exact'
  source = 'Shazeer et al. 2020'

  causal: bool = False
  use_bias: bool = False
  start: str = 'identity'

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
  identity; DeepViT's code, a convolution over heads, is
  'reattention(use_bias=True, start="uniform")'. No causal form: the statistics
  of a batch hold its future.

  Attributes:
    norm: 'batch', whose running mean and variance are in 'batch_stats' and
      move in training; or 'none'.
    dropout_rate: of the softmax, before Θ, in training, as in DeepViT's code.
    use_bias: adds a number to every map after Θ.
    start: of Θ and the bias, as in `TalkingHeads`.
  """

  family = 'exact'
  source = 'Zhou et al. 2021 (DeepViT)'
  drops_last = False

  norm: str = 'batch'
  use_bias: bool = False
  start: str = 'identity'

  def weights(
    self,
    logits: Float[Array, 'B H N M'],
    keep: Bool[Array, '#B #H #N M'] | None,
    train: bool,
  ) -> Float[Array, 'B H N M']:
    """Regenerates the maps; raises a ValueError for another norm."""
    if self.norm not in ('batch', 'none'):
      raise ValueError(f'norm={self.norm!r}; choices: batch, none')
    weights = softmax_of(logits, keep)
    weights = nn.Dropout(self.dropout_rate)(weights, deterministic=not train)
    weights = _mixed(self, 'kernel', weights)
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
