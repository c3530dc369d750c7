"""Augmentation policies on Pillow: RandAugment, TrivialAugment, 3-Augment."""

import dataclasses
from typing import ClassVar

from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from vit_jax.data import transforms

Number = transforms.Number

# Each operation is (picture, amount, fill) → picture. The policies' ranges of
# amounts are in the tables below.


def _move(picture, coefficients, fill):
  fill = fill if picture.mode == 'L' else (fill,) * 3
  return picture.transform(
    picture.size,
    Image.Transform.AFFINE,
    coefficients,
    Image.Resampling.BILINEAR,
    fillcolor=fill,
  )


def shear_x(picture, amount, fill):
  """Amount: tangent."""
  return _move(picture, (1, amount, 0, 0, 1, 0), fill)


def shear_y(picture, amount, fill):
  """Amount: tangent."""
  return _move(picture, (1, 0, 0, amount, 1, 0), fill)


def translate_x(picture, amount, fill):
  """Amount: pixels."""
  return _move(picture, (1, 0, amount, 0, 1, 0), fill)


def translate_y(picture, amount, fill):
  """Amount: pixels."""
  return _move(picture, (1, 0, 0, 0, 1, amount), fill)


def rotate(picture, amount, fill):
  """Amount: degrees."""
  fill = fill if picture.mode == 'L' else (fill,) * 3
  return picture.rotate(amount, Image.Resampling.BILINEAR, fillcolor=fill)


def brightness(picture, amount, fill):
  """Amount: relative change, from −1."""
  return ImageEnhance.Brightness(picture).enhance(1 + amount)


def contrast(picture, amount, fill):
  """Amount: relative change, from −1."""
  return ImageEnhance.Contrast(picture).enhance(1 + amount)


def saturation(picture, amount, fill):
  """Amount: relative change, from −1."""
  return ImageEnhance.Color(picture).enhance(1 + amount)


def sharpness(picture, amount, fill):
  """Amount: relative change, from −1."""
  return ImageEnhance.Sharpness(picture).enhance(1 + amount)


def posterize(picture, amount, fill):
  """Amount: bits taken away, of 8."""
  return ImageOps.posterize(picture, 8 - int(amount))


def solarize(picture, amount, fill):
  """Amount: how many of the brightest values are inverted."""
  return ImageOps.solarize(picture, 256 - int(amount))


def solarize_add(picture, amount, fill):
  """Amount: what is added to pixels below 128."""
  table = [min(255, v + int(amount)) if v < 128 else v for v in range(256)]
  return picture.point(table * len(picture.getbands()))


def autocontrast(picture, amount, fill):
  """Amount: none."""
  return ImageOps.autocontrast(picture)


def equalize(picture, amount, fill):
  """Amount: none."""
  return ImageOps.equalize(picture)


def invert(picture, amount, fill):
  """Amount: none."""
  return ImageOps.invert(picture)


def identity(picture, amount, fill):
  """Amount: none."""
  return picture


# operation: (amount at full magnitude, whether its sign is random). A function
# of the side stands for a fraction of the width.
RANDAUGMENT = {  # timm's `rand-…-inc1`, where every severity grows
  autocontrast: (0, False),
  equalize: (0, False),
  invert: (0, False),
  rotate: (30, True),
  posterize: (4, False),
  solarize: (256, False),
  solarize_add: (110, False),
  saturation: (0.9, True),
  contrast: (0.9, True),
  brightness: (0.9, True),
  sharpness: (0.9, True),
  shear_x: (0.3, True),
  shear_y: (0.3, True),
  translate_x: (lambda side: 0.45 * side, True),
  translate_y: (lambda side: 0.45 * side, True),
}

TRIVIAL = {  # Müller and Hutter 2021, the wide space
  identity: (0, False),
  autocontrast: (0, False),
  equalize: (0, False),
  posterize: (6, False),
  solarize: (256, False),
  rotate: (135, True),
  shear_x: (0.99, True),
  shear_y: (0.99, True),
  translate_x: (32, True),
  translate_y: (32, True),
  brightness: (0.99, True),
  saturation: (0.99, True),
  contrast: (0.99, True),
  sharpness: (0.99, True),
}


