"""timm's and Hugging Face's Swin Transformers ↔ ours."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn

from vit_jax import layers
from vit_jax.models.swin import PUBLISHED, windows_of
from vit_jax.pretrained import base, fields, timm_checks
from vit_jax.pretrained.family import Arrays, HuggingFace, Timm
from vit_jax.pretrained.swin_tables import (
  TIMM_NAMES,
  Names,
  huggingface_names,
  huggingface_table,
  timm_table,
)
from vit_jax.pretrained.timm_checks import shape

# timm's names: width, blocks of the third stage, heads of the first, window.
NAMES = {
  **{
    f'swin_{size}_patch4_window7_224': (*row, 7)
    for size, row in {
      'tiny': (96, 6, 3), 'small': (96, 18, 3), 'base': (128, 18, 4),
      'large': (192, 18, 6),
    }.items()
  },
  'swin_base_patch4_window12_384': (128, 18, 4, 12),
  'swin_large_patch4_window12_384': (192, 18, 6, 12),
  'swin_s3_tiny_224': (96, 6, 3, [7, 7, 14, 7]),
  'swin_s3_small_224': (96, 18, 3, [14, 14, 14, 7]),
  'swin_s3_base_224': (96, 30, 3, [7, 7, 14, 7]),
}  # fmt: skip
KNOWN = (
  'img_size', 'patch_size', 'in_chans', 'num_classes', 'embed_dim', 'depths',
  'num_heads', 'window_size', 'mlp_ratio', 'qkv_bias',
)  # fmt: skip
FIXED = {
  'global_pool': ('avg',), 'head_dim': (None,), 'always_partition': (False,),
}  # fmt: skip
# transformers' own, where config.json says nothing; what is not here begins
# training or drops something in it.
DEFAULTS = {
  'image_size': 224, 'patch_size': 4, 'num_channels': 3, 'embed_dim': 96,
  'depths': [2, 2, 6, 2], 'num_heads': [3, 6, 12, 24], 'window_size': 7,
  'mlp_ratio': 4.0, 'qkv_bias': True, 'hidden_act': 'gelu',
  'use_absolute_embeddings': False, 'layer_norm_eps': 1e-5,
}  # fmt: skip
ACTIVATIONS = {'gelu': 'exact', 'gelu_pytorch_tanh': 'tanh'}
EPSILON = 1e-5  # of timm's norms, and of transformers' around the stages
BUFFERS = (r'relative_position_index$', r'attn_mask$')  # of older versions


def _seen(where: str, found: Arrays, names: Names) -> dict[str, Any]:
  """What the arrays say, by timm's words."""
  width, channels, side, _ = timm_checks.square(where, found, names.patches)
  block = re.escape(names.stages) + r'(\d{1,3})\.blocks\.(\d{1,4})\.'
  depths = fields.depths(found, block)
  first = f'{names.stages}{{}}.blocks.0.'.format
  return {
    'depths': depths,
    'embed_dim': width,
    'patch_size': side,
    'in_chans': channels,
    'num_heads': [
      shape(where, found, first(s) + names.bias_table, 2)[1]
      for s in range(len(depths))
    ],
    'hidden': [
      shape(where, found, first(s) + names.hidden, 2)[0]
      for s in range(len(depths))
    ],
    'qkv_bias': first(0) + names.query_bias in found,
    'num_classes': fields.size_of(where, found, names.head),
  }


def _fields(
  where: str, seen: Mapping[str, Any], ratio: Any
) -> dict[str, Any]:
  """The part of a model's section that the arrays say."""
  widths = [seen['embed_dim'] * 2**s for s in range(len(seen['depths']))]
  for width, hidden, count in zip(
    widths, seen['hidden'], seen['num_heads'], strict=True
  ):
    timm_checks.check_ratio(where, ratio, width, hidden)
    if width % count:
      raise ValueError(
        f'{where}: {count} heads do not divide the width {width}'
      )
  section = {
    'name': 'swin',
    'num_classes': seen['num_classes'],
    'depths': tuple(seen['depths']),
    'hidden_sizes': tuple(widths),
    'num_heads': tuple(seen['num_heads']),
    'patch_size': seen['patch_size'],
    'mlp_ratio': float(ratio),
    'qkv_bias': seen['qkv_bias'],
    'epsilon': EPSILON,
  }
  if len(widths) != 4:
    section['feature_layers'] = tuple(range(len(widths)))
  return section


