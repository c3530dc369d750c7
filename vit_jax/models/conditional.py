"""Positions made of what is around a token (CPVT): a depthwise convolution."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.attention.depthwise import depthwise
from vit_jax.models.initialization import HE_DEPTHWISE
from vit_jax.shapes import Array, Float


class ConditionalPosition(nn.Module):
  """x + depthwise 3×3 convolution(x) + bias on the grid; [B N C] → [B N C].

  The "positional encoding generator" (PEG): zeros around the grid tell where a
  token is, so any grid will do. Prefix tokens are left as they are. Chu et al.
  2021, "Conditional Positional Encodings for Vision Transformers", section 3.2.

  Parameters are `kernel` [3 3 1 C], which starts as N(0, 2/9) (Chu et al.'s
  code; He et al. 2015 by the outputs of a group), and `bias` [C], zeros.

  Attributes:
    prefix: tokens before the grid.
    dtype: of the computation.
  """

  prefix: int = 0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B N C'], grid: tuple[int, int]
  ) -> Float[Array, 'B N C']:
    """Adds positions to `prefix` tokens followed by a grid (rows, columns).

    Raises:
      ValueError: the tokens are not the grid's.
    """
    batch, n, width = x.shape
    if n != self.prefix + grid[0] * grid[1]:
      raise ValueError(
        f'{n} tokens are not prefix={self.prefix} and the grid {grid}'
      )
    kernel = self.param('kernel', HE_DEPTHWISE, (3, 3, 1, width))
    bias = self.param('bias', nn.initializers.zeros, (width,))
    x = x.astype(self.dtype)
    cells = x[:, self.prefix :].reshape(batch, *grid, width)
    y = depthwise(cells, kernel.astype(self.dtype))
    y = y.reshape(batch, -1, width) + bias.astype(self.dtype)[None, None]
    y = jnp.pad(y, ((0, 0), (self.prefix, 0), (0, 0)))
    return x + y
