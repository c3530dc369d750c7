"""Softmax over a span that each head learns."""

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.attention.base import refuse_cross
from vit_jax.attention.dense_map import DenseMap
from vit_jax.attention.places import both, differences, places
from vit_jax.attention.weights import powers_of
from vit_jax.shapes import Array, Bool, Float


class AdaptiveSpan(DenseMap):
  """a_ij ∝ m(distance) exp(Q Kᵀ / √D), m learned, O(N²).

  m = clip((ramp + span_h - distance) / ramp, 0, 1) with span_h = `longest`
  times a parameter in [0, 1]. Sukhbaatar et al. 2019, eq. 5 and 6. On a
  sequence the distance is |i - j|; on a grid, which the paper has not, it is
  the larger of the row and column offsets; prefix tokens are near everything.
  The paper adds the mean of the spans to its loss, to keep them short: the
  parameter is `span`. What lies beyond is masked, not skipped.

  Attributes:
    longest: tokens, or rows and columns: the longest span.
    ramp: width of the mask's soft edge.
    initial: the parameters at first; the paper's 0 is a span of the ramp.
    causal: query i sees keys up to i.
    dropout_rate: of the attention weights, in training.
  """

  family = 'exact'
  published = 'N·span'
  source = 'Sukhbaatar et al. 2019'
  cross = False
  equivariant = False

  longest: int = 1024
  ramp: float = 32.0
  initial: float = 0.0
  causal: bool = False

  def logits(
    self, q: Float[Array, 'B H N D'], k: Float[Array, 'B H M D']
  ) -> Float[Array, 'B H N M']:
    """Q Kᵀ / √D of one sequence."""
    refuse_cross(self, q.swapaxes(1, 2), k.swapaxes(1, 2))
    return super().logits(q, k)

  def weights(
    self,
    logits: Float[Array, 'B H N M'],
    keep: Bool[Array, '#B #H #N M'] | None,
    train: bool,
  ) -> Float[Array, 'B H N M']:
    """Softmax times the soft mask, normalised again."""
    span = self.param(
      'span', nn.initializers.constant(self.initial), (logits.shape[1],)
    )
    row, column, patch = places(self, logits.shape[2])
    distance = jnp.maximum(*(abs(differences(x)) for x in (row, column)))
    distance = jnp.where(both(patch), distance, 0)[:, None]
    reach = self.longest * jnp.clip(span, 0.0, 1.0)[None, :, None, None]
    soft = jnp.clip((self.ramp + reach - distance) / self.ramp, 0.0, 1.0)
    # The largest logit is one within the span, so the sum is not near zero.
    within = soft > 0 if keep is None else keep & (soft > 0)
    powers = powers_of(logits, within) * soft
    total = powers.sum(-1, keepdims=True)
    return powers / jnp.where(total > 0, total, 1.0)