def _windows(where: str, value: Any, stages: int) -> int | tuple[int, ...]:
  """A window_size of timm: a number, two for all stages, or one a stage."""
  both = isinstance(value, list) and len(value) == 2
  if both and not any(isinstance(v, list) for v in value):
    value = [value] * stages
  several = value if isinstance(value, list) else [value] * stages
  sides = [v if isinstance(v, list) else [v, v] for v in several]
  if len(sides) != stages or any(
    len(pair) != 2 or pair[0] != pair[1] for pair in sides
  ):
    raise ValueError(
      f'{where}: window_size={value!r} must be the side of a square window, or '
      f'{stages} of them, one a stage'
    )
  sizes = [base.bounded(where, 'window_size', s[0], 2**10) for s in sides]
  return sizes[0] if len(set(sizes)) == 1 else tuple(sizes)


def read_timm(
  where: str, architecture: str, args: Mapping[str, Any],
  image_size: tuple[int, int], found: Arrays,
) -> tuple[dict[str, Any], int]:  # fmt: skip
  """Config of a timm folder; see `family.Timm`.

  timm's windows depend on the model's own image size: convention='timm'.
  """
  timm_checks.check_arguments(where, args, KNOWN, FIXED)
  width, deep, first, window = NAMES[architecture.split('.')[0]]
  said = {
    'embed_dim': width, 'depths': [2, 2, deep, 2], 'patch_size': 4,
    'num_heads': [first * 2**s for s in range(4)], 'window_size': window,
    'mlp_ratio': 4.0, **args,
  }  # fmt: skip
  seen = _seen(where, found, TIMM_NAMES)
  timm_checks.check_said(where, said, seen)
  ratio, stages = said['mlp_ratio'], len(seen['depths'])
  if isinstance(ratio, list):
    if len(set(ratio)) != 1 or len(ratio) != stages:
      raise ValueError(
        f'{where}: mlp_ratio={ratio!r} must be one number, or {stages} alike'
      )
    ratio = ratio[0]
  return {
    **_fields(where, seen, ratio),
    'window_size': _windows(where, said['window_size'], stages),
    'image_size': timm_checks.table_size(
      where, None, image_size, seen['patch_size']
    ),
    'convention': 'timm',
  }, seen['in_chans']


def read_huggingface(
  where: str, said: Mapping[str, Any], found: Arrays
) -> tuple[dict[str, Any], int]:
  """Config of a Hugging Face folder; see `family.HuggingFace`.

  Rates of dropout and drop-path are left to the recipe.
  """
  said = {**DEFAULTS, **said}
  prefix = fields.found_prefix(found, 'swin')
  seen = _seen(where, found, huggingface_names(prefix))
  fields.choose(
    where, said, hidden_act=tuple(ACTIVATIONS),
    use_absolute_embeddings=(False,), layer_norm_eps=(EPSILON,),
  )  # fmt: skip
  fields.choose(
    f'{where}, with these arrays', said, embed_dim=(seen['embed_dim'],),
    depths=(seen['depths'],), num_heads=(seen['num_heads'],),
    patch_size=(seen['patch_size'], [seen['patch_size']] * 2),
    num_channels=(seen['in_chans'],), qkv_bias=(seen['qkv_bias'],),
  )  # fmt: skip
  return {
    **_fields(where, seen, said['mlp_ratio']),
    'window_size': base.bounded(
      where, 'window_size', said['window_size'], 2**10
    ),
    'image_size': fields.short(
      fields.sides(where, 'image_size', said['image_size'])
    ),
    'gelu': ACTIVATIONS[said['hidden_act']],
  }, seen['in_chans']


