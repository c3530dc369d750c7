"""Swin Transformer (Liu et al. 2021): a pyramid of shifted windows."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import attention as attentions
from vit_jax import layers, specs
from vit_jax.attention.weights import logits_of, mixed
from vit_jax.models.pyramid import START, PatchNorm, Stage, StagesOfMaps
from vit_jax.models.windows import Windows
from vit_jax.shapes import Array, Float

PUBLISHED = 'swin'  # the word for the blocks' own attention
CONVENTIONS = ('original', 'timm')
MASKED = -100.0  # added to the logits of what was not neighbours


def windows_of(
  grid: tuple[int, int],
  size: int,
  shifted: bool,
  native: tuple[int, int] | None = None,
) -> Windows:
  """Windows of one block.

  Without `native` as the original: windows are no larger than the grid along
  each axis, and nothing is shifted if either side of it is covered by one.
  With it as timm: the grid `native` at the model's own image size decides, for
  each axis by itself, and other grids are filled up to such windows.
  """
  if native is None:
    high, wide = (min(size, side) for side in grid)
    step = size // 2 if shifted and min(grid) > size else 0
    return Windows(grid, (high, wide), (step, step))
  high, wide = (min(size, side) for side in native)
  down, right = (size // 2 if shifted and n > size else 0 for n in native)
  return Windows(grid, (high, wide), (down, right), roll_first=True)


class WindowAttention(attentions.Attention):
  """softmax(Q Kᵀ / √D + B) V inside each of many windows, one a batch entry.

  B is `relative_bias` [(2·rows - 1)·(2·columns - 1), H] by the offset of query
  and key, plus -100 where a shift has brought together what was apart. Liu et
  al. 2021, eq. 4 and section 3.2. Tokens that fill up a window are attended to
  like any other, as in the original.

  Attributes:
    windows: where q, k and v [B·windows A H D] come from.
    table: (rows, columns) of the window that the table is for.
  """

  windows: Windows | None = None
  table: tuple[int, int] = (7, 7)

  @nn.compact
  def __call__(
    self,
    q: Float[Array, 'W A H D'],
    k: Float[Array, 'W A H D'],
    v: Float[Array, 'W A H D'],
    *,
    train: bool = False,
  ) -> Float[Array, 'W A H D']:
    """Attends; logits and softmax are in float32."""
    heads = q.shape[2]
    entries = (2 * self.table[0] - 1) * (2 * self.table[1] - 1)
    table = self.param('relative_bias', START.positions, (entries, heads))
    bias = table[self.windows.offsets(self.table)].transpose(2, 0, 1)
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    logits = logits_of(q, k, bias[None])
    if any(self.windows.shift):
      # The barrier keeps XLA from writing all pairs into the program.
      at = jax.lax.optimization_barrier(jnp.asarray(self.windows.regions()))
      apart = at[:, :, None] != at[:, None, :]
      mask = jnp.where(apart, MASKED, 0.0)[None, :, None]
      shape = logits.shape
      logits = logits.reshape(-1, at.shape[0], *shape[1:]) + mask
      logits = logits.reshape(shape)
    return mixed(logits, v).swapaxes(1, 2).astype(v.dtype)


class SwinBlock(nn.Module):
  """x + attention(norm(x)), then x + MLP(norm(x)); [B N C] → [B N C].

  Attributes:
    attention: builds the attention layer for the whole grid; None is the
      published one, inside windows.
    window_size, shifted, native: see `windows_of`.
    grid: (rows, columns) of the tokens.
    drop_path_rate: of both branches, in training.
  """

  grid: tuple[int, int]
  num_heads: int
  mlp_dim: int
  attention: Callable[..., nn.Module] | None = None
  window_size: int = 7
  shifted: bool = False
  native: tuple[int, int] | None = None
  drop_path_rate: float = 0.0
  qkv_bias: bool = True
  gelu: str = 'exact'
  epsilon: float = 1e-5
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B N C'], train: bool = False
  ) -> Float[Array, 'B N C']:
    """Applies the block; positional `train` so that nn.remat can fix it."""
    drop = layers.DropPath(self.drop_path_rate)
    norm = functools.partial(
      nn.LayerNorm, epsilon=self.epsilon, dtype=self.dtype
    )
    x = x + drop(self._attend(norm()(x), train), train)
    mlp = layers.MlpBlock(
      self.mlp_dim, 0.0, self.gelu, self.dtype, START.kernel, START.bias
    )
    return x + drop(mlp(norm()(x), train), train)

  def _attend(self, x, train: bool):
    layer = functools.partial(
      self.attention or attentions.MultiHeadDotProductAttention,
      num_heads=self.num_heads, use_bias=self.qkv_bias, epsilon=self.epsilon,
      dtype=self.dtype, kernel_init=START.kernel,
      name='MultiHeadDotProductAttention_0',
    )  # fmt: skip
    if self.attention is not None:
      return layer(grid=self.grid)(x, train=train)
    size = self.window_size
    windows = windows_of(self.grid, size, self.shifted, self.native)
    table = (size, size) if self.native is None else windows.size
    kernel = functools.partial(WindowAttention, windows=windows, table=table)
    return windows.join(layer(attend=kernel)(windows.split(x), train=train))


class Patches(PatchNorm):
  """norm(embedding of patches) of images of any size.

  They are filled up with zeros to whole patches, at the bottom and at the
  right, as Hugging Face does.
  """

  @nn.compact
  def __call__(self, x: Float[Array, 'B Y X I']) -> Float[Array, 'B y x C']:
    """Embeds images."""
    fill = ((0, -n % self.patch_size) for n in x.shape[1:3])
    return super().__call__(jnp.pad(x, ((0, 0), *fill, (0, 0))))


class PatchMerging(nn.Module):
  """Dense(norm(2×2 neighbours)), no bias: [B Y X I] → [B ⌈Y/2⌉ ⌈X/2⌉ C].

  Neighbours are concatenated in the order (row, column) = (0,0), (1,0), (0,1),
  (1,1); odd sides are filled up with a row or column of zeros. Liu et al. 2021,
  section 3.1; the norm is the code's.
  """

  features: int
  epsilon: float = 1e-5
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'B Y X I']) -> Float[Array, 'B y x C']:
    """Halves the map."""
    batch, rows, columns, width = x.shape
    x = jnp.pad(x, ((0, 0), (0, rows % 2), (0, columns % 2), (0, 0)))
    rows, columns = -(-rows // 2), -(-columns // 2)
    x = x.reshape(batch, rows, 2, columns, 2, width)
    x = x.transpose(0, 1, 3, 4, 2, 5).reshape(batch, rows, columns, 4 * width)
    x = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name='norm')(x)
    return nn.Dense(
      self.features, use_bias=False, kernel_init=START.kernel,
      dtype=self.dtype, name='reduction',
    )(x)  # fmt: skip


class SwinTransformer(StagesOfMaps):
  """Images [B Y X C] → logits [B K], through maps of ever fewer tokens.

  Stage s has tokens of patch_size · 2^s pixels; its blocks attend inside
  windows, those of every other block shifted by half a window. Images of any
  size are taken: patches, windows and merged neighbours are filled up with
  zeros at the bottom and at the right, which are attended to. Sizes: `VARIANTS`
  (Liu et al. 2021, section 3.3).

  Attributes:
    num_classes: K; 0 gives the pooled features.
    depths, hidden_sizes, num_heads: of each stage.
    patch_size: pixels.
    window_size: tokens along each side of a window, of all stages or of each.
    mlp_ratio: hidden units of the MLP, of the width.
    image_size: pixels, one number or (height, width); only
      convention='timm' depends on it.
    attention: 'swin', the published one, or any specs of the table, which then
      attend over the stage's whole grid; repeated over the blocks of a stage.
    convention: where implementations differ, see `windows_of`: 'original' (and
      Hugging Face) or 'timm'. They agree where windows divide every map.
    drop_path_rate: of the last block; it grows linearly from 0 at the first.
    feature_layers: stages whose maps `features` returns, as they leave the
      stage; negative from the end; None for all.
    remat: recompute each block in the backward pass, to save memory.
    dtype: of the computation, 'float32' or 'bfloat16'; parameters are float32.
  """

  num_classes: int
  depths: tuple[int, ...]
  hidden_sizes: tuple[int, ...]
  num_heads: tuple[int, ...]
  patch_size: int = 4
  window_size: int | tuple[int, ...] = 7
  mlp_ratio: float = 4.0
  image_size: int | tuple[int, int] = 224
  attention: str | Callable[..., nn.Module] = PUBLISHED
  convention: str = 'original'
  qkv_bias: bool = True
  gelu: str = 'exact'
  epsilon: float = 1e-5
  drop_path_rate: float = 0.0
  feature_layers: tuple[int, ...] | None = (0, 1, 2, 3)
  remat: bool = False
  dtype: Any = 'float32'

  VARIANTS: ClassVar[dict[str, dict[str, tuple[int, ...]]]] = {
    name: {
      'depths': (2, 2, deep, 2),
      'hidden_sizes': tuple(width * 2**s for s in range(4)),
      'num_heads': tuple(heads * 2**s for s in range(4)),
    }
    for name, (width, deep, heads) in {
      # name width deep heads
      'T': (   96,   6,    3),
      'S': (   96,  18,    3),
      'B': (  128,  18,    4),
      'L': (  192,  18,    6),
    }.items()
  }  # fmt: skip

  @property
  def window_sizes(self) -> tuple[int, ...]:
    """The window of each stage."""
    if isinstance(self.window_size, int):
      return (self.window_size,) * len(self.depths)
    return self.window_size

  def grid(self, stage: int) -> tuple[int, int]:
    """(rows, columns) of a stage's map of an image of `image_size`."""
    cell = self.patch_size * 2**stage
    height, width = layers.pair(self.image_size)
    return -(-height // cell), -(-width // cell)

  def table_window(self, stage: int) -> tuple[int, int]:
    """(rows, columns) of the window that a stage's tables of biases are for."""
    size, native = self.window_sizes[stage], self.grid(stage)
    if self.convention == 'timm':
      return windows_of(native, size, False, native).size
    return size, size

  def setup(self):
    """Declares the parts; raises a ValueError on a bad field."""
    self.check_lengths('num_heads', 'window_sizes')
    specs.lookup(dict.fromkeys(CONVENTIONS), self.convention, 'convention')
    if min(self.window_sizes) < 1:
      raise ValueError(f'window_size={self.window_size} must be positive')
    words, rates = self.words((PUBLISHED,)), self.drop_path_rates()
    block = (
      nn.remat(SwinBlock, static_argnums=(2,)) if self.remat else SwinBlock
    )
    common = {'epsilon': self.epsilon, 'dtype': jnp.dtype(self.dtype)}
    stages = []
    for s, width in enumerate(self.hidden_sizes):
      native = self.grid(s) if self.convention == 'timm' else None
      blocks = [
        functools.partial(
          block, num_heads=self.num_heads[s],
          mlp_dim=int(self.mlp_ratio * width),
          attention=None if words[j] == PUBLISHED else words[j],
          window_size=self.window_sizes[s], shifted=j % 2 == 1, native=native,
          drop_path_rate=rates[s][j], qkv_bias=self.qkv_bias, gelu=self.gelu,
          **common,
        )
        for j in range(self.depths[s])
      ]  # fmt: skip
      if s == 0:
        embedding = functools.partial(
          Patches, width, self.patch_size, **common
        )
      else:
        embedding = functools.partial(PatchMerging, width, **common)
      stages.append(Stage(embedding, blocks, name=f'stage_{s}'))
    self.declare(stages)
