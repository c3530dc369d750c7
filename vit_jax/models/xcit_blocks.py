"""The parts of XCiT (El-Nouby et al. 2021): stem, positions and two blocks."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from vit_jax import attention as attentions
from vit_jax import layers
from vit_jax.attention.depthwise import depthwise
from vit_jax.models.batch_norm import BatchNorm
from vit_jax.models.initialization import TORCH, initializers
from vit_jax.shapes import Array, Float

START = initializers('truncated')
FREQUENCIES = 32  # channels of each axis of `fourier`


def fourier(grid: tuple[int, int]) -> Float[np.ndarray, 'N F']:
  """Sines and cosines of the places in a grid, [rows·columns 64].

  Along an axis of n cells, cell i = 1…n is at 2π·i / (n + 1e-6), which is
  divided by 10000^(2j/32): 16 pairs of sine and cosine of y, then 16 of x. The
  authors' code; Vaswani et al. 2017, section 3.5, in units of the image.
  """
  omega = 1e4 ** (-np.arange(0, FREQUENCIES, 2) / FREQUENCIES)
  y, x = (
    2 * np.pi * np.arange(1, n + 1)[:, None] / (n + 1e-6) * omega[None]
    for n in grid
  )
  y, x = (
    np.stack([np.sin(z), np.cos(z)], axis=-1).reshape(len(z), -1)
    for z in (y, x)
  )
  table = np.concatenate([
    np.broadcast_to(y[:, None], (*grid, FREQUENCIES)),
    np.broadcast_to(x[None], (*grid, FREQUENCIES)),
  ], axis=-1)  # fmt: skip
  return table.reshape(-1, 2 * FREQUENCIES).astype(np.float32)


class ConvStem(nn.Module):
  """(conv 3×3 / 2, BatchNorm, GELU) times log₂ patch_size: [B Y X I] → map.

  No GELU at the end; each convolution has twice the features of the one before,
  and no bias. A side of n pixels becomes ⌈n / patch_size⌉.
  """

  features: int
  patch_size: int = 16
  gelu: str = 'exact'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B Y X I'], train: bool = False
  ) -> Float[Array, 'B y x C']:
    """The map of the patches.

    Raises:
      ValueError: patch_size is no power of 2, or the width cannot be halved.
    """
    count = self.patch_size.bit_length() - 1
    if count < 1 or self.patch_size != 2**count:
      raise ValueError(
        f'patch_size={self.patch_size} must be 2, 4, 8, 16, …: the stem halves '
        'the image'
      )
    if self.features % 2 ** (count - 1):
      raise ValueError(
        f'hidden_size={self.features} must be divisible by {2 ** (count - 1)} '
        f'for the stem of patch_size={self.patch_size}'
      )
    for i in range(count):
      x = nn.Conv(
        self.features // 2 ** (count - 1 - i), (3, 3), (2, 2), 1,
        use_bias=False, kernel_init=TORCH, dtype=self.dtype, name=f'conv_{i}',
      )(x)  # fmt: skip
      x = BatchNorm(dtype=self.dtype, name=f'norm_{i}')(x, train)
      if i < count - 1:
        x = layers.gelu(self.gelu)(x)
    return x


class Depthwise(nn.Module):
  """Convolution 3×3 of each channel by itself, with a bias."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'B Y X C']) -> Float[Array, 'B Y X C']:
    """Convolves, zeros around the map."""
    kernel = self.param('kernel', TORCH, (3, 3, 1, x.shape[-1]))
    bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],))
    y = depthwise(x.astype(self.dtype), kernel.astype(self.dtype))
    return y + bias.astype(self.dtype)[None, None, None]


class XCiTBlock(nn.Module):
  """x + λ₁ attention(norm(x)), then + λ₂ local(norm(·)), + λ₃ MLP(norm(·)).

  local = conv(BatchNorm(GELU(conv(·)))), depthwise 3×3, is where patches look
  at their neighbours. El-Nouby et al. 2021, section 3.3 and 3.4, with GELU
  before BatchNorm as in the authors' code. [B N C] → [B N C].

  Attributes:
    attention: builds the attention layer; see `vit_jax.attention.layer`.
    grid: rows and columns of the patches.
    layer_scale: λ at first.
    drop_path_rate: of the three branches, in training.
  """

  mlp_dim: int
  num_heads: int
  attention: Callable[..., nn.Module]
  grid: tuple[int, int]
  layer_scale: float = 1.0
  qkv_bias: bool = True
  drop_path_rate: float = 0.0
  gelu: str = 'exact'
  epsilon: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B N C'], train: bool = False
  ) -> Float[Array, 'B N C']:
    """Applies the block; positional `train` so that nn.remat can fix it."""
    y = self.attention(
      num_heads=self.num_heads, grid=self.grid, use_bias=self.qkv_bias,
      epsilon=self.epsilon, dtype=self.dtype, kernel_init=START.kernel,
      name='MultiHeadDotProductAttention_0',
    )(self._norm(x), train=train)  # fmt: skip
    x = x + self._branch(y, train)
    x = x + self._branch(self._local(self._norm(x), train), train)
    y = layers.MlpBlock(
      self.mlp_dim, 0.0, self.gelu, self.dtype, START.kernel, START.bias
    )(self._norm(x), train)
    return x + self._branch(y, train)

  def _norm(self, x):
    return nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype)(x)

  def _branch(self, y, train: bool):
    y = layers.LayerScale(self.layer_scale)(y)
    return layers.DropPath(self.drop_path_rate)(y, train)

  def _local(self, x, train: bool):
    shape = x.shape
    x = Depthwise(self.dtype)(x.reshape(shape[0], *self.grid, shape[2]))
    x = BatchNorm(dtype=self.dtype)(layers.gelu(self.gelu)(x), train)
    return Depthwise(self.dtype)(x).reshape(shape)


class ClassBlock(nn.Module):
  """The class token c looks at the patches x: [B 1+N C] → [B 1+N C].

  With y = norm([c, x]): c ← c + λ₁ attention(y₀, y, y), x ← x + λ₁ y₁…; then
  both, or c alone, are normed (`norm_tokens`); then c ← c + λ₂ MLP(c), x ← 2 x.
  So the authors' code; in the paper, section 3.5, and in CaiT, x stays as it is
  and the skip is not normed.

  Attributes:
    As in `XCiTBlock`.
  """

  mlp_dim: int
  num_heads: int
  layer_scale: float = 1.0
  norm_tokens: bool = True
  qkv_bias: bool = True
  gelu: str = 'exact'
  epsilon: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B N C'], train: bool = False
  ) -> Float[Array, 'B N C']:
    """Applies the block; positional `train` so that nn.remat can fix it."""
    y = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype)(x)
    c = attentions.MultiHeadDotProductAttention(
      self.num_heads, attentions.Softmax, use_bias=self.qkv_bias,
      dtype=self.dtype, kernel_init=START.kernel,
      name='MultiHeadDotProductAttention_0',
    )(y[:, :1], y, train=train)  # fmt: skip
    y = jnp.concatenate([c, y[:, 1:]], axis=1)
    x = x + layers.LayerScale(self.layer_scale)(y)
    norm = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype)
    x = norm(x) if self.norm_tokens else jnp.concatenate(
      [norm(x[:, :1]), x[:, 1:]], axis=1
    )
    c = layers.MlpBlock(
      self.mlp_dim, 0.0, self.gelu, self.dtype, START.kernel, START.bias
    )(x[:, :1], train)
    c = layers.LayerScale(self.layer_scale)(c)
    return x + jnp.concatenate([c, x[:, 1:]], axis=1)
