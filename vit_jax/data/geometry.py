"""Geometric transforms on Pillow, whose resizing is antialiased."""

import dataclasses
import math
from typing import ClassVar

import numpy as np
from PIL import Image

from vit_jax import specs
from vit_jax.data import transforms

Number = transforms.Number
Size = int | tuple[int, int]

RESAMPLE = {
  'nearest': Image.Resampling.NEAREST,
  'box': Image.Resampling.BOX,
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
  'lanczos': Image.Resampling.LANCZOS,
}


def _check_size(size: Size) -> None:
  sides = size if isinstance(size, tuple) else (size,)
  if len(sides) not in (1, 2):
    raise ValueError(f'size={size!r} must be a side or (height, width)')
  for side in sides:
    if not isinstance(side, int) or side < 1:
      raise ValueError(f'size={size!r} must be a positive integer, or two')


def _resize(
  image: np.ndarray, height: int, width: int, resample: str
) -> np.ndarray:
  if image.shape[:2] == (height, width):
    return image
  picture = transforms.to_pillow(image)
  return transforms.to_array(
    picture.resize((width, height), RESAMPLE[resample])
  )


def _sides(size: Size) -> tuple[int, int]:
  return size if isinstance(size, tuple) else (size, size)


@dataclasses.dataclass(frozen=True)
class Resize(transforms.Transform):
  """Resizes to a square of `size`, or to (height, width); aspect may change."""

  size: Size
  resample: str = 'bilinear'

  def __post_init__(self):
    _check_size(self.size)
    specs.lookup(RESAMPLE, self.resample, 'resample')

  def _apply(self, image, rng):
    return _resize(image, *_sides(self.size), self.resample)


