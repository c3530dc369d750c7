"""MViTv2 (Li et al. 2022): a pyramid whose attention pools what it reads."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from vit_jax import attention as attentions
from vit_jax import layers
from vit_jax.models.initialization import TORCH
from vit_jax.models.multiscale import MViTBlock, strided
from vit_jax.models.pyramid import START, Pyramid
from vit_jax.shapes import Array, Float


class MViTStage(nn.Module):
  """Blocks of one width, the first of them with the stride.

  Attributes:
    kernels: builds the `Attention` of each block.
    rates: drop-path rate of each block.
    Others as in `MViTBlock`.
  """

  features: int
  num_heads: int
  mlp_dim: int
  stride: int
  key_stride: int
  kernels: tuple[Callable[..., nn.Module], ...]
  rates: tuple[float, ...]
  prefix: int = 0
  relative: bool = True
  resize: str = 'bilinear_torch'
  qkv_bias: bool = True
  gelu: str = 'exact'
  epsilon: float = 1e-6
  remat: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B N I'],
    grid: tuple[int, int],
    table_grid: tuple[int, int],
    train: bool = False,
  ) -> Float[Array, 'B M C']:
    """Tokens of the stage; `table_grid` is `grid` at the model's image size."""
    block = (
      nn.remat(MViTBlock, static_argnums=(2,)) if self.remat else MViTBlock
    )
    chosen = zip(self.kernels, self.rates, strict=True)
    for j, (kernel, rate) in enumerate(chosen):
      stride = 1 if j else self.stride
      x = block(
        self.features, self.num_heads, self.mlp_dim, kernel, grid, table_grid,
        self.prefix, stride, self.key_stride, self.relative, self.resize,
        self.qkv_bias, rate, self.gelu, self.epsilon, self.dtype,
        name=f'block_{j}',
      )(x, train)  # fmt: skip
      grid, table_grid = (strided(g, stride) for g in (grid, table_grid))
    return x


def kernels(
  attention: str | Callable[..., nn.Module], count: int
) -> tuple[Callable[..., nn.Module], ...]:
  """What builds the `Attention` of each of `count` blocks.

  Raises:
    ValueError: a layer with projections of its own, or as
      `vit_jax.attention.layers`.
  """
  layers_of = attentions.layers(attention, count)
  for layer in layers_of:
    fields = layer.keywords if isinstance(layer, functools.partial) else {}
    if 'attend' not in fields:
      raise ValueError(
        f'attention={attention!r} holds a whole layer; what MViT pools are '
        f'queries, keys and values, for one of: '
        f'{", ".join(sorted(attentions.ATTENTIONS))}'
      )
  return tuple(layer.keywords['attend'] for layer in layers_of)


