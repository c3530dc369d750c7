"""Linformer: keys and values projected along the tokens to a fixed number."""

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.attention.base import Attention, sized_param
from vit_jax.attention.weights import softmax_of
from vit_jax.shapes import Array, Bool, Float


class Linformer(Attention):
  """softmax(Q (E K)ᵀ / √D) F V, O(M·rank). Wang et al. 2020, eq. 7.

  E and F are learned [rank M] maps, so M is fixed when they are made. Masked
  keys and values are zeros before they are projected, which is no influence.

  Attributes:
    rank: number of projected keys; the paper's k.
    share: 'none' has E and F in every head, 'headwise' one E and one F,
      'key-value' one E = F (section 4, "additional efficiency techniques").
    dropout_rate: of the attention weights, in training.
  """

  family = 'low rank'
  published = 'N·k'
  cost = 'N·rank'
  source = 'Wang et al. 2020'
  cross = True

  rank: int = 64
  share: str = 'none'
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
      ValueError: unknown `share`, or another M than the parameters'.
    """
    choices = ('none', 'headwise', 'key-value')
    if self.share not in choices:
      raise ValueError(f'share={self.share!r}; choices: {choices}')
    length, heads = k.shape[1:3]
    shape = (heads if self.share == 'none' else 1, self.rank, length)
    # Variance 1 / (M + rank), as the authors' code.
    init = nn.initializers.variance_scaling(
      0.5, 'fan_avg', 'uniform', in_axis=-1, out_axis=-2, batch_axis=0
    )
    first = second = sized_param(self, 'project_keys', init, shape)
    if self.share != 'key-value':
      second = sized_param(self, 'project_values', init, shape)
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    if key_mask is not None:
      k, v = (jnp.where(key_mask[:, None, :, None], x, 0) for x in (k, v))

    def project(by, x):
      by = jnp.broadcast_to(by, (heads, *shape[1:])).astype(x.dtype)
      return jnp.einsum('hrm,bhmd->bhrd', by, x)

    logits = jnp.einsum(
      'bhnd,bhrd->bhnr', q * q.shape[-1] ** -0.5, project(first, k),
      preferred_element_type=jnp.float32,
    )  # fmt: skip
    weights = nn.Dropout(self.dropout_rate, deterministic=not train)(
      softmax_of(logits)
    )
    out = jnp.einsum(
      'bhnr,bhre->bhne', weights.astype(v.dtype), project(second, v)
    )
    return out.swapaxes(1, 2)

  def flops(self, n: int, heads: int, width: int) -> float:
    """E K, F V, the logits and the weights times F V."""
    return 8.0 * n * self.rank * heads * width

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Broadcast projections, logits and weights; a few [N D] arrays."""
    return 4.0 * heads * n * (4 * self.rank + 5 * width)