@dataclasses.dataclass(frozen=True)
class ResizeShort(transforms.Transform):
  """Resizes the shorter side to `size`; the longer one is rounded down."""

  size: int
  resample: str = 'bilinear'

  def __post_init__(self):
    _check_size(self.size)
    specs.lookup(RESAMPLE, self.resample, 'resample')

  def _apply(self, image, rng):
    height, width = image.shape[:2]
    short = min(height, width)
    # Rounding down is what torchvision does, and so what weights were
    # evaluated with.
    height, width = (side * self.size // short for side in (height, width))
    return _resize(image, height, width, self.resample)


@dataclasses.dataclass(frozen=True)
class CenterCrop(transforms.Transform):
  """Cuts out the middle, of `size` or (height, width)."""

  size: Size

  def __post_init__(self):
    _check_size(self.size)

  def _apply(self, image, rng):
    height, width = _sides(self.size)
    top, left = image.shape[0] - height, image.shape[1] - width
    if top < 0 or left < 0:
      raise ValueError(
        f'center_crop(size={self.size!r}) needs a larger image than '
        f'{image.shape[0]}×{image.shape[1]}; put resize_short before it'
      )
    top, left = round(top / 2), round(left / 2)  # half to even: torchvision
    return image[top : top + height, left : left + width]


@dataclasses.dataclass(frozen=True)
class InceptionCrop(transforms.Transform):
  """Resizes a random part, of random area and aspect. Szegedy et al. 2015, §6.

  The ratio is drawn log-uniformly, as is usual since torchvision; after ten
  draws that do not fit, the largest central part of an allowed ratio is taken.
  """

  random: ClassVar[bool] = True
  size: Size
  area_min: Number = 0.05
  area_max: Number = 1.0
  ratio_min: Number = 3 / 4
  ratio_max: Number = 4 / 3
  resample: str = 'bilinear'

  def __post_init__(self):
    _check_size(self.size)
    transforms.check_number('area_min', self.area_min, 0, 1)
    transforms.check_number('area_max', self.area_max, self.area_min, 1)
    transforms.check_number('ratio_min', self.ratio_min, 0.01, 100)
    transforms.check_number('ratio_max', self.ratio_max, self.ratio_min, 100)
    specs.lookup(RESAMPLE, self.resample, 'resample')

  def _apply(self, image, rng):
    top, left, height, width = self._draw(*image.shape[:2], rng)
    part = image[top : top + height, left : left + width]
    return _resize(part, *_sides(self.size), self.resample)

  def _draw(self, rows: int, columns: int, rng: np.random.Generator):
    low, high = math.log(self.ratio_min), math.log(self.ratio_max)
    for _ in range(10):
      area = rows * columns * rng.uniform(self.area_min, self.area_max)
      ratio = math.exp(rng.uniform(low, high))
      width = max(round(math.sqrt(area * ratio)), 1)
      height = max(round(math.sqrt(area / ratio)), 1)
      if width <= columns and height <= rows:
        top = int(rng.integers(rows - height + 1))
        left = int(rng.integers(columns - width + 1))
        return top, left, height, width
    ratio = min(max(columns / rows, self.ratio_min), self.ratio_max)
    width = max(min(columns, round(rows * ratio)), 1)
    height = max(min(rows, round(columns / ratio)), 1)
    return (rows - height) // 2, (columns - width) // 2, height, width


@dataclasses.dataclass(frozen=True)
class PadCrop(transforms.Transform):
  """Pads with zeros and cuts `size` out at random. He et al. 2016, §4.2."""

  random: ClassVar[bool] = True
  padding: int
  size: Size | None = None  # None keeps the size of the image

  def __post_init__(self):
    transforms.check_number('padding', self.padding, 0)
    if self.size is not None:
      _check_size(self.size)

  def _apply(self, image, rng):
    p = self.padding
    height, width = image.shape[:2] if self.size is None else _sides(self.size)
    image = np.pad(image, ((p, p), (p, p), (0, 0)))
    top, left = image.shape[0] - height, image.shape[1] - width
    if top < 0 or left < 0:
      raise ValueError(
        f'pad_crop(padding={p}, size={self.size!r}) needs a larger image than '
        f'{image.shape[0] - 2 * p}×{image.shape[1] - 2 * p}'
      )
    top, left = rng.integers((top + 1, left + 1))
    return image[top : top + height, left : left + width]


@dataclasses.dataclass(frozen=True)
class Flip(transforms.Transform):
  """Mirrors left and right (or up and down) with a probability."""

  random: ClassVar[bool] = True
  probability: Number = 0.5
  horizontal: bool = True

  def __post_init__(self):
    transforms.check_number('probability', self.probability, 0, 1)

  def _apply(self, image, rng):
    if rng.random() >= self.probability:
      return image
    return image[:, ::-1] if self.horizontal else image[::-1]


@dataclasses.dataclass(frozen=True)
class Affine(transforms.Transform):
  """A small random rotation, scaling and shift about the centre, bilinear.

  Attributes:
    rotate: largest angle, radians.
    scale: largest relative change of size: 0.1 is 0.9 to 1.1.
    shift: largest shift in pixels along either axis; fractions count.
    fill: the pixel value beyond the border.
  """

  random: ClassVar[bool] = True
  rotate: Number = 0.0
  scale: Number = 0.0
  shift: Number = 0.0
  fill: int = 0

  def __post_init__(self):
    transforms.check_number('rotate', self.rotate, 0, math.pi)
    transforms.check_number('scale', self.scale, 0, 0.99)
    transforms.check_number('shift', self.shift, 0)
    transforms.check_number('fill', self.fill, 0, 255)

  def _apply(self, image, rng):
    picture = transforms.to_pillow(image)
    turn, grow, right, down = rng.uniform(-1, 1, 4).tolist()
    angle, size = turn * self.rotate, 1 + grow * self.scale
    # Pillow asks where each output pixel comes from: the inverse map.
    a, b = math.cos(angle) / size, math.sin(angle) / size
    x, y = picture.width / 2, picture.height / 2
    u, v = x + right * self.shift, y + down * self.shift
    inverse = (a, b, x - a * u - b * v, -b, a, y + b * u - a * v)
    fill = self.fill if image.shape[-1] == 1 else (self.fill,) * 3
    return transforms.to_array(
      picture.transform(
        picture.size,
        Image.Transform.AFFINE,
        inverse,
        Image.Resampling.BILINEAR,
        fillcolor=fill,
      )
    )
