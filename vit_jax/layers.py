"""Layers that every vision Transformer shares: patches, positions, MLP, heads.

Class and parameter names are those of the original ViT codebase wherever it has
the layer, so its weights and its users' code fit.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.shapes import Array, Float


def exact_gelu(x: Float[Array, '*B']) -> Float[Array, '*B']:
  """x/2 (1 + erf(x/√2)), in float32. Hendrycks and Gimpel 2016, eq. 1.

  Equal to `nn.gelu(x, approximate=False)` within 1e-6; that one takes erfc,
  with which an MLP of ViT-S trains 1 to 8 % slower on a CPU.
  """
  wide = x.astype(jnp.float32)  # 1 + erf cancels in bfloat16
  return (0.5 * wide * (1.0 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


GELUS = {
  'tanh': lambda x: nn.gelu(x, approximate=True),  # the original ViT's
  'exact': exact_gelu,  # PyTorch's, Hugging Face's
  'quick': lambda x: x * nn.sigmoid(1.702 * x),  # section 2 of the paper; CLIP
}


def gelu(form: str) -> Callable:
  """The GELU of that form, a key of `GELUS`."""
  if form not in GELUS:
    raise ValueError(f'gelu={form!r}; choices: {", ".join(GELUS)}')
  return GELUS[form]


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
  """(height, width) of a size given as one number or two."""
  return (size, size) if isinstance(size, int) else (size[0], size[1])


def grid_of(
  size: int | tuple[int, int], patch_size: int | tuple[int, int]
) -> tuple[int, int]:
  """Rows and columns of patches in an image of that size.

  Raises:
    ValueError: the patches do not cover the image exactly.
  """
  (height, width), (rows, columns) = pair(size), pair(patch_size)
  if height % rows or width % columns or not height or not width:
    near = tuple(
      max(1, round(a / b)) * b
      for a, b in ((height, rows), (width, columns))
    )
    raise ValueError(
      f'an image of {height}×{width} pixels is not divisible into patches of '
      f'{rows}×{columns}; the nearest size that is: {near[0]}×{near[1]}'
    )
  return height // rows, width // columns


class PatchEmbedding(nn.Module):
  """Linear embedding of patches: [B H W C] → [B N features], row by row.

  Equals a convolution whose stride is its window, with that convolution's
  parameters (kernel [h w C features]); computed as reshape and one matrix
  product, which is faster on a CPU, above all backwards.
  """

  features: int
  patch_size: int
  dtype: Any = jnp.float32
  kernel_init: Callable = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(
    self, images: Float[Array, 'B Y X C']
  ) -> Float[Array, 'B N F']:
    """Embeds images; raises a ValueError if patches do not cover them."""
    p, (b, height, width, c) = self.patch_size, images.shape
    rows, columns = grid_of((height, width), p)
    kernel = self.param(
      'kernel', self.kernel_init, (p, p, c, self.features)
    )
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    x = images.astype(self.dtype).reshape(b, rows, p, columns, p, c)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(b, rows * columns, p * p * c)
    kernel = kernel.reshape(-1, self.features).astype(self.dtype)
    return x @ kernel + bias.astype(self.dtype)[None, None]


def sincos2d(
  grid: tuple[int, int], width: int, temperature: float = 1e4
) -> Float[np.ndarray, '1 N C']:
  """Fixed 2-D sine-cosine table, [1 rows·columns width].

  Channels are sin x, cos x, sin y, cos y at width/4 frequencies
  temperature^(-i/(width/4-1)), as in MoCo v3 (Chen et al. 2021).

  Raises:
    ValueError: width is not a multiple of 4, or less than 8.
  """
  if width % 4 or width < 8:
    raise ValueError(f'sincos2d needs a width of 8, 12, 16, …; got {width}')
  y, x = np.mgrid[: grid[0], : grid[1]].reshape(2, -1, 1)
  omega = np.arange(width // 4) / (width // 4 - 1)
  omega = (1.0 / temperature**omega)[None]
  x, y = x * omega, y * omega
  table = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
  return table[None].astype(np.float32)


def sincos1d(
  count: int, width: int, temperature: float = 1e4
) -> Float[np.ndarray, '1 N C']:
  """Fixed sine-cosine table of a sequence, [1 count width].

  Channel 2i of place n is sin(n ω), channel 2i+1 cos(n ω), with
  ω = temperature^(-2i/width). Vaswani et al. 2017, section 3.5.

  Raises:
    ValueError: an odd width.
  """
  if width % 2:
    raise ValueError(f'sincos1d needs an even width; got {width}')
  omega = temperature ** (-np.arange(0, width, 2) / width)
  angle = np.arange(count)[:, None] * omega[None]
  table = np.stack([np.sin(angle), np.cos(angle)], axis=-1)
  return table.reshape(1, count, width).astype(np.float32)


def align_corners(new: int, old: int) -> Float[np.ndarray, 'new old']:
  """Matrix of linear interpolation from `old` to `new` points, ends to ends.

  The rule of `scipy.ndimage.zoom(order=1)`, by which the original codebase
  resizes position embeddings; `jax.image.resize` aligns pixel areas instead.
  """
  at = np.linspace(0.0, old - 1.0, new) if new > 1 else np.zeros(1)
  low = np.clip(np.floor(at).astype(int), 0, max(old - 2, 0))
  fraction = at - low
  matrix = np.zeros((new, old), np.float32)
  matrix[np.arange(new), low] += 1 - fraction
  if old > 1:
    matrix[np.arange(new), low + 1] += fraction
  return matrix


def cubic_torch(new: int, old: int) -> Float[np.ndarray, 'new old']:
  """Matrix of cubic convolution from `old` to `new` points, areas aligned.

  With a = -3/4, a point at distance d weighs (a+2)|d|³ - (a+3)|d|² + 1 up to
  1 and a(|d|³ - 5|d|² + 8|d| - 4) up to 2 (Keys 1981, eq. 15, whose a is -1/2);
  points outside repeat the border. As PyTorch's interpolate(mode='bicubic',
  align_corners=False) does along one axis; not antialiased.
  """
  a = -0.75
  at = (np.arange(new) + 0.5) * (old / new) - 0.5
  first = np.floor(at).astype(int) - 1
  matrix = np.zeros((new, old))
  for tap in range(4):
    d = np.abs(at - first - tap)
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    column = np.clip(first + tap, 0, old - 1)
    np.add.at(matrix, (np.arange(new), column), np.where(d <= 1, near, far))
  return matrix.astype(np.float32)


def linear_torch(new: int, old: int) -> Float[np.ndarray, 'new old']:
  """Matrix of linear interpolation from `old` to `new` points, areas aligned.

  Points outside repeat the border. As PyTorch's interpolate(mode='bilinear',
  align_corners=False) does along one axis; not antialiased.
  """
  at = (np.arange(new) + 0.5) * (old / new) - 0.5
  low = np.floor(at).astype(int)
  matrix = np.zeros((new, old))
  for tap in (0, 1):
    column = np.clip(low + tap, 0, old - 1)
    np.add.at(matrix, (np.arange(new), column), 1 - np.abs(at - low - tap))
  return matrix.astype(np.float32)


MATRICES = {
  'align_corners': align_corners,  # the original codebase's
  'bicubic_torch': cubic_torch,  # DeiT's and Hugging Face's
  'bilinear_torch': linear_torch,  # MViTv2's
}
# Half-pixel centres, antialiased where the grid shrinks; 'bicubic' is timm's,
# torch's interpolate with antialias=True.
IMAGE_METHODS = ('bilinear', 'bicubic', 'lanczos3', 'nearest')
RESIZES = (*MATRICES, *IMAGE_METHODS)


def resize_positions(
  table: Float[Array, '1 N C'],
  old: tuple[int, int],
  new: tuple[int, int],
  method: str = 'align_corners',
) -> Float[Array, '1 M C']:
  """Resizes a grid of position embeddings from `old` to `new` (rows, columns).

  Args:
    table: [1 old_rows·old_columns C], without prefix tokens.
    old: its grid.
    new: the grid wanted.
    method: 'align_corners' (bilinear, the original codebase's),
      'bicubic_torch' or 'bilinear_torch' (not antialiased; DeiT's and Hugging
      Face's, and MViTv2's), or a method of `jax.image.resize`, with
      half-pixel centres and antialiasing: 'bilinear', 'bicubic' (timm's),
      'lanczos3', 'nearest'.

  Raises:
    ValueError: an unknown method.
  """
  if method not in RESIZES:
    raise ValueError(f'method={method!r}; choices: {", ".join(RESIZES)}')
  if old == new:
    return table
  width = table.shape[-1]
  x = table.reshape(*old, width)
  if method in MATRICES:
    rows, columns = map(MATRICES[method], new, old)
    # In full precision: a GPU's default would keep three digits.
    product = functools.partial(jnp.einsum, precision='highest')
    x = product('yr,rcw->ycw', rows, x)
    x = product('xc,ycw->yxw', columns, x)
  else:
    x = jax.image.resize(x, (*new, width), method=method)
  return x.reshape(1, new[0] * new[1], width)


class AddPositionEmbs(nn.Module):
  """Adds a learned table to the tokens: [B N C] → [B N C].

  The table `pos_embedding` [1, learned_prefix + rows·columns, C], N(0, 0.02),
  belongs to `table_grid`; for another `grid` it is resized on the way by
  `resize_positions`, with gradients. Prefix tokens beyond `learned_prefix`
  (registers) get no position.
  """

  table_grid: tuple[int, int]
  learned_prefix: int = 0
  method: str = 'align_corners'
  table_init: Callable = nn.initializers.normal(stddev=0.02)

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B N C'],
    grid: tuple[int, int],
    prefix: int = 0,
  ) -> Float[Array, 'B N C']:
    """Adds positions to `prefix` tokens followed by a grid of patches."""
    width, learned = x.shape[-1], self.learned_prefix
    cells = self.table_grid[0] * self.table_grid[1]
    table = self.param(
      'pos_embedding', self.table_init, (1, learned + cells, width)
    )
    cell = resize_positions(
      table[:, learned:], self.table_grid, grid, self.method
    )
    rest = jnp.zeros((1, prefix - learned, width), table.dtype)
    table = jnp.concatenate([table[:, :learned], rest, cell], axis=1)
    return x + table.astype(x.dtype)


def one_matrix(
  x: Float[Array, '*B C'],
  kernel: Float[Array, 'C F'],
  dimension_numbers: Any,
  **options: Any,
) -> Float[Array, '*B F']:
  """`jax.lax.dot_general` of a dense layer, with all of *B in one axis.

  As `nn.Dense(dot_general=one_matrix)`: the result is the same, and XLA's CPU
  gradients are faster (a training step of Swin-T 1.15 times as fast).
  """
  assert dimension_numbers == (((x.ndim - 1,), (0,)), ((), ()))
  flat = jax.lax.dot_general(
    x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), **options
  )
  return flat.reshape(*x.shape[:-1], kernel.shape[-1])


class MlpBlock(nn.Module):
  """Dense → GELU → Dense, [B N C] → [B N C]. Dosovitskiy et al. 2021, eq. 3."""

  mlp_dim: int
  dropout_rate: float = 0.0
  gelu: str = 'tanh'
  dtype: Any = jnp.float32
  kernel_init: Callable = nn.initializers.xavier_uniform()
  bias_init: Callable = nn.initializers.normal(stddev=1e-6)

  @nn.compact
  def __call__(
    self, x: Float[Array, '*B C'], train: bool = False
  ) -> Float[Array, '*B C']:
    """Applies the same MLP to every token."""
    dense = lambda features: nn.Dense(  # noqa: E731
      features,
      kernel_init=self.kernel_init,
      bias_init=self.bias_init,
      dtype=self.dtype,
      dot_general=one_matrix,
    )
    drop = nn.Dropout(self.dropout_rate, deterministic=not train)
    width = x.shape[-1]
    x = drop(gelu(self.gelu)(dense(self.mlp_dim)(x)))
    return drop(dense(width)(x))


class DropPath(nn.Module):
  """Drops whole examples of a residual branch in training.

  x · Bernoulli(1 - rate) / (1 - rate), one draw an example. Huang et al. 2016,
  "Deep Networks with Stochastic Depth"; randomness from the 'dropout' stream.
  """

  rate: float

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B *N'], train: bool = False
  ) -> Float[Array, 'B *N']:
    """Scales kept examples up, so that the expectation is unchanged."""
    if not 0.0 <= self.rate < 1.0:
      raise ValueError(f'a drop-path rate lies in [0, 1); got {self.rate}')
    if not train or self.rate == 0.0:
      return x
    shape = (x.shape[0], *(1,) * (x.ndim - 1))
    keep = jax.random.bernoulli(
      self.make_rng('dropout'), 1.0 - self.rate, shape
    )
    return jnp.where(keep, x / (1.0 - self.rate), 0).astype(x.dtype)


class LayerScale(nn.Module):
  """x · scale, one learned factor a channel. Touvron et al. 2021 (CaiT)."""

  initial: float

  @nn.compact
  def __call__(self, x: Float[Array, '*B C']) -> Float[Array, '*B C']:
    """Scales the channels."""
    scale = self.param(
      'scale', nn.initializers.constant(self.initial), (x.shape[-1],)
    )
    return x * jnp.broadcast_to(scale.astype(x.dtype), x.shape)
