"""Classifiers of sequences of tokens, on the blocks of the ViT."""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from vit_jax import layers
from vit_jax.models.encoder import Encoder
from vit_jax.models.initialization import initializers
from vit_jax.models.positions import split_position
from vit_jax.shapes import Array, Float, Int

PADDING = 0  # the number of no word
CLASSIFIERS = ('token', 'mean')
POSITIONS = ('learned', 'sincos1d', 'none')  # added; others inside attention


class SequenceClassifier(nn.Module):
  """Tokens [B N] → logits [B K]; numbers of words, 0 is padding.

  The encoder of Vaswani et al. 2017 with pre-norm blocks, and the classifier of
  the Long-Range Arena (Tay et al. 2021): the class token, or the mean of the
  words, through Dense → ReLU → Dense. Padding is masked in every attention; an
  attention that honours no `key_mask` refuses sequences, unless padded=False
  says that none of them has any.

  Attributes:
    num_classes: K; 0 gives features [B C].
    vocabulary_size: number of words, padding included.
    length: N of the longest sequence, the learned table's.
    attention: one spec or several, repeated over the layers, or a layer class.
    position: 'learned', 'sincos1d' or 'none', and after a comma positions
      inside attention, specs of `vit_jax.attention.positions`.
    classifier: 'token' or 'mean'.
    padded: whether sequences may hold padding.
    Others as in `VisionTransformer`.
  """

  num_classes: int
  vocabulary_size: int
  length: int
  hidden_size: int
  num_layers: int
  num_heads: int
  mlp_dim: int
  attention: Any = 'softmax'
  position: str = 'learned'
  classifier: str = 'token'
  padded: bool = True
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  drop_path_rate: float = 0.0
  gelu: str = 'tanh'
  epsilon: float = 1e-6
  initialization: str = 'original'
  norm_placement: str = 'pre'
  remat: bool = False
  dtype: Any = jnp.float32

  VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
    # As the benchmark's released base configs; for ListOps the paper's text
    # has 6 layers and 2,048, and for text 6 layers, 512 and 2,048.
    'listops': {
      'hidden_size': 512, 'num_layers': 4, 'num_heads': 8, 'mlp_dim': 1024,
      'vocabulary_size': 16, 'length': 2000,
    },
    # The paper's lengths are 1,000 to 4,000.
    'text': {
      'hidden_size': 256, 'num_layers': 4, 'num_heads': 4, 'mlp_dim': 1024,
      'vocabulary_size': 257, 'length': 4000, 'position': 'sincos1d',
    },
    # Grey pixels of 32×32. The released configs differ by attention (1 to 4
    # layers, 32 to 128 wide); a comparison needs one size for all.
    'image': {
      'hidden_size': 64, 'num_layers': 3, 'num_heads': 4, 'mlp_dim': 128,
      'vocabulary_size': 257, 'length': 1024,
    },
    'pathfinder': {
      'hidden_size': 128, 'num_layers': 4, 'num_heads': 8, 'mlp_dim': 128,
      'vocabulary_size': 257, 'length': 1024, 'position': 'sincos1d',
      'classifier': 'mean',
    },
  }  # fmt: skip

  @property
  def input_shape(self) -> tuple[int, ...]:
    """Of the longest example."""
    return (self.length,)

  @property
  def prefix(self) -> int:
    """Tokens before the words."""
    return int(self.classifier == 'token')

  def setup(self):
    """Declares the parts; raises a ValueError on a bad field."""
    if self.classifier not in CLASSIFIERS:
      raise ValueError(
        f'classifier={self.classifier!r}; choices: {", ".join(CLASSIFIERS)}'
      )
    position = split_position(self.position)
    if position.added not in POSITIONS or position.conditional:
      raise ValueError(
        f'position={self.position!r} is of images; choices for sequences: '
        f'{", ".join(POSITIONS)}, and those inside attention'
      )
    dtype, width = jnp.dtype(self.dtype), self.hidden_size
    start = initializers(self.initialization)
    self.embedding = nn.Embed(
      self.vocabulary_size, width, embedding_init=start.positions, dtype=dtype
    )
    if self.prefix:
      self.cls = self.param('cls', start.token, (1, 1, width))
    if position.added == 'learned':
      self.positions = self.param(
        'pos_embedding', start.positions, (1, self.length, width)
      )
    self.Transformer = Encoder(
      self.num_layers, self.mlp_dim, self.num_heads, self.attention,
      dropout_rate=self.dropout_rate,
      attention_dropout_rate=self.attention_dropout_rate,
      drop_path_rate=self.drop_path_rate, gelu=self.gelu,
      epsilon=self.epsilon, remat=self.remat, dtype=dtype,
      attention_position=position.inside, norm_placement=self.norm_placement,
      initialization=self.initialization,
    )  # fmt: skip
    if self.num_classes:
      self.pre_logits = nn.Dense(
        self.mlp_dim, kernel_init=start.dense, dtype=dtype
      )
      self.classify = nn.Dense(
        self.num_classes, kernel_init=start.head, dtype=dtype, name='head'
      )

  def __call__(
    self, tokens: Int[Array, 'B N'], train: bool = False
  ) -> Float[Array, 'B K']:
    """Logits.

    Raises:
      ValueError: more tokens than `length`, or an attention that does not
        honour the mask of padding.
    """
    return self.decide(self.encode(tokens, train))

  def decide(self, x: Float[Array, 'B C']) -> Float[Array, 'B K']:
    """Logits of features, or the features if there are no classes."""
    if not self.num_classes:
      return x
    return self.classify(nn.relu(self.pre_logits(x)))

  def encode(
    self, tokens: Int[Array, 'B N'], train: bool
  ) -> Float[Array, 'B C']:
    """The class token, or the mean of the words, after the blocks."""
    x = self.embed(tokens)
    words = tokens != PADDING
    mask = None
    if self.padded:
      mask = jnp.pad(words, ((0, 0), (self.prefix, 0)), constant_values=True)
    x, _ = self.Transformer(x, None, self.prefix, train, (), mask)
    if self.classifier == 'token':
      return x[:, 0]
    count = jnp.maximum(words.sum(1, keepdims=True), 1)
    return jnp.where(words[..., None], x, 0).sum(1) / count

  def embed(self, tokens: Int[Array, 'B N']) -> Float[Array, 'B M C']:
    """Words with their positions, after the class token if there is one."""
    batch, n = tokens.shape
    if n > self.length:
      raise ValueError(
        f'{n} tokens, and the model was built for a length of {self.length}'
      )
    x = self.embedding(tokens)
    added = split_position(self.position).added
    if added == 'learned':
      x = x + self.positions[:, :n].astype(x.dtype)
    elif added == 'sincos1d':
      x = x + jnp.asarray(layers.sincos1d(n, self.hidden_size), x.dtype)
    if self.prefix:
      cls = jnp.broadcast_to(self.cls, (batch, 1, self.hidden_size))
      x = jnp.concatenate([cls.astype(x.dtype), x], axis=1)
    return x


