"""The Transformer encoder: positions, blocks and norm, and pooling by a probe.

Names of classes and parameters are those of the original ViT codebase.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import attention as attentions
from vit_jax import layers, specs
from vit_jax.models.conditional import ConditionalPosition
from vit_jax.models.initialization import initializers
from vit_jax.shapes import Array, Bool, Float


NORM_PLACEMENTS = ('pre', 'post')
# The rate of each block's branches, from that of the last one: growing with the
# depth (Huang et al. 2016), or the same (Touvron et al. 2021, 2022).
DROP_PATHS = {
  'linear': lambda rate, i, count: rate * i / max(count - 1, 1),
  'uniform': lambda rate, i, count: rate,
}


class Encoder1DBlock(nn.Module):
  """x + attention(norm(x)), then x + MLP(norm(x)); [B N C] → [B N C].

  With norm_placement='post', norm(x + attention(x)), then norm(x + MLP(x)), as
  Vaswani et al. 2017, section 3.1.

  Attributes:
    attention: builds the attention layer; see `vit_jax.attention.layer`.
    grid, prefix: the layout of the tokens, handed to the attention.
    drop_path_rate: of both branches, in training.
    layer_scale: initial LayerScale of both branches; None has none.
    initialization: of the MLP; the attention brings its own.
    norm_placement: 'pre' or 'post'.
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
  initialization: str = 'original'
  norm_placement: str = 'pre'

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B N C'], train: bool = False,
    key_mask: Bool[Array, 'B N'] | None = None,
  ) -> Float[Array, 'B N C']:  # fmt: skip
    """Applies the block; positional `train` so that nn.remat can fix it.

    `key_mask` says which tokens are no padding; a ValueError if the attention
    does not honour it.
    """
    if self.norm_placement not in NORM_PLACEMENTS:
      raise ValueError(
        f'norm_placement={self.norm_placement!r}; choices: '
        f'{", ".join(NORM_PLACEMENTS)}'
      )
    pre = self.norm_placement == 'pre'
    first, second = (
      nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype) for _ in range(2)
    )
    attention = self.attention(
      num_heads=self.num_heads, grid=self.grid, prefix=self.prefix,
      use_bias=self.qkv_bias, normalize_qk=self.qk_norm,
      dropout_rate=self.attention_dropout_rate, epsilon=self.epsilon,
      dtype=self.dtype, name='MultiHeadDotProductAttention_0',
    )  # fmt: skip
    given = {} if key_mask is None else {'key_mask': key_mask}
    attentions.base.refuse_arrays(attention, given)
    y = attention(first(x) if pre else x, train=train, **given)
    x = x + self._branch(y, 0, train)
    x = x if pre else first(x)
    start = initializers(self.initialization)
    y = layers.MlpBlock(
      self.mlp_dim, self.dropout_rate, self.gelu, self.dtype, start.kernel,
      start.bias,
    )(second(x) if pre else x, train)  # fmt: skip
    x = x + self._branch(y, 1, train)
    return x if pre else second(x)

  def _branch(self, y, index: int, train: bool):
    if index == 0:  # the MLP drops its own output
      y = nn.Dropout(self.dropout_rate, deterministic=not train)(y)
    if self.layer_scale is not None:
      y = layers.LayerScale(self.layer_scale)(y)
    return layers.DropPath(self.drop_path_rate)(y, train)


def check_blocks(collect: tuple[int, ...], count: int) -> None:
  """Raises a ValueError if one of `collect` is no block of `count`."""
  for index in collect:
    if not -count <= index < count:
      raise ValueError(
        f'no block {index}: the encoder has blocks 0 to {count - 1}, or -1 to '
        f'{-count} from the end'
      )


