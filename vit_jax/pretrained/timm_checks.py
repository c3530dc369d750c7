"""Checks of a timm folder: its arguments, and the shapes of its arrays."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vit_jax import specs
from vit_jax.pretrained import base

Arrays = Mapping[str, np.ndarray]

BLOCKS, SIDE = 1000, 1 << 14  # more blocks, or pixels a side, nobody has
GELUS = {'gelu': 'exact', 'gelu_tanh': 'tanh'}
POOLS = {'token': 'token', 'avg': 'gap', 'map': 'map', '': 'unpooled'}

# Arguments that are read; most of them only repeat what the arrays show.
VIT = (
  'img_size', 'patch_size', 'in_chans', 'num_classes', 'embed_dim', 'depth',
  'num_heads', 'mlp_ratio', 'qkv_bias', 'qk_norm', 'init_values',
  'class_token', 'reg_tokens', 'fc_norm',
)  # fmt: skip
MIXER = ('img_size', 'in_chans', 'num_classes', 'mlp_ratio')
# How training begins, what it drops (timm does not save that either), and what
# sizes timm lets in: ours takes them all.
NEEDLESS = (
  'weight_init', 'fix_init', 'nlhb', 'drop_rate', 'pos_drop_rate',
  'patch_drop_rate', 'proj_drop_rate', 'attn_drop_rate', 'drop_path_rate',
  'dynamic_img_size', 'dynamic_img_pad', 'strict_img_size',
)  # fmt: skip
# Arguments with the only values that our models can be.
FIXED = {
  'pre_norm': (False,),
  'final_norm': (True,),
  'proj_bias': (True,),
  'scale_attn_norm': (False,),
  'scale_mlp_norm': (False,),
  'stem_norm': (False,),
  'use_naflex': (None, False),
  'attn_layer': ('', 'attn'),
  'norm_layer': (None, '', 'layernorm', 'layernormfp32'),
  'embed_norm_layer': (None, ''),
  'pos_embed': ('learn', 'none', ''),
  'act_layer': (None, *GELUS),
  'global_pool': tuple(POOLS),
  'no_embed_class': (False, True),
  'pool_include_prefix': (False, True),
}  # fmt: skip


def check_arguments(
  where: str,
  args: Mapping[str, Any],
  known: Iterable[str],
  fixed: Mapping[str, tuple[Any, ...]] = FIXED,
  needless: Iterable[str] = NEEDLESS,
) -> None:
  """Raises a ValueError on an argument that our model cannot follow."""
  for key, value in args.items():
    if key in fixed:
      if not any(value is v or value == v for v in fixed[key]):
        raise ValueError(
          f'{where}: {key}={value!r} in model_args is no model of ours; it '
          f'may be {", ".join(map(repr, fixed[key]))}'
        )
    elif key not in (*known, *needless):
      raise ValueError(
        f'{where}: {key}={value!r} in model_args is not known; '
        f'{specs.nearest(key, (*known, *needless, *fixed))}'
      )


def check_said(
  where: str, said: Mapping[str, Any], seen: Mapping[str, Any]
) -> None:
  """Raises a ValueError where config.json and the arrays disagree."""
  for key, value in seen.items():
    # None stands for "as the arrays are"; sizes may be given twice.
    if key in said and said[key] not in (None, value, [value, value]):
      raise ValueError(
        f'{where}: by its architecture and model_args {key} is '
        f'{said[key]!r}, by its arrays {value!r}; if the arrays are right, '
        'model_args must say so'
      )


def check_ratio(where: str, ratio: Any, width: int, hidden: int) -> None:
  """Raises a ValueError if `hidden` is not an mlp_ratio times `width`."""
  number = isinstance(ratio, int | float) and not isinstance(ratio, bool)
  if not number or not math.isfinite(ratio) or int(ratio * width) != hidden:
    raise ValueError(
      f'{where}: mlp_ratio={ratio!r} of a width of {width}, but the arrays '
      f'have {hidden} hidden channels'
    )


def shape(
  where: str, found: Arrays, name: str, rank: int
) -> tuple[int, ...]:
  """The shape of an array; a ValueError if there is none of that rank."""
  if name not in found:
    raise ValueError(
      f'{where} has no array {name!r}; {specs.nearest(name, list(found)[:9])}'
    )
  if found[name].ndim != rank or not found[name].size:
    raise ValueError(
      f'{where}: {name} has the shape {found[name].shape}; it should have '
      f'{rank} axes'
    )
  return found[name].shape


def square(where: str, found: Arrays, name: str) -> tuple[int, ...]:
  """The shape of a convolution's kernel; a ValueError if it is not square."""
  out = shape(where, found, name, 4)
  if out[2] != out[3]:
    raise ValueError(
      f'{where}: {name} has patches of {out[2]}×{out[3]} pixels; ours are '
      'square'
    )
  return out


def count_blocks(where: str, found: Arrays) -> int:
  """How many blocks the arrays have; a ValueError if one is missing."""
  numbers = {
    int(m[1]) for n in found if (m := re.match(r'blocks\.(\d{1,9})\.', n))
  }
  if not numbers or max(numbers) + 1 != len(numbers):
    raise ValueError(
      f'{where}: of its blocks, numbered 0 to {max(numbers, default=0)}, '
      f'there are {len(numbers)}'
    )
  return base.bounded(where, 'depth', len(numbers), BLOCKS)


def pixels(where: str, value: Any) -> tuple[int, int]:
  """(height, width) of an img_size: a number or two."""
  sides = value if isinstance(value, list) else [value] * 2
  if len(sides) != 2:
    raise ValueError(f'{where}: img_size={value!r} must be a number or two')
  height, width = (base.bounded(where, 'img_size', s, SIDE) for s in sides)
  return height, width


def table_size(
  where: str, cells: int | None, image_size: tuple[int, int], stride: int
) -> int | tuple[int, int]:
  """The image size that a table of positions belongs to.

  It is `image_size` if that many cells are its grid, or if there is no table
  (None); else the table is a square that timm resizes when it loads it, and
  our model when it is applied.

  Raises:
    ValueError: neither.
  """
  height, width = image_size
  if height % stride or width % stride:
    raise ValueError(
      f'{where}: images of {height}×{width} pixels; ours must be a multiple '
      f'of {stride}, the pixels a token stands for'
    )
  if cells in (None, (height // stride) * (width // stride)):
    return height if height == width else (height, width)
  side = math.isqrt(max(cells, 0))
  if not side or side * side != cells:
    raise ValueError(
      f'{where}: its arrays are for {cells} patches; images of '
      f'{height}×{width} pixels have {height // stride}×{width // stride}'
    )
  return side * stride
