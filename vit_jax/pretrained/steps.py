"""A preprocessing of ours in parts, as other libraries' files name them.

Ours is {'decode': spec, 'transform': specs}, as `data.load_image` takes it; the
parts are a resize, a centre crop, and the scaling of the numbers.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax import specs

RESAMPLES = ('nearest', 'lanczos', 'bilinear', 'bicubic', 'box')
# Options of our specs; None must be given. The defaults are those of
# `vit_jax.data`, which this package does not import.
OPTIONS = {
  'decode': {
    'channels': 3, 'max_pixels': 50_000_000, 'min_side': 0, 'convert': False,
  },
  'resize': {'size': None, 'resample': 'bilinear'},
  'resize_short': {'size': None, 'resample': 'bilinear'},
  'center_crop': {'size': None},
  'normalize': {'mean': None, 'std': None},
  'value_range': {'low': -1.0, 'high': 1.0},
}  # fmt: skip
STAGES = (
  ('resize', 'resize_short'), ('center_crop',), ('normalize', 'value_range'),
)  # fmt: skip

Numbers = float | tuple[float, ...]  # one, or one a channel


@dataclasses.dataclass(frozen=True)
class Steps:
  """A preprocessing in parts.

  Attributes:
    size: (height, width) of `resize`, the side of `resize_short`, or None.
    resample: one of `RESAMPLES`; None without a resize.
    crop: (height, width), or None.
    mean: of `normalize`; None without one.
    std: of `normalize`; None without one.
    value_range: (low, high); None without one.
    channels: of the decoded image.
  """

  size: tuple[int, int] | int | None
  resample: str | None
  crop: tuple[int, int] | None
  mean: Numbers | None
  std: Numbers | None
  value_range: tuple[float, float] | None
  channels: int

  def text(self) -> dict[str, str]:
    """The preprocessing as ours; every kind of image is converted."""
    found = []
    if self.size is not None:
      name = 'resize_short' if isinstance(self.size, int) else 'resize'
      options = {'size': self.size, 'resample': self.resample}
      found.append(specs.Spec(name, options))
    if self.crop is not None:
      found.append(specs.Spec('center_crop', {'size': self.crop}))
    if self.mean is not None:
      options = {'mean': self.mean, 'std': self.std}
      found.append(specs.Spec('normalize', options))
    if self.value_range is not None:
      low, high = self.value_range
      found.append(specs.Spec('value_range', {'low': low, 'high': high}))
    options = {'channels': self.channels, 'convert': True}
    return {
      'decode': str(specs.Spec('decode', options)),
      'transform': ', '.join(map(str, found)),
    }

  def normalization(self) -> tuple[Any, Any]:
    """(mean, std) with (pixel / 255 − mean) / std, one number a channel."""
    if self.mean is not None:
      return tuple(
        list(x) if isinstance(x, tuple) else [x] * self.channels
        for x in (self.mean, self.std)
      )
    low, high = (0.0, 255.0) if self.value_range is None else self.value_range
    width = high - low
    return [-low / width] * self.channels, [1 / width] * self.channels


def parse(preprocess: Mapping[str, str], where: str) -> Steps:
  """The parts of a preprocessing of ours.

  Args:
    preprocess: 'decode' and 'transform'.
    where: whose file must express it, for errors.

  Raises:
    ValueError: anything but at most one resize, one crop and one scaling, in
      this order.
  """
  rest = list(specs.parse(preprocess['transform']))
  found = []
  for names in STAGES:
    fits = bool(rest) and rest[0].name in names
    found.append((rest[0].name, _options(rest.pop(0))) if fits else ('', {}))
  if rest:
    order = ', '.join(' or '.join(names) for names in STAGES)
    raise ValueError(
      f'{where} has no place for {str(rest[0])!r} in the preprocessing '
      f'{preprocess["transform"]!r}; it can have, in this order: {order}'
    )
  (resize, sized), (crop, cropped), (scale, scaled) = found
  size = sized['size'] if resize else None
  (decode,) = specs.parse(preprocess['decode'])
  mean, std, value_range = None, None, None
  if scale == 'normalize':
    mean, std = scaled['mean'], scaled['std']
  elif scale == 'value_range':
    value_range = (float(scaled['low']), float(scaled['high']))
  return Steps(
    _square(size) if resize == 'resize' else size,
    sized['resample'] if resize else None,
    _square(cropped['size']) if crop else None,
    mean, std, value_range, _options(decode)['channels'],
  )  # fmt: skip


def _options(spec: specs.Spec) -> dict[str, Any]:
  known = specs.lookup(OPTIONS, spec.name, 'step of a preprocessing')
  options = {**known, **spec.options}
  missing = [k for k in known if known[k] is None and options[k] is None]
  if missing or set(options) != set(known):
    raise ValueError(
      f'{str(spec)!r} in the preprocessing: {spec.name} takes '
      f'{", ".join(known)}'
    )
  return options


def _square(size: int | tuple[int, int]) -> tuple[int, int]:
  return (size, size) if isinstance(size, int) else size


def numbers(where: str, name: str, value: Any, channels: int) -> Numbers:
  """A mean or standard deviation of a file, for pixels in 0..1.

  Raises:
    ValueError: it is no number that `normalize` takes, nor one a channel.
  """
  low = 1e-6 if name.endswith('std') else 0.0
  several = isinstance(value, Sequence) and not isinstance(value, str)
  given = value if several else [value]
  if not all(number(x) and low <= x <= 1 for x in given) or (
    several and len(value) != channels
  ):
    raise ValueError(
      f'{where}: {name}={value!r} must be {channels} numbers in [{low}, 1] '
      '(or one), for pixels in 0..1'
    )
  return tuple(map(float, value)) if several else float(value)


def number(value: Any) -> bool:
  """Whether it is a finite number."""
  plain = isinstance(value, int | float) and not isinstance(value, bool)
  return plain and math.isfinite(value)
