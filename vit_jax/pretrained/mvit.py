"""MViTv2 of timm, `mvitv2_*`: sizes come from the arrays.

timm's names stand for one architecture each, and its arguments change nothing
but the size of the images, a square whose sides are multiples of 32. Images of
another size than that resize the tables of relative positions in our model, as
timm does when it loads weights; in a timm model their places are wrong.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from vit_jax import layers
from vit_jax.models.mvit import MViT
from vit_jax.pretrained import fields, rows, timm_checks, timm_write
from vit_jax.pretrained.convert import CONV, SAME, Pair, Row, pairs
from vit_jax.pretrained.family import Arrays, Timm

# timm's names, and our variants.
NAMES = {
  'mvitv2_tiny': 'T',
  'mvitv2_small': 'S',
  'mvitv2_base': 'B',
  'mvitv2_small_cls': 'S-cls',
  'mvitv2_base_cls': 'B-cls',
}
KNOWN = ('img_size', 'in_chans', 'num_classes', 'global_pool')
BLOCK = r'stages\.(\d{1,9})\.blocks\.(\d{1,9})\.'
STEP = 32  # of the sides of timm's images


def read(
  where: str,
  architecture: str,
  args: Mapping[str, Any],
  image_size: tuple[int, int],
  found: Arrays,
) -> tuple[dict[str, Any], int]:
  """See `family.Timm`."""
  timm_checks.check_arguments(where, args, KNOWN, {})
  _check_size(where, image_size)
  shape = lambda name, rank=2: timm_checks.shape(where, found, name, rank)  # noqa: E731
  depths = fields.depths(found, BLOCK)
  there = {m[0] for n in found if (m := re.match(BLOCK, n))}
  if not depths or 0 in depths or there != {
    f'stages.{s}.blocks.{j}.' for s, depth in enumerate(depths)
    for j in range(depth)
  }:  # fmt: skip
    raise ValueError(f'{where}: of its stages and blocks some are missing')
  first = [f'stages.{s}.blocks.0.' for s in range(len(depths))]
  widths = [shape(f'{name}attn.proj.weight')[0] for name in first]
  head = shape(f'{first[0]}attn.norm_q.weight', 1)[0]
  for width in widths:
    if width % head:
      raise ValueError(
        f'{where}: heads of {head} channels do not divide the width {width}'
      )
  tokens = 'cls_token' in found
  if tokens is not architecture.split('.')[0].endswith('_cls'):
    raise ValueError(
      f'{where}: the array cls_token {"is" if tokens else "is not"} there; '
      f'architecture={architecture!r} says otherwise'
    )
  pool = 'token' if tokens else 'avg'
  channels = shape('patch_embed.proj.weight', 4)[1]
  classes = fields.size_of(where, found, 'head.fc.weight')
  timm_checks.check_said(where, args, {
    'in_chans': channels, 'num_classes': classes, 'global_pool': pool,
  })  # fmt: skip
  hidden = shape(f'{first[0]}mlp.fc1.weight')[0]
  config = {
    'name': 'mvit',
    'num_classes': classes,
    'depths': tuple(depths),
    'hidden_sizes': tuple(widths),
    'num_heads': tuple(width // head for width in widths),
    'mlp_ratio': timm_write.ratio(widths[0], hidden),
    'image_size': image_size[0],
    'class_token': tokens,
  }
  return config, channels


def _check_size(where: str, size: tuple[int, int]) -> None:
  if size[0] != size[1] or size[0] % STEP:
    raise ValueError(
      f'{where}: image_size={size}; in timm the images of these models are '
      f'squares, and their sides multiples of {STEP}'
    )


def table(model: nn.Module) -> list[Pair]:
  """Which arrays of a timm file are which variables."""
  around = [
    *rows.embedding('patch_embed.proj', 'embedding'),
    *rows.norm('norm', 'encoder_norm'),
  ]
  if model.class_token:
    around.append(('cls_token', 'cls', SAME))
  if model.num_classes:
    around += rows.dense('head.fc', 'head')
  out = pairs(around)
  before = model.hidden_sizes[0]
  for s, depth in enumerate(model.depths):
    out += pairs(_block(model, s), j=range(depth))
    if model.hidden_sizes[s] != before:
      theirs, ours = f'stages.{s}.blocks.0.', f'stage_{s}/block_0/'
      out += pairs(rows.dense(f'{theirs}shortcut_proj_attn', f'{ours}skip'))
    before = model.hidden_sizes[s]
  return out


def _block(model: nn.Module, stage: int) -> list[Row]:
  theirs, ours = f'stages.{stage}.blocks.{{j}}.', f'stage_{stage}/block_{{j}}/'
  to = f'{ours}{rows.ATTENTION}/'
  found = [
    *rows.timm_block(theirs, ours, model.num_heads[stage], True),
    (f'{theirs}attn.rel_pos_h', f'{to}position/row', SAME),
    (f'{theirs}attn.rel_pos_w', f'{to}position/column', SAME),
  ]
  for part in rows.PARTS:
    pool = f'{to}{part}_pool/'
    found += [
      (f'{theirs}attn.pool_{part[0]}.weight', f'{pool}kernel', CONV),
      *rows.norm(f'{theirs}attn.norm_{part[0]}', f'{pool}LayerNorm_0'),
    ]
  return found


def write(model: nn.Module) -> tuple[str, dict[str, Any]]:
  """See `family.Timm`."""
  sizes = ('depths', 'hidden_sizes', 'num_heads', 'class_token')
  timm_write.check_rest(model, (*sizes, 'num_classes', 'image_size'))
  size = layers.pair(model.image_size)
  _check_size('our model', size)
  row = {key: getattr(model, key) for key in sizes}
  for name, variant in NAMES.items():
    if MViT.VARIANTS[variant] == row:
      return name, {'img_size': list(size)}
  raise ValueError(
    f'timm has no MViTv2 with {row}; its sizes: '
    f'{", ".join(f"{name} ({v})" for name, v in NAMES.items())}'
  )


TIMM = Timm(
  names='|'.join(NAMES), read=read, table=table, write=write,
  first=('patch_embed.proj',), heads=('head.fc',),
)
