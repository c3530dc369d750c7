"""Luna: attention packs the tokens into a few, attention unpacks them."""

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.attention.base import Attention
from vit_jax.attention.weights import logits_of, mixed
from vit_jax.shapes import Array, Bool, Float


class Luna(Attention):
  """softmax(Q Pᵀ / √D) P, P = softmax(Z Kᵀ / √D) V, O((N + M)·length).

  Ma et al. 2021, eq. 4 and 5. Z is learned, in every head; the paper carries P
  to the next layer as its Z, which a model of independent layers does not.
  Keys are made of values, so the map depends on the values. The paper's
  projections of P to keys and values are left to the layer's own `query` and
  `out`, with which they would multiply; only where E ≠ D they are needed, and
  P's keys are `unpack_keys` [H E D] times P. The causal form, which needs
  another activation than softmax (section 3.3), is not there.

  Attributes:
    length: number of packed tokens.
    dropout_rate: of the weights that unpack, in training.
  """

  family = 'memory'
  published = 'N·l'
  cost = 'N·length'
  source = 'Ma et al. 2021'
  cross = True
  equivariant = True
  linear_in_values = False

  length: int = 16
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
    """Attends."""
    heads, width = q.shape[2:]
    z = self.param(
      'memory', nn.initializers.normal(1.0), (1, heads, self.length, width)
    )
    z = jnp.broadcast_to(z, (q.shape[0], *z.shape[1:])).astype(k.dtype)
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    keep = None if key_mask is None else key_mask[:, None, None]
    packed = keys = mixed(logits_of(z, k), v, keep).astype(v.dtype)
    if v.shape[-1] != width:
      by = self.param(
        'unpack_keys', nn.initializers.lecun_normal(batch_axis=0),
        (heads, v.shape[-1], width),
      )  # fmt: skip
      keys = jnp.einsum('bhme,hed->bhmd', packed, by.astype(packed.dtype))
    drop = nn.Dropout(self.dropout_rate, deterministic=not train)
    out = mixed(logits_of(q, keys), packed, drop=drop)
    return out.swapaxes(1, 2).astype(v.dtype)

  def flops(self, n: int, heads: int, width: int) -> float:
    """Two logits and two products with values."""
    return 8.0 * n * self.length * heads * width

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Logits and weights, and a few [N D] arrays."""
    return 4.0 * heads * n * (3 * self.length + 6 * width)
