"""TNT: Transformer in Transformer (Han et al. 2021)."""

import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from vit_jax import attention as attentions
from vit_jax import layers
from vit_jax.models.encoder import Encoder1DBlock, check_blocks
from vit_jax.models.flat import Flat
from vit_jax.models.initialization import TORCH, initializers
from vit_jax.shapes import Array, Float

# Words of all P = B·N patches, and tokens, the class token before the patches.
Words = Float[Array, 'P M c']
Tokens = Float[Array, 'B L C']


def split(x: Float[Array, 'B Y X C'], side: int) -> Float[Array, 'P s s C']:
  """The squares of `side` that make up the maps, row by row, image by image."""
  b, height, width, c = x.shape
  x = x.reshape(b, height // side, side, width // side, side, c)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, side, side, c)


class FromWords(nn.Module):
  """A patch's words side by side → norm → Dense → norm: [P M c] → [B N C].

  Han et al. 2021, eq. 6; the norms are those of the authors' code.

  Attributes:
    features: C.
    use_bias: of the Dense.
    each: normalise each word of its own, and not afterwards.
  """

  features: int
  use_bias: bool = True
  each: bool = False
  epsilon: float = 1e-5
  dtype: Any = jnp.float32
  initialization: str = 'truncated'

  @nn.compact
  def __call__(self, words: Words, batch: int) -> Float[Array, 'B N C']:
    """Projects the words of `batch` images."""
    norm = functools.partial(
      nn.LayerNorm, epsilon=self.epsilon, dtype=self.dtype
    )
    joined = (batch, -1, words.shape[1] * words.shape[2])
    words = words if self.each else words.reshape(joined)
    x = norm(name='norm')(words).reshape(joined)
    x = nn.Dense(
      self.features, use_bias=self.use_bias, dtype=self.dtype,
      kernel_init=initializers(self.initialization).kernel, name='projection',
    )(x)  # fmt: skip
    return x if self.each else norm(name='norm_after')(x)


class TNTBlock(nn.Module):
  """Words attend within their patch, join it, and the patches attend.

  w ← inner block of w; x ← x + projection(w), but for the class token;
  x ← outer block of x. Both are an `Encoder1DBlock`, the inner one's MLP of 4 c
  hidden units. Han et al. 2021, eqs. 4 to 8.

  Attributes:
    mlp_dim, num_heads, attention: of the patches.
    inner_heads, inner_attention: of the words.
    grid: rows and columns of patches.
    legacy: as in `TNT`.
    drop_path_rate: of both, for each patch's words and for each image.
  """

  mlp_dim: int
  num_heads: int
  attention: Any
  inner_heads: int
  inner_attention: Any
  grid: tuple[int, int]
  legacy: bool = False
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  drop_path_rate: float = 0.0
  qkv_bias: bool = False
  gelu: str = 'exact'
  epsilon: float = 1e-5
  dtype: Any = jnp.float32
  initialization: str = 'truncated'

  @nn.compact
  def __call__(
    self, both: tuple[Words, Tokens], train: bool = False
  ) -> tuple[Words, Tokens]:
    """Words and tokens after the block."""
    words, x = both
    block = functools.partial(
      Encoder1DBlock, dropout_rate=self.dropout_rate,
      attention_dropout_rate=self.attention_dropout_rate,
      drop_path_rate=self.drop_path_rate, qkv_bias=self.qkv_bias,
      gelu=self.gelu, epsilon=self.epsilon, dtype=self.dtype,
      initialization=self.initialization,
    )  # fmt: skip
    side = round(words.shape[1] ** 0.5)
    words = block(
      4 * words.shape[2], self.inner_heads, self.inner_attention, (side, side),
      name='inner',
    )(words, train)  # fmt: skip
    added = FromWords(
      x.shape[2], self.legacy, self.legacy, self.epsilon, self.dtype,
      self.initialization, name='from_words',
    )(words, x.shape[0])  # fmt: skip
    x = x + jnp.pad(added, ((0, 0), (1, 0), (0, 0)))
    x = block(
      self.mlp_dim, self.num_heads, self.attention, self.grid, 1, name='outer'
    )(x, train)
    return words, x


class TNT(Flat):
  """Images [B Y X C] → logits [B K], by words within patches.

  A 7×7 convolution makes m×m words of each patch, each patch on its own, whose
  positions all patches share; see `TNTBlock`. Sizes: `VARIANTS`.

  Attributes:
    num_classes: K; 0 gives the pooled features.
    patch_size: pixels.
    hidden_size, num_heads, mlp_dim: of the patches.
    inner_size, inner_heads: of the words.
    word_stride: pixels a word; m = ⌈patch_size / word_stride⌉.
    image_size: pixels, one number or (height, width): the position table's.
    classifier: 'token', or 'gap' (the mean of the patches).
    position_resize: how the table of the patches is resized for images of
      another size; see `layers.resize_positions`.
    attention, inner_attention: of patches and words; see `Encoder`.
    legacy: timm's first version: the convolution sees across the borders of
      patches, and in the blocks each word is normalised before a projection
      with a bias and without a norm after it.
    drop_path_rate: of the last block; it grows linearly from 0 at the first.
    feature_layers: blocks whose maps `features` returns; negative from the end.
    Others as in `Encoder`.
  """

  num_classes: int
  patch_size: int
  hidden_size: int
  num_layers: int
  num_heads: int
  mlp_dim: int
  inner_size: int
  inner_heads: int = 4
  word_stride: int = 4
  image_size: int | tuple[int, int] = 224
  classifier: str = 'token'
  position_resize: str = 'bicubic_torch'
  attention: str = 'softmax'
  inner_attention: str = 'softmax'
  legacy: bool = False
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  drop_path_rate: float = 0.0
  qkv_bias: bool = False
  gelu: str = 'exact'
  epsilon: float = 1e-5
  initialization: str = 'truncated'
  feature_layers: tuple[int, ...] = (-1,)
  remat: bool = False
  dtype: Any = 'float32'

  VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
    name: {
      'patch_size': 16, 'hidden_size': width, 'num_layers': 12,
      'num_heads': heads, 'mlp_dim': 4 * width, 'inner_size': inner,
      'legacy': legacy,
    }
    for name, (width, heads, inner, legacy) in {
      'S/16': (384, 6, 24, False),
      'B/16': (640, 10, 40, False),
      'S/16-legacy': (384, 6, 24, True),
    }.items()
  }  # fmt: skip

  prefix: ClassVar[int] = 1  # the class token, before the patches

  def setup(self):
    """Declares the parts; raises a ValueError on a bad field."""
    self.check_classifier()
    if self.legacy and self.patch_size % self.word_stride:
      raise ValueError(
        f'legacy=True needs a word_stride that divides patch_size='
        f'{self.patch_size}; it is {self.word_stride}'
      )
    dtype, width = jnp.dtype(self.dtype), self.hidden_size
    start = initializers(self.initialization)
    self.word_embedding = nn.Conv(
      self.inner_size, (7, 7), (self.word_stride,) * 2, ((3, 3), (3, 3)),
      kernel_init=TORCH, dtype=dtype,  # the authors leave it to PyTorch
    )  # fmt: skip
    side = -(-self.patch_size // self.word_stride)
    self.word_positions = self.param(
      'word_positions', start.positions, (1, side * side, self.inner_size)
    )
    self.embedding = FromWords(
      width, epsilon=self.epsilon, dtype=dtype,
      initialization=self.initialization,
    )  # fmt: skip
    self.cls = self.param('cls', start.token, (1, 1, width))
    self.posembed_input = layers.AddPositionEmbs(
      layers.grid_of(self.image_size, self.patch_size), 1,
      self.position_resize, start.positions,
    )  # fmt: skip
    self.drop = nn.Dropout(self.dropout_rate)
    self.encoder_norm = nn.LayerNorm(epsilon=self.epsilon, dtype=dtype)
    if self.num_classes:
      self.classify = nn.Dense(
        self.num_classes, kernel_init=start.head, dtype=dtype, name='head'
      )

  def embed(
    self, images: Float[Array, 'B Y X I'], train: bool = False
  ) -> tuple[tuple[Words, Tokens], tuple[int, int]]:
    """Words; class token and patches without positions; and their grid."""
    batch, size = images.shape[0], self.patch_size
    grid = layers.grid_of(images.shape[1:3], size)
    if self.legacy:
      maps = self.word_embedding(images)
      words = split(maps, size // self.word_stride)
    else:
      words = self.word_embedding(split(images, size))
    words = words.reshape(words.shape[0], -1, self.inner_size)
    words = words + self.word_positions.astype(words.dtype)
    x = self.embedding(words, batch)
    c = jnp.broadcast_to(
      self.cls.astype(x.dtype), (batch, 1, self.hidden_size)
    )
    return (words, jnp.concatenate([c, x], axis=1)), grid

  @nn.compact
  def encode(
    self,
    tokens: tuple[Words, Tokens],
    grid: tuple[int, int],
    train: bool = False,
    collect: tuple[int, ...] = (),
  ) -> tuple[Tokens, tuple[Tokens, ...]]:
    """The tokens after the last block and after those in `collect`, normed.

    Raises:
      ValueError: no such block in `collect`.
    """
    check_blocks(collect, self.num_layers)
    words, x = tokens
    x = self.posembed_input(x, grid, self.prefix)
    both = words, self.drop(x, deterministic=not train)
    block = nn.remat(TNTBlock, static_argnums=(2,)) if self.remat else TNTBlock
    fit = functools.partial(
      functools.partial,
      kernel_init=initializers(self.initialization).kernel,
    )
    outputs, last = [], max(self.num_layers - 1, 1)
    for i, (outer, inner) in enumerate(
      zip(
        attentions.layers(self.attention, self.num_layers),
        attentions.layers(self.inner_attention, self.num_layers),
        strict=True,
      )
    ):
      both = block(
        self.mlp_dim, self.num_heads, fit(outer), self.inner_heads, fit(inner),
        grid, self.legacy, self.dropout_rate, self.attention_dropout_rate,
        self.drop_path_rate * i / last, self.qkv_bias, self.gelu, self.epsilon,
        jnp.dtype(self.dtype), self.initialization, name=f'block_{i}',
      )(both, train)  # fmt: skip
      outputs.append(both[1])
    norm = self.encoder_norm
    return norm(both[1]), tuple(norm(outputs[i]) for i in collect)
