"""Batch normalisation as convolutional stems and teachers have it."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.shapes import Array, Float


class BatchNorm(nn.Module):
  """(x - μ) / √(σ² + ε) · scale + bias over all but the channels, [… C].

  In training, μ and σ² are the batch's; the averages in `batch_stats`,
  m ← momentum·m + (1 - momentum)·new, serve evaluation. Ioffe and Szegedy 2015,
  algorithm 1 and 2: σ² is the mean of squares, but the average is of the
  unbiased n/(n - 1)·σ², as in the paper and in PyTorch; `flax.linen.BatchNorm`
  averages σ². Statistics are computed in float32, and under jit with a batch
  that lies on several devices they are of the whole batch.

  Attributes:
    momentum: of the averages; PyTorch's `momentum=0.1` is 0.9.
    epsilon: ε.
    scale_init: of the scale; zeros make a residual branch start as nothing.
    dtype: of the output.
    frozen: use the averages in training too, and leave them as they are.
  """

  momentum: float = 0.9
  epsilon: float = 1e-5
  scale_init: Any = nn.initializers.ones
  dtype: Any = jnp.float32
  frozen: bool = False

  @nn.compact
  def __call__(
    self, x: Float[Array, '*B C'], train: bool = False
  ) -> Float[Array, '*B C']:
    """Normalises; in training `batch_stats` must be mutable."""
    width, axes = x.shape[-1], tuple(range(x.ndim - 1))
    scale = self.param('scale', self.scale_init, (width,))
    bias = self.param('bias', nn.initializers.zeros, (width,))
    average = self.variable('batch_stats', 'mean', jnp.zeros, (width,))
    spread = self.variable('batch_stats', 'var', jnp.ones, (width,))
    mean, variance = average.value, spread.value
    if train and not self.frozen:
      wide = x.astype(jnp.float32)
      mean = wide.mean(axis=axes)
      centred = wide - _over(mean, x.ndim)
      variance = jnp.square(centred).mean(axis=axes)
      if not self.is_initializing():
        count = x.size // width
        unbiased = variance * (count / max(count - 1, 1))
        for kept, new in ((average, mean), (spread, unbiased)):
          kept.value = self.momentum * kept.value + (
            1 - self.momentum
          ) * jax.lax.stop_gradient(new)
    # One multiplication and one addition an element.
    factor = scale * jax.lax.rsqrt(variance + self.epsilon)
    shift = bias - mean * factor
    out = x.astype(jnp.float32) * _over(factor, x.ndim) + _over(shift, x.ndim)
    return out.astype(self.dtype)


def _over(x: Float[Array, 'C'], rank: int) -> Float[Array, '...']:
  """With leading axes of size 1."""
  return x.reshape((1,) * (rank - 1) + x.shape)
