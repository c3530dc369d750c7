"""ResNet with BatchNorm: the teacher, the baseline, the backbone of detectors.

The ResNet of hybrids, with GroupNorm, is in `resnet.py`.
"""

import itertools
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from vit_jax import layers, specs
from vit_jax.models.convolution import ConvNorm, max_pool
from vit_jax.models.pyramid import Pyramid
from vit_jax.shapes import Array, Float

# Goyal et al. 2017, section 5.1: convolutions as He et al. 2015, the head
# N(0, .01), and each block's last scale 0, so that it starts as its shortcut.
HEAD = nn.initializers.normal(stddev=0.01)
# Pixels a cell after it: 7×7 / 2 and max-pool 3×3 / 2, or a 3×3 for small
# images, which He et al. 2016, section 4.2, have on CIFAR.
STEMS = {'imagenet': 4, 'cifar': 1}


class ResidualBlock(nn.Module):
  """relu(shortcut(x) + branch(x)), [B Y X I] → [B Y/stride X/stride features].

  The branch is conv 3×3, 3×3 ('basic') or 1×1, 3×3, 1×1 ('bottleneck', whose
  inner width is a quarter), each with BatchNorm and, but for the last, ReLU.
  The shortcut is x, or norm(conv 1×1(x)) where the shape changes. He et al.
  2016, figure 5. The stride is that of the first 3×3 (version 1.5, of
  torchvision), or of the first 1×1 (`early`, of the paper).
  """

  kind: str
  features: int
  stride: int = 1
  early: bool = False
  drop_path_rate: float = 0.0
  frozen: bool = False
  epsilon: float = 1e-5
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B Y X I'], train: bool = False
  ) -> Float[Array, 'B y x O']:
    """Applies the block."""
    wide, inner, s = self.features, self.features // 4, self.stride
    rows = {
      'basic': ((wide, 3, s), (wide, 3, 1)),
      'bottleneck': (
        (inner, 1, s if self.early else 1), (inner, 3, 1 if self.early else s),
        (wide, 1, 1),
      ),
    }[self.kind]  # fmt: skip
    more = {'frozen': self.frozen, 'epsilon': self.epsilon, 'dtype': self.dtype}
    y = x
    for i, row in enumerate(rows):
      last = i == len(rows) - 1
      y = ConvNorm(*row, zero=last, **more, name=f'conv{i + 1}')(y, train)
      y = y if last else nn.relu(y)
    y = layers.DropPath(self.drop_path_rate)(y, train)
    if x.shape[-1] != wide or s != 1:
      x = ConvNorm(wide, 1, s, **more, name='shortcut')(x, train)
    return nn.relu(x + y)


class Stage(nn.Module):
  """Blocks of one width, `block_0` to the last: the first has the stride."""

  kind: str
  features: int
  stride: int
  drop_path_rates: tuple[float, ...]
  early: bool = False
  frozen: bool = False
  epsilon: float = 1e-5
  remat: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B Y X I'], train: bool = False
  ) -> Float[Array, 'B y x O']:
    """Applies the blocks."""
    block = (
      nn.remat(ResidualBlock, static_argnums=(2,))
      if self.remat
      else ResidualBlock
    )
    for i, rate in enumerate(self.drop_path_rates):
      x = block(
        self.kind, self.features, 1 if i else self.stride, self.early, rate,
        self.frozen, self.epsilon, self.dtype, name=f'block_{i}',
      )(x, train)  # fmt: skip
    return x


