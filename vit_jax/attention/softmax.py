"""Exact softmax attention: the oracle of every other one."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.attention.decoding import KeyValueCache
from vit_jax.attention.weights import keep_of, logits_of, mixed
from vit_jax.shapes import Array, Bool, Float


class Softmax(KeyValueCache):
  """softmax(Q Kᵀ / √D + bias) V, O(N·M). Vaswani et al. 2017, eq. 1.

  Attributes:
    causal: query i sees keys up to i + M - N (aligned bottom-right).
    dropout_rate: of the attention weights, in training.
    implementation: 'xla', 'cudnn', or 'auto': cuDNN's fused kernel on a GPU in
      half precision where it can do what is asked, XLA everywhere else.
  """

  family = 'exact'
  published = 'N²'
  cost = 'N²'
  source = 'Vaswani et al. 2017'
  cross = True
  equivariant = True

  causal: bool = False
  dropout_rate: float = 0.0
  implementation: str = 'auto'

  @nn.compact
  def __call__(
    self,
    q: Float[Array, 'B N H D'],
    k: Float[Array, 'B M H D'],
    v: Float[Array, 'B M H E'],
    *,
    key_mask: Bool[Array, 'B M'] | None = None,
    mask: Bool[Array, '#B #H N M'] | None = None,
    bias: Float[Array, '#B #H N M'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'B N H E']:
    """Attends; logits and softmax are in float32 whatever the inputs are."""
    keep = keep_of(
      q.shape[1], k.shape[1], causal=self.causal, key_mask=key_mask, mask=mask
    )
    dropping = train and self.dropout_rate > 0
    if self._use_cudnn(q, v, dropping):
      return _cudnn(q, k, v, bias, keep)
    # Heads before tokens: XLA's CPU matrix product is twice as fast on
    # contiguous [N D] matrices than on linen's strided [N H D].
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    drop = nn.Dropout(self.dropout_rate, deterministic=not dropping)
    out = mixed(logits_of(q, k, bias), v, keep, drop)
    return out.swapaxes(1, 2).astype(v.dtype)

  def flops(self, n: int, heads: int, width: int) -> float:
    """Q Kᵀ and the weights times V."""
    return 4.0 * n * n * heads * width

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Logits and weights, twice each, and a few [N D] arrays."""
    return 4.0 * heads * (4 * n * n + 8 * n * width)

  def _use_cudnn(self, q, v, dropping: bool) -> bool:
    choices = ('auto', 'xla', 'cudnn')
    if self.implementation not in choices:
      raise ValueError(
        f'implementation={self.implementation!r}; choices: {choices}'
      )
    width = q.shape[-1]
    able = (
      jax.default_backend() == 'gpu'
      and q.dtype in (jnp.bfloat16, jnp.float16)
      and not dropping
      and width % 8 == 0
      and width <= 128
      and v.shape[-1] == width
    )
    if self.implementation == 'cudnn' and not able:
      raise ValueError(
        "implementation='cudnn' needs a GPU, bfloat16 or float16, a head width "
        'divisible by 8 and at most 128, equal for keys and values, and no '
        f'dropout of attention weights; got {jax.default_backend()}, '
        f'{q.dtype}, widths {width} and {v.shape[-1]}, '
        f'dropout_rate={self.dropout_rate if dropping else 0.0}'
      )
    return able and self.implementation != 'xla'


def _cudnn(q, k, v, bias, keep):
  out = jax.nn.dot_product_attention(
    q, k, v, bias=None if bias is None else bias.astype(q.dtype), mask=keep,
    implementation='cudnn',
  )  # fmt: skip
  if keep is None:
    return out
  # cuDNN's softmax of a row without a key is the mean of the values.
  some = jnp.broadcast_to(
    keep, (*keep.shape[:2], q.shape[1], k.shape[1])
  ).any(-1)
  some = jnp.broadcast_to(some, (q.shape[0], q.shape[2], q.shape[1]))
  return jnp.where(some.swapaxes(1, 2)[..., None], out, 0)
