"""The Reformer of the Long-Range Arena's code, with its faults."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.attention.multihead import project
from vit_jax.attention.reformer import Reformer
from vit_jax.shapes import Array, Bool, Float


class ReformerOfLRA(Reformer):
  """softmax(√D q_i·q_j) v over the own sorted chunk and the one before it.

  Sorting by buckets is the right kernel's; the faults are

    logits times √D, where they should be divided by it;
    keys that are the queries, not k_j = q_j / ‖q_j‖;
    no mask of other buckets, of the token itself, and of padding;
    the same rotations in every training step, those of evaluation here;
    no output projection: the heads' outputs are the layer's.

  Rounds are merged by log-sum-exp, and a pair that several of them hold counts
  as often. Left as in the right kernel, for it is not what is tested: the chunk
  before the first one is empty (there it is the last), and so are the slots
  that make the last chunk full (there they are tokens of zeros).

  Raises:
    ValueError: causal or normalize_qk; an odd number of buckets other than 1.
  """

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B N C'],
    *,
    key_mask: Bool[Array, 'B N'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'B N C']:
    """Projects, sorts and attends within chunks."""
    del key_mask
    self.refuse_fields('normalize_qk', 'causal')
    n, width = x.shape[1:]
    q = project(self, 'query', x, width).swapaxes(1, 2)
    v = project(self, 'value', x, width).swapaxes(1, 2)
    fixed = self._hash(q.astype(jnp.float32), self._factors(n), train=False)
    order = jnp.argsort(fixed, axis=-1)  # [B H R N]
    size = min(self.chunk, n)
    ahead = -n % size

    def chunks(a):
      """[B H N D] → [B H R chunks size D], sorted."""
      a = jnp.broadcast_to(a[:, :, None], (*order.shape, a.shape[-1]))
      a = jnp.take_along_axis(a, order[..., None], axis=3)
      a = jnp.pad(a, ((0, 0),) * 3 + ((0, ahead), (0, 0)))
      return a.reshape(*a.shape[:3], -1, size, a.shape[-1])

    def both(a):
      """The chunk before, then it."""
      none = jnp.zeros_like(a[:, :, :, :1])
      return jnp.concatenate(
        [jnp.concatenate([none, a[:, :, :, :-1]], axis=3), a], axis=4
      )

    there = (np.arange(n + ahead) < n).reshape(-1, size)
    before = np.concatenate([np.zeros_like(there[:1]), there[:-1]])
    there = np.concatenate([before, there], axis=1)[None, None, None, :, None]
    mine = chunks(q)
    logits = jnp.einsum(
      'bhrcid,bhrcjd->bhrcij', mine, both(mine),
      preferred_element_type=jnp.float32,
    ) * q.shape[-1] ** 0.5  # fmt: skip
    logits = jnp.where(there, logits, jnp.finfo(jnp.float32).min)
    largest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    powers = jnp.where(there, jnp.exp(logits - largest), 0.0)
    total = powers.sum(axis=-1, keepdims=True)
    powers = nn.Dropout(self.dropout_rate)(powers, deterministic=not train)
    out = jnp.einsum(
      'bhrcij,bhrcjd->bhrcid', powers.astype(v.dtype), both(chunks(v)),
      preferred_element_type=jnp.float32,
    )  # fmt: skip

    place = jnp.argsort(order, axis=-1)[..., None]
    out, total, largest = (
      jnp.take_along_axis(
        a.reshape(*order.shape[:3], n + ahead, -1), place, axis=3
      )
      for a in (out, total, largest)
    )
    weight = jnp.exp(largest - largest.max(axis=2, keepdims=True))
    out = (weight * out).sum(axis=2) / (weight * total).sum(axis=2)
    return out.swapaxes(1, 2).reshape(x.shape).astype(v.dtype)

  def flops(self, n: int, heads: int, width: int) -> float:
    """The right one's, less the output projection."""
    return super().flops(n, heads, width) - 2.0 * n * (heads * width) ** 2
