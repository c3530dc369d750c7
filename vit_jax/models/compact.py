"""Compact Transformers for small data: CCT, CVT and ViT-Lite.

Hassani et al. 2021, "Escaping the Big Data Paradigm with Compact Transformers".
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import attention as attentions
from vit_jax import layers, specs
from vit_jax.models import stems
from vit_jax.models.encoder import check_blocks
from vit_jax.models.flat import Flat
from vit_jax.models.initialization import initializers
from vit_jax.shapes import Array, Float

POSITIONS = ('learned', 'none')
START = initializers('truncated')  # of the authors' code
# Positions deviate by .2 there, not .02.
TABLE = nn.initializers.normal(stddev=0.2)


class CompactBlock(nn.Module):
  """y = norm(x + attention(norm(x))), then y + MLP(y); [B N C] → [B N C].

  The second norm is of the residual stream itself, as in the authors' code; the
  paper draws a plain pre-norm block.

  Attributes:
    attention: builds the attention layer; see `vit_jax.attention.layer`.
    grid, prefix: the layout of the tokens, handed to the attention.
    drop_path_rate: of both branches, in training.
  """

  mlp_dim: int
  num_heads: int
  attention: Callable[..., nn.Module]
  grid: tuple[int, int]
  prefix: int = 0
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  drop_path_rate: float = 0.0
  gelu: str = 'exact'
  epsilon: float = 1e-5
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B N C'], train: bool = False
  ) -> Float[Array, 'B N C']:
    """Applies the block; positional `train` so that nn.remat can fix it."""
    norm = functools.partial(
      nn.LayerNorm, epsilon=self.epsilon, dtype=self.dtype
    )
    drop = layers.DropPath(self.drop_path_rate)
    y = self.attention(
      num_heads=self.num_heads, grid=self.grid, prefix=self.prefix,
      use_bias=False, dropout_rate=self.attention_dropout_rate,
      epsilon=self.epsilon, dtype=self.dtype,
      name='MultiHeadDotProductAttention_0',
    )(norm()(x), train=train)  # fmt: skip
    y = nn.Dropout(self.dropout_rate, deterministic=not train)(y)
    x = norm()(x + drop(y, train))
    y = layers.MlpBlock(
      self.mlp_dim, self.dropout_rate, self.gelu, self.dtype, START.kernel,
      START.bias,
    )(x, train)  # fmt: skip
    return x + drop(y, train)


class SequencePool(nn.Module):
  """Σ_n w_n x_n with w = softmax over the tokens of x a + b; [B N C] → [B C].

  Hassani et al. 2021, section 3.2.
  """

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'B N C']) -> Float[Array, 'B C']:
    """Pools the tokens; the softmax is in float32."""
    logits = nn.Dense(
      1, kernel_init=START.dense, dtype=self.dtype, name='weight'
    )(x)
    weights = jax.nn.softmax(logits[..., 0].astype(jnp.float32))
    return jnp.einsum('bn,bnc->bc', weights.astype(x.dtype), x)


def _variants() -> dict[str, dict[str, Any]]:
  sizes = {
    # layers (width, heads, MLP)
    2:  (128, 2,  128),
    4:  (128, 2,  128),
    6:  (256, 4,  512),
    7:  (256, 4,  512),
    14: (384, 6, 1152),
  }  # fmt: skip

  def row(count, patch_size, **fields):
    width, heads, mlp_dim = sizes[count]
    return {
      'num_layers': count, 'hidden_size': width, 'num_heads': heads,
      'mlp_dim': mlp_dim, 'patch_size': patch_size, 'image_size': 32, **fields,
    }  # fmt: skip

  lite = {'classifier': 'token', 'stem': 'patches'}
  out = {f'ViT-Lite-7/{p}': row(7, p, **lite) for p in (4, 8, 16)}
  out['ViT-Lite-6/4'] = row(6, 4, **lite)
  out |= {f'CVT-7/{p}': row(7, p, stem='patches') for p in (4, 8)}
  out['CCT-7/3x1'] = row(7, 2, stem='tokenizer')
  for count in (2, 4, 6, 7):
    out[f'CCT-{count}/3x2'] = row(count, 4, stem='tokenizer(layers=2)')
  return out | {
    'CCT-14/7x2': row(
      14, 16, stem='tokenizer(kernel_size=7, layers=2)', image_size=224
    )
  }


class CompactTransformer(Flat):
  """Images [B Y X C] → logits [B K].

  Sizes: `VARIANTS`: 'CCT-L/K×n' has n convolutions of K×K for a tokenizer (a
  patch is a cell after them), 'CVT-L/P' and 'ViT-Lite-L/P' patches of P×P; the
  latter has a class token where the others pool all tokens.

  Attributes:
    num_classes: K; 0 gives the pooled features.
    patch_size: pixels a token.
    image_size: pixels, one number or (height, width): the position table's;
      it is resized for images of another size.
    stem: a spec of `stems.STEMS`.
    classifier: 'sequence_pool' or 'token'.
    position: 'learned', or 'none', which the convolutions make do without.
    attention: one spec or several, repeated over the layers, or a layer class.
    drop_path_rate: of the last block; it grows linearly from 0 at the first.
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
  image_size: int | tuple[int, int] = 32
  stem: str = 'tokenizer'
  classifier: str = 'sequence_pool'
  position: str = 'learned'
  position_resize: str = 'align_corners'
  attention: str | Callable[..., nn.Module] = 'softmax'
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  drop_path_rate: float = 0.0
  gelu: str = 'exact'
  epsilon: float = 1e-5
  feature_layers: tuple[int, ...] = (-1,)
  remat: bool = False
  dtype: Any = 'float32'

  VARIANTS: ClassVar[dict[str, dict[str, Any]]] = _variants()
  CLASSIFIERS: ClassVar[tuple[str, ...]] = ('sequence_pool', 'token')

  @property
  def prefix(self) -> int:
    """Tokens before the patches."""
    return int(self.classifier == 'token')

  def setup(self):
    """Declares the parts; raises a ValueError on a bad field."""
    self.check_classifier()
    for name, choices in (
      ('position', POSITIONS), ('position_resize', layers.RESIZES)
    ):  # fmt: skip
      if getattr(self, name) not in choices:
        raise ValueError(
          f'{name}={getattr(self, name)!r}; choices: {", ".join(choices)}'
        )
    dtype = jnp.dtype(self.dtype)
    self.embedding = stems.build(
      self.stem, self.hidden_size, self.patch_size, dtype, START
    )
    if self.prefix:
      self.cls = self.param(
        'cls', nn.initializers.zeros, (1, 1, self.hidden_size)
      )
    grid = layers.grid_of(self.image_size, self.patch_size)
    if self.position == 'learned':
      self.positions = layers.AddPositionEmbs(
        grid, self.prefix, self.position_resize, TABLE
      )
    self.dropout = nn.Dropout(self.dropout_rate)
    self.encoder_norm = nn.LayerNorm(epsilon=self.epsilon, dtype=dtype)
    if self.classifier == 'sequence_pool':
      self.sequence_pool = SequencePool(dtype)
    if self.num_classes:
      self.classify = nn.Dense(
        self.num_classes, kernel_init=START.head, dtype=dtype, name='head'
      )

  def embed(
    self, images: Float[Array, 'B Y X I'], train: bool = False
  ) -> tuple[Float[Array, 'B N C'], tuple[int, int]]:
    """Tokens, the class token first and without positions; and their grid."""
    grid = layers.grid_of(images.shape[1:3], self.patch_size)
    x = self.embedding(images, train)
    if self.prefix:
      cls = jnp.broadcast_to(
        self.cls.astype(x.dtype), (x.shape[0], 1, self.hidden_size)
      )
      x = jnp.concatenate([cls, x], axis=1)
    return x, grid

  @nn.compact
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
    x = tokens
    if self.position == 'learned':
      x = self.positions(x, grid, self.prefix)
    x = self.dropout(x, deterministic=not train)
    block = (
      nn.remat(CompactBlock, static_argnums=(2,))
      if self.remat
      else CompactBlock
    )
    outputs = []
    chosen = attentions.layers(self.attention, self.num_layers)
    for i, attention in enumerate(chosen):
      if 'kernel_init' in specs.accepted(attention):
        attention = functools.partial(attention, kernel_init=START.kernel)
      x = block(
        self.mlp_dim, self.num_heads, attention, grid, self.prefix,
        self.dropout_rate, self.attention_dropout_rate,
        self.drop_path_rate * i / max(self.num_layers - 1, 1), self.gelu,
        self.epsilon, jnp.dtype(self.dtype), name=f'block_{i}',
      )(x, train)  # fmt: skip
      outputs.append(x)
    norm = self.encoder_norm
    return norm(x), tuple(norm(outputs[i]) for i in collect)

  def head(
    self, x: Float[Array, 'B N C'], train: bool = False
  ) -> Float[Array, 'B K']:
    """Pools encoded tokens and classifies them."""
    pool = self.classifier == 'sequence_pool'
    x = self.sequence_pool(x) if pool else x[:, 0]
    return self.classify(x) if self.num_classes else x
