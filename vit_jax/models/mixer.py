"""MLP-Mixer (Tolstikhin et al. 2021), with the original's names."""

import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from vit_jax import layers
from vit_jax.models.encoder import check_blocks
from vit_jax.models.flat import Flat
from vit_jax.shapes import Array, Float


class MixerBlock(nn.Module):
  """x + MLP over tokens(norm(x)), then x + MLP over channels(norm(x)).

  [B N C] → [B N C]; the first MLP is shared by the channels, the second by the
  tokens. Tolstikhin et al. 2021, eq. 1.

  Attributes:
    tokens_mlp_dim, channels_mlp_dim: hidden units of the two.
    drop_path_rate: of both branches, in training.
  """

  tokens_mlp_dim: int
  channels_mlp_dim: int
  drop_path_rate: float = 0.0
  gelu: str = 'tanh'
  epsilon: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B N C'], train: bool = False
  ) -> Float[Array, 'B N C']:
    """Applies the block; positional `train` so that nn.remat can fix it."""
    mlp = functools.partial(
      layers.MlpBlock, gelu=self.gelu, dtype=self.dtype,
      kernel_init=nn.initializers.lecun_normal(),
      bias_init=nn.initializers.zeros,
    )  # fmt: skip
    drop = layers.DropPath(self.drop_path_rate)
    y = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype)(x)
    y = mlp(self.tokens_mlp_dim, name='token_mixing')(y.swapaxes(1, 2), train)
    x = x + drop(y.swapaxes(1, 2), train)
    y = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype)(x)
    y = mlp(self.channels_mlp_dim, name='channel_mixing')(y, train)
    return x + drop(y, train)


class MlpMixer(Flat):
  """Images [B Y X C] → logits [B K]; Y and X are `image_size`.

  Sizes: `VARIANTS`. Weights of the token mixing belong to the patches of
  `image_size`; there is no attention to choose, and no other image size.

  Attributes:
    num_classes: K; 0 gives the pooled features.
    image_size: pixels, one number or (height, width).
    tokens_mlp_dim, channels_mlp_dim: hidden units of a block's two MLPs.
    drop_path_rate: of the last block; it grows linearly from 0 at the first.
    feature_layers: blocks whose maps `features` returns; negative from the end.
    remat: recompute each block in the backward pass, to save memory.
    dtype: of the computation, 'float32' or 'bfloat16'; parameters are float32.
  """

  num_classes: int
  patch_size: int
  hidden_size: int
  num_layers: int
  tokens_mlp_dim: int
  channels_mlp_dim: int
  image_size: int | tuple[int, int] = 224
  gelu: str = 'tanh'
  epsilon: float = 1e-6
  drop_path_rate: float = 0.0
  feature_layers: tuple[int, ...] = (-1,)
  remat: bool = False
  dtype: Any = 'float32'

  VARIANTS: ClassVar[dict[str, dict[str, int]]] = {
    name: dict(
      zip(
        ('hidden_size', 'num_layers', 'patch_size', 'tokens_mlp_dim',
         'channels_mlp_dim'),
        row, strict=True,
      )
    )
    for name, row in {
      # name    width layers patch tokens channels
      'S/16': (   512,     8,   16,   256,    2048),
      'B/16': (   768,    12,   16,   384,    3072),
      'B/32': (   768,    12,   32,   384,    3072),
      'L/16': (  1024,    24,   16,   512,    4096),
    }.items()
  }  # fmt: skip

  def setup(self):
    """Declares the parts; raises a ValueError on a bad field."""
    dtype = jnp.dtype(self.dtype)
    block = (
      nn.remat(MixerBlock, static_argnums=(2,)) if self.remat else MixerBlock
    )
    self.stem = layers.PatchEmbedding(self.hidden_size, self.patch_size, dtype)
    self.blocks = [
      block(
        self.tokens_mlp_dim, self.channels_mlp_dim,
        self.drop_path_rate * i / max(self.num_layers - 1, 1), self.gelu,
        self.epsilon, dtype, name=f'MixerBlock_{i}',
      )
      for i in range(self.num_layers)
    ]  # fmt: skip
    self.pre_head_layer_norm = nn.LayerNorm(epsilon=self.epsilon, dtype=dtype)
    if self.num_classes:
      self.classify = nn.Dense(
        self.num_classes, kernel_init=nn.initializers.zeros, dtype=dtype,
        name='head',
      )  # fmt: skip

  def embed(
    self, images: Float[Array, 'B Y X I'], train: bool = False
  ) -> tuple[Float[Array, 'B N C'], tuple[int, int]]:
    """Tokens, row by row, and their grid.

    Raises:
      ValueError: images of another size than `image_size`.
    """
    size = images.shape[1:3]
    if size != layers.pair(self.image_size):
      raise ValueError(
        f'an image of {size[0]}×{size[1]} pixels: the weights of token mixing '
        f'belong to image_size={self.image_size} and fit no other size'
      )
    return self.stem(images), layers.grid_of(size, self.patch_size)

  def encode(
    self,
    tokens: Float[Array, 'B N C'],
    grid: tuple[int, int],
    train: bool = False,
    collect: tuple[int, ...] = (),
  ) -> tuple[Float[Array, 'B N C'], tuple[Float[Array, 'B N C'], ...]]:
    """The last block's output and those of the blocks in `collect`, normed.

    Raises:
      ValueError: no such block in `collect`.
    """
    check_blocks(collect, self.num_layers)
    outputs, norm = [tokens], self.pre_head_layer_norm
    for block in self.blocks:
      outputs.append(block(outputs[-1], train))
    return norm(outputs[-1]), tuple(norm(outputs[1:][i]) for i in collect)

  def head(
    self, x: Float[Array, 'B N C'], train: bool = False
  ) -> Float[Array, 'B K']:
    """Classifies the mean of the tokens."""
    x = x.mean(axis=1)
    return self.classify(x) if self.num_classes else x
