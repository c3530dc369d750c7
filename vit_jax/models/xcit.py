"""XCiT (El-Nouby et al. 2021): channels attend to channels, in O(N)."""

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from vit_jax import attention as attentions
from vit_jax.models.encoder import check_blocks
from vit_jax.models.flat import Flat
from vit_jax.models.initialization import TORCH
from vit_jax.models.xcit_blocks import (
  START,
  ClassBlock,
  ConvStem,
  XCiTBlock,
  fourier,
)
from vit_jax.shapes import Array, Float

SIZES = {
  # name   width layers heads LayerScale norm_tokens
  'N12':  (  128,    12,    4,       1.0, False),
  'T12':  (  192,    12,    4,       1.0, True),
  'S12':  (  384,    12,    8,       1.0, True),
  'T24':  (  192,    24,    4,      1e-5, True),
  'S24':  (  384,    24,    8,      1e-5, True),
  'M24':  (  512,    24,    8,      1e-5, True),
  'L24':  (  768,    24,   16,      1e-5, True),
}  # fmt: skip


def variants() -> dict[str, dict[str, Any]]:
  """'S12/16' → its fields: every size with patches of 16 and of 8 pixels."""
  return {
    f'{name}/{patch}': {
      'patch_size': patch, 'hidden_size': width, 'num_layers': count,
      'num_heads': heads, 'mlp_dim': 4 * width, 'layer_scale': scale,
      'norm_tokens': norm,
    }
    for name, (width, count, heads, scale, norm) in SIZES.items()
    for patch in (16, 8)
  }  # fmt: skip


class XCiTEncoder(nn.Module):
  """The blocks of the patches: [B N C] → [B N C], and those of `collect`.

  Attributes:
    As in `XCiT`.
  """

  num_layers: int
  mlp_dim: int
  num_heads: int
  attention: str | Callable[..., nn.Module] = 'xca'
  layer_scale: float = 1.0
  qkv_bias: bool = True
  drop_path_rate: float = 0.0
  gelu: str = 'exact'
  epsilon: float = 1e-6
  remat: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B N C'],
    grid: tuple[int, int],
    train: bool = False,
    collect: tuple[int, ...] = (),
  ) -> tuple[Float[Array, 'B N C'], tuple[Float[Array, 'B N C'], ...]]:
    """Encodes; raises a ValueError on an unknown block in `collect`."""
    check_blocks(collect, self.num_layers)
    block = (
      nn.remat(XCiTBlock, static_argnums=(2,)) if self.remat else XCiTBlock
    )
    outputs = []
    chosen = attentions.layers(self.attention, self.num_layers)
    for i, attention in enumerate(chosen):
      x = block(
        self.mlp_dim, self.num_heads, attention, grid, self.layer_scale,
        self.qkv_bias, self.drop_path_rate, self.gelu, self.epsilon,
        self.dtype, name=f'encoderblock_{i}',
      )(x, train)  # fmt: skip
      outputs.append(x)
    return x, tuple(outputs[i] for i in collect)