def _perform(picture, table, strength, rng, fill):
  """One operation of the table, drawn uniformly, at `strength` in [0, 1]."""
  operation = tuple(table)[rng.integers(len(table))]
  full, signed = table[operation]
  if callable(full):
    horizontal = operation is translate_x
    full = full(picture.width if horizontal else picture.height)
  sign = -1 if signed and rng.random() < 0.5 else 1
  return operation(picture, sign * strength * full, fill)


@dataclasses.dataclass(frozen=True)
class RandAugment(transforms.Transform):
  """`layers` random operations of one magnitude. Cubuk et al. 2020.

  Operations, ranges and the scale of magnitudes (0 to 10) are those of timm's
  `rand-m{magnitude}-n{layers}-mstd{magnitude_std}-inc1`, which also performs
  each operation with a probability only; the paper's is 1. Unlike timm's,
  posterize keeps 8 to 4 bits (4 to 0 would end in black), and what lies beyond
  the border is grey, not the mean of the data.

  Attributes:
    layers: operations per image.
    magnitude: 0 to 10.
    magnitude_std: of normal noise on the magnitude, per operation.
    probability: that an operation is performed.
    fill: the pixel value beyond the border.
  """

  random: ClassVar[bool] = True
  layers: int = 2
  magnitude: Number = 10
  magnitude_std: Number = 0.0
  probability: Number = 0.5
  fill: int = 128

  def __post_init__(self):
    transforms.check_number('layers', self.layers, 0)
    transforms.check_number('magnitude', self.magnitude, 0, 10)
    transforms.check_number('magnitude_std', self.magnitude_std, 0)
    transforms.check_number('probability', self.probability, 0, 1)
    transforms.check_number('fill', self.fill, 0, 255)

  def _apply(self, image, rng):
    picture = transforms.to_pillow(image)
    for _ in range(self.layers):
      if rng.random() < self.probability:
        magnitude = rng.normal(self.magnitude, self.magnitude_std)
        strength = min(max(magnitude / 10, 0), 1)
        picture = _perform(picture, RANDAUGMENT, strength, rng, self.fill)
    return transforms.to_array(picture)


@dataclasses.dataclass(frozen=True)
class TrivialAugment(transforms.Transform):
  """One random operation of a random magnitude. Müller and Hutter 2021, wide.

  Attributes:
    bins: magnitudes are drawn from 0, 1/bins, …, 1; 30 in the paper.
    fill: the pixel value beyond the border.
  """

  random: ClassVar[bool] = True
  bins: int = 30
  fill: int = 0

  def __post_init__(self):
    transforms.check_number('bins', self.bins, 1)
    transforms.check_number('fill', self.fill, 0, 255)

  def _apply(self, image, rng):
    picture = transforms.to_pillow(image)
    strength = rng.integers(self.bins + 1) / self.bins
    picture = _perform(picture, TRIVIAL, strength, rng, self.fill)
    return transforms.to_array(picture)


@dataclasses.dataclass(frozen=True)
class ThreeAugment(transforms.Transform):
  """Grayscale, solarization or blur, one of them. Touvron et al. 2022.

  The paper adds colour jitter of 0.3 after it: `three_augment,
  color_jitter(brightness=0.3, contrast=0.3, saturation=0.3)`.

  Attributes:
    blur_min: least standard deviation of the blur, pixels.
    blur_max: largest.
  """

  random: ClassVar[bool] = True
  blur_min: Number = 0.1
  blur_max: Number = 2.0

  def __post_init__(self):
    transforms.check_number('blur_min', self.blur_min, 0)
    transforms.check_number('blur_max', self.blur_max, self.blur_min)

  def _apply(self, image, rng):
    picture = transforms.to_pillow(image)
    which = int(rng.integers(3))
    if which == 0:
      picture = picture.convert('L').convert(picture.mode)
    elif which == 1:
      picture = ImageOps.solarize(picture, 128)
    else:
      radius = rng.uniform(self.blur_min, self.blur_max)
      picture = picture.filter(ImageFilter.GaussianBlur(radius))
    return transforms.to_array(picture)
