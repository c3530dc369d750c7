"""What turns an image into tokens, in place of one patch embedding.

Each maps images [B Y X I] to tokens [B N C], row by row, at `patch_size` pixels
a token; sides of the images are multiples of it.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vit_jax import layers, specs
from vit_jax.models.convolution import ConvNorm, max_pool
from vit_jax.models.initialization import HE, Initializers
from vit_jax.models.resnet_classifier import ResidualBlock
from vit_jax.shapes import Array, Float


class Patches(layers.PatchEmbedding):
  """The plain one, a linear map of patches. Dosovitskiy et al. 2021, eq. 1."""

  def __call__(
    self, images: Float[Array, 'B Y X I'], train: bool = False
  ) -> Float[Array, 'B N C']:
    """Embeds images."""
    del train
    return super().__call__(images)


class Convolutions(nn.Module):
  """What stems of convolutions share: the last 1×1, and the check of strides.

  Attributes:
    features: C.
    patch_size: the product of the strides.
    widths: channels of each convolution or block.
    strides: of each; () for 2 everywhere.
  """

  features: int
  patch_size: int
  widths: tuple[int, ...]
  strides: tuple[int, ...] = ()
  dtype: Any = jnp.float32

  def steps(self) -> list[tuple[int, int]]:
    """(width, stride) of each convolution or block.

    Raises:
      ValueError: strides that do not make the patch size.
    """
    strides = self.strides or (2,) * len(self.widths)
    product = math.prod(strides)
    if len(strides) != len(self.widths) or product != self.patch_size:
      raise ValueError(
        f'a stem of widths={self.widths} and strides={strides} takes '
        f'{product} pixels a token; they must be as many, and make '
        f'patch_size={self.patch_size}'
      )
    return list(zip(self.widths, strides, strict=True))

  def last(self, x: Float[Array, 'B y x I']) -> Float[Array, 'B N C']:
    """Tokens of a map, by a 1×1 without norm or ReLU."""
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    return nn.Dense(
      self.features, kernel_init=HE, dtype=self.dtype, name='out'
    )(x)


class ConvStem(Convolutions):
  """relu(norm(conv 3×3)) for each of `widths`, then a 1×1.

  Xiao et al. 2021, section 4: it makes a ViT train with any optimiser and
  converge sooner; one block fewer pays for it. Needs `batch_stats` to be
  mutable in training.
  """

  @nn.compact
  def __call__(
    self, images: Float[Array, 'B Y X I'], train: bool = False
  ) -> Float[Array, 'B N C']:
    """Embeds images."""
    x = images
    for i, (width, stride) in enumerate(self.steps()):
      conv = ConvNorm(width, 3, stride, dtype=self.dtype, name=f'conv{i + 1}')
      x = nn.relu(conv(x, train))
    return self.last(x)


class ResidualStem(Convolutions):
  """The basic residual block of ResNet for each of `widths`, then a 1×1.

  He et al. 2016, figure 5, with BatchNorm. Unlike the ResNet in front of a
  hybrid it has no 7×7 and no pooling, and may be as small as a `ConvStem`.
  """

  @nn.compact
  def __call__(
    self, images: Float[Array, 'B Y X I'], train: bool = False
  ) -> Float[Array, 'B N C']:
    """Embeds images."""
    x = images
    for i, (width, stride) in enumerate(self.steps()):
      x = ResidualBlock(
        'basic', width, stride, dtype=self.dtype, name=f'unit{i + 1}'
      )(x, train)
    return self.last(x)


class ShiftedPatches(nn.Module):
  """Dense(norm(patches of the image and of four shifted images)).

  Shifted patch tokenization, Lee et al. 2021, section 3.2: the image moved by
  half a patch towards each corner, zeros where nothing is, is stacked on its
  channels, so that a token sees twice as far. ε is PyTorch's, as the authors'.
  """

  features: int
  patch_size: int
  epsilon: float = 1e-5
  dtype: Any = jnp.float32
  kernel_init: Callable = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(
    self, images: Float[Array, 'B Y X I'], train: bool = False
  ) -> Float[Array, 'B N C']:
    """Embeds images; raises a ValueError on patches of one pixel."""
    del train
    p, half = self.patch_size, self.patch_size // 2
    rows, columns = layers.grid_of(images.shape[1:3], p)
    if not half:
      raise ValueError(
        f'patch_size={p}: patches of at least 2 pixels can be shifted by half'
      )
    batch, height, width, _ = images.shape
    padded = jnp.pad(images, ((0, 0), (half, half), (half, half), (0, 0)))
    # Towards the top left, the top right, the bottom left and bottom right.
    shifted = [
      padded[:, y : y + height, x : x + width]
      for y in (2 * half, 0)
      for x in (2 * half, 0)
    ]
    x = jnp.concatenate([images, *shifted], axis=-1)
    x = x.reshape(batch, rows, p, columns, p, -1).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(batch, rows * columns, -1)
    x = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name='norm')(x)
    return nn.Dense(
      self.features, kernel_init=self.kernel_init, dtype=self.dtype, name='out'
    )(x)


class ConvTokenizer(nn.Module):
  """max-pool 3×3 / 2 of relu(conv) for each of its layers, without biases.

  Hassani et al. 2021 (CCT), section 3.3: kernels of K×K, K odd, move by
  max(1, (K - 3) / 2) pixels, with (K - 1) / 2 zeros on every side.

  Attributes:
    features: C, of the last convolution.
    patch_size: what the strides make, (2 · max(1, (K - 3) / 2))^layers.
    kernel_size: K.
    layers: convolutions.
    width: channels of all but the last.
  """

  features: int
  patch_size: int
  kernel_size: int = 3
  layers: int = 1
  width: int = 64
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, images: Float[Array, 'B Y X I'], train: bool = False
  ) -> Float[Array, 'B N C']:
    """Embeds images; raises a ValueError on a kernel or a size that is not."""
    del train
    k, count = self.kernel_size, self.layers
    if k < 3 or k % 2 == 0 or count < 1:
      raise ValueError(
        f'kernel_size={k}, layers={count}: a tokenizer has odd kernels from 3 '
        'on, and at least one layer'
      )
    stride = max(1, (k - 3) // 2)
    if (2 * stride) ** count != self.patch_size:
      raise ValueError(
        f'a tokenizer of kernel_size={k}, layers={count} takes '
        f'{(2 * stride) ** count} pixels a token, not patch_size='
        f'{self.patch_size}'
      )
    x, pad = images, k // 2
    for i in range(count):
      width = self.features if i == count - 1 else self.width
      x = nn.Conv(
        width, (k, k), (stride, stride), ((pad, pad), (pad, pad)),
        use_bias=False, kernel_init=FAN_IN, dtype=self.dtype,
        name=f'conv{i + 1}',
      )(x)  # fmt: skip
      x = nn.relu(max_pool(x))  # the same as the other way round
    return x.reshape(x.shape[0], -1, x.shape[-1])


# He et al. 2015, eq. 10.
FAN_IN = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')

STEMS: dict[str, type[nn.Module]] = {
  'patches': Patches,  # Dosovitskiy et al. 2021
  'conv': ConvStem,  # Xiao et al. 2021
  'residual': ResidualStem,  # He et al. 2016
  'spt': ShiftedPatches,  # Lee et al. 2021
  'tokenizer': ConvTokenizer,  # Hassani et al. 2021
}


def build(
  spec: str, features: int, patch_size: int, dtype: Any, start: Initializers
) -> nn.Module:
  """Builds a stem, to be called with (images, train).

  Args:
    spec: of `STEMS`: 'conv(widths=(24, 48, 96, 192))'.
    features: C.
    patch_size: pixels a token.
    dtype: of the computation.
    start: how a plain or shifted patch embedding begins.

  Raises:
    ValueError: not one spec, or an unknown name or option.
  """
  given = {'features': features, 'patch_size': patch_size, 'dtype': dtype}
  for found in specs.parse(spec)[:1]:
    entry = specs.lookup(STEMS, found.name, 'stem')
    if 'kernel_init' in specs.accepted(entry):
      given['kernel_init'] = start.patches
  return specs.build(spec, STEMS, 'stem', **given)