class XCiT(Flat):
  """Images [B Y X C] → logits [B K]; O(N), for attention mixes channels.

  A convolutional stem makes the patches, Fourier features through one Dense are
  their positions, `num_layers` of `XCiTBlock` follow, and a class token goes
  through `num_class_layers` of `ClassBlock`; a norm and a head read it.

  Sizes: `VARIANTS`, patches of 16 or 8 pixels. Images of any size are taken;
  the last patches of a side that patches do not cover are cut at the border.

  Attributes:
    num_classes: K; 0 gives the pooled features.
    patch_size: pixels, a power of 2.
    mlp_dim: hidden units of every MLP.
    layer_scale: of every branch at first; 1e-5 in deep models.
    norm_tokens: whether the second norm of a `ClassBlock` is of all tokens.
    image_size: pixels, of the data; nothing depends on it.
    classifier: 'token', or 'gap' (the mean of the patches).
    positions: whether there are any.
    attention: one spec or several, repeated over the blocks of patches; the
      class token's is softmax.
    drop_path_rate: of every block of the patches alike, in training.
    feature_layers: blocks whose maps `features` returns; negative from the end.
    remat: recompute each block in the backward pass, to save memory.
    dtype: of the computation, 'float32' or 'bfloat16'; parameters are float32.
  """

  num_classes: int
  patch_size: int
  hidden_size: int
  num_layers: int
  num_heads: int
  mlp_dim: int
  layer_scale: float = 1.0
  norm_tokens: bool = True
  num_class_layers: int = 2
  image_size: int | tuple[int, int] = 224
  classifier: str = 'token'
  positions: bool = True
  attention: str | Callable[..., nn.Module] = 'xca'
  qkv_bias: bool = True
  drop_path_rate: float = 0.0
  gelu: str = 'exact'
  epsilon: float = 1e-6
  feature_layers: tuple[int, ...] = (-1,)
  remat: bool = False
  dtype: Any = 'float32'

  VARIANTS: ClassVar[dict[str, dict[str, Any]]] = variants()

  def setup(self):
    """Declares the parts; raises a ValueError on a bad field."""
    self.check_classifier()
    dtype, width = jnp.dtype(self.dtype), self.hidden_size
    self.embedding = ConvStem(width, self.patch_size, self.gelu, dtype)
    if self.positions:
      self.position_projection = nn.Dense(
        width, kernel_init=TORCH, dtype=dtype
      )
    self.Transformer = XCiTEncoder(
      self.num_layers, self.mlp_dim, self.num_heads, self.attention,
      self.layer_scale, self.qkv_bias, self.drop_path_rate, self.gelu,
      self.epsilon, self.remat, dtype,
    )  # fmt: skip
    self.cls = self.param('cls', START.token, (1, 1, width))
    block = (
      nn.remat(ClassBlock, static_argnums=(2,)) if self.remat else ClassBlock
    )
    self.class_blocks = [
      block(
        self.mlp_dim, self.num_heads, self.layer_scale, self.norm_tokens,
        self.qkv_bias, self.gelu, self.epsilon, dtype,
        name=f'class_block_{self.num_layers + i}',
      )
      for i in range(self.num_class_layers)
    ]  # fmt: skip
    self.encoder_norm = nn.LayerNorm(epsilon=self.epsilon, dtype=dtype)
    if self.num_classes:
      self.classify = nn.Dense(
        self.num_classes, kernel_init=START.head, dtype=dtype, name='head'
      )

  def embed(
    self, images: Float[Array, 'B Y X I'], train: bool = False
  ) -> tuple[Float[Array, 'B N C'], tuple[int, int]]:
    """Patches with their positions, row by row, and their grid."""
    x = self.embedding(images, train)
    batch, *grid, width = x.shape
    x = x.reshape(batch, -1, width)
    if self.positions:
      x = x + self.position_projection(jnp.asarray(fourier(tuple(grid))))[None]
    return x, tuple(grid)

  def encode(
    self,
    tokens: Float[Array, 'B N C'],
    grid: tuple[int, int],
    train: bool = False,
    collect: tuple[int, ...] = (),
  ) -> tuple[Float[Array, 'B M C'], tuple[Float[Array, 'B N C'], ...]]:
    """Class token and patches; and the patches after the blocks in `collect`.

    All pass the last norm.

    Raises:
      ValueError: no such block in `collect`.
    """
    x, outputs = self.Transformer(tokens, grid, train, collect)
    cls = jnp.broadcast_to(
      self.cls.astype(x.dtype), (x.shape[0], 1, x.shape[2])
    )
    x = jnp.concatenate([cls, x], axis=1)
    for block in self.class_blocks:
      x = block(x, train)
    return self.encoder_norm(x), tuple(map(self.encoder_norm, outputs))
