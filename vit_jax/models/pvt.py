"""Pyramid Vision Transformer (Wang et al. 2021): fewer keys in finer maps."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from vit_jax import layers
from vit_jax.attention.reduction import SpatialReduction
from vit_jax.models.encoder import Encoder1DBlock
from vit_jax.models.initialization import TORCH
from vit_jax.models.pyramid import START, PatchNorm
from vit_jax.models.stages import Stage, StagesOfTokens, variants
from vit_jax.shapes import Array, Float


class PyramidVisionTransformer(StagesOfTokens):
  """PVT: images [B Y X C] → logits [B K].

  Every stage embeds patches of its input, adds learned positions and has blocks
  whose keys and values are of a map `reductions` times as coarse; the last one
  has a class token, which is classified. Wang et al. 2021, section 3 and table
  1. Sizes: `VARIANTS`, 'T' to 'L'.

  Images of another size than `image_size`, rectangular too, are taken if
  patches cover them (multiples of 32); the tables are resized inside, by the
  authors' rule, bilinear. Convolutions start as PyTorch's, which the authors'
  code leaves them to; all else is truncated normal, .02.

  Attributes:
    num_classes: K; 0 gives the pooled features.
    hidden_sizes, depths, num_heads, mlp_ratios: of each stage.
    reductions: the paper's R of each stage; for attention='spatial_reduction'.
    patch_size: pixels of the first stage's patches; those after it are of 2×2.
    image_size: pixels, one number or (height, width): the position tables'.
    attention: of all blocks: the published 'spatial_reduction', or any spec of
      `vit_jax.attention`; several take turns within each stage.
    position_resize: see `layers.resize_positions`.
    dropout_rate, attention_dropout_rate: in training.
    drop_path_rate: of the last block; it grows linearly from 0 at the first.
    epsilon: of the norms of blocks and of the last norm.
    embedding_epsilon: of the norms after patch embeddings and in the published
      attention. 1e-5 in the authors' code, 1e-6 in Hugging Face's.
    feature_layers: stages whose maps `features` returns; None for all.
    remat: recompute each block in the backward pass, to save memory.
    dtype: of the computation, 'float32' or 'bfloat16'; parameters are float32.
  """

  num_classes: int
  hidden_sizes: tuple[int, ...]
  depths: tuple[int, ...]
  num_heads: tuple[int, ...]
  mlp_ratios: tuple[float, ...]
  reductions: tuple[int, ...] = (8, 4, 2, 1)
  patch_size: int = 4
  image_size: int | tuple[int, int] = 224
  attention: str | Callable[..., nn.Module] = 'spatial_reduction'
  position_resize: str = 'bilinear_torch'
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
    ('hidden_sizes', 'depths', 'num_heads', 'mlp_ratios'),
    {
      'T': ((64, 128, 320, 512), (2, 2, 2, 2), (1, 2, 5, 8), (8, 8, 4, 4)),
      'S': ((64, 128, 320, 512), (3, 4, 6, 3), (1, 2, 5, 8), (8, 8, 4, 4)),
      'M': ((64, 128, 320, 512), (3, 4, 18, 3), (1, 2, 5, 8), (8, 8, 4, 4)),
      'L': ((64, 128, 320, 512), (3, 8, 27, 3), (1, 2, 5, 8), (8, 8, 4, 4)),
    },
  )

  has_class_token: ClassVar[bool] = True

  @property
  def steps(self) -> tuple[int, ...]:
    """By how much each stage's map is coarser than its input."""
    return (self.patch_size, *(2,) * (len(self.depths) - 1))

  @property
  def position_strides(self) -> dict[str, int]:
    """Pixels a cell of the grid of each position table, by its name."""
    return {
      f'stage_{s}/posembed_input/pos_embedding': stride
      for s, stride in enumerate(self.all_strides)
    }

  def setup(self):
    """Declares the parts; raises a ValueError on a bad field."""
    self.check_lengths('num_heads', 'mlp_ratios', 'reductions')
    self._check_size(layers.pair(self.image_size))
    self.declare([self._stage(s) for s in range(len(self.depths))])

  def _check_size(self, size: tuple[int, int]) -> None:
    layers.grid_of(size, self.all_strides[-1])

  def _stage(self, s: int) -> Stage:
    dtype, last = jnp.dtype(self.dtype), s == len(self.depths) - 1
    attention = functools.partial(
      SpatialReduction, ratio=self.reductions[s], as_code=True,
      reduce_epsilon=self.embedding_epsilon, reduce_init=TORCH,
    )  # fmt: skip
    table_grid = layers.grid_of(self.image_size, self.all_strides[s])
    return self.stage(
      s,
      embedding=functools.partial(
        PatchNorm, self.hidden_sizes[s], self.steps[s],
        self.embedding_epsilon, dtype, TORCH,
      ),
      positions=functools.partial(
        layers.AddPositionEmbs, table_grid, int(last), self.position_resize,
        START.positions,
      ),
      blocks=self.blocks(
        s, Encoder1DBlock, ('spatial_reduction', attention),
        initialization='truncated',
      ),
    )  # fmt: skip

  def encode(
    self, images: Float[Array, 'B Y X I'], train: bool = False
  ) -> tuple[Float[Array, 'B N C'], tuple[Float[Array, 'B y x c'], ...]]:
    """The last stage's tokens after `encoder_norm`, and the stages' maps.

    Raises:
      ValueError: patches do not cover the images.
    """
    self._check_size(images.shape[1:3])
    return super().encode(images, train)
