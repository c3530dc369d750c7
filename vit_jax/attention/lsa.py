"""Locality self-attention: sharper, and never of a token to itself."""

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.attention.base import refuse_cross
from vit_jax.attention.dense_map import DenseMap
from vit_jax.attention.weights import softmax_of
from vit_jax.shapes import Array, Bool, Float


class LSA(DenseMap):
  """softmax over j ≠ i of q_i·k_j / τ + bias, times V: O(N²).

  Lee et al. 2021, section 3.3: on small data the map of plain attention is too
  even, and largest where a token meets itself. Here a token leaves itself out,
  and the temperature τ is learned. As in the authors' code each head has its
  own, and what is learned is the factor `scale` = 1/τ, 1/√D at first. A single
  token gets zeros.

  Attributes:
    dropout_rate: of the attention weights, in training.
  """

  family = 'exact'
  source = 'Lee et al. 2021'
  cross = False

  def logits(
    self, q: Float[Array, 'B H N D'], k: Float[Array, 'B H M D']
  ) -> Float[Array, 'B H N M']:
    """Q Kᵀ / τ within one sequence."""
    refuse_cross(self, *(x.swapaxes(1, 2) for x in (q, k)))
    heads, _, width = q.shape[1:]
    start = nn.initializers.constant(width**-0.5)
    scale = self.param('scale', start, (heads,))[None, :, None, None]
    q = q * scale.astype(q.dtype)
    return jnp.einsum(
      'bhnd,bhmd->bhnm', q, k, preferred_element_type=jnp.float32
    )

  def weights(
    self,
    logits: Float[Array, 'B H N N'],
    keep: Bool[Array, '#B #H #N N'] | None,
    train: bool,
  ) -> Float[Array, 'B H N N']:
    """Softmax over the other tokens."""
    others = ~jnp.eye(logits.shape[-1], dtype=bool)[None, None]
    return softmax_of(logits, others if keep is None else keep & others)
