"""Vision Transformer (Dosovitskiy et al. 2021), with the original's names."""

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import attention as attentions
from vit_jax import layers, specs
from vit_jax.shapes import Array, Float

SIZES = {
  # name   width layers heads  MLP
  'Ti': (   192,    12,    3,  768),
  'S':  (   384,    12,    6, 1536),
  'B':  (   768,    12,   12, 3072),
  'L':  (  1024,    24,   16, 4096),
  'H':  (  1280,    32,   16, 5120),
  'g':  (  1408,    40,   16, 6144),
}  # fmt: skip
PATCHES = (8, 14, 16, 32)
CLASSIFIERS = ('token', 'gap', 'map', 'unpooled', 'token_unpooled')
POSITIONS = ('learned', 'sincos2d', 'none')  # added to the tokens


def _variants() -> dict[str, dict[str, int]]:
  fields = ('hidden_size', 'num_layers', 'num_heads', 'mlp_dim')
  return {
    f'{size}/{patch}': {
      **dict(zip(fields, row, strict=True)), 'patch_size': patch
    }
    for size, row in SIZES.items()
    for patch in PATCHES
  }  # fmt: skip


def split_position(text: str) -> tuple[str, str]:
  """'learned, rotary' → ('learned', 'rotary'): added, and inside attention.

  Raises:
    ValueError: an unknown spec, or not at most one that is added.
  """
  found = specs.parse(text)
  inside = attentions.positions.POSITIONS
  added = [str(s) for s in found if s.name not in inside]
  rest = [str(s) for s in found if s.name in inside]
  if not found or len(added) > 1 or not set(added) <= set(POSITIONS):
    raise ValueError(
      f'position={text!r}; choices: {", ".join(POSITIONS)}, and after a comma '
      f'or alone, inside attention: {", ".join(inside)}'
    )
  return (added or ['none'])[0], ', '.join(rest)


class Encoder1DBlock(nn.Module):
  """x + attention(norm(x)), then x + MLP(norm(x)); [B N C] → [B N C].

  Attributes:
    attention: builds the attention layer; see `vit_jax.attention.layer`.
    grid, prefix: the layout of the tokens, handed to the attention.
    drop_path_rate: of both branches, in training.
    layer_scale: initial LayerScale of both branches; None has none.
  """

  mlp_dim: int
  num_heads: int
  attention: Callable[..., nn.Module]
  grid: tuple[int, int] | None = None
  prefix: int = 0
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  drop_path_rate: float = 0.0
  layer_scale: float | None = None
  qkv_bias: bool = True
  qk_norm: bool = False
  gelu: str = 'tanh'
  epsilon: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B N C'], train: bool = False
  ) -> Float[Array, 'B N C']:
    """Applies the block; positional `train` so that nn.remat can fix it."""
    y = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype)(x)
    y = self.attention(
      num_heads=self.num_heads, grid=self.grid, prefix=self.prefix,
      use_bias=self.qkv_bias, normalize_qk=self.qk_norm,
      dropout_rate=self.attention_dropout_rate, epsilon=self.epsilon,
      dtype=self.dtype, name='MultiHeadDotProductAttention_0',
    )(y, train=train)  # fmt: skip
    x = x + self._branch(y, 0, train)
    y = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype)(x)
    y = layers.MlpBlock(
      self.mlp_dim, self.dropout_rate, self.gelu, self.dtype
    )(y, train)
    return x + self._branch(y, 1, train)

  def _branch(self, y, index: int, train: bool):
    if index == 0:  # the MLP drops its own output
      y = nn.Dropout(self.dropout_rate, deterministic=not train)(y)
    if self.layer_scale is not None:
      y = layers.LayerScale(self.layer_scale)(y)
    return layers.DropPath(self.drop_path_rate)(y, train)