class MViT(Pyramid):
  """Images [B Y X C] → logits [B K], through maps of stride 4, 8, 16 and 32.

  Sizes: `VARIANTS`, MViTv2's. Images of any size are taken: a map is a quarter
  of the image, and half of the map before, rounded up; the tables of relative
  positions are resized inside.

  Attributes:
    num_classes: K; 0 gives the pooled features.
    depths, hidden_sizes, num_heads: of each stage; a head is as wide in all.
    mlp_ratio: hidden units of a block's MLP for each channel.
    image_size: pixels, one number or (height, width): the tables' of relative
      positions.
    class_token: whether there is one, which the head reads; else it reads the
      mean of the last map.
    key_stride: of keys and values in the first stage; it halves with the map,
      down to 1.
    attention: one spec, or several, repeated over the blocks, of attentions
      that take fewer keys than queries and, if relative_positions, a bias.
    relative_positions: whether queries are compared with offsets too.
    position_resize: how the tables are resized; see `layers.resize_positions`.
    drop_path_rate: of the last block; it grows linearly from 0 at the first.
    feature_layers: stages whose maps `features` returns; None for all.
    remat: recompute each block in the backward pass, to save memory.
    dtype: of the computation, 'float32' or 'bfloat16'; parameters are float32.
  """

  num_classes: int
  depths: tuple[int, ...]
  hidden_sizes: tuple[int, ...]
  num_heads: tuple[int, ...]
  mlp_ratio: float = 4.0
  image_size: int | tuple[int, int] = 224
  class_token: bool = False
  key_stride: int = 4
  attention: str | Callable[..., nn.Module] = 'softmax'
  relative_positions: bool = True
  position_resize: str = 'bilinear_torch'
  qkv_bias: bool = True
  drop_path_rate: float = 0.0
  gelu: str = 'exact'
  epsilon: float = 1e-6
  feature_layers: tuple[int, ...] | None = None
  remat: bool = False
  dtype: Any = 'float32'

  # The stride of the embedding; every stage but the first halves the map.
  patch_size: ClassVar[int] = 4

  VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
    name: {
      'depths': depths,
      'hidden_sizes': tuple(width * 2**i for i in range(4)),
      'num_heads': tuple(width // 96 * 2**i for i in range(4)),
      'class_token': name.endswith('-cls'),
    }
    for name, (depths, width) in {
      'T':     ((1, 2, 5, 2),   96),
      'S':     ((1, 2, 11, 2),  96),
      'B':     ((2, 3, 16, 3),  96),
      'S-cls': ((1, 2, 11, 2),  96),
      'B-cls': ((2, 3, 16, 3),  96),
    }.items()
  }  # fmt: skip

  @property
  def has_class_token(self) -> bool:
    """Whether the first token is the class token."""
    return self.class_token

  def _check(self) -> None:
    """Raises a ValueError on fields that contradict each other."""
    rows = (self.depths, self.hidden_sizes, self.num_heads)
    if len({len(row) for row in rows}) > 1 or not all(map(min, rows)):
      raise ValueError(
        f'depths={rows[0]}, hidden_sizes={rows[1]} and num_heads={rows[2]} '
        'must have a number of each stage, at least 1'
      )
    if self.key_stride < 1:
      raise ValueError(f'key_stride={self.key_stride} must be at least 1')

  def setup(self):
    """Declares the parts; raises a ValueError on a bad field."""
    self._check()
    dtype, rates = jnp.dtype(self.dtype), self.drop_path_rates()
    self.embedding = nn.Conv(
      self.hidden_sizes[0], (7, 7), (self.patch_size,) * 2, 3,
      kernel_init=TORCH, dtype=dtype,
    )  # fmt: skip
    if self.class_token:
      self.cls = self.param('cls', START.token, (1, 1, self.hidden_sizes[0]))
    chosen = iter(kernels(self.attention, sum(self.depths)))
    self.declare([
      MViTStage(
        width, heads, int(width * self.mlp_ratio), 2 if s else 1,
        max(self.key_stride // 2**s, 1),
        tuple(itertools.islice(chosen, depth)), tuple(rates[s]),
        int(self.class_token),
        self.relative_positions, self.position_resize, self.qkv_bias,
        self.gelu, self.epsilon, self.remat, dtype, name=f'stage_{s}',
      )
      for s, (depth, width, heads) in enumerate(
        zip(self.depths, self.hidden_sizes, self.num_heads, strict=True)
      )
    ])  # fmt: skip

  def encode(
    self, images: Float[Array, 'B Y X I'], train: bool = False
  ) -> tuple[Float[Array, 'B M D'], tuple[Float[Array, 'B _ _ _'], ...]]:
    """The last stage's tokens after the norm, and the map of every stage."""
    x = self.embedding(images)
    batch, *grid, width = x.shape
    x = x.reshape(batch, -1, width)
    if self.class_token:
      cls = jnp.broadcast_to(self.cls.astype(x.dtype), (batch, 1, width))
      x = jnp.concatenate([cls, x], axis=1)
    grid, maps = tuple(grid), []
    table = strided(layers.pair(self.image_size), self.patch_size)
    for s, stage in enumerate(self.stages):
      x = stage(x, grid, table, train)
      grid, table = (strided(g, 2 if s else 1) for g in (grid, table))
      patches = x[:, int(self.class_token) :]
      maps.append(patches.reshape(len(x), *grid, x.shape[-1]))
    return self.encoder_norm(x), tuple(maps)
