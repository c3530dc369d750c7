"""What models of stages share: each stage makes a coarser map."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from vit_jax import attention as attentions
from vit_jax import layers, specs
from vit_jax.models.initialization import initializers
from vit_jax.shapes import Array, Float

START = initializers('truncated')


class Stage(nn.Module):
  """A stage's embedding and blocks: [B Y X I] → [B y x C].

  Attributes:
    embedding: builds `embedding`, maps to maps.
    blocks: build the blocks, [B N C] → [B N C], once they know the grid.
    position: builds what follows the first block, (tokens, grid) → tokens.
  """

  embedding: Callable[..., nn.Module]
  blocks: Sequence[Callable[..., nn.Module]]
  position: Callable[..., nn.Module] | None = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B Y X I'], train: bool = False
  ) -> Float[Array, 'B y x C']:
    """Applies the stage."""
    x = self.embedding(name='embedding')(x)
    batch, rows, columns, width = x.shape
    x = x.reshape(batch, rows * columns, width)
    for j, block in enumerate(self.blocks):
      x = block(grid=(rows, columns), name=f'block_{j}')(x, train)
      if j == 0 and self.position is not None:
        x = self.position(name='position')(x, (rows, columns))
    return x.reshape(batch, rows, columns, width)


class PatchNorm(nn.Module):
  """norm(embedding of patches): [B Y X I] → [B y x C].

  Raises a ValueError if patches do not cover the map.
  """

  features: int
  patch_size: int
  epsilon: float = 1e-5
  dtype: Any = jnp.float32
  kernel_init: Callable = START.patches

  @nn.compact
  def __call__(self, x: Float[Array, 'B Y X I']) -> Float[Array, 'B y x C']:
    """Embeds a map."""
    grid = layers.grid_of(x.shape[1:3], self.patch_size)
    x = layers.PatchEmbedding(
      self.features, self.patch_size, self.dtype, self.kernel_init,
      name='projection',
    )(x)  # fmt: skip
    x = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name='norm')(x)
    return x.reshape(x.shape[0], *grid, self.features)


class Pyramid(nn.Module):
  """Images [B Y X C] → logits [B K] through stages, by `encode` and `head`.

  A subclass has the fields num_classes, depths, hidden_sizes, patch_size,
  drop_path_rate, epsilon, feature_layers (None for all stages) and dtype, and
  for `words` attention; it defines `encode`, and its `setup` calls `declare`.
  """

  # Whether what `encode` gives the head begins with a class token.
  has_class_token: ClassVar[bool] = False

  @property
  def hidden_size(self) -> int:
    """Channels of the last map, which are what the head gets."""
    return self.hidden_sizes[-1]

  @property
  def all_strides(self) -> tuple[int, ...]:
    """Pixels a cell of each stage's map; a map is half of the one before."""
    return tuple(self.patch_size * 2**s for s in range(len(self.depths)))

  @property
  def chosen(self) -> tuple[int, ...]:
    """The stages of `feature_layers`, counted from the first.

    Raises:
      ValueError: there is no such stage.
    """
    every = tuple(range(len(self.depths)))
    if self.feature_layers is None:
      return every
    for stage in self.feature_layers:
      if not -len(every) <= stage < len(every):
        raise ValueError(
          f'no stage {stage}: feature_layers={self.feature_layers}: stages are '
          f'0 to {len(every) - 1}, or -1 to -{len(every)} from the end'
        )
    return tuple(every[s] for s in self.feature_layers)

  @property
  def stride(self) -> int:
    """Pixels a cell of the first map, the finest."""
    return self.all_strides[0]

  @property
  def strides(self) -> tuple[int, ...]:
    """Pixels a cell of each feature map."""
    return tuple(self.all_strides[s] for s in self.chosen)

  @property
  def channels(self) -> tuple[int, ...]:
    """Channels of each feature map."""
    return tuple(self.hidden_sizes[s] for s in self.chosen)

  def check_lengths(self, *names: str) -> None:
    """Checks fields of one entry a stage, and `feature_layers`.

    Raises:
      ValueError: another number of entries, or no such stage.
    """
    count = len(self.depths)
    for name in ('hidden_sizes', *names):
      found = getattr(self, name)
      if len(found) != count:
        raise ValueError(
          f'{name}={found} has {len(found)} entries for {count} stages, '
          f'depths={self.depths}'
        )
    self.chosen  # noqa: B018 - it raises

  def drop_path_rates(self) -> list[list[float]]:
    """Of each block of each stage: linear over all of them, from 0."""
    rates = itertools.count()
    last = max(sum(self.depths) - 1, 1)
    return [
      [self.drop_path_rate * next(rates) / last for _ in range(depth)]
      for depth in self.depths
    ]

  def words(self, own: Sequence[str]) -> list[Any]:
    """What each block of the deepest stage attends with.

    One of `own`, the words of the model's own attentions, or a layer class of
    `vit_jax.attention.layer`; the given specs, repeated over the blocks of a
    stage.

    Raises:
      ValueError: no spec, more specs than blocks, unknown name or option.
    """
    count = max(self.depths)
    if callable(self.attention):
      return [self.attention] * count
    found = [str(spec) for spec in specs.parse(self.attention)]
    if not 0 < len(found) <= count:
      raise ValueError(
        f'attention={self.attention!r} holds {len(found)} specs for stages of '
        f'depths={self.depths}; give 1 to {count}'
      )
    known = {**attentions.ATTENTIONS, **attentions.MIXERS}
    for spec in specs.parse(self.attention):
      specs.lookup({**dict.fromkeys(own), **known}, spec.name, 'attention')
    layer = {
      text: text if text in own else attentions.layer(text) for text in found
    }
    return [layer[found[j % len(found)]] for j in range(count)]

  def declare(self, stages: Sequence[nn.Module]) -> None:
    """Declares `stages`, the last norm and the head; for `setup`."""
    dtype = jnp.dtype(self.dtype)
    self.stages = list(stages)
    self.encoder_norm = nn.LayerNorm(epsilon=self.epsilon, dtype=dtype)
    if self.num_classes:
      self.classify = nn.Dense(
        self.num_classes, kernel_init=START.head, dtype=dtype, name='head'
      )

  def __call__(
    self, images: Float[Array, 'B Y X I'], train: bool = False
  ) -> Float[Array, 'B K']:
    """Logits of images in the model's value range."""
    x, _ = self.encode(images, train)
    return self.head(x, train)

  def head(
    self, x: Float[Array, 'B *N C'], train: bool = False
  ) -> Float[Array, 'B K']:
    """Classifies the class token, or without one the mean of all tokens."""
    tokens = tuple(range(1, x.ndim - 1))
    x = x[:, 0] if self.has_class_token else x.mean(axis=tokens)
    return self.classify(x) if self.num_classes else x

  def features(
    self, images: Float[Array, 'B Y X I'], train: bool = False
  ) -> tuple[Float[Array, 'B y x C'], ...]:
    """Maps [B rows columns C] of `feature_layers`, as the stages give them."""
    _, maps = self.encode(images, train)
    return tuple(maps[s] for s in self.chosen)


class StagesOfMaps(Pyramid):
  """The methods of a model of `Stage`: the head reads the last map, normed."""

  def encode(
    self, images: Float[Array, 'B Y X I'], train: bool = False
  ) -> tuple[Float[Array, 'B y x C'], tuple[Float[Array, 'B _ _ _'], ...]]:
    """The last map, before `encoder_norm`, and the maps of all stages."""
    maps = [images]
    for stage in self.stages:
      maps.append(stage(maps[-1], train))
    return maps[-1], tuple(maps[1:])

  def head(
    self, x: Float[Array, 'B y x C'], train: bool = False
  ) -> Float[Array, 'B K']:
    """Classifies the mean of the last map's tokens, normed."""
    return super().head(self.encoder_norm(x), train)
