"""Focused linear attention: sharper features, and a convolution of values."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.attention.base import Attention, refuse_cross, refuse_other_grid
from vit_jax.attention.feature_maps import (
  FLOOR, all_sums, heads_first, refuse_other_width,
)  # fmt: skip
from vit_jax.shapes import Array, Bool, Float


def focus(x: Float[Array, 'B N H D'], p: int) -> Float[Array, 'B H N D']:
  """‖x‖/‖xᵖ‖ · xᵖ of x = relu(x): the same length, nearer to its largest axis.

  Han et al. 2023, section 4.1; zero stays zero.
  """
  x = jax.nn.relu(heads_first(x))
  # Powers of x over its largest do not overflow; a scale changes nothing else.
  largest = jax.lax.stop_gradient(x.max(axis=-1, keepdims=True))
  some = largest > 0
  scale = jnp.where(some, largest, 1.0)
  x = x / scale
  norm = lambda y: jnp.sqrt(  # noqa: E731
    jnp.where(some, jnp.sum(y * y, axis=-1, keepdims=True), 1.0)
  )
  power = x**p
  return scale * norm(x) / norm(power) * power


class Focused(Attention):
  """φ(Q)(φ(K)ᵀ V) / φ(Q)(φ(K)ᵀ 1) + DWC(V), O(N·(D² + kernel_size²·D)).

  φ(x) = ‖x‖/‖xᵖ‖ · xᵖ, x = relu(x); DWC is a depthwise convolution over the
  grid, one filter a channel for all heads, zeros outside; over a sequence it is
  one-dimensional. Prefix tokens are not convolved. Han et al. 2023, section 4.

  Departures: φ is of each head, where the authors' code takes norms over all
  heads, and divides queries and keys by a learned scale; the convolution has no
  bias, so that no keys give zeros; a query without a common channel gets only
  its convolution, where the code adds 10⁻⁶ to every channel.

  Attributes:
    p: the focusing power.
    kernel_size: of the convolution; odd.
  """

  family = 'kernel'
  published = 'N·D²'
  cost = 'N·(D² + kernel_size²·D)'
  source = 'Han et al. 2023'
  mixes_channels = True

  p: int = 3
  kernel_size: int = 5

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
      ValueError: M ≠ N, E ≠ D, another grid, p below 1 or an even kernel_size.
    """
    refuse_cross(self, q, k)
    refuse_other_width(self, q, v)
    refuse_other_grid(self, q.shape[1])
    if self.p < 1:
      raise ValueError(f'p={self.p}; the power must be at least 1')
    if self.kernel_size < 1 or self.kernel_size % 2 == 0:
      raise ValueError(f'kernel_size={self.kernel_size}; it must be odd')
    dtype = v.dtype
    q, k, v = focus(q, self.p), focus(k, self.p), heads_first(v)
    if key_mask is not None:
      keep = key_mask[:, None, :, None]
      k, v = jnp.where(keep, k, 0.0), jnp.where(keep, v, 0.0)
    sums, total = all_sums(q, k, v)
    out = sums / jnp.maximum(total, FLOOR)[..., None]
    out = out.at[:, :, self.prefix :].add(self._convolve(v))
    return out.swapaxes(1, 2).astype(dtype)

  def _convolve(self, v):
    """The patch tokens' depthwise convolution, [B H N-prefix E]."""
    batch, heads, n, width = v.shape
    rows, columns = self.grid or (1, n - self.prefix)
    patches = v[:, :, self.prefix :].reshape(
      batch * heads, rows, columns, width
    )
    size = (self.kernel_size if self.grid else 1, self.kernel_size)
    patches = nn.Conv(
      width, size, padding='SAME', feature_group_count=width, use_bias=False,
      name='depthwise',
    )(patches)  # fmt: skip
    return patches.reshape(batch, heads, n - self.prefix, width)

  def flops(self, n: int, heads: int, width: int) -> float:
    """Products with the states, and the convolution."""
    taps = self.kernel_size ** (2 if self.grid else 1)
    convolution = 2.0 * taps * (n - self.prefix) * heads * width
    return (4.0 * n * width + 2.0 * n) * heads * width + convolution

  def temporary(self, n: int, heads: int, width: int) -> float:
    """A few [N D] arrays."""
    return 4.0 * heads * (12 * n * width + 2 * width * width)
