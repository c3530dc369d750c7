"""The architecture that the original's arrays show by their names and shapes.

Names here are linen's, as our models have them; blocks may be stacked along a
first axis, as big_vision stacks them under `Transformer/encoderblock/`.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from vit_jax import layers
from vit_jax.models import resnet
from vit_jax.pretrained import checks

Shapes = Mapping[str, tuple[int, ...]]

TABLE = 'Transformer/posembed_input/pos_embedding'
BLOCKS = 'Transformer/encoderblock'  # '…_{i}/…', or '…/…' stacked
USUAL = 224  # pixels, where no array shows the size of the images

# Every name that has a place.
NAMES = re.compile(
  rf"""
    cls | {TABLE} | (embedding|stem|pre_logits|head)/(kernel|bias)
  | (Transformer/encoder_norm|pre_head_layer_norm)/(scale|bias)
  | ({BLOCKS}(_[0-9]+)?|MAPHead_0)/(
      LayerNorm_[01]/(scale|bias)
    | MultiHeadDotProductAttention_0/(query|key|value|out)/(kernel|bias)
    | MlpBlock_0/Dense_[01]/(kernel|bias)
    )
  | MAPHead_0/probe
  | conv_root/kernel | gn_root/(scale|bias)
  | block[0-9]+/unit[0-9]+/(
      conv([123]|_proj)/kernel | gn([123]|_proj)/(scale|bias)
    )
  | MixerBlock_[0-9]+/(
      LayerNorm_[01]/(scale|bias)
    | (token|channel)_mixing/Dense_[01]/(kernel|bias)
    )
  """,
  re.VERBOSE,
)


def is_stacked(names: Iterable[str]) -> bool:
  """Whether blocks are stacked along a first axis."""
  return any(name.startswith(f'{BLOCKS}/') for name in names)


def infer(
  where: str,
  shapes: Shapes,
  image_size: int | tuple[int, int] | None = None,
) -> tuple[dict[str, Any], int]:
  """The fields of the model, and the channels of its images.

  Args:
    where: the file, for errors.
    shapes: by name.
    image_size: pixels, where they are known; otherwise the grid of patches is
      taken for a square, and without a position table (fixed sines have none)
      for that of images of about 224 pixels.

  Raises:
    ValueError: an array is missing from which a size would be read, has
      another rank, or is no square; or a block is missing between others.
  """
  stem = 'stem' if 'stem/kernel' in shapes else 'embedding'
  rows, columns, channels, width = _shape(where, shapes, f'{stem}/kernel', 4)
  if rows != columns:
    raise ValueError(
      f'{where}: {stem}/kernel is of patches of {rows}×{columns} pixels; ours '
      'are square'
    )
  config = {'patch_size': rows, 'hidden_size': width, 'num_classes': 0}
  if 'head/bias' in shapes:
    config['num_classes'] = _shape(where, shapes, 'head/bias', 1)[0]
  if stem == 'stem':
    fields = _mixer(where, shapes, rows, image_size)
    return {'name': 'mixer', **config, **fields}, channels
  stride = rows
  if 'conv_root/kernel' in shapes:
    channels, root = _shape(where, shapes, 'conv_root/kernel', 4)[2:]
    depths = tuple(
      _count(where, shapes, f'block{i}/unit', 1)
      for i in range(1, 1 + _count(where, shapes, 'block', 1))
    )
    config |= {'resnet': depths, 'resnet_width': root}
    stride *= resnet.stride(depths)
  config |= _vit(where, shapes) | _positions(where, shapes, stride, image_size)
  return {'name': 'vit', **config}, channels


def _shape(
  where: str, shapes: Shapes, name: str, rank: int
) -> tuple[int, ...]:
  if name not in shapes:
    raise ValueError(f'{where}: there is no array {name}')
  if len(shapes[name]) != rank or not all(shapes[name]):
    raise ValueError(
      f'{where}: {name} has shape {shapes[name]}, not {rank} sizes above 0'
    )
  return shapes[name]


def _count(where: str, shapes: Shapes, start: str, first: int) -> int:
  """How many `start` + number there are, numbered from `first` on."""
  pattern = re.compile(rf'{start}([0-9]{{1,6}})/')
  found = {int(m[1]) for m in map(pattern.match, shapes) if m}
  missing = set(range(first, first + len(found))) - found
  if missing:
    raise ValueError(
      f'{where}: {start}{min(missing)} is missing; {start}{max(found)} is there'
    )
  return len(found)


def _vit(where: str, shapes: Shapes) -> dict[str, Any]:
  stacked = is_stacked(shapes)
  block = f'{BLOCKS}/' if stacked else f'{BLOCKS}_0/'
  attention = f'{block}MultiHeadDotProductAttention_0'
  query = _shape(where, shapes, f'{attention}/query/kernel', 3 + stacked)
  # The format knows no attention without biases.
  _shape(where, shapes, f'{attention}/query/bias', 2 + stacked)
  mlp = _shape(where, shapes, f'{block}MlpBlock_0/Dense_0/bias', 1 + stacked)
  if stacked:
    count = checks.bounded(where, 'stacked blocks', query[0], checks.LAYERS)
  else:
    count = _count(where, shapes, f'{BLOCKS}_', 0)
  config = {
    'num_layers': count,
    'num_heads': query[-2],
    'mlp_dim': mlp[-1],
    'classifier': 'token' if 'cls' in shapes else 'gap',
  }
  if 'MAPHead_0/probe' in shapes:
    config['classifier'] = 'map'
    if 'cls' in shapes:
      config['class_token'] = True
  if 'pre_logits/bias' in shapes:
    size = _shape(where, shapes, 'pre_logits/bias', 1)[0]
    config['representation_size'] = size
  return config


def _positions(
  where: str, shapes: Shapes, stride: int, image_size: Any
) -> dict[str, Any]:
  if TABLE not in shapes:
    usual = max(1, round(USUAL / stride)) * stride
    return {
      'position': 'sincos2d',
      'image_size': usual if image_size is None else image_size,
    }
  count = _shape(where, shapes, TABLE, 3)[1]
  tokens = (1, 0) if 'cls' in shapes else (0,)
  for prefix in tokens:
    size = _square(count - prefix, stride)
    if image_size is not None:
      rows, columns = (side // stride for side in layers.pair(image_size))
      size = image_size if rows * columns == count - prefix else None
    if size is not None:
      # big_vision's class token joins after the positions were added.
      of_none = {'prefix_positions': 0} if tokens[0] > prefix else {}
      return {'image_size': size, **of_none}
  grid = 'a square grid' if image_size is None else f'image_size={image_size}'
  raise ValueError(
    f'{where}: {TABLE} has {count} rows, not the patches of {grid} (with or '
    'without one for a class token); a rectangular grid is not in such a '
    'file: resize the table with vit_jax.layers.resize_positions, and save it'
  )


def _square(cells: int, stride: int) -> int | None:
  """Pixels of a side of a square of so many cells, if they are one."""
  side = math.isqrt(max(cells, 0))
  return side * stride if side and side * side == cells else None


def _mixer(
  where: str, shapes: Shapes, patch_size: int, image_size: Any
) -> dict[str, Any]:
  tokens, channels = (
    _shape(where, shapes, f'MixerBlock_0/{kind}_mixing/Dense_0/kernel', 2)
    for kind in ('token', 'channel')
  )
  size = _square(tokens[0], patch_size) if image_size is None else image_size
  if size is None:
    raise ValueError(
      f'{where}: the weights of token mixing are for {tokens[0]} patches, '
      'which are no square grid'
    )
  return {
    'num_layers': _count(where, shapes, 'MixerBlock_', 0),
    'tokens_mlp_dim': tokens[1],
    'channels_mlp_dim': channels[1],
    'image_size': size,
  }
