"""Preprocessing of Hugging Face and timm files ↔ ours.

What cannot be expressed exactly is refused, with one exception: where a crop
leaves an odd margin, `center_crop` rounds half of it to even, as torchvision
and timm do, and transformers rounds down. After a `shortest_edge` resize the
crop may so lie one pixel further than in transformers; after a resize to a
fixed size with even margins, never.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax import layers, specs
from vit_jax.pretrained import base, steps

LARGEST = 2**14  # pixels a side
# Pillow's numbers, which Hugging Face writes; timm writes the names.
RESAMPLE = {0: 'nearest', 1: 'lanczos', 2: 'bilinear', 3: 'bicubic', 4: 'box'}

# What the class of an image processor takes where its file says nothing.
_VIT = {
  'do_resize': True, 'size': 224, 'resample': 2, 'do_center_crop': False,
  'crop_size': None, 'do_rescale': True, 'rescale_factor': 1 / 255,
  'do_normalize': True, 'image_mean': 0.5, 'image_std': 0.5,
}  # fmt: skip
PROCESSORS = {
  'ViT': _VIT,
  'DeiT': {
    **_VIT, 'size': 256, 'resample': 3, 'do_center_crop': True,
    'crop_size': 224,
  },
  'Bit': {  # with the mean and standard deviation of CLIP
    **_VIT, 'size': {'shortest_edge': 224}, 'resample': 3,
    'do_center_crop': True, 'crop_size': 224,
    'image_mean': [0.48145466, 0.4578275, 0.40821073],
    'image_std': [0.26862954, 0.26130258, 0.27577711],
  },
  'Pvt': {  # with the mean and standard deviation of ImageNet
    **_VIT, 'resample': 3, 'image_mean': [0.485, 0.456, 0.406],
    'image_std': [0.229, 0.224, 0.225],
  },
  # Below WARPED pixels the shorter side to ⌊size / crop_pct⌋ and the centre,
  # from there on both sides to the size.
  'ConvNext': {
    'do_resize': True, 'size': {'shortest_edge': 384}, 'resample': 3,
    'crop_pct': 224 / 256, 'do_rescale': True, 'rescale_factor': 1 / 255,
    'do_normalize': True, 'image_mean': 0.5, 'image_std': 0.5,
  },
}  # fmt: skip
WARPED = 384
# Where a file names no processor, by model_type.
OF_MODEL = {
  'vit': 'ViT',
  'deit': 'DeiT',
  'resnet': 'ConvNext',
  'swin': 'ViT',
  'pvt': 'Pvt',
  'pvt_v2': 'Pvt',
  'cvt': 'ConvNext',
}
ENDINGS = (
  'ImageProcessor', 'ImageProcessorFast', 'ImageProcessorPil',
  'FeatureExtractor',
)  # fmt: skip
# Of a Hugging Face file: who reads it and how arrays are laid out. Images are
# always converted to the model's channels here, so do_convert_rgb is no news.
NO_EFFECT = (
  'image_processor_type', 'feature_extractor_type', 'processor_class',
  'data_format', 'input_data_format', 'return_tensors', 'device',
  'disable_grouping', 'do_convert_rgb', '_valid_processor_keys',
)  # fmt: skip

# timm's own, where a pretrained_cfg says nothing.
TIMM = {
  'input_size': (3, 224, 224), 'interpolation': 'bicubic', 'crop_pct': 0.875,
  'crop_mode': 'center', 'mean': (0.485, 0.456, 0.406),
  'std': (0.229, 0.224, 0.225),
}  # fmt: skip


def from_huggingface(
  where: str,
  config: Mapping[str, Any],
  model_type: str = 'vit',
  channels: int = 3,
) -> dict[str, str]:
  """Ours for a preprocessor_config.json.

  Args:
    where: the file, for errors.
    config: what it holds.
    model_type: that of config.json, 'vit' or 'deit'; says which processor it
      is where the file does not.
    channels: of the model.

  Raises:
    ValueError: a processor, a key or a value that we cannot express.
  """
  kind = _processor(where, config, model_type)
  defaults = PROCESSORS[kind]
  given = {
    key: value
    for key, value in config.items()
    if value is not None
    and key not in NO_EFFECT
    # What is switched off does nothing, known here or not.
    and (key in defaults or not (value is False and key.startswith('do_')))
  }
  for key in given:
    if key not in defaults:
      raise ValueError(
        f'{where}: {key}={given[key]!r} is not read; '
        f'{specs.nearest(key, defaults)}'
      )
  found = {**defaults, **given}
  for key, value in found.items():
    if key.startswith('do_') and not isinstance(value, bool):
      raise ValueError(f'{where}: {key}={value!r} must be true or false')
  mean, std, value_range = _scaling(where, found, channels)
  size = resample = crop = None
  if found['do_resize']:
    resample = _resample(where, found['resample'])
    if kind == 'ConvNext':
      size, crop = _warped_or_cropped(where, found)
    else:
      size = _size(where, 'size', found['size'])
  if 'do_center_crop' in found and found['do_center_crop']:
    crop = _size(where, 'crop_size', found['crop_size'], short=False)
  return steps.Steps(
    size, resample, crop, mean, std, value_range, channels
  ).text()


def default_huggingface(
  model_type: str, image_size: int | tuple[int, int], channels: int = 3
) -> dict[str, str]:
  """Ours for a Hugging Face folder that has no preprocessor_config.json.

  What transformers' processor of that model type does by default, for the size
  of the model: mean and standard deviation 0.5 (PVT: ImageNet's); 'vit' and
  'swin' resize to that size (bilinear), 'pvt' too (bicubic), 'deit' to 256/224
  of it (bicubic) and crops the centre, 'resnet' and 'cvt' the shorter side to
  256/224 of it (bicubic), and crop a square.
  """
  height, width = layers.pair(image_size)
  config = {'size': _sides((height, width))}
  if model_type == 'deit':
    larger = (round(height * 256 / 224), round(width * 256 / 224))
    config = {'size': _sides(larger), 'crop_size': config['size']}
  elif specs.lookup(OF_MODEL, model_type, 'model_type') == 'ConvNext':
    config = {'size': {'shortest_edge': max(height, width)}}
  return from_huggingface('', config, model_type, channels)


def to_huggingface(
  preprocess: Mapping[str, str], image_size: int | tuple[int, int]
) -> dict[str, Any]:
  """A preprocessor_config.json for ours.

  Args:
    preprocess: ours.
    image_size: of the model; written where nothing is resized.

  Raises:
    ValueError: a step that an image processor does not have.
  """
  found = steps.parse(preprocess, 'a Hugging Face image processor')
  short = isinstance(found.size, int)
  size = layers.pair(image_size) if found.size is None else found.size
  out: dict[str, Any] = {
    'do_resize': found.size is not None,
    'size': {'shortest_edge': size} if short else _sides(size),
  }
  if found.resample is not None:
    numbers = {name: number for number, name in RESAMPLE.items()}
    out['resample'] = specs.lookup(numbers, found.resample, 'resample')
  if found.crop is not None:
    out.update(do_center_crop=True, crop_size=_sides(found.crop))
  elif short:  # that processor crops if it is not told
    out['do_center_crop'] = False
  low, high = found.value_range or (0.0, 255.0)
  if found.mean is not None or low:
    mean, std = found.normalization()
    out.update(
      do_rescale=True, rescale_factor=1 / 255, do_normalize=True,
      image_mean=mean, image_std=std,
    )  # fmt: skip
  elif high == 255:
    out.update(do_rescale=False, do_normalize=False)
  else:
    out.update(do_rescale=True, rescale_factor=high / 255, do_normalize=False)
  # The one whose class does these steps in transformers 4 as well.
  kind = 'Bit' if short else 'ViT' if found.crop is None else 'DeiT'
  return {**out, 'image_processor_type': f'{kind}ImageProcessor'}


def _processor(where: str, config: Mapping[str, Any], model_type: str) -> str:
  names = [
    config[key]
    for key in ('image_processor_type', 'feature_extractor_type')
    if key in config and config[key] is not None
  ]
  if not names:
    return specs.lookup(OF_MODEL, model_type, 'model_type')
  for kind in PROCESSORS:
    if names[0] in [kind + ending for ending in ENDINGS]:
      return kind
  choices = ', '.join(f'{kind}ImageProcessor' for kind in PROCESSORS)
  raise ValueError(
    f'{where}: the image processor {names[0]!r} is not read; choices: {choices}'
  )


def _scaling(
  where: str, found: Mapping[str, Any], channels: int
) -> tuple[Any, Any, Any]:
  """(mean, std, value_range) of rescaling and normalising."""
  factor = found['rescale_factor'] if found['do_rescale'] else 1.0
  if not (steps.number(factor) and factor > 0):
    raise ValueError(
      f'{where}: rescale_factor={factor!r} must be a positive number'
    )
  if not found['do_normalize']:
    return None, None, (0.0, 255.0 * factor)
  if factor != 1 / 255:
    raise ValueError(
      f'{where}: do_normalize with do_rescale={found["do_rescale"]!r} and '
      f'rescale_factor={found["rescale_factor"]!r}: only pixels in 0..1 are '
      f'normalised here, do_rescale=True and rescale_factor={1 / 255!r}'
    )
  mean, std = (
    # The default stands for any number of channels.
    (0.5,) * channels
    if found[name] == 0.5
    else steps.numbers(where, name, found[name], channels)
    for name in ('image_mean', 'image_std')
  )
  return mean, std, None


def _resample(where: str, value: Any) -> str:
  whole = isinstance(value, int) and not isinstance(value, bool)
  if not whole or value not in RESAMPLE:
    choices = ', '.join(f'{k} ({v})' for k, v in RESAMPLE.items())
    raise ValueError(f'{where}: resample={value!r}; choices: {choices}')
  return RESAMPLE[value]


def _size(where: str, name: str, value: Any, short: bool = True) -> Any:
  """(height, width), or the side of a `shortest_edge` where that may be."""
  if isinstance(value, int):
    value = {'height': value, 'width': value}
  sides = {}
  if isinstance(value, Mapping):
    sides = {k: v for k, v in value.items() if v is not None}
  for key, side in sides.items():
    base.bounded(where, f'{name}.{key}', side, LARGEST)
  if set(sides) == {'height', 'width'}:
    return sides['height'], sides['width']
  if short and set(sides) == {'shortest_edge'}:
    return sides['shortest_edge']
  forms = 'a number, or height and width' + ', or shortest_edge' * short
  raise ValueError(f'{where}: {name}={value!r} must be {forms}')


def _warped_or_cropped(
  where: str, found: Mapping[str, Any]
) -> tuple[Any, tuple[int, int] | None]:
  """(size, crop) of ConvNext's processor."""
  value, portion = found['size'], found['crop_pct']
  value = {'shortest_edge': value} if isinstance(value, int) else value
  side = _size(where, 'size', value)
  if not isinstance(side, int):
    raise ValueError(f'{where}: size={value!r} must be a shortest_edge')
  if not (steps.number(portion) and 1 / LARGEST <= portion <= 1):
    raise ValueError(
      f'{where}: crop_pct={portion!r} must be a number in [{1 / LARGEST}, 1]'
    )
  if side >= WARPED:
    return (side, side), None
  return math.floor(side / portion), (side, side)


def _sides(size: Sequence[int]) -> dict[str, int]:
  return dict(zip(('height', 'width'), size, strict=True))


def from_timm(where: str, config: Mapping[str, Any]) -> dict[str, str]:
  """Ours for the preprocessing in timm's pretrained_cfg.

  'center': the shorter side to ⌊size / crop_pct⌋, then the centre; 'squash':
  both sides to that, then the centre. 'border' pads, which we do not.

  Args:
    where: the file, for errors.
    config: `pretrained_cfg`; keys that are not of preprocessing are for others.

  Raises:
    ValueError: a value that we cannot express.
  """
  found = {
    key: config[key] if key in config and config[key] is not None else default
    for key, default in TIMM.items()
  }
  sides, mode = found['input_size'], found['crop_mode']
  if not isinstance(sides, Sequence) or len(sides) != 3:
    raise ValueError(
      f'{where}: input_size={sides!r} must be channels, height and width'
    )
  channels, *size = (
    base.bounded(where, 'input_size', side, LARGEST) for side in sides
  )
  portion = found['crop_pct']
  if not (steps.number(portion) and 1 / LARGEST <= portion <= 1):
    raise ValueError(
      f'{where}: crop_pct={portion!r} must be a number in '
      f'[{1 / LARGEST}, 1]'
    )
  if found['interpolation'] not in steps.RESAMPLES:
    raise ValueError(
      f'{where}: interpolation={found["interpolation"]!r}; choices: '
      f'{", ".join(steps.RESAMPLES)}'
    )
  scaled = tuple(math.floor(side / portion) for side in size)
  crop = tuple(size)
  if mode == 'squash':
    crop = None if crop == scaled else crop
  elif mode == 'center' and size[0] == size[1]:
    scaled = scaled[0]
  else:
    raise ValueError(
      f"{where}: crop_mode={mode!r} with input_size={list(sides)}; 'squash' is "
      "read, and 'center' of a square"
    )
  mean, std = (
    steps.numbers(where, name, found[name], channels)
    for name in ('mean', 'std')
  )
  return steps.Steps(
    scaled, found['interpolation'], crop, mean, std, None, channels
  ).text()


def to_timm(
  preprocess: Mapping[str, str], image_size: int | tuple[int, int]
) -> dict[str, Any]:
  """The keys of timm's pretrained_cfg for ours, those of `TIMM`.

  Args:
    preprocess: ours.
    image_size: of the model; where nothing is resized, images are of this size,
      which timm's resize then leaves alone.

  Raises:
    ValueError: steps that timm's evaluation does not have.
  """
  found = steps.parse(preprocess, "timm's evaluation")
  size, crop, mode = found.size, found.crop, 'squash'
  if size is None and crop is None:
    size = layers.pair(image_size)
  if isinstance(size, int) and crop is not None and crop[0] == crop[1]:
    size, mode = (size, size), 'center'
  if not isinstance(size, tuple):
    raise ValueError(
      "timm's evaluation resizes to a fixed size, or the shorter side and then "
      f'crops a square; it cannot do {preprocess["transform"]!r}'
    )
  crop = size if crop is None else crop
  mean, std = found.normalization()
  return {
    'input_size': [found.channels, *crop],
    'interpolation': found.resample or TIMM['interpolation'],
    'crop_pct': _crop_pct(size, crop),
    'crop_mode': mode,
    'mean': mean,
    'std': std,
  }


def _crop_pct(size: tuple[int, int], crop: tuple[int, int]) -> float:
  """The roundest p, and of these the largest, with ⌊crop / p⌋ = size.

  Many p do: the roundest is what people write, 0.875, 0.9, 0.965.
  """
  largest = min(c / s for c, s in zip(crop, size, strict=True))
  for parts in (10, 20, 40, 100, 200, *(10**k for k in range(3, 17))):
    p = math.floor(largest * parts) / parts
    if 0 < p <= 1 and all(
      math.floor(c / p) == s for c, s in zip(crop, size, strict=True)
    ):
      return p
  raise ValueError(
    f'no crop_pct of timm resizes to {size} and crops to {crop}'
  )
