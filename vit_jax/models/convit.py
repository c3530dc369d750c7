"""ConViT (d'Ascoli et al. 2021): attention that may begin as a convolution."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from vit_jax import attention as attentions
from vit_jax import layers
from vit_jax.attention.gpsa import GPSA
from vit_jax.models.encoder import Encoder1DBlock, check_blocks
from vit_jax.models.flat import Flat
from vit_jax.models.initialization import initializers
from vit_jax.shapes import Array, Float

HEAD_WIDTH = 48
SIZES = {
  # name  heads
  'Ti/16':  4,
  'S/16':   9,
  'B/16':  16,
}  # fmt: skip


def identity(key, shape, dtype=jnp.float32) -> Array:
  """The identity matrix, as an initialiser."""
  del key
  return jnp.eye(*shape, dtype=dtype)


def started(
  layer: Callable[..., nn.Module], initialization: str
) -> Callable[..., nn.Module]:
  """The layer class with the initial values of ConViT.

  Values of GPSA start as the identity (the authors' code), so that a head
  begins as one shift of a convolution; the rest as `initialization`.
  """
  fields = {'kernel_init': initializers(initialization).kernel}
  if isinstance(layer, functools.partial) and 'attend' in layer.keywords:
    attend = layer.keywords['attend']
    if getattr(attend, 'func', attend) is GPSA:
      fields['value_init'] = identity
  return functools.partial(layer, **fields)


class ConViTEncoder(nn.Module):
  """Blocks of patches, then of class token and patches: [B N C] → [B 1+N C].

  Attributes:
    table_grid: (rows, columns) of the learned position table; None for none.
    Others as in `ConViT`.
  """

  num_layers: int
  num_class_layers: int
  mlp_dim: int
  num_heads: int
  attention: str | Callable[..., nn.Module]
  class_attention: str | Callable[..., nn.Module]
  table_grid: tuple[int, int] | None
  position_resize: str
  dropout_rate: float
  attention_dropout_rate: float
  drop_path_rate: float
  qkv_bias: bool
  gelu: str
  epsilon: float
  initialization: str
  remat: bool
  dtype: Any

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B N C'],
    cls: Float[Array, '1 1 C'],
    grid: tuple[int, int],
    train: bool = False,
    collect: tuple[int, ...] = (),
  ) -> tuple[Float[Array, 'B M C'], tuple[Float[Array, 'B N C'], ...]]:
    """Encodes; and the patches after the blocks in `collect`. All are normed.

    Raises:
      ValueError: no such block in `collect`.
    """
    count = self.num_layers + self.num_class_layers
    check_blocks(collect, count)
    batch, start = x.shape[0], initializers(self.initialization)
    if self.table_grid is not None:
      x = layers.AddPositionEmbs(
        self.table_grid, 0, self.position_resize, start.positions,
        name='posembed_input',
      )(x, grid)  # fmt: skip
    x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
    # train is argument 2, counted from self: static under rematerialisation.
    block = (
      nn.remat(Encoder1DBlock, static_argnums=(2,))
      if self.remat
      else Encoder1DBlock
    )
    chosen = attentions.layers(self.attention, self.num_layers)
    chosen += attentions.layers(self.class_attention, self.num_class_layers)
    outputs, prefix = [], 0
    for i, attention in enumerate(chosen):
      if i == self.num_layers:
        cls = jnp.broadcast_to(cls.astype(x.dtype), (batch, 1, x.shape[2]))
        x, prefix = jnp.concatenate([cls, x], axis=1), 1
      x = block(
        mlp_dim=self.mlp_dim, num_heads=self.num_heads,
        attention=started(attention, self.initialization), grid=grid,
        prefix=prefix, dropout_rate=self.dropout_rate,
        attention_dropout_rate=self.attention_dropout_rate,
        drop_path_rate=self.drop_path_rate * i / max(count - 1, 1),
        qkv_bias=self.qkv_bias, gelu=self.gelu, epsilon=self.epsilon,
        dtype=self.dtype, initialization=self.initialization,
        name=f'encoderblock_{i}',
      )(x, train)  # fmt: skip
      outputs.append(x[:, prefix:])
    norm = nn.LayerNorm(
      epsilon=self.epsilon, dtype=self.dtype, name='encoder_norm'
    )
    return norm(x), tuple(norm(outputs[i]) for i in collect)


class ConViT(Flat):
  """Images [B Y X C] → logits [B K]: a ViT whose first blocks are local.

  Patches alone, with learned positions, go through `num_layers` blocks of
  gated positional self-attention, each head of which starts at one place beside
  the query; then a class token joins them for `num_class_layers` ordinary ones.

  Sizes: `VARIANTS`, of 12 blocks, 10 of them before the class token. Parameter
  names are `VisionTransformer`'s. Images of another size, rectangular too, are
  taken if patches cover them: the position table is resized inside, and GPSA
  counts offsets in cells.

  Attributes:
    num_classes: K; 0 gives the pooled features.
    patch_size: pixels.
    num_layers, num_class_layers: blocks before and with the class token.
    mlp_dim: hidden units of a block's MLP.
    image_size: pixels, one number or (height, width): the position table's.
    classifier: 'token', or 'gap' (the mean of the patches).
    positions: whether there is a learned table.
    position_resize: how it is resized; see `layers.resize_positions`.
    attention, class_attention: of the blocks before and with the class token;
      one spec, or several, repeated.
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
  num_class_layers: int = 2
  image_size: int | tuple[int, int] = 224
  classifier: str = 'token'
  positions: bool = True
  position_resize: str = 'bicubic_torch'
  attention: str | Callable[..., nn.Module] = 'gpsa(use_bias=True)'
  class_attention: str | Callable[..., nn.Module] = 'softmax'
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  drop_path_rate: float = 0.0
  qkv_bias: bool = False
  gelu: str = 'exact'
  epsilon: float = 1e-6
  initialization: str = 'truncated'
  feature_layers: tuple[int, ...] = (-1,)
  remat: bool = False
  dtype: Any = 'float32'

  VARIANTS: ClassVar[dict[str, dict[str, int]]] = {
    name: {
      'patch_size': 16, 'hidden_size': HEAD_WIDTH * heads, 'num_layers': 10,
      'num_heads': heads, 'mlp_dim': 4 * HEAD_WIDTH * heads,
    }
    for name, heads in SIZES.items()
  }  # fmt: skip

  def setup(self):
    """Declares the parts; raises a ValueError on a bad field."""
    self.check_classifier()
    for name in ('num_layers', 'num_class_layers'):
      if getattr(self, name) < 1:
        raise ValueError(
          f'{name}={getattr(self, name)} must be at least 1, the blocks '
          f'{"with" if "class" in name else "before"} the class token'
        )
    dtype, width = jnp.dtype(self.dtype), self.hidden_size
    start = initializers(self.initialization)
    table_grid = layers.grid_of(self.image_size, self.patch_size)
    self.embedding = layers.PatchEmbedding(
      width, self.patch_size, dtype, start.patches
    )
    self.cls = self.param('cls', start.token, (1, 1, width))
    self.Transformer = ConViTEncoder(
      self.num_layers, self.num_class_layers, self.mlp_dim, self.num_heads,
      self.attention, self.class_attention,
      table_grid if self.positions else None, self.position_resize,
      self.dropout_rate, self.attention_dropout_rate, self.drop_path_rate,
      self.qkv_bias, self.gelu, self.epsilon, self.initialization, self.remat,
      dtype,
    )  # fmt: skip
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
    """
    return self.Transformer(tokens, self.cls, grid, train, collect)