class Encoder(nn.Module):
  """Positions, blocks and the last norm: [B N C] → [B N C].

  Attributes:
    attention: one spec or several, repeated over the layers, or a layer class.
    table_grid: (rows, columns) of the learned position table; None for none.
    learned_prefix: prefix tokens with a learned position (the class token).
    attention_position: positions inside every attention, specs of
      `vit_jax.attention.positions`.
    drop_path_rate: of the last block; it grows linearly from 0 at the first.
    patch_dropout_rate: share of patch tokens left out in training, after the
      positions (Liu et al. 2022, "PatchDropout").
    remat: recompute each block in the backward pass, to save memory.
    Others as in `Encoder1DBlock`.
  """

  num_layers: int
  mlp_dim: int
  num_heads: int
  attention: str | Callable[..., nn.Module] = 'softmax'
  table_grid: tuple[int, int] | None = None
  learned_prefix: int = 0
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  drop_path_rate: float = 0.0
  patch_dropout_rate: float = 0.0
  layer_scale: float | None = None
  qkv_bias: bool = True
  qk_norm: bool = False
  gelu: str = 'tanh'
  epsilon: float = 1e-6
  remat: bool = False
  dtype: Any = jnp.float32
  attention_position: str = ''

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B N C'],
    grid: tuple[int, int],
    prefix: int = 0,
    train: bool = False,
    collect: tuple[int, ...] = (),
  ) -> tuple[Float[Array, 'B M C'], tuple[Float[Array, 'B M C'], ...]]:
    """Encodes `prefix` tokens followed by a grid of patches.

    Returns:
      The last block's output and those of the blocks in `collect`, all
      through the encoder's norm.

    Raises:
      ValueError: no such block in `collect`, or positions inside attention
        without the grid that patch dropout takes away.
    """
    for index in collect:
      if not -self.num_layers <= index < self.num_layers:
        raise ValueError(
          f'no block {index}: the encoder has blocks 0 to '
          f'{self.num_layers - 1}, or -1 to {-self.num_layers} from the end'
        )
    if self.table_grid is not None:
      x = layers.AddPositionEmbs(
        self.table_grid, self.learned_prefix, name='posembed_input'
      )(x, grid, prefix)
    x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
    if train and self.patch_dropout_rate:
      if self.attention_position:
        raise ValueError(
          f'patch_dropout_rate={self.patch_dropout_rate} leaves no grid for '
          f'the positions inside attention, {self.attention_position!r}'
        )
      x, grid = self._drop_patches(x, prefix), None
    # train is argument 2, counted from self: static under rematerialisation.
    block = (
      nn.remat(Encoder1DBlock, static_argnums=(2,))
      if self.remat
      else Encoder1DBlock
    )
    outputs = []
    chosen = attentions.layers(self.attention, self.num_layers)
    for i, attention in enumerate(chosen):
      attention = attentions.positioned(attention, self.attention_position)
      x = block(
        mlp_dim=self.mlp_dim, num_heads=self.num_heads, attention=attention,
        grid=grid, prefix=prefix, dropout_rate=self.dropout_rate,
        attention_dropout_rate=self.attention_dropout_rate,
        drop_path_rate=self.drop_path_rate * i / max(self.num_layers - 1, 1),
        layer_scale=self.layer_scale, qkv_bias=self.qkv_bias,
        qk_norm=self.qk_norm, gelu=self.gelu, epsilon=self.epsilon,
        dtype=self.dtype, name=f'encoderblock_{i}',
      )(x, train)  # fmt: skip
      outputs.append(x)
    norm = nn.LayerNorm(
      epsilon=self.epsilon, dtype=self.dtype, name='encoder_norm'
    )
    return norm(x), tuple(norm(outputs[i]) for i in collect)

  def _drop_patches(self, x, prefix: int):
    """Keeps a random subset of the patches, in order, for each example."""
    if not 0.0 <= self.patch_dropout_rate < 1.0:
      raise ValueError(
        f'patch_dropout_rate={self.patch_dropout_rate} is not in [0, 1)'
      )
    batch, count = x.shape[0], x.shape[1] - prefix
    kept = max(1, round(count * (1.0 - self.patch_dropout_rate)))
    noise = jax.random.uniform(self.make_rng('dropout'), (batch, count))
    index = jnp.sort(jnp.argsort(noise, axis=1)[:, :kept], axis=1)
    patches = jnp.take_along_axis(x[:, prefix:], index[..., None], axis=1)
    return jnp.concatenate([x[:, :prefix], patches], axis=1)


class MAPHead(nn.Module):
  """A learned probe attends to all tokens: [B N C] → [B C].

  Multi-head attention pooling with a residual MLP. Zhai et al. 2022, "Scaling
  Vision Transformers"; parameter names as in big_vision.
  """

  num_heads: int
  mlp_dim: int
  gelu: str = 'tanh'
  epsilon: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B N C'], train: bool = False
  ) -> Float[Array, 'B C']:
    """Pools the tokens."""
    batch, _, width = x.shape
    probe = self.param(
      'probe', nn.initializers.xavier_uniform(), (1, 1, width)
    )
    probe = jnp.broadcast_to(probe.astype(x.dtype), (batch, 1, width))
    x = attentions.MultiHeadDotProductAttention(
      self.num_heads, attentions.Softmax, dtype=self.dtype,
      name='MultiHeadDotProductAttention_0',
    )(probe, x, train=train)  # fmt: skip
    y = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype)(x)
    y = layers.MlpBlock(self.mlp_dim, gelu=self.gelu, dtype=self.dtype)(
      y, train
    )
    return (x + y)[:, 0]


