"""CaiT: class attention in image Transformers (Touvron et al. 2021)."""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from vit_jax import attention as attentions
from vit_jax import layers
from vit_jax.models.encoder import Encoder
from vit_jax.models.flat import Flat
from vit_jax.models.initialization import initializers
from vit_jax.shapes import Array, Float

SIZES = {
  # name     width layers heads LayerScale
  'XXS24': (   192,    24,    4,      1e-5),
  'XXS36': (   192,    36,    4,      1e-5),
  'XS24':  (   288,    24,    6,      1e-5),
  'S24':   (   384,    24,    8,      1e-5),
  'S36':   (   384,    36,    8,      1e-6),
  'M36':   (   768,    36,   16,      1e-6),
  'M48':   (   768,    48,   16,      1e-6),
}  # fmt: skip


class ClassBlock(nn.Module):
  """The class token looks at the patches, which stay as they are.

  With z = [c, x], c ← c + λ₁ attention(norm(z)₀, norm(z), norm(z)), whose query
  is of the class token alone: O(N). Then c ← c + λ₂ MLP(norm(c)). Without
  dropout or drop-path, as published. Touvron et al. 2021, section 3.2, eq. 5.

  Attributes:
    As in `Encoder1DBlock`.
  """

  mlp_dim: int
  num_heads: int
  layer_scale: float
  qkv_bias: bool = True
  gelu: str = 'exact'
  epsilon: float = 1e-6
  dtype: Any = jnp.float32
  initialization: str = 'truncated'

  @nn.compact
  def __call__(
    self,
    c: Float[Array, 'B 1 C'],
    x: Float[Array, 'B N C'],
    train: bool = False,
  ) -> Float[Array, 'B 1 C']:
    """The class token after the block."""
    start = initializers(self.initialization)
    y = jnp.concatenate([c, x], axis=1)
    y = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype)(y)
    y = attentions.MultiHeadDotProductAttention(
      self.num_heads, attentions.Softmax, use_bias=self.qkv_bias,
      dtype=self.dtype, kernel_init=start.kernel,
      name='MultiHeadDotProductAttention_0',
    )(y[:, :1], y, train=train)  # fmt: skip
    c = c + layers.LayerScale(self.layer_scale)(y)
    y = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype)(c)
    y = layers.MlpBlock(
      self.mlp_dim, 0.0, self.gelu, self.dtype, start.kernel, start.bias
    )(y, train)
    return c + layers.LayerScale(self.layer_scale)(y)


class CaiT(Flat):
  """Images [B Y X C] → logits [B K]; made to be deep.

  Patches alone, with positions, go through `num_layers` blocks of talking
  heads and LayerScale; then a class token goes through `num_class_layers` of
  `ClassBlock`, and a norm and a head read it.

  Sizes: `VARIANTS`. LayerScale starts at 1e-5 up to 24 layers and 1e-6 above,
  in XXS36 at 1e-5 too (the authors' code; the paper would have 1e-6).

  Attributes:
    num_classes: K; 0 gives the pooled features.
    patch_size: pixels.
    mlp_dim: hidden units of a block's MLP.
    num_class_layers, class_mlp_dim: blocks of the class token, and hidden units
      of their MLPs; None: `mlp_dim`.
    image_size: pixels, one number or (height, width): the position table's.
    classifier: 'token', or 'gap' (the mean of the patches).
    position_resize: how the table is resized for images of another size; see
      `layers.resize_positions`.
    attention: of the patches; see `Encoder`. The class token's is softmax.
    layer_scale: initial LayerScale.
    drop_path_rate: of every block of the patches alike, in training.
    dropout_rate, attention_dropout_rate: of the patches' blocks.
    feature_layers: blocks whose maps `features` returns; negative from the end.
    Others as in `Encoder`.
  """

  num_classes: int
  patch_size: int
  hidden_size: int
  num_layers: int
  num_heads: int
  mlp_dim: int
  num_class_layers: int = 2
  class_mlp_dim: int | None = None
  image_size: int | tuple[int, int] = 224
  classifier: str = 'token'
  position_resize: str = 'bicubic_torch'
  attention: str = "talking_heads(use_bias=True, start='normal')"
  layer_scale: float = 1e-5
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  drop_path_rate: float = 0.0
  qkv_bias: bool = True
  gelu: str = 'exact'
  epsilon: float = 1e-6
  initialization: str = 'truncated'
  feature_layers: tuple[int, ...] = (-1,)
  remat: bool = False
  dtype: Any = 'float32'

  VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
    name: {
      'patch_size': 16, 'hidden_size': width, 'num_layers': count,
      'num_heads': heads, 'mlp_dim': 4 * width, 'layer_scale': scale,
    }
    for name, (width, count, heads, scale) in SIZES.items()
  }  # fmt: skip

  def setup(self):
    """Declares the parts; raises a ValueError on a bad field."""
    self.check_classifier()
    dtype, width = jnp.dtype(self.dtype), self.hidden_size
    start = initializers(self.initialization)
    self.embedding = layers.PatchEmbedding(
      width, self.patch_size, dtype, start.patches
    )
    self.Transformer = Encoder(
      num_layers=self.num_layers, mlp_dim=self.mlp_dim,
      num_heads=self.num_heads, attention=self.attention,
      table_grid=layers.grid_of(self.image_size, self.patch_size),
      dropout_rate=self.dropout_rate,
      attention_dropout_rate=self.attention_dropout_rate,
      drop_path_rate=self.drop_path_rate, drop_path_rule='uniform',
      layer_scale=self.layer_scale, qkv_bias=self.qkv_bias, gelu=self.gelu,
      epsilon=self.epsilon, remat=self.remat, dtype=dtype,
      position_resize=self.position_resize, final_norm=False,
      initialization=self.initialization,
    )  # fmt: skip
    self.cls = self.param('cls', start.token, (1, 1, width))
    block = (
      nn.remat(ClassBlock, static_argnums=(3,)) if self.remat else ClassBlock
    )
    self.class_blocks = [
      block(
        self.class_mlp_dim or self.mlp_dim, self.num_heads, self.layer_scale,
        self.qkv_bias, self.gelu, self.epsilon, dtype, self.initialization,
        name=f'class_block_{self.num_layers + i}',
      )
      for i in range(self.num_class_layers)
    ]  # fmt: skip
    self.encoder_norm = nn.LayerNorm(epsilon=self.epsilon, dtype=dtype)
    if self.num_classes:
      self.classify = nn.Dense(
        self.num_classes, kernel_init=start.head, dtype=dtype, name='head'
      )

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
    x, outputs = self.Transformer(tokens, grid, 0, train, collect)
    c = jnp.broadcast_to(
      self.cls.astype(x.dtype), (x.shape[0], 1, x.shape[2])
    )
    for block in self.class_blocks:
      c = block(c, x, train)
    norm = self.encoder_norm
    return norm(jnp.concatenate([c, x], axis=1)), tuple(map(norm, outputs))