class PairClassifier(SequenceClassifier):
  """Pairs of documents [B 2 N] → logits [B K]: one encoder reads both.

  With features x₁ and x₂ of the documents, each read without the other, the
  classifier has [x₁; x₂; x₁ ⊙ x₂; x₁ − x₂], 4C features, as the dual encoder
  of Tay et al. 2021.

  Attributes: those of `SequenceClassifier`; `length` is that of a document.
  """

  VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
    # The released base config.
    'retrieval': {
      'hidden_size': 128, 'num_layers': 4, 'num_heads': 4, 'mlp_dim': 512,
      'vocabulary_size': 257, 'length': 4000, 'position': 'sincos1d',
    },
  }  # fmt: skip

  @property
  def input_shape(self) -> tuple[int, ...]:
    """Of the longest example."""
    return (2, self.length)

  def __call__(
    self, tokens: Int[Array, 'B D N'], train: bool = False
  ) -> Float[Array, 'B K']:
    """Logits.

    Raises:
      ValueError: not two documents, or as in `SequenceClassifier`.
    """
    batch, documents, n = tokens.shape
    if documents != 2:
      raise ValueError(f'{documents} documents an example; a pair has two')
    x = self.encode(tokens.reshape(batch * 2, n), train)
    one, two = jnp.moveaxis(x.reshape(batch, 2, -1), 1, 0)
    return self.decide(
      jnp.concatenate([one, two, one * two, one - two], axis=-1)
    )


__all__ = ['PairClassifier', 'SequenceClassifier']
