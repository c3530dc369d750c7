"""Transforms: frozen dataclasses `(example, rng) → example`; scaling ones here.

An example is a dict with at least `image`, uint8 `[H W C]` until `value_range`
or `normalize` makes it float32. `rng` is a `np.random.Generator` seeded for
this example; deterministic transforms ignore it. Nothing is changed in place:
a cached image may be shared.
"""

import dataclasses
from typing import Any, ClassVar

import numpy as np
from PIL import Image

Example = dict[str, Any]
Number = int | float


class Transform:
  """Changes the image of an example; subclasses define `_apply`."""

  random: ClassVar[bool] = False  # draws from rng: refused in evaluation

  def __call__(
    self, example: Example, rng: np.random.Generator | None
  ) -> Example:
    """Returns a copy of the example with its image changed."""
    return {**example, 'image': self._apply(example['image'], rng)}

  def _apply(
    self, image: np.ndarray, rng: np.random.Generator | None
  ) -> np.ndarray:
    """Returns a new image `[H' W' C']` for the image `[H W C]`."""
    raise NotImplementedError


def check_number(
  name: str, value: Any, low: Number = -np.inf, high: Number = np.inf
) -> None:
  """Raises a ValueError unless `value` is a number in [low, high]."""
  number = isinstance(value, int | float) and not isinstance(value, bool)
  if not (number and low <= value <= high):
    raise ValueError(f'{name}={value!r} must be a number in [{low}, {high}]')


def to_pillow(image: np.ndarray) -> Image.Image:
  """Wraps a uint8 image `[H W 1]` or `[H W 3]` as a Pillow L or RGB image."""
  if image.dtype != np.uint8:
    raise ValueError(
      f'this transform works on uint8 images, not {image.dtype}: put it before '
      'value_range or normalize'
    )
  return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def to_array(picture: Image.Image) -> np.ndarray:
  """A Pillow L or RGB image as uint8 `[H W 1]` or `[H W 3]`."""
  image = np.asarray(picture)
  return image[..., None] if image.ndim == 2 else image


def _scale(
  image: np.ndarray,
  factor: np.ndarray | np.float32,
  offset: np.ndarray | np.float32,
) -> np.ndarray:
  if image.dtype != np.uint8:
    raise ValueError(
      f'scaling starts from uint8 pixels, not {image.dtype}: write one of '
      'value_range and normalize, once'
    )
  image = np.multiply(image, factor, dtype=np.float32)
  image += offset
  return image


@dataclasses.dataclass(frozen=True)
class ValueRange(Transform):
  """Maps the pixels 0..255 linearly to low..high, float32."""

  low: Number = -1.0
  high: Number = 1.0

  def __post_init__(self):
    check_number('low', self.low)
    check_number('high', self.high, low=self.low)
    if self.low == self.high:
      raise ValueError(f'low={self.low!r} must be below high={self.high!r}')

  def _apply(self, image, rng):
    factor = np.float32((self.high - self.low) / 255)
    return _scale(image, factor, np.float32(self.low))


@dataclasses.dataclass(frozen=True)
class Normalize(Transform):
  """(pixel / 255 − mean) / std, float32; one number, or one per channel."""

  mean: Number | tuple[Number, ...]
  std: Number | tuple[Number, ...]

  def __post_init__(self):
    for name in ('mean', 'std'):
      value = getattr(self, name)
      low = 0 if name == 'mean' else 1e-6  # 0 would divide by zero
      for number in value if isinstance(value, tuple) else (value,):
        check_number(name, number, low, 1)

  def _apply(self, image, rng):
    mean, std = np.float32(self.mean), np.float32(self.std)
    for name, value in (('mean', mean), ('std', std)):
      if value.ndim and len(value) != image.shape[-1]:
        raise ValueError(
          f'normalize has {name}={value.tolist()} for an image of '
          f'{image.shape[-1]} channels; give one number, or one per channel'
        )
    return _scale(image, 1 / (255 * std), -mean / std)
