"""Cross-covariance attention: channels attend to channels."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.attention.base import Attention, refuse_cross
from vit_jax.attention.feature_maps import heads_first, refuse_other_width
from vit_jax.shapes import Array, Bool, Float

# Under the root of a channel's norm, so that a zero channel has a gradient.
TINY = 1e-12


class XCA(Attention):
  """V softmax(K̂ᵀ Q̂ / τ), channels of unit norm over the tokens, O(N·D²).

  El-Nouby et al. 2021, section 3.2. `temperature` is 1/τ, learned a head, as in
  the authors' code. There is no N×M map: a token's output mixes the channels of
  its own value, so a masked token counts nowhere and gets zeros.

  Attributes:
    dropout_rate: of the D×D weights, in training.
  """

  family = 'kernel'
  published = 'N·D²'
  cost = 'N·D²'
  source = 'El-Nouby et al. 2021'
  equivariant = True
  mixes_channels = True

  dropout_rate: float = 0.0

  @nn.compact
  def __call__(
    self,
    q: Float[Array, 'B N H D'],
    k: Float[Array, 'B M H D'],
    v: Float[Array, 'B M H E'],
    *,
    key_mask: Bool[Array, 'B M'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'B N H E']:
    """Attends.

    Raises:
      ValueError: M ≠ N or E ≠ D.
    """
    refuse_cross(self, q, k)
    refuse_other_width(self, q, v)
    temperature = self.param('temperature', nn.initializers.ones, q.shape[2:3])
    dtype = v.dtype
    q, k, v = (heads_first(x) for x in (q, k, v))
    if key_mask is not None:
      q, k, v = (
        jnp.where(key_mask[:, None, :, None], x, 0.0) for x in (q, k, v)
      )
    logits = jnp.einsum('bhnd,bhne->bhde', _unit(q), _unit(k))
    weights = jax.nn.softmax(logits * temperature[None, :, None, None], -1)
    weights = nn.Dropout(self.dropout_rate)(weights, deterministic=not train)
    out = jnp.einsum('bhne,bhde->bhnd', v, weights)
    return out.swapaxes(1, 2).astype(dtype)

  def flops(self, n: int, heads: int, width: int) -> float:
    """The covariance of channels and its product with the values."""
    return 4.0 * n * heads * width * width

  def temporary(self, n: int, heads: int, width: int) -> float:
    """A few [N D] arrays and the D×D weights."""
    return 4.0 * heads * (5 * n * width + 4 * width * width)


def _unit(x):
  square = jnp.sum(x * x, axis=2, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, TINY))
