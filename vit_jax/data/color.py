"""Colour transforms on Pillow; a grey image keeps its single channel."""

import dataclasses
from typing import ClassVar

import numpy as np
from PIL import Image, ImageEnhance

from vit_jax.data import transforms

Number = transforms.Number


@dataclasses.dataclass(frozen=True)
class Grayscale(transforms.Transform):
  """Replaces the colours by their luma, in all channels."""

  def _apply(self, image, rng):
    picture = transforms.to_pillow(image).convert('L')
    return transforms.to_array(picture.convert(_mode(image)))


@dataclasses.dataclass(frozen=True)
class ColorJitter(transforms.Transform):
  """Changes brightness, contrast, saturation and hue, in random order.

  The first three are multiplied by a factor in [1 − x, 1 + x], not below 0; the
  hue turns by up to `hue` of the circle. On grey images saturation and hue
  change nothing.
  """

  random: ClassVar[bool] = True
  brightness: Number = 0.0
  contrast: Number = 0.0
  saturation: Number = 0.0
  hue: Number = 0.0

  def __post_init__(self):
    for name in ('brightness', 'contrast', 'saturation'):
      transforms.check_number(name, getattr(self, name), 0)
    transforms.check_number('hue', self.hue, 0, 0.5)

  def _apply(self, image, rng):
    picture = transforms.to_pillow(image)
    draws = rng.uniform(-1, 1, 4).tolist()
    for which in rng.permutation(4).tolist():
      name = ('brightness', 'contrast', 'saturation', 'hue')[which]
      amount = draws[which] * getattr(self, name)
      if amount and name == 'hue':
        picture = _turn_hue(picture, amount)
      elif amount:
        picture = ENHANCE[name](picture).enhance(max(1 + amount, 0))
    return transforms.to_array(picture)


ENHANCE = {
  'brightness': ImageEnhance.Brightness,
  'contrast': ImageEnhance.Contrast,
  'saturation': ImageEnhance.Color,
}


def _mode(image: np.ndarray) -> str:
  return 'L' if image.shape[-1] == 1 else 'RGB'


def _turn_hue(picture: Image.Image, amount: float) -> Image.Image:
  """Turns the hue by `amount` of the circle."""
  if picture.mode == 'L':
    return picture
  hue, saturation, value = picture.convert('HSV').split()
  step = round(amount * 255) % 256
  hue = hue.point([(h + step) % 256 for h in range(256)])
  return Image.merge('HSV', (hue, saturation, value)).convert('RGB')