class VisionTransformer(nn.Module):
  """Images [B Y X C] → logits [B K] (unpooled: [B N K]).

  Sizes: `VARIANTS`, 'Ti/16' to 'g/14'. Images of another size than
  `image_size`, rectangular too, are taken as they come if patches cover them:
  the learned position table is resized inside. Pooled heads zero-initialise
  their last layer, as the original does.

  Attributes:
    num_classes: K; 0 gives the pooled features.
    image_size: pixels, one number or (height, width): the position table's.
    classifier: 'token', 'gap' (mean of patches), 'map' (attention pooling),
      'unpooled', 'token_unpooled' (both keep all tokens).
    representation_size: adds Dense → tanh (`pre_logits`) before the head.
    position: 'learned', 'sincos2d' (fixed) or 'none' for what is added to the
      tokens; and, alone or after a comma, specs of
      `vit_jax.attention.positions` that act inside every attention: 'learned,
      relative_bias', 'rotary'. Those with a table ('relative_bias',
      'decomposed_bias') take the grid of the images at init and no other.
    num_registers: learned tokens after the class token, without position
      (Darcet et al. 2023).
    attention: see `Encoder`.
    feature_layers: blocks whose maps `features` returns; negative from the end.
    head_bias: initial bias of the head (-log K suits sigmoid losses).
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
  representation_size: int | None = None
  position: str = 'learned'
  num_registers: int = 0
  attention: str | Callable[..., nn.Module] = 'softmax'
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  drop_path_rate: float = 0.0
  patch_dropout_rate: float = 0.0
  layer_scale: float | None = None
  qkv_bias: bool = True
  qk_norm: bool = False
  gelu: str = 'tanh'
  epsilon: float = 1e-6
  head_bias: float = 0.0
  feature_layers: tuple[int, ...] = (-1,)
  remat: bool = False
  dtype: Any = 'float32'

  VARIANTS: ClassVar[dict[str, dict[str, int]]] = _variants()

  @property
  def prefix(self) -> int:
    """Tokens before the patches."""
    return int(self._has_class_token) + self.num_registers

  @property
  def strides(self) -> tuple[int, ...]:
    """Pixels a cell of each feature map."""
    return (self.patch_size,) * len(self.feature_layers)

  @property
  def channels(self) -> tuple[int, ...]:
    """Channels of each feature map."""
    return (self.hidden_size,) * len(self.feature_layers)

  @property
  def _has_class_token(self) -> bool:
    return self.classifier in ('token', 'token_unpooled')

  def setup(self):
    """Declares the parts; raises a ValueError on a bad field."""
    if self.classifier not in CLASSIFIERS:
      raise ValueError(
        f'classifier={self.classifier!r}; choices: {", ".join(CLASSIFIERS)}'
      )
    added, inside = split_position(self.position)
    dtype, width = jnp.dtype(self.dtype), self.hidden_size
    table_grid = layers.grid_of(self.image_size, self.patch_size)
    self.embedding = layers.PatchEmbedding(width, self.patch_size, dtype)
    if self._has_class_token:
      self.cls = self.param('cls', nn.initializers.zeros, (1, 1, width))
    if self.num_registers:
      self.register = self.param(
        'register',
        nn.initializers.normal(stddev=0.02),
        (1, self.num_registers, width),
      )
    self.Transformer = Encoder(
      self.num_layers, self.mlp_dim, self.num_heads, self.attention,
      table_grid if added == 'learned' else None,
      int(self._has_class_token), self.dropout_rate,
      self.attention_dropout_rate, self.drop_path_rate,
      self.patch_dropout_rate, self.layer_scale, self.qkv_bias, self.qk_norm,
      self.gelu, self.epsilon, self.remat, dtype, inside,
    )  # fmt: skip
    if self.classifier == 'map':
      self.MAPHead_0 = MAPHead(
        self.num_heads, self.mlp_dim, self.gelu, self.epsilon, dtype
      )
    if self.representation_size is not None:
      self.pre_logits = nn.Dense(self.representation_size, dtype=dtype)
    if self.num_classes:
      self.classify = nn.Dense(
        self.num_classes,
        kernel_init=nn.initializers.zeros,
        bias_init=nn.initializers.constant(self.head_bias),
        dtype=dtype,
        name='head',
      )

  def __call__(
    self, images: Float[Array, 'B Y X I'], train: bool = False
  ) -> Float[Array, '...']:
    """Logits of images in the model's value range."""
    tokens, grid = self.embed(images)
    x, _ = self.encode(tokens, grid, train)
    return self.head(x, train)

  def embed(
    self, images: Float[Array, 'B Y X I']
  ) -> tuple[Float[Array, 'B N C'], tuple[int, int]]:
    """Tokens, prefix first and without learned positions, and their grid."""
    grid = layers.grid_of(images.shape[1:3], self.patch_size)
    x = self.embedding(images)
    batch, _, width = x.shape
    if split_position(self.position)[0] == 'sincos2d':
      x = x + jnp.asarray(layers.sincos2d(grid, width), x.dtype)
    prefix = []
    if self._has_class_token:
      prefix.append(self.cls)
    if self.num_registers:
      prefix.append(self.register)
    prefix = [
      jnp.broadcast_to(p.astype(x.dtype), (batch, p.shape[1], width))
      for p in prefix
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
    elif self.classifier == 'gap':
      x = x[:, self.prefix :].mean(axis=1)
    elif self.classifier == 'map':
      x = self.MAPHead_0(x, train)
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
    tokens, grid = self.embed(images)
    _, outputs = self.encode(tokens, grid, train, self.feature_layers)
    return tuple(
      x[:, self.prefix :].reshape(-1, *grid, self.hidden_size)
      for x in outputs
    )
