"""MViTv2 of timm, `mvitv2_*`: sizes come from the arrays.

timm's names stand for one architecture each, and its arguments change nothing
but the size of the images, a square whose sides are multiples of 32. Images of
another size than that resize the tables of relative positions in our model, as
timm does when it loads weights; in a timm model their places are wrong.
"""

import itertools
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from vit_jax import layers
from vit_jax.models.mvit import MViT
from vit_jax.pretrained import timm_checks, timm_write
from vit_jax.pretrained.convert import (
  CONV,
  SAME,
  Pair,
  Row,
  fused,
  heads,
  heads_bias,
  heads_out,
  pairs,
)
from vit_jax.pretrained.family import Arrays, Timm
from vit_jax.pretrained.timm_tables import PARTS, dense, embedding, norm

# timm's names, and our variants.
NAMES = {
  'mvitv2_tiny': 'T',
  'mvitv2_small': 'S',
  'mvitv2_base': 'B',
  'mvitv2_small_cls': 'S-cls',
  'mvitv2_base_cls': 'B-cls',
}
KNOWN = ('img_size', 'in_chans', 'num_classes', 'global_pool')
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
  block = re.compile(r'stages\.(\d{1,9})\.blocks\.(\d{1,9})\.')
  numbers = sorted(
    {tuple(map(int, m.groups())) for n in found if (m := block.match(n))}
  )
  depths = [
    len(list(stage)) for _, stage in itertools.groupby(numbers, lambda n: n[0])
  ]
  if not depths or numbers != [
    (s, j) for s, depth in enumerate(depths) for j in range(depth)
  ]:
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
  classes = shape('head.fc.weight')[0] if 'head.fc.weight' in found else 0
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
  rows = [
    *embedding('patch_embed.proj', 'embedding'), *norm('norm', 'encoder_norm')
  ]  # fmt: skip
  if model.class_token:
    rows.append(('cls_token', 'cls', SAME))
  if model.num_classes:
    rows += dense('head.fc', 'head')
  out = pairs(rows)
  before = model.hidden_sizes[0]
  for s, depth in enumerate(model.depths):
    out += pairs(_block(model, s), j=range(depth))
    if model.hidden_sizes[s] != before:
      theirs, ours = f'stages.{s}.blocks.0.', f'stage_{s}/block_0/'
      out += pairs(dense(f'{theirs}shortcut_proj_attn', f'{ours}skip'))
    before = model.hidden_sizes[s]
  return out


def _block(model: nn.Module, stage: int) -> list[Row]:
  theirs, ours = f'stages.{stage}.blocks.{{j}}.', f'stage_{stage}/block_{{j}}/'
  h, to = model.num_heads[stage], f'{ours}MultiHeadDotProductAttention_0/'
  rows = [
    *norm(f'{theirs}norm1', f'{ours}LayerNorm_0'),
    (
      f'{theirs}attn.qkv.weight', tuple(f'{to}{p}/kernel' for p in PARTS),
      fused(heads(h)),
    ),
    (f'{theirs}attn.proj.weight', f'{to}out/kernel', heads_out(h)),
    (f'{theirs}attn.proj.bias', f'{to}out/bias', SAME),
    (f'{theirs}attn.rel_pos_h', f'{to}position/row', SAME),
    (f'{theirs}attn.rel_pos_w', f'{to}position/column', SAME),
    *norm(f'{theirs}norm2', f'{ours}LayerNorm_1'),
    *dense(f'{theirs}mlp.fc1', f'{ours}MlpBlock_0/Dense_0'),
    *dense(f'{theirs}mlp.fc2', f'{ours}MlpBlock_0/Dense_1'),
    (
      f'{theirs}attn.qkv.bias', tuple(f'{to}{p}/bias' for p in PARTS),
      fused(heads_bias(h)),
    ),
  ]  # fmt: skip
  for part in PARTS:
    pool = f'{to}{part}_pool/'
    rows += [
      (f'{theirs}attn.pool_{part[0]}.weight', f'{pool}kernel', CONV),
      *norm(f'{theirs}attn.norm_{part[0]}', f'{pool}LayerNorm_0'),
    ]
  return rows


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
