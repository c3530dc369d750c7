"""Convolutions of maps as PyTorch pads them, and its 3×3 max-pool."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.batch_norm import BatchNorm
from vit_jax.models.initialization import HE
from vit_jax.shapes import Array, Float


class Conv(nn.Module):
  """A convolution without bias, [B Y X I] → [B Y/stride X/stride features].

  Zeros are padded alike on both sides, as PyTorch does: SAME would shift the
  map where the stride is 2. A 1×1 is a matrix product: on a CPU the gradient of
  its kernel takes a tenth of the time.

  Attributes:
    size: rows and columns of the window, odd.
  """

  features: int
  size: int
  stride: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'B Y X I']) -> Float[Array, 'B y x O']:
    """Convolves; sides are rounded up."""
    shape = (self.size, self.size, x.shape[-1], self.features)
    kernel = self.param('kernel', HE, shape).astype(self.dtype)
    x, s, pad = x.astype(self.dtype), self.stride, self.size // 2
    if self.size == 1:
      x = x[:, ::s, ::s]
      flat = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
      return flat.reshape(*x.shape[:-1], self.features)
    return jax.lax.conv_general_dilated(
      x, kernel, (s, s), ((pad, pad), (pad, pad)),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )  # fmt: skip


class ConvNorm(nn.Module):
  """norm(conv(x)), [B Y X I] → [B Y/stride X/stride features], rounded up.

  Attributes:
    size: of the window, see `Conv`.
    zero: whether the scale starts at 0.
    frozen: see `BatchNorm`.
  """

  features: int
  size: int
  stride: int = 1
  zero: bool = False
  frozen: bool = False
  epsilon: float = 1e-5
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B Y X I'], train: bool = False
  ) -> Float[Array, 'B y x O']:
    """Convolves and normalises."""
    x = Conv(
      self.features, self.size, self.stride, self.dtype, name='conv'
    )(x)
    start = nn.initializers.zeros if self.zero else nn.initializers.ones
    return BatchNorm(
      epsilon=self.epsilon, scale_init=start, dtype=self.dtype,
      frozen=self.frozen, name='norm',
    )(x, train)  # fmt: skip


def max_pool(x: Float[Array, 'B Y X C']) -> Float[Array, 'B y x C']:
  """The largest of 3×3 cells, at every other one: sides are halved, rounded up.

  The gradient takes a sixteenth of the time on a CPU that `nn.max_pool`'s does.
  """
  for axis in (1, 2):
    count = (x.shape[axis] + 1) // 2
    x = _padded(x, axis, 0, 2 * count - x.shape[axis])
    x = x.reshape(*x.shape[:axis], count, 2, *x.shape[axis + 1 :])
    even, odd = (jax.lax.index_in_dim(x, i, axis + 1, False) for i in (0, 1))
    before = jax.lax.slice_in_dim(_padded(odd, axis, 1, 0), 0, count, 1, axis)
    x = jnp.maximum(jnp.maximum(before, even), odd)
  return x


def _padded(x, axis: int, before: int, after: int):
  """With that many cells of -∞ in front and behind."""
  pads = [(0, 0)] * x.ndim
  pads[axis] = (before, after)
  return jnp.pad(x, pads, constant_values=-jnp.inf)
