"""The ResNet in front of a hybrid ViT, with the original's names.

Post-activation bottleneck units with GroupNorm and weight-standardised
convolutions: Kolesnikov et al. 2020 (BiT); Dosovitskiy et al. 2021, section
3.1. Padding is SAME everywhere, also where a stride of 2 makes it lopsided.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import specs
from vit_jax.shapes import Array, Float

GROUPS = 32  # of every GroupNorm


class Convention(NamedTuple):
  """Where implementations differ: they give other numbers, if close ones.

  Attributes:
    inside: ε in w = (v - μ) / √(σ² + ε), of a kernel's standardisation.
    outside: ε in w = (v - μ) / (σ + ε).
    epsilon: of the GroupNorms.
  """

  inside: float
  outside: float
  epsilon: float


CONVENTIONS = {
  'original': Convention(inside=0.0, outside=1e-5, epsilon=1e-6),
  'timm': Convention(inside=1e-8, outside=0.0, epsilon=1e-5),
}


def standardize(
  kernel: Float[Array, 'y x I O'], convention: str = 'original'
) -> Float[Array, 'y x I O']:
  """(v - μ) / σ over the inputs of each output channel. Qiao et al. 2019.

  Raises:
    ValueError: `convention`, which says where ε goes, is unknown.
  """
  rule = specs.lookup(CONVENTIONS, convention, 'resnet_convention')
  kernel = kernel - kernel.mean(axis=(0, 1, 2), keepdims=True)
  variance = jnp.square(kernel).mean(axis=(0, 1, 2), keepdims=True)
  return kernel / (jnp.sqrt(variance + rule.inside) + rule.outside)


class StdConv(nn.Module):
  """Convolution by a standardised kernel, no bias: [B Y X I] → [B y x O]."""

  features: int
  size: int
  stride: int = 1
  convention: str = 'original'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'B Y X I']) -> Float[Array, 'B y x O']:
    """Convolves; y = ⌈Y / stride⌉."""
    kernel = self.param(
      'kernel', nn.initializers.lecun_normal(),
      (self.size, self.size, x.shape[-1], self.features),
    )  # fmt: skip
    return jax.lax.conv_general_dilated(
      x.astype(self.dtype),
      standardize(kernel, self.convention).astype(self.dtype),
      (self.stride, self.stride), 'SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )  # fmt: skip


class ResidualUnit(nn.Module):
  """relu(x + gn(conv 1×1(relu(gn(conv 3×3(relu(gn(conv 1×1(x))))))))).

  [B Y X I] → [B Y/stride X/stride 4·features]; where the shape changes, x goes
  through gn(conv 1×1) too. The last GroupNorm starts at scale 0.
  """

  features: int
  stride: int = 1
  convention: str = 'original'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'B Y X I']) -> Float[Array, 'B y x O']:
    """Applies the unit."""
    wide, y = 4 * self.features, x
    if x.shape[-1] != wide or self.stride != 1:
      x = self._conv(wide, 1, 'conv_proj', self.stride)(x)
      x = group_norm('gn_proj', self.convention, self.dtype)(x)
    y = self._conv(self.features, 1, 'conv1')(y)
    y = nn.relu(group_norm('gn1', self.convention, self.dtype)(y))
    y = self._conv(self.features, 3, 'conv2', self.stride)(y)
    y = nn.relu(group_norm('gn2', self.convention, self.dtype)(y))
    y = self._conv(wide, 1, 'conv3')(y)
    zero = nn.initializers.zeros
    y = group_norm('gn3', self.convention, self.dtype, zero)(y)
    return nn.relu(x + y)

  def _conv(self, features: int, size: int, name: str, stride: int = 1):
    return StdConv(
      features, size, stride, self.convention, self.dtype, name=name
    )


def group_norm(
  name: str, convention: str, dtype: Any, scale_init=nn.initializers.ones
) -> nn.GroupNorm:
  """A GroupNorm of 32 groups, its variance without cancellation."""
  return nn.GroupNorm(
    GROUPS, epsilon=CONVENTIONS[convention].epsilon, dtype=dtype,
    scale_init=scale_init, use_fast_variance=False, name=name,
  )  # fmt: skip


class ResNetStage(nn.Module):
  """`depth` units of one width, the first of them with the stride."""

  depth: int
  features: int
  stride: int
  convention: str = 'original'
  remat: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'B Y X I']) -> Float[Array, 'B y x O']:
    """Applies the units."""
    unit = nn.remat(ResidualUnit) if self.remat else ResidualUnit
    for i in range(self.depth):
      x = unit(
        self.features, 1 if i else self.stride, self.convention, self.dtype,
        name=f'unit{i + 1}',
      )(x)  # fmt: skip
    return x


def stride(depths: tuple[int, ...]) -> int:
  """Pixels a cell of the map: 4 after the root, twice as many a later stage."""
  return 4 * 2 ** max(len(depths) - 1, 0)


class ResNet(nn.Module):
  """Root and stages: [B Y X I] → [B Y/stride X/stride C].

  The root is gn(conv 7×7 / 2), ReLU and max-pool 3×3 / 2; stage i has units of
  width·2^i features, which give C = 4·width·2^i, and halves the map, but for
  the first.

  Attributes:
    depths: units of each stage; () is the root alone, with C = width.
    width: a multiple of 32, the groups of every GroupNorm.
    convention: a key of `CONVENTIONS`.
    remat: recompute each unit in the backward pass, to save memory.
  """

  depths: tuple[int, ...]
  width: int = 64
  convention: str = 'original'
  remat: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'B Y X I']) -> Float[Array, 'B y x C']:
    """The map of the last stage.

    Raises:
      ValueError: a bad field; the message has its name in the model.
    """
    specs.lookup(CONVENTIONS, self.convention, 'resnet_convention')
    if self.width < 1 or self.width % GROUPS:
      raise ValueError(
        f'resnet_width={self.width} must be a multiple of {GROUPS}, the '
        'groups of every GroupNorm'
      )
    if any(depth < 1 for depth in self.depths):
      raise ValueError(
        f'resnet={self.depths} must hold the number of units of each stage, '
        'at least 1; () is the root alone'
      )
    x = StdConv(
      self.width, 7, 2, self.convention, self.dtype, name='conv_root'
    )(x)
    x = nn.relu(group_norm('gn_root', self.convention, self.dtype)(x))
    x = nn.max_pool(x, (3, 3), strides=(2, 2), padding='SAME')
    for i, depth in enumerate(self.depths):
      x = ResNetStage(
        depth, self.width * 2**i, 2 if i else 1, self.convention, self.remat,
        self.dtype, name=f'block{i + 1}',
      )(x)  # fmt: skip
    return x