class ResNetClassifier(Pyramid):
  """Images [B Y X C] → logits [B K]. He et al. 2016; sizes: `VARIANTS`.

  Images of any size. A stage halves the map, rounding up, but for the first,
  whose cells are 4 pixels (1 with the stem 'cifar'). In training `batch_stats`
  must be mutable.

  Attributes:
    num_classes: K; 0 gives the mean of the last map.
    depths: blocks of each stage.
    hidden_sizes: channels of each stage's map.
    block: 'basic' or 'bottleneck'; see `ResidualBlock`.
    embedding_size: channels of the stem.
    stem: 'imagenet' or 'cifar'; see `STEMS`.
    downsample_in_first_stage: whether the first stage halves the map too.
    downsample_in_bottleneck: the stride of a bottleneck is its first 1×1's.
    image_size: pixels, of the data; nothing depends on it.
    frozen_norm: BatchNorm with its running averages in training too, which
      then stay as they are: for detectors that start from a trained model.
      Scales and biases still learn unless the optimiser freezes them.
    drop_path_rate: of the last block; it grows linearly from 0 at the first.
    feature_layers: stages whose maps `features` returns; None for all.
    remat: recompute each block in the backward pass, to save memory.
    dtype: of the computation, 'float32' or 'bfloat16'; parameters are float32.
  """

  num_classes: int
  depths: tuple[int, ...]
  hidden_sizes: tuple[int, ...]
  block: str = 'bottleneck'
  embedding_size: int = 64
  stem: str = 'imagenet'
  downsample_in_first_stage: bool = False
  downsample_in_bottleneck: bool = False
  image_size: int | tuple[int, int] = 224
  frozen_norm: bool = False
  drop_path_rate: float = 0.0
  feature_layers: tuple[int, ...] | None = None
  epsilon: float = 1e-5
  remat: bool = False
  dtype: Any = 'float32'

  VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
    name: dict(
      zip(('block', 'depths', 'hidden_sizes'), row, strict=True)
    )
    for name, row in {
      '18':  ('basic',      (2, 2, 2, 2),  (64, 128, 256, 512)),
      '34':  ('basic',      (3, 4, 6, 3),  (64, 128, 256, 512)),
      '50':  ('bottleneck', (3, 4, 6, 3),  (256, 512, 1024, 2048)),
      '101': ('bottleneck', (3, 4, 23, 3), (256, 512, 1024, 2048)),
      '152': ('bottleneck', (3, 8, 36, 3), (256, 512, 1024, 2048)),
    }.items()
  }  # fmt: skip

  @property
  def steps(self) -> tuple[int, ...]:
    """The stride of each stage."""
    first = 2 if self.downsample_in_first_stage else 1
    return (first, *(2,) * (len(self.depths) - 1))

  @property
  def all_strides(self) -> tuple[int, ...]:
    """Pixels a cell of each stage's map."""
    start = specs.lookup(STEMS, self.stem, 'stem')
    return tuple(
      itertools.accumulate(self.steps, lambda x, y: x * y, initial=start)
    )[1:]

  def _check(self) -> None:
    """Raises a ValueError on fields that contradict each other."""
    choices = ('basic', 'bottleneck')
    if self.block not in choices:
      raise ValueError(f'block={self.block!r}; choices: {", ".join(choices)}')
    stages = len(self.depths)
    if len(self.hidden_sizes) != stages or min(self.depths, default=0) < 1:
      raise ValueError(
        f'depths={self.depths} and hidden_sizes={self.hidden_sizes} must hold '
        'a positive number for each stage'
      )
    if self.block == 'bottleneck' and any(c % 4 for c in self.hidden_sizes):
      raise ValueError(
        f'hidden_sizes={self.hidden_sizes} of bottlenecks must be multiples '
        'of 4'
      )
    if self.downsample_in_bottleneck and self.block != 'bottleneck':
      raise ValueError(
        f"downsample_in_bottleneck=True needs block='bottleneck', not "
        f'{self.block!r}'
      )

  def setup(self):
    """Declares the parts; raises a ValueError on a bad field."""
    self._check()
    dtype = jnp.dtype(self.dtype)
    small = specs.lookup(STEMS, self.stem, 'stem') == 1
    self.embedding = ConvNorm(
      self.embedding_size, 3 if small else 7, 1 if small else 2,
      frozen=self.frozen_norm, epsilon=self.epsilon, dtype=dtype,
    )  # fmt: skip
    self.stages = [
      Stage(
        self.block, self.hidden_sizes[s], self.steps[s], tuple(rates),
        self.downsample_in_bottleneck, self.frozen_norm, self.epsilon,
        self.remat, dtype, name=f'stage_{s}',
      )
      for s, rates in enumerate(self.drop_path_rates())
    ]  # fmt: skip
    if self.num_classes:
      self.classify = nn.Dense(
        self.num_classes, kernel_init=HEAD, dtype=dtype, name='head'
      )

  def encode(
    self, images: Float[Array, 'B Y X I'], train: bool = False
  ) -> tuple[Float[Array, 'B y x C'], tuple[Float[Array, 'B _ _ _'], ...]]:
    """The last map, and the maps of all stages."""
    x = self.embedding(images, train)
    if self.stem == 'imagenet':
      x = max_pool(x)
    x = nn.relu(x)  # after the pool, which is the same on fewer cells
    maps = []
    for stage in self.stages:
      x = stage(x, train)
      maps.append(x)
    return x, tuple(maps)
