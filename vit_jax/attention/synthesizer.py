"""Synthesizers: attention weights that come from no comparison of tokens.

Every one has weights sized by the number of tokens.
"""

import math

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.attention.base import Attention, sized_param
from vit_jax.attention.multihead import Mixer, project, project_out
from vit_jax.attention.weights import keep_of, mixed
from vit_jax.shapes import Array, Bool, Float

INIT = nn.initializers.variance_scaling(
  1.0, 'fan_avg', 'uniform', in_axis=-2, out_axis=-1, batch_axis=0
)


class RandomSynthesizer(Attention):
  """softmax(R) V, R learned [H N M], O(N·M). Tay et al. 2021, section 3.1.3.

  The queries and keys are used by the mixture only, section 3.2:
  softmax(α R + (1 - α) Q Kᵀ / √D) V, where α is learned, ½ at first; without
  it their projections get no gradient.

  Attributes:
    mixture: whether to mix R with the dot products.
    causal: query i sees keys up to i + M - N.
    dropout_rate: of the attention weights, in training.
  """

  family = 'low rank'
  published = 'N²'
  cost = 'N²'
  source = 'Tay et al. 2021'
  cross = True

  mixture: bool = False
  causal: bool = False
  dropout_rate: float = 0.0

  @nn.compact
  def __call__(
    self,
    q: Float[Array, 'B N H D'],
    k: Float[Array, 'B M H D'],
    v: Float[Array, 'B M H E'],
    *,
    key_mask: Bool[Array, 'B M'] | None = None,
    mask: Bool[Array, '#B #H N M'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'B N H E']:
    """Attends.

    Raises:
      ValueError: another N or M than the parameters'.
    """
    logits = self._logits(q.shape[1], k.shape[1], q.shape[2])[None]
    if self.mixture:
      alpha = nn.sigmoid(
        self.param('mixture', nn.initializers.zeros, (1, 1, 1, 1))
      )
      compared = jnp.einsum(
        'bnhd,bmhd->bhnm', q * q.shape[-1] ** -0.5, k,
        preferred_element_type=jnp.float32,
      )  # fmt: skip
      logits = alpha * logits + (1 - alpha) * compared
    return _attend(self, logits, v, key_mask, mask, train)

  def _logits(self, n: int, m: int, heads: int):
    return sized_param(self, 'logits', INIT, (heads, n, m))

  def flops(self, n: int, heads: int, width: int) -> float:
    """The weights times V, and Q Kᵀ of the mixture."""
    return (4.0 if self.mixture else 2.0) * n * n * heads * width

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Logits and weights, twice each, and a few [N D] arrays."""
    return 4.0 * heads * (4 * n * n + 8 * n * width)


class FactorizedRandom(RandomSynthesizer):
  """softmax(R₁ R₂ᵀ) V, O(N·M). Tay et al. 2021, section 3.1.4.

  Attributes:
    rank: of R; the paper's k = 8.
  """

  rank: int = 8

  def _logits(self, n: int, m: int, heads: int):
    first = sized_param(self, 'first', INIT, (heads, n, self.rank))
    second = sized_param(self, 'second', INIT, (heads, m, self.rank))
    return jnp.einsum('hnr,hmr->hnm', first, second)

  def flops(self, n: int, heads: int, width: int) -> float:
    """As the random one, and the product of the factors."""
    return super().flops(n, heads, width) + 2.0 * n * n * heads * self.rank


class DenseSynthesizer(Mixer):
  """softmax(W₂ relu(W₁ x)) V, O(N²). Tay et al. 2021, section 3.1.1.

  Every token predicts its own row of logits, in every head. W₁ is the layer's
  projection `query`; there is no `key`.

  Attributes:
    causal: token i attends to tokens up to i.
  """

  family = 'low rank'
  published = 'N²'
  cost = 'N²'
  source = 'Tay et al. 2021'

  causal: bool = False

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B N C'],
    *,
    key_mask: Bool[Array, 'B N'] | None = None,
    mask: Bool[Array, '#B #H N N'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'B N C']:
    """Applies the layer.

    Raises:
      ValueError: normalize_qk, or another N than the parameters'.
    """
    self.refuse_fields('normalize_qk')
    width = x.shape[-1]
    hidden = nn.relu(project(self, 'query', x, width)).swapaxes(1, 2)
    v = project(self, 'value', x, width)
    logits = self._logits(hidden, x.shape[1])
    y = _attend(self, logits, v, key_mask, mask, train)
    return project_out(self, y, width)

  def _logits(self, hidden: Float[Array, 'B H N D'], n: int):
    return self._predict('logits', hidden, n)

  def _predict(self, name: str, hidden, count: int):
    heads, width = hidden.shape[1], hidden.shape[3]
    kernel = sized_param(
      self, f'{name}_kernel', INIT, (heads, width, count)
    ).astype(hidden.dtype)
    out = jnp.einsum(
      'bhnd,hdm->bhnm', hidden, kernel, preferred_element_type=jnp.float32
    )
    if not self.use_bias:
      return out
    shape = (heads, 1, count)
    return out + self.param(f'{name}_bias', nn.initializers.zeros, shape)[None]

  def flops(self, n: int, heads: int, width: int) -> float:
    """Three projections, the logits and the weights times V."""
    return 6.0 * n * (heads * width) ** 2 + 4.0 * n * n * heads * width

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Logits and weights, twice each, and a few [N C] arrays."""
    return 4.0 * heads * (4 * n * n + 8 * n * width)


class FactorizedDense(DenseSynthesizer):
  """Logits a[j % A] · b[j // A], O(N²). Tay et al. 2021, section 3.1.2.

  a = W₂ relu(W₁ x) [A] is tiled and b = W₃ relu(W₁ x) [B] repeated to A·B ≥ N
  logits. The paper wants A·B = N, which a prime N has no use for: here the
  logits beyond N are left out.

  Attributes:
    factor: A; 0 takes ⌈√N⌉.
  """

  factor: int = 0

  def _logits(self, hidden: Float[Array, 'B H N D'], n: int):
    first, second = self._factors(n)
    a = self._predict('first', hidden, first)
    b = self._predict('second', hidden, second)
    product = b[..., :, None] * a[..., None, :]
    return product.reshape(*a.shape[:-1], first * second)[..., :n]

  def _factors(self, n: int) -> tuple[int, int]:
    first = self.factor or math.isqrt(n - 1) + 1
    return first, -(-n // first)

  def flops(self, n: int, heads: int, width: int) -> float:
    """Three projections, the factors and the weights times V."""
    channels = heads * width
    return n * channels * (6.0 * channels + 2.0 * (sum(self._factors(n)) + n))


def _attend(
  module: nn.Module,
  logits: Float[Array, '#B H N M'],
  v: Float[Array, 'B M H E'],
  key_mask: Bool[Array, 'B M'] | None,
  mask: Bool[Array, '#B #H N M'] | None,
  train: bool,
) -> Float[Array, 'B N H E']:
  logits = jnp.broadcast_to(logits, (v.shape[0], *logits.shape[1:]))
  keep = keep_of(
    *logits.shape[2:], causal=module.causal, key_mask=key_mask, mask=mask
  )
  drop = nn.Dropout(module.dropout_rate, deterministic=not train)
  out = mixed(logits, v.swapaxes(1, 2), keep, drop)
  return out.swapaxes(1, 2).astype(v.dtype)
