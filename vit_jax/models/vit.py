"""Vision Transformer (Dosovitskiy et al. 2021), with the original's names."""

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from vit_jax import layers
from vit_jax.models import resnet as resnets
from vit_jax.models import stems
from vit_jax.models.encoder import Encoder, Encoder1DBlock, MAPHead
from vit_jax.models.flat import Flat
from vit_jax.models.initialization import initializers
from vit_jax.models.positions import split_position
from vit_jax.models.sizes import SIZES, variants
from vit_jax.shapes import Array, Float


class VisionTransformer(Flat):
  """Images [B Y X C] → logits [B K] (unpooled: [B N K]).

  Sizes: `VARIANTS`, 'Ti/16' to 'g/14', and hybrids, whose patches are those of
  a ResNet's map, 'R50+B/16'. Images of another size than `image_size`,
  rectangular too, are taken as they come if patches cover them: the learned
  position table is resized inside. Pooled heads zero-initialise their last
  layer, as the original does.

  Attributes:
    num_classes: K; 0 gives the pooled features.
    patch_size: pixels, or cells of the ResNet's map.
    image_size: pixels, one number or (height, width): the position table's.
    classifier: 'token', 'gap' (mean of patches), 'map' (attention pooling),
      'unpooled', 'token_unpooled' (both keep all tokens).
    class_token: whether there is one; None as the classifier needs.
    pool_prefix: whether 'gap' and 'map' pool the tokens before the patches too;
      None: 'map' does. timm pools none of them.
    representation_size: adds Dense → tanh (`pre_logits`) before the head.
    norm_after_pooling: LayerNorm `fc_norm` of what is pooled in place of
      `Transformer/encoder_norm`; `features` are then the blocks' raw outputs.
    position: 'learned', 'sincos2d', 'sincos1d' (fixed; the latter counts the
      patches row by row) or 'none' for what is added to the tokens; and, alone
      or after commas, 'conditional', a `ConditionalPosition` after the first
      block, or after the first n blocks as 'conditional(count=n)'; and specs of
      `vit_jax.attention.positions` that act inside every attention: 'learned,
      relative_bias', 'rotary'. Those with a table of one grid
      ('relative_bias', 'decomposed_bias') take the grid of the images at init
      and no other, until `pretrained.change` resizes them; all others take any.
    position_resize: how the learned table is resized to another grid; see
      `layers.resize_positions`.
    prefix_positions: how many of the tokens before the patches, the first, have
      a row in the learned table; None: all but the registers.
    num_registers: learned tokens after the class token (Darcet et al. 2023).
    attention: see `Encoder`.
    qk_norm_bias: whether the norms of `qk_norm` have biases, as timm's.
    stem: a spec of `stems.STEMS`, what turns images into tokens: 'patches',
      'conv(widths=(24, 48, 96, 192))', 'residual(widths=…)', 'spt' or
      'tokenizer'; `patch_size` is their pixels a token.
    resnet: units of each stage of the `ResNet` in front; () is its root alone;
      None is none.
    resnet_width, resnet_convention: its width and where its ε go.
    feature_layers: blocks whose maps `features` returns; negative from the end.
    norm_placement: 'pre', or 'post' for blocks that normalise after each
      addition; then there is no `Transformer/encoder_norm`.
    drop_path_rule: 'linear' from 0 at the first block, or 'uniform'.
    head_bias: initial bias of the head (-log K suits sigmoid losses).
    initialization: 'original', or 'truncated' as DeiT's.
    dtype: of the computation, 'float32' or 'bfloat16'; parameters are float32.
    Others as in `Encoder`.
  """

  num_classes: int
  patch_size: int
  hidden_size: int
  num_layers: int
  num_heads: int
  mlp_dim: int
  image_size: int | tuple[int, int] = 224
  classifier: str = 'token'
  class_token: bool | None = None
  pool_prefix: bool | None = None
  representation_size: int | None = None
  norm_after_pooling: bool = False
  position: str = 'learned'
  position_resize: str = 'align_corners'
  prefix_positions: int | None = None
  num_registers: int = 0
  attention: str | Callable[..., nn.Module] = 'softmax'
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  drop_path_rate: float = 0.0
  patch_dropout_rate: float = 0.0
  layer_scale: float | None = None
  qkv_bias: bool = True
  qk_norm: bool = False
  qk_norm_bias: bool = False
  resnet: tuple[int, ...] | None = None
  resnet_width: int = 64
  resnet_convention: str = 'original'
  gelu: str = 'tanh'
  epsilon: float = 1e-6
  head_bias: float = 0.0
  initialization: str = 'original'
  feature_layers: tuple[int, ...] = (-1,)
  remat: bool = False
  dtype: Any = 'float32'
  norm_placement: str = 'pre'
  drop_path_rule: str = 'linear'
  stem: str = 'patches'

  VARIANTS: ClassVar[dict[str, dict[str, Any]]] = variants()
  CLASSIFIERS: ClassVar[tuple[str, ...]] = (
    'token', 'gap', 'map', 'unpooled', 'token_unpooled'
  )  # fmt: skip

  @property
  def prefix(self) -> int:
    """Tokens before the patches."""
    return int(self.has_class_token) + self.num_registers

  @property
  def learned_prefix(self) -> int:
    """Rows of the position table before those of the patches."""
    if self.prefix_positions is None:
      return self.prefix - self.num_registers
    return self.prefix_positions

  @property
  def stride(self) -> int:
    """Pixels a token."""
    if self.resnet is None:
      return self.patch_size
    return resnets.stride(self.resnet) * self.patch_size

  @property
  def has_class_token(self) -> bool:
    """Whether the first token is the class token."""
    needed = self.classifier in ('token', 'token_unpooled')
    return needed if self.class_token is None else self.class_token

  def _check(self) -> None:
    """Raises a ValueError on fields that contradict each other."""
    self.check_classifier()
    if not self.has_class_token and 'token' in self.classifier.split('_'):
      raise ValueError(
        f'classifier={self.classifier!r} needs the class token: set '
        f'class_token to True or None (it is {self.class_token})'
      )
    if self.position_resize not in layers.RESIZES:
      raise ValueError(
        f'position_resize={self.position_resize!r}; choices: '
        f'{", ".join(layers.RESIZES)}'
      )
    if not 0 <= self.learned_prefix <= self.prefix:
      raise ValueError(
        f'prefix_positions={self.prefix_positions} must be in [0, '
        f'{self.prefix}], the tokens before the patches'
      )
    position = split_position(self.position)
    if position.conditional > self.num_layers:
      raise ValueError(
        f'position={self.position!r} has {position.conditional} blocks before '
        f'a convolution; there are {self.num_layers} blocks'
      )
    if self.prefix_positions and position.added != 'learned':
      raise ValueError(
        f'prefix_positions={self.prefix_positions} needs a learned position; '
        f'position={self.position!r}'
      )
    if self.pool_prefix is not None and self.classifier not in ('gap', 'map'):
      raise ValueError(
        f"pool_prefix={self.pool_prefix} needs classifier='gap' or 'map'; it "
        f'is {self.classifier!r}'
      )
    if self.qk_norm_bias and not self.qk_norm:
      raise ValueError('qk_norm_bias=True needs qk_norm=True')
    given = (self.resnet_width, self.resnet_convention)
    if self.resnet is None and given != (64, 'original'):
      raise ValueError(
        f'resnet_width={given[0]}, resnet_convention={given[1]!r} need resnet: '
        'the number of units of each stage, () for the root alone'
      )
    if self.resnet is not None and self.stem != 'patches':
      raise ValueError(
        f'stem={self.stem!r} and resnet={self.resnet}: a hybrid embeds patches '
        "of its ResNet's map, stem='patches'"
      )

  def setup(self):
    """Declares the parts; raises a ValueError on a bad field."""
    self._check()
    position = split_position(self.position)
    dtype, width = jnp.dtype(self.dtype), self.hidden_size
    start = initializers(self.initialization)
    table_grid = layers.grid_of(self.image_size, self.stride)
    if self.resnet is not None:
      self.backbone = resnets.ResNet(
        self.resnet, self.resnet_width, self.resnet_convention, self.remat,
        dtype,
      )  # fmt: skip
      nn.share_scope(self, self.backbone)  # its parameters lie at the top
    self.embedding = stems.build(
      self.stem, width, self.patch_size, dtype, start
    )
    if self.has_class_token:
      self.cls = self.param('cls', start.token, (1, 1, width))
    if self.num_registers:
      self.register = self.param(
        'register', start.register, (1, self.num_registers, width)
      )
    self.Transformer = Encoder(
      self.num_layers, self.mlp_dim, self.num_heads, self.attention,
      table_grid if position.added == 'learned' else None, self.learned_prefix,
      self.dropout_rate, self.attention_dropout_rate, self.drop_path_rate,
      self.patch_dropout_rate, self.layer_scale, self.qkv_bias, self.qk_norm,
      self.gelu, self.epsilon, self.remat, dtype, position.inside,
      self.position_resize, not self.norm_after_pooling, self.qk_norm_bias,
      self.initialization, self.norm_placement, position.conditional,
      self.drop_path_rule,
    )  # fmt: skip
    if self.classifier == 'map':
      self.MAPHead_0 = MAPHead(
        self.num_heads, self.mlp_dim, self.gelu, self.epsilon, dtype,
        self.initialization,
      )  # fmt: skip
    if self.norm_after_pooling:
      self.fc_norm = nn.LayerNorm(epsilon=self.epsilon, dtype=dtype)
    if self.representation_size is not None:
      self.pre_logits = nn.Dense(
        self.representation_size, kernel_init=start.dense, dtype=dtype
      )
    if self.num_classes:
      self.classify = self._classifier('head')

  def _classifier(self, name: str) -> nn.Dense:
    return nn.Dense(
      self.num_classes,
      kernel_init=initializers(self.initialization).head,
      bias_init=nn.initializers.constant(self.head_bias),
      dtype=jnp.dtype(self.dtype),
      name=name,
    )

  def _prefix_tokens(self) -> list[Float[Array, '1 P C']]:
    """The learned tokens before the patches, in their order."""
    tokens = [self.cls] if self.has_class_token else []
    return [*tokens, self.register] if self.num_registers else tokens

  def embed(
    self, images: Float[Array, 'B Y X I'], train: bool = False
  ) -> tuple[Float[Array, 'B N C'], tuple[int, int]]:
    """Tokens, prefix first and without learned positions, and their grid."""
    grid = layers.grid_of(images.shape[1:3], self.stride)
    if self.resnet is not None:
      images = self.backbone(images)
    x = self.embedding(images, train)
    batch, _, width = x.shape
    added = split_position(self.position).added
    if added == 'sincos2d':
      x = x + jnp.asarray(layers.sincos2d(grid, width), x.dtype)
    elif added == 'sincos1d':
      x = x + jnp.asarray(layers.sincos1d(x.shape[1], width), x.dtype)
    prefix = [
      jnp.broadcast_to(p.astype(x.dtype), (batch, p.shape[1], width))
      for p in self._prefix_tokens()
    ]
    return jnp.concatenate([*prefix, x], axis=1), grid

  def encode(
    self,
    tokens: Float[Array, 'B N C'],
    grid: tuple[int, int],
    train: bool = False,
    collect: tuple[int, ...] = (),
  ) -> tuple[Float[Array, 'B M C'], tuple[Float[Array, 'B M C'], ...]]:
    """The Transformer: its output and those of the blocks in `collect`."""
    return self.Transformer(tokens, grid, self.prefix, train, collect)

  def head(
    self, x: Float[Array, 'B N C'], train: bool = False
  ) -> Float[Array, '...']:
    """Pools encoded tokens and classifies them."""
    if self.classifier == 'token':
      x = x[:, 0]
    elif self.classifier in ('gap', 'map'):
      by_map = self.classifier == 'map'
      whole = by_map if self.pool_prefix is None else self.pool_prefix
      x = x if whole else x[:, self.prefix :]
      x = self.MAPHead_0(x, train) if by_map else x.mean(axis=1)
    if self.norm_after_pooling:
      x = self.fc_norm(x)
    if self.representation_size is not None:
      x = nn.tanh(self.pre_logits(x))
    return self.classify(x) if self.num_classes else x

  def features(
    self, images: Float[Array, 'B Y X I'], train: bool = False
  ) -> tuple[Float[Array, 'B y x C'], ...]:
    """Maps [B rows columns C] of `feature_layers`, after the encoder's norm.

    Raises:
      ValueError: no such layer, or patch dropout in training, which leaves no
        grid.
    """
    if train and self.patch_dropout_rate:
      raise ValueError(
        'features(train=True) needs a whole grid of patches: set '
        f'patch_dropout_rate=0 (it is {self.patch_dropout_rate})'
      )
    return super().features(images, train)


__all__ = [
  'SIZES', 'Encoder', 'Encoder1DBlock', 'MAPHead', 'VisionTransformer',
  'split_position',
]  # fmt: skip