def write_timm(model: nn.Module) -> tuple[str, dict[str, Any]]:
  """Architecture and model_args of ours; see `family.Timm`."""
  _check(model, 'timm', ('exact',))
  image_size = list(layers.pair(model.image_size))
  layers.grid_of(model.image_size, model.patch_size)
  windows = model.window_size
  windows = windows if isinstance(windows, int) else list(windows)
  row = (model.hidden_sizes[0], *model.depths, model.num_heads[0], windows)
  if isinstance(windows, list):  # two numbers would be rows and columns
    windows = [[size, size] for size in windows]
  names = [
    name
    for name, (width, deep, first, window) in NAMES.items()
    if row == (width, 2, 2, deep, 2, first, window)
  ]
  return (names or ['swin_tiny_patch4_window7_224'])[0], {
    'img_size': image_size,
    'patch_size': model.patch_size,
    'embed_dim': model.hidden_sizes[0],
    'depths': list(model.depths),
    'num_heads': list(model.num_heads),
    'window_size': windows,
    'mlp_ratio': model.mlp_ratio,
    'qkv_bias': model.qkv_bias,
  }


def write_huggingface(found: base.Pretrained) -> dict[str, Any]:
  """config.json of ours; see `family.HuggingFace`."""
  model = found.model
  if len(set(model.window_sizes)) != 1:
    raise ValueError(
      'the format huggingface has one window for all stages; '
      f'window_size={model.window_size}'
    )
  _check(
    model, 'the format huggingface', tuple(ACTIVATIONS.values()), 'original'
  )
  acts = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
  kind = 'SwinForImageClassification' if model.num_classes else 'SwinModel'
  return {
    'architectures': [kind],
    'model_type': 'swin',
    'image_size': fields.short(layers.pair(model.image_size)),
    'patch_size': model.patch_size,
    'num_channels': found.channels,
    'embed_dim': model.hidden_sizes[0],
    'depths': list(model.depths),
    'num_heads': list(model.num_heads),
    'window_size': model.window_sizes[0],
    'mlp_ratio': model.mlp_ratio,
    'qkv_bias': model.qkv_bias,
    'hidden_act': acts[model.gelu],
    'layer_norm_eps': model.epsilon,
    'drop_path_rate': model.drop_path_rate,
  }


def _check(
  model: nn.Module, form: str, gelu: Sequence[str], convention: str = 'timm'
) -> None:
  """Raises a ValueError on what a format has no place for."""
  doubled = tuple(
    model.hidden_sizes[0] * 2**s for s in range(len(model.depths))
  )
  fields.must(
    model, form, attention=(PUBLISHED,), epsilon=(EPSILON,), gelu=gelu,
    hidden_sizes=(doubled,),
  )  # fmt: skip
  for s, size in enumerate(model.window_sizes):
    grid = model.grid(s)
    alike = min(grid) >= size and all(
      one[:3] == other[:3]
      and not (any(one.shift) and any(n % size for n in grid))
      for one, other in (
        (windows_of(grid, size, shifted), windows_of(grid, size, shifted, grid))
        for shifted in (False, model.depths[s] > 1)
      )
    )
    if model.convention != convention and not alike:
      raise ValueError(
        f'{form} has no place for convention={model.convention!r} at '
        f'image_size={model.image_size}: stage {s} has a map of '
        f'{grid[0]}×{grid[1]} tokens, on which windows of {size} differ'
      )


TIMM = Timm(
  names='|'.join(NAMES), read=read_timm, table=timm_table, write=write_timm,
  first=('patch_embed.proj',), heads=('head.fc',), dropped=BUFFERS,
)  # fmt: skip
HUGGINGFACE = HuggingFace(
  architectures=('SwinForImageClassification', 'SwinModel'),
  read=read_huggingface, table=huggingface_table, write=write_huggingface,
  dropped=BUFFERS,
)  # fmt: skip
