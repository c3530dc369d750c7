"""Mixing with fixed weights, to measure attention against."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.attention.base import refuse_other_grid
from vit_jax.attention.multihead import Mixer
from vit_jax.attention.strides import Windows
from vit_jax.shapes import Array, Bool, Float


class Fourier(Mixer):
  """Re(FFT over the tokens of (FFT over the channels of x)), O(N log N).

  Lee-Thorp et al. 2022 (FNet), eq. 3, without a factor, as in the paper. There
  are no parameters and no heads. Every token is in every output, so that a mask
  of tokens has no meaning.
  """

  family = 'fixed pattern'
  published = 'N log N'
  cost = 'N·log N'
  source = 'Lee-Thorp et al. 2022'

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B N C'], *, train: bool = False
  ) -> Float[Array, 'B N C']:
    """Mixes, in float32.

    Raises:
      ValueError: normalize_qk or dropout_rate.
    """
    self.refuse_fields('normalize_qk', 'dropout_rate')
    mixed = jnp.fft.fft2(x.astype(jnp.float32), axes=(1, 2)).real
    return mixed.astype(self.dtype)

  def flops(self, n: int, heads: int, width: int) -> float:
    """Those of the transform, as `vit_jax.flops` counts it."""
    size = n * heads * width
    return 5.0 * size * math.log2(size)

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Complex numbers: the input, the output and the transform's own."""
    return 8.0 * 4 * n * heads * width


class Average(Mixer):
  """The mean of the window around each token, less the token, O(N·size²).

  Yu et al. 2022 (PoolFormer), eq. 4: less the token because the block adds it
  again. Beyond the border and behind the mask there is nothing; a prefix token,
  of which the paper has none, takes the mean of all tokens. There are no
  parameters and no heads.

  Attributes:
    size: of the window, odd; (size, 1) without a grid.
  """

  family = 'fixed pattern'
  published = 'N·k²'
  cost = 'N·size²'
  source = 'Yu et al. 2022'

  size: int = 3

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B N C'],
    *,
    key_mask: Bool[Array, 'B N'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'B N C']:
    """Mixes, in float32.

    Raises:
      ValueError: an even size, normalize_qk or dropout_rate, or tokens that are
        not the grid's.
    """
    self.refuse_fields('normalize_qk', 'dropout_rate')
    refuse_other_grid(self, x.shape[1])
    if self.size % 2 == 0:
      raise ValueError(f'size={self.size} must be odd')
    if key_mask is None:
      key_mask = jnp.ones(x.shape[:2], bool)
    windows = Windows(self.grid, self.prefix, x.shape[1], 1, self.size)
    tokens = x.astype(jnp.float32)
    _, patches, keep = windows.split(tokens, key_mask)
    count = keep.astype(jnp.float32)
    total = _sums(windows, jnp.concatenate([patches, count], axis=-1))
    patches = total[..., :-1] / jnp.maximum(total[..., -1:], 1)
    everything = jnp.where(key_mask[..., None], tokens, 0)
    count = jnp.maximum(key_mask.sum(axis=1), 1)[:, None, None]
    everything = everything.sum(axis=1, keepdims=True) / count
    prefix = jnp.broadcast_to(
      everything, (x.shape[0], self.prefix, x.shape[2])
    )
    return (windows.join(prefix, patches) - tokens).astype(self.dtype)

  def flops(self, n: int, heads: int, width: int) -> float:
    """The sums, counted as a convolution of ones."""
    windows = Windows(self.grid, self.prefix, n, 1, self.size)
    return 2.0 * windows.macs(heads * width + 1, heads * width + 1)

  def temporary(self, n: int, heads: int, width: int) -> float:
    """A few [N C] arrays."""
    return 4.0 * 8 * n * (heads * width + 1)


def _sums(windows: Windows, x: Float[Array, 'B R S F']) -> Array:
  features = x.shape[-1]
  return jax.lax.conv_general_dilated(
    x, jnp.ones((*windows.size, 1, features)), (1, 1), windows.padding,
    feature_group_count=features, dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )  # fmt: skip
