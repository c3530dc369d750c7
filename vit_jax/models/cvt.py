"""CvT (Wu et al. 2021): convolutions in front of and inside a Transformer."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.attention.conv_projection import ConvProjection
from vit_jax.models.batch_norm import BatchNorm
from vit_jax.models.encoder import Encoder1DBlock
from vit_jax.models.initialization import TORCH
from vit_jax.models.pvt_v2 import ConvNorm
from vit_jax.models.stages import Stage, StagesOfTokens, variants


class ConvolutionalVisionTransformer(StagesOfTokens):
  """CvT: images [B Y X C] → logits [B K].

  Every stage embeds overlapping patches; its queries, keys and values are
  project(BatchNorm(depthwise convolution)), those of keys and values with a
  stride. The last stage has a class token, which skips these convolutions and
  is classified. Wu et al. 2021, section 3 and table 2. Sizes: `VARIANTS`, '13',
  '21' and 'W24'.

  As in the authors' code, logits are divided by √C, C the width of the stage,
  not by √D; GELU is x·σ(1.702 x), where Hugging Face takes the exact one; the
  convolutions start as PyTorch's, all else as truncated normal, .02.

  Images of any size from 3 pixels a side are taken; no parameter depends on
  `image_size`. BatchNorm: in training apply with mutable=['batch_stats'].

  Attributes:
    num_classes: K; 0 gives the pooled features.
    hidden_sizes, depths, num_heads, mlp_ratios: of each stage.
    patch_sizes, patch_strides: of each stage's patches, in cells of its input;
      their padding is ⌊(size - stride + 1) / 2⌋.
    kernel_sizes, key_strides: of the convolutions for queries, keys and values
      in each stage; for attention='conv_projection'.
    attention: of all blocks: the published 'conv_projection', or any spec of
      `vit_jax.attention`; several take turns within each stage.
    dropout_rate, attention_dropout_rate: in training.
    drop_path_rate: of the last block; it grows linearly from 0 at the last
      stage's first block, and the other stages have none, as published.
    feature_layers: stages whose maps `features` returns; None for all.
    remat: recompute each block in the backward pass, to save memory.
    dtype: of the computation, 'float32' or 'bfloat16'; parameters are float32.
  """

  num_classes: int
  hidden_sizes: tuple[int, ...]
  depths: tuple[int, ...]
  num_heads: tuple[int, ...]
  mlp_ratios: tuple[float, ...] = (4, 4, 4)
  patch_sizes: tuple[int, ...] = (7, 3, 3)
  patch_strides: tuple[int, ...] = (4, 2, 2)
  kernel_sizes: tuple[int, ...] = (3, 3, 3)
  key_strides: tuple[int, ...] = (2, 2, 2)
  image_size: int | tuple[int, int] = 224
  attention: str | Callable[..., nn.Module] = 'conv_projection'
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  drop_path_rate: float = 0.0
  qkv_bias: bool = True
  gelu: str = 'quick'
  epsilon: float = 1e-5
  feature_layers: tuple[int, ...] | None = (0, 1, 2)
  remat: bool = False
  dtype: Any = 'float32'

  VARIANTS: ClassVar[dict[str, dict[str, Any]]] = variants(
    ('hidden_sizes', 'depths', 'num_heads'),
    {
      '13': ((64, 192, 384), (1, 2, 10), (1, 3, 6)),
      '21': ((64, 192, 384), (1, 4, 16), (1, 3, 6)),
      'W24': ((192, 768, 1024), (2, 2, 20), (3, 12, 16)),
    },
  )

  has_class_token: ClassVar[bool] = True

  @property
  def steps(self) -> tuple[int, ...]:
    """By how much each stage's map is coarser than its input."""
    return self.patch_strides

  def drop_path_rates(self) -> list[list[float]]:
    """Of each block of each stage."""
    *early, last = self.depths
    rate = self.drop_path_rate / max(last - 1, 1)
    return [*([0.0] * n for n in early), [rate * i for i in range(last)]]

  def setup(self):
    """Declares the parts; raises a ValueError on a bad field."""
    self.check_lengths(
      'num_heads', 'mlp_ratios', 'patch_sizes', 'patch_strides',
      'kernel_sizes', 'key_strides',
    )  # fmt: skip
    self.declare([self._stage(s) for s in range(len(self.depths))])

  def _stage(self, s: int) -> Stage:
    size, stride = self.patch_sizes[s], self.patch_strides[s]
    attention = functools.partial(
      ConvProjection, size=self.kernel_sizes[s], stride=self.key_strides[s],
      as_code=True, batch_norm=BatchNorm, conv_init=TORCH,
    )  # fmt: skip
    return self.stage(
      s,
      embedding=functools.partial(
        ConvNorm, self.hidden_sizes[s], size, stride,
        (size - stride + 1) // 2, self.epsilon, TORCH, jnp.dtype(self.dtype),
      ),
      blocks=self.blocks(
        s, Encoder1DBlock, ('conv_projection', attention),
        initialization='truncated',
      ),
    )  # fmt: skip
