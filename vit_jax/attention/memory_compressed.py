"""Memory-compressed attention: keys and values of every few tokens in one."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.attention.base import Attention, refuse_acausal
from vit_jax.attention.weights import logits_of, mixed
from vit_jax.shapes import Array, Bool, Float


class MemoryCompressed(Attention):
  """softmax(Q K̃ᵀ / √D) Ṽ, O(N·M / stride). Liu et al. 2018, section 4.2.3.

  K̃ and Ṽ are convolutions of K and V along the tokens, over all heads and
  channels, with a kernel as wide as the stride. Masked tokens are zeros in
  them, and a compressed key without a token left is masked. The paper
  alternates it with attention in local blocks: give the model two specs.
  Departure: the convolutions have no bias, which would be a value of no token.

  Causal: a compressed key is seen from its last token on. Until the first is
  complete there is only the null key, of zeros and with a value of zeros, which
  all queries see.

  Attributes:
    stride: tokens in a compressed key.
    causal: query i sees keys made of tokens up to i + M - N, and the null key.
    dropout_rate: of the attention weights, in training.
  """

  family = 'memory'
  published = 'N²/3'
  cost = 'N²/stride'
  source = 'Liu et al. 2018'
  cross = True
  mixes_channels = True

  stride: int = 3
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
    train: bool = False,
  ) -> Float[Array, 'B N H E']:
    """Attends.

    Raises:
      ValueError: a stride below 1.
    """
    if self.stride < 1:
      raise ValueError(f'stride={self.stride} must be at least 1')
    n, m, stride = q.shape[1], k.shape[1], self.stride
    if key_mask is not None:
      k, v = (jnp.where(key_mask[..., None, None], x, 0) for x in (k, v))
    kernels = []
    for name, x in (('compress_keys', k), ('compress_values', v)):
      channels = x.shape[2] * x.shape[3]
      shape = (stride * channels, channels)
      kernels.append(self.param(name, nn.initializers.lecun_normal(), shape))
    k, v = (_compress(x, by) for x, by in zip((k, v), kernels, strict=True))
    keep = None
    if key_mask is not None:
      blocks = jnp.pad(key_mask, ((0, 0), (0, -m % stride)))
      keep = blocks.reshape(-1, 1, k.shape[1], stride).any(-1)[:, None]
    if self.causal:
      ends = (jnp.arange(k.shape[1]) + 1) * stride - 1
      seen = ends[None] <= jnp.arange(n)[:, None] + m - n
      keep = seen[None, None] if keep is None else keep & seen[None, None]
    return self._attend(q, k, v, keep, train)

  def _attend(self, q, k, v, keep, train: bool = False):
    if self.causal:  # the null key
      k, v = (
        jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0))) for x in (k, v)
      )
      keep = jnp.pad(
        keep, ((0, 0), (0, 0), (0, 0), (1, 0)), constant_values=True
      )
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    drop = lambda x: x  # noqa: E731
    if train and self.dropout_rate:
      drop = nn.Dropout(self.dropout_rate, deterministic=False)
    out = mixed(logits_of(q, k), v, keep, drop)
    return out.swapaxes(1, 2).astype(v.dtype)

  def init_state(
    self, batch: int, length: int, heads: int, width: int, dtype: Any
  ) -> Any:
    """The compressed keys and values, and the tokens of the next one."""
    refuse_acausal(self)
    empty = lambda n: jnp.zeros((2, batch, n, heads, width), dtype)  # noqa: E731
    return {
      'step': jnp.zeros((), jnp.int32), 'block': empty(self.stride),
      'compressed': empty(-(-length // self.stride)),
    }  # fmt: skip

  def step(
    self,
    state: Any,
    q: Float[Array, 'B 1 H D'],
    k: Float[Array, 'B 1 H D'],
    v: Float[Array, 'B 1 H D'],
  ) -> tuple[Float[Array, 'B 1 H D'], Any]:
    """One step: 1 / stride of a key/value cache's memory and work."""
    t = state['step']
    put = jax.lax.dynamic_update_slice_in_dim
    new = jnp.stack([k, v]).astype(state['block'].dtype)
    block = put(state['block'], new, t % self.stride, axis=2)
    kernels = (
      self.get_variable('params', name)
      for name in ('compress_keys', 'compress_values')
    )
    made = [_compress(x, by) for x, by in zip(block, kernels, strict=True)]
    # Overwritten until its last token is there; not seen before.
    compressed = put(
      state['compressed'], jnp.stack(made), t // self.stride, axis=2
    )
    seen = (jnp.arange(compressed.shape[2]) + 1) * self.stride - 1 <= t
    out = self._attend(q, *compressed, seen[None, None, None])
    return out, {'step': t + 1, 'block': block, 'compressed': compressed}

  def flops(self, n: int, heads: int, width: int) -> float:
    """Both convolutions, the logits and the weights times Ṽ."""
    keys = -(-n // self.stride)
    channels = heads * width
    return 4.0 * keys * channels * (self.stride * channels + n)

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Logits and weights, and a few [N D] arrays."""
    keys = -(-n // self.stride) + 1
    return 4.0 * heads * (3 * n * keys + 8 * n * width)


def _compress(
  x: Float[Array, 'B M H D'], kernel: Float[Array, 'S C']
) -> Float[Array, 'B U H D']:
  batch, length, heads, width = x.shape
  stride = kernel.shape[0] // (heads * width)
  x = jnp.pad(x, ((0, 0), (0, -length % stride), (0, 0), (0, 0)))
  x = x.reshape(batch, -1, kernel.shape[0]) @ kernel.astype(x.dtype)
  return x.reshape(batch, -1, heads, width)