class Encoder(nn.Module):
  """Positions, blocks and the last norm: [B N C] → [B N C].

  Attributes:
    attention: one spec or several, repeated over the layers, or a layer class.
    table_grid: (rows, columns) of the learned position table; None for none.
    learned_prefix: prefix tokens, the first, with a learned position.
    position_resize: how the table is resized, see `layers.resize_positions`.
    attention_position: positions inside every attention, specs of
      `vit_jax.attention.positions`.
    drop_path_rate: of the last block.
    patch_dropout_rate: share of patch tokens left out in training, after the
      positions (Liu et al. 2022, "PatchDropout").
    remat: recompute each block in the backward pass, to save memory.
    final_norm: whether the output passes `encoder_norm`; behind post-norm
      blocks, which end in a norm of their own, there is none.
    qk_norm_bias: whether the norms of queries and keys have biases.
    initialization: a key of `initialization.INITIALIZATIONS`.
    conditional: after how many of the blocks, the first, there is a
      `ConditionalPosition`; it belongs to the output of its block.
    drop_path_rule: a key of `DROP_PATHS`, how the rate grows to the last one's.
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
  position_resize: str = 'align_corners'
  final_norm: bool = True
  qk_norm_bias: bool = False
  initialization: str = 'original'
  norm_placement: str = 'pre'
  conditional: int = 0
  drop_path_rule: str = 'linear'

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B N C'],
    grid: tuple[int, int] | None,
    prefix: int = 0,
    train: bool = False,
    collect: tuple[int, ...] = (),
    key_mask: Bool[Array, 'B N'] | None = None,
  ) -> tuple[Float[Array, 'B M C'], tuple[Float[Array, 'B M C'], ...]]:
    """Encodes `prefix` tokens followed by a grid of patches, or a sequence.

    Args:
      x: the tokens.
      grid: (rows, columns) of the patches; None for a sequence.
      prefix: how many tokens come before them.
      train: whether dropout and the like are on.
      collect: blocks whose outputs are wanted.
      key_mask: which tokens are no padding; None if all are none.

    Returns:
      The last block's output and those of the blocks in `collect`, all
      through the final norm if there is one.

    Raises:
      ValueError: no such block in `collect`, positions inside attention or
        conditional ones without the grid that patch dropout takes away, or a
        layer that has no place for a field.
    """
    check_blocks(collect, self.num_layers)
    start = initializers(self.initialization)
    if self.table_grid is not None:
      x = layers.AddPositionEmbs(
        self.table_grid, self.learned_prefix, self.position_resize,
        start.positions, name='posembed_input',
      )(x, grid, prefix)
    x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
    if train and self.patch_dropout_rate:
      if self.attention_position or self.conditional:
        raise ValueError(
          f'patch_dropout_rate={self.patch_dropout_rate} leaves no grid for '
          f'the positions {self.attention_position or "conditional"!r}'
        )
      x, grid = self._drop_patches(x, prefix), None
    # train is argument 2, counted from self: static under rematerialisation.
    block = (
      nn.remat(Encoder1DBlock, static_argnums=(2,))
      if self.remat
      else Encoder1DBlock
    )
    rate = specs.lookup(DROP_PATHS, self.drop_path_rule, 'drop_path_rule')
    outputs = []
    chosen = attentions.layers(self.attention, self.num_layers)
    for i, attention in enumerate(chosen):
      attention = attentions.positioned(attention, self.attention_position)
      attention = self._fitted(attention)
      x = block(
        mlp_dim=self.mlp_dim, num_heads=self.num_heads, attention=attention,
        grid=grid, prefix=prefix, dropout_rate=self.dropout_rate,
        attention_dropout_rate=self.attention_dropout_rate,
        drop_path_rate=rate(self.drop_path_rate, i, self.num_layers),
        layer_scale=self.layer_scale, qkv_bias=self.qkv_bias,
        qk_norm=self.qk_norm, gelu=self.gelu, epsilon=self.epsilon,
        dtype=self.dtype, initialization=self.initialization,
        norm_placement=self.norm_placement, name=f'encoderblock_{i}',
      )(x, train, key_mask)  # fmt: skip
      if i < self.conditional:
        x = ConditionalPosition(prefix, self.dtype, name=f'conditional_{i}')(
          x, grid
        )
      outputs.append(x)
    if not self.final_norm or self.norm_placement == 'post':
      return x, tuple(outputs[i] for i in collect)
    norm = nn.LayerNorm(
      epsilon=self.epsilon, dtype=self.dtype, name='encoder_norm'
    )
    return norm(x), tuple(norm(outputs[i]) for i in collect)

  def _fitted(self, attention: Callable[..., nn.Module]):
    """The layer class with fields that not every layer has, if they are set."""
    more = {}
    if self.qk_norm_bias:
      more['normalize_bias'] = True
    if self.initialization != 'original':
      more['kernel_init'] = initializers(self.initialization).kernel
    for key in more:
      if key not in specs.accepted(attention):
        name = getattr(attention, 'func', attention).__name__
        raise ValueError(
          f'{name} has no {key}: qk_norm_bias={self.qk_norm_bias}, '
          f'initialization={self.initialization!r}'
        )
    return functools.partial(attention, **more) if more else attention

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
  initialization: str = 'original'

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B N C'], train: bool = False
  ) -> Float[Array, 'B C']:
    """Pools the tokens."""
    batch, _, width = x.shape
    start = initializers(self.initialization)
    probe = self.param('probe', start.kernel, (1, 1, width))
    probe = jnp.broadcast_to(probe.astype(x.dtype), (batch, 1, width))
    x = attentions.MultiHeadDotProductAttention(
      self.num_heads, attentions.Softmax, dtype=self.dtype,
      kernel_init=start.kernel, name='MultiHeadDotProductAttention_0',
    )(probe, x, train=train)  # fmt: skip
    y = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype)(x)
    y = layers.MlpBlock(
      self.mlp_dim, 0.0, self.gelu, self.dtype, start.kernel, start.bias
    )(y, train)
    return (x + y)[:, 0]
