"""PVTv2 (Wang et al. 2022): PVT with overlapping patches and convolutions."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from vit_jax import layers
from vit_jax.attention.reduction import SpatialReduction
from vit_jax.attention.depthwise import DepthwiseConv
from vit_jax.models.initialization import HE, HE_DEPTHWISE
from vit_jax.models.pyramid import START
from vit_jax.models.stages import Stage, StagesOfTokens, variants
from vit_jax.shapes import Array, Float

POOL = 7  # side of the pooled map of the linear attention, section 3.2
Sides = tuple[int, int]


class ConvNorm(nn.Module):
  """norm(convolution): [B Y X I] → [B y x C], an overlapping patch embedding.

  y = ⌊(Y + 2·padding - size) / stride⌋ + 1. Wang et al. 2022, section 3.3; Wu
  et al. 2021 (CvT), section 3.2.
  """

  features: int
  size: int
  stride: int
  padding: int
  epsilon: float
  kernel_init: Callable
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'B Y X I']) -> Float[Array, 'B y x C']:
    """Embeds a map; raises a ValueError on one smaller than a window."""
    rows, columns = x.shape[1:3]
    least = self.size - 2 * self.padding
    if min(rows, columns) < least:
      raise ValueError(
        f'a map of {rows}×{columns} is smaller than the least that a '
        f'convolution of {self.size}×{self.size} takes, {least}×{least}'
      )
    around = (self.padding, self.padding)
    x = nn.Conv(
      self.features, (self.size,) * 2, (self.stride,) * 2, (around, around),
      kernel_init=self.kernel_init, dtype=self.dtype, name='projection',
    )(x)  # fmt: skip
    return nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name='norm')(x)


class ConvMlp(nn.Module):
  """Dense → (ReLU →) depthwise 3×3 convolution → GELU → Dense on the grid.

  [B N C] → [B N C]; zeros around the grid tell where a token is. Wang et al.
  2022, section 3.4.

  Attributes:
    grid: (rows, columns) of the tokens.
    relu: whether there is the ReLU, as in the authors' code of the linear form.
  """

  mlp_dim: int
  grid: Sides
  relu: bool = False
  dropout_rate: float = 0.0
  gelu: str = 'exact'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B N C'], train: bool = False
  ) -> Float[Array, 'B N C']:
    """Applies the layer."""
    dense = functools.partial(
      nn.Dense, kernel_init=START.kernel, dtype=self.dtype,
      dot_general=layers.one_matrix,
    )  # fmt: skip
    drop = nn.Dropout(self.dropout_rate, deterministic=not train)
    shape = x.shape
    x = dense(self.mlp_dim, name='Dense_0')(x)
    x = nn.relu(x) if self.relu else x
    x = DepthwiseConv(
      (3, 3), (1, 1), ((1, 1), (1, 1)), dtype=self.dtype,
      kernel_init=HE_DEPTHWISE, name='depthwise',
    )(x.reshape(shape[0], *self.grid, -1))  # fmt: skip
    x = drop(layers.gelu(self.gelu)(x)).reshape(*shape[:2], -1)
    return drop(dense(shape[-1], name='Dense_1')(x))


class Block(nn.Module):
  """x + attention(norm(x)), then x + convolutional MLP(norm(x)).

  [B N C] → [B N C].

  Attributes:
    attention: builds the attention layer; see `vit_jax.attention.layer`.
    grid: (rows, columns) of the tokens; `prefix` is 0.
    relu: see `ConvMlp`.
    drop_path_rate: of both branches, in training.
  """

  mlp_dim: int
  num_heads: int
  attention: Callable[..., nn.Module]
  grid: Sides
  prefix: int = 0
  relu: bool = False
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  drop_path_rate: float = 0.0
  qkv_bias: bool = True
  gelu: str = 'exact'
  epsilon: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B N C'], train: bool = False
  ) -> Float[Array, 'B N C']:
    """Applies the block; positional `train` so that nn.remat can fix it."""
    drop_path = layers.DropPath(self.drop_path_rate)
    y = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype)(x)
    y = self.attention(
      num_heads=self.num_heads, grid=self.grid, prefix=self.prefix,
      use_bias=self.qkv_bias, dropout_rate=self.attention_dropout_rate,
      epsilon=self.epsilon, dtype=self.dtype,
      name='MultiHeadDotProductAttention_0',
    )(y, train=train)  # fmt: skip
    y = nn.Dropout(self.dropout_rate, deterministic=not train)(y)
    x = x + drop_path(y, train)
    y = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype)(x)
    y = ConvMlp(
      self.mlp_dim, self.grid, self.relu, self.dropout_rate, self.gelu,
      self.dtype, name='MlpBlock_0',
    )(y, train)  # fmt: skip
    return x + drop_path(y, train)


class PyramidVisionTransformerV2(StagesOfTokens):
  """PVTv2: images [B Y X C] → logits [B K].

  Every stage embeds overlapping patches and has blocks whose MLP holds a
  depthwise convolution, which stands in for positions, and a norm of its own;
  the mean of the last map is classified. Wang et al. 2022, section 3. Sizes:
  `VARIANTS`, 'b0' to 'b5', and 'b2-li', whose attention is linear.

  Images of any size are taken if the maps are no smaller than their reduction
  (29 pixels a side); cells at the border that fill no window of a reduction are
  no keys, as in the authors' code. Parameters start as there: convolutions
  normal with variance 2 / fan-out, all else truncated normal, .02.

  Attributes:
    linear: pool keys and values to 7×7 tokens in place of `reductions`, and put
      a ReLU before the MLPs' convolutions.
    patch_sizes, patch_strides: of each stage's patches, in cells of its input;
      their padding is half their size.
    image_size: pixels; no parameter depends on it.
    embedding_epsilon: of the norms after patch embeddings and in the published
      attention. 1e-5 in the authors' code and timm's, 1e-6 in Hugging Face's.
    Others as in `PyramidVisionTransformer`.
  """

  num_classes: int
  hidden_sizes: tuple[int, ...]
  depths: tuple[int, ...]
  num_heads: tuple[int, ...]
  mlp_ratios: tuple[float, ...]
  linear: bool = False
  reductions: tuple[int, ...] = (8, 4, 2, 1)
  patch_sizes: tuple[int, ...] = (7, 3, 3, 3)
  patch_strides: tuple[int, ...] = (4, 2, 2, 2)
  image_size: int | tuple[int, int] = 224
  attention: str | Callable[..., nn.Module] = 'spatial_reduction'
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  drop_path_rate: float = 0.0
  qkv_bias: bool = True
  gelu: str = 'exact'
  epsilon: float = 1e-6
  embedding_epsilon: float = 1e-5
  feature_layers: tuple[int, ...] | None = (0, 1, 2, 3)
  remat: bool = False
  dtype: Any = 'float32'

  VARIANTS: ClassVar[dict[str, dict[str, Any]]] = variants(
    ('hidden_sizes', 'depths', 'num_heads', 'mlp_ratios', 'linear'),
    {
      name: (sizes, depths, (1, 2, 5, 8), ratios, name == 'b2-li')
      for name, sizes, depths, ratios in (
        ('b0', (32, 64, 160, 256), (2, 2, 2, 2), (8, 8, 4, 4)),
        ('b1', (64, 128, 320, 512), (2, 2, 2, 2), (8, 8, 4, 4)),
        ('b2', (64, 128, 320, 512), (3, 4, 6, 3), (8, 8, 4, 4)),
        ('b3', (64, 128, 320, 512), (3, 4, 18, 3), (8, 8, 4, 4)),
        ('b4', (64, 128, 320, 512), (3, 8, 27, 3), (8, 8, 4, 4)),
        ('b5', (64, 128, 320, 512), (3, 6, 40, 3), (4, 4, 4, 4)),
        ('b2-li', (64, 128, 320, 512), (3, 4, 6, 3), (8, 8, 4, 4)),
      )
    },
  )

  has_class_token: ClassVar[bool] = False

  @property
  def steps(self) -> tuple[int, ...]:
    """By how much each stage's map is coarser than its input."""
    return self.patch_strides

  def setup(self):
    """Declares the parts; raises a ValueError on a bad field."""
    self.check_lengths(
      'num_heads', 'mlp_ratios', 'reductions', 'patch_sizes', 'patch_strides'
    )
    self.declare([self._stage(s) for s in range(len(self.depths))])

  def _stage(self, s: int) -> Stage:
    dtype = jnp.dtype(self.dtype)
    attention = functools.partial(
      SpatialReduction, ratio=self.reductions[s],
      pool=POOL if self.linear else 0, as_code=True,
      reduce_epsilon=self.embedding_epsilon, reduce_init=HE,
    )  # fmt: skip
    norm = functools.partial(nn.LayerNorm, epsilon=self.epsilon, dtype=dtype)
    last = s == len(self.depths) - 1
    return self.stage(
      s,
      embedding=functools.partial(
        ConvNorm, self.hidden_sizes[s], self.patch_sizes[s],
        self.patch_strides[s], self.patch_sizes[s] // 2,
        self.embedding_epsilon, HE, dtype,
      ),
      blocks=self.blocks(
        s, Block, ('spatial_reduction', attention), relu=self.linear
      ),
      norm=None if last else norm,  # the last one is `encoder_norm`
    )  # fmt: skip

  def features(
    self, images: Float[Array, 'B Y X I'], train: bool = False
  ) -> tuple[Float[Array, 'B y x C'], ...]:
    """Maps [B rows columns C] of `feature_layers`, each after its norm."""
    tokens, maps = self.encode(images, train)
    maps = (*maps[:-1], tokens.reshape(maps[-1].shape))
    return tuple(maps[s] for s in self.chosen)
