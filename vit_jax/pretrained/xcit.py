"""timm's XCiT, `xcit_*` ↔ ours."""

import math
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from vit_jax.models.xcit import SIZES
from vit_jax.pretrained import base, fields, rows, timm_checks, timm_write
from vit_jax.pretrained.convert import (
  CONV,
  PIXEL,
  SAME,
  Pair,
  Row,
  pairs,
  reshaped,
)
from vit_jax.pretrained.family import Arrays, Timm
from vit_jax.pretrained.rows import ATTENTION
from vit_jax.pretrained.timm_tables import BLOCK, OURS

LETTERS = {
  'nano': 'N', 'tiny': 'T', 'small': 'S', 'medium': 'M', 'large': 'L'
}  # fmt: skip
# 'xcit_small_12' → 'S12'.
NAMES = {
  f'xcit_{word}_{size[1:]}': size
  for word, letter in LETTERS.items() for size in SIZES if size[0] == letter
}  # fmt: skip
PATTERN = rf'({"|".join(NAMES)})_p(8|16)_(224|384)'
KNOWN = (
  'img_size', 'patch_size', 'in_chans', 'num_classes', 'embed_dim', 'depth',
  'num_heads', 'mlp_ratio', 'qkv_bias', 'cls_attn_layers', 'use_pos_embed',
  'eta', 'tokens_norm',
)  # fmt: skip
FIXED = {
  'global_pool': tuple(fields.POOLS), 'act_layer': (None,),
  'norm_layer': (None,), 'tokens_norm': (False, True),
}  # fmt: skip
PATCHES = (8, 16)
STEM = re.compile(r'patch_embed\.proj\.(\d{1,3})\.0\.weight')
CLASS_BLOCK = re.compile(r'cls_attn_blocks\.(\d{1,9})\.')


def read(
  where: str,
  architecture: str,
  args: Mapping[str, Any],
  image_size: tuple[int, int],
  found: Arrays,
) -> tuple[dict[str, Any], int]:
  """See `family.Timm`."""
  timm_checks.check_arguments(where, args, KNOWN, FIXED, fields.RATES)
  name, patch, _ = re.fullmatch(PATTERN, architecture.split('.')[0]).groups()
  width, depth, count, scale, norm = SIZES[NAMES[name]]
  said = {
    'patch_size': int(patch), 'embed_dim': width, 'depth': depth,
    'num_heads': count, 'eta': scale, 'tokens_norm': norm, 'mlp_ratio': 4.0,
    'qkv_bias': True, 'cls_attn_layers': 2, 'use_pos_embed': True,
    'global_pool': 'token', **args,
  }  # fmt: skip
  shape = lambda name, rank=2: timm_checks.shape(where, found, name, rank)  # noqa: E731
  convolutions = sum(bool(STEM.match(n)) for n in found)
  width = shape('cls_token', 3)[2]
  classes = fields.size_of(where, found, 'head.weight')
  seen = {
    'patch_size': 2**convolutions,
    'in_chans': shape('patch_embed.proj.0.0.weight', 4)[1],
    'embed_dim': width,
    'depth': timm_checks.count_blocks(where, found),
    'cls_attn_layers': len(
      {m[1] for n in found if (m := CLASS_BLOCK.match(n))}
    ),
    'num_classes': classes,
    'qkv_bias': 'blocks.0.attn.qkv.bias' in found,
    'use_pos_embed': 'pos_embed.token_projection.weight' in found,
    'num_heads': shape('blocks.0.attn.temperature', 3)[0],
  }
  timm_checks.check_said(where, said, seen)
  if width % base.bounded(where, 'num_heads', seen['num_heads'], width):
    raise ValueError(
      f'{where}: num_heads={seen["num_heads"]} does not divide {width}'
    )
  hidden = shape('blocks.0.mlp.fc1.weight')[0]
  timm_checks.check_ratio(where, said['mlp_ratio'], width, hidden)
  config = {
    'name': 'xcit',
    'num_classes': classes,
    'patch_size': seen['patch_size'],
    'hidden_size': width,
    'num_layers': seen['depth'],
    'num_heads': seen['num_heads'],
    'mlp_dim': hidden,
    'layer_scale': fields.number(where, 'eta', said['eta']),
    'norm_tokens': said['tokens_norm'],
    'num_class_layers': seen['cls_attn_layers'],
    'image_size': fields.short(image_size),
    'classifier': fields.POOLS[said['global_pool']],
    'positions': seen['use_pos_embed'],
    'qkv_bias': seen['qkv_bias'],
  }
  return config, seen['in_chans']


def _branches(theirs: str, ours: str, order: tuple[int, ...]) -> list[Row]:
  """Norms and LayerScale of every branch, by timm's numbers, and the MLP."""
  found = rows.mlp(f'{theirs}mlp.fc1', f'{theirs}mlp.fc2', ours)
  for i, number in enumerate(order):
    found += rows.norm(f'{theirs}norm{number}', f'{ours}LayerNorm_{i}')
    found.append(
      (f'{theirs}gamma{number}', f'{ours}LayerScale_{i}/scale', SAME)
    )
  return found


def table(model: nn.Module) -> list[Pair]:
  """Which arrays of timm's are which variables."""
  count, to = model.num_heads, f'{OURS}{ATTENTION}'
  found = [
    ('cls_token', 'cls', SAME),
    *_branches(BLOCK, OURS, (1, 3, 2)),
    (f'{BLOCK}attn.temperature', f'{to}/attend/temperature',
     reshaped((-1,), (-1, 1, 1))),
    *rows.projected(f'{BLOCK}attn.qkv', to, count, model.qkv_bias),
    *rows.out(f'{BLOCK}attn.proj', to, count),
    *rows.embedding(f'{BLOCK}local_mp.conv1', f'{OURS}Depthwise_0'),
    *rows.batch_norm(f'{BLOCK}local_mp.bn', f'{OURS}BatchNorm_0'),
    *rows.embedding(f'{BLOCK}local_mp.conv2', f'{OURS}Depthwise_1'),
    *rows.norm('norm', 'encoder_norm'),
  ]  # fmt: skip
  if model.positions:
    theirs, ours = 'pos_embed.token_projection', 'position_projection'
    found += [
      (f'{theirs}.weight', f'{ours}/kernel', PIXEL),
      (f'{theirs}.bias', f'{ours}/bias', SAME),
    ]
  for i in range(model.num_class_layers):
    found += _class_block(model, i)
  for i in range(model.patch_size.bit_length() - 1):
    theirs = f'patch_embed.proj.{2 * i}'
    found.append((f'{theirs}.0.weight', f'embedding/conv_{i}/kernel', CONV))
    found += rows.batch_norm(f'{theirs}.1', f'embedding/norm_{i}')
  if model.num_classes:
    found += rows.dense('head', 'head')
  return pairs(found, i=range(model.num_layers))


def _class_block(model: nn.Module, index: int) -> list[Row]:
  theirs = f'cls_attn_blocks.{index}.'
  ours = f'class_block_{model.num_layers + index}/'
  names = [f'{theirs}attn.{name}' for name in ('q', 'k', 'v', 'proj')]
  return _branches(theirs, ours, (1, 2)) + rows.attention(
    names, f'{ours}{ATTENTION}', model.num_heads, model.qkv_bias
  )


def write(model: nn.Module) -> tuple[str, dict[str, Any]]:
  """See `family.Timm`."""
  timm_write.check_rest(model, (
    'num_classes', 'patch_size', 'hidden_size', 'num_layers', 'num_heads',
    'mlp_dim', 'layer_scale', 'norm_tokens', 'num_class_layers', 'image_size',
    'classifier', 'positions', 'qkv_bias',
  ))  # fmt: skip
  if model.patch_size not in PATCHES:
    raise ValueError(
      f'timm has no place for patch_size={model.patch_size} of XCiT; it would '
      f'have to be {" or ".join(map(str, PATCHES))}'
    )
  width = model.hidden_size
  name = min(
    NAMES,
    key=lambda n: (
      abs(math.log(SIZES[NAMES[n]][0] / width)),
      abs(SIZES[NAMES[n]][1] - model.num_layers),
    ),
  )
  return f'{name}_p{model.patch_size}_224', {
    'patch_size': model.patch_size,
    'embed_dim': width,
    'depth': model.num_layers,
    'num_heads': model.num_heads,
    'mlp_ratio': timm_write.ratio(width, model.mlp_dim),
    'qkv_bias': model.qkv_bias,
    'cls_attn_layers': model.num_class_layers,
    'use_pos_embed': model.positions,
    'eta': model.layer_scale,
    'tokens_norm': model.norm_tokens,
    'global_pool': fields.POOLED[model.classifier],
  }


TIMM = Timm(
  names=PATTERN, read=read, table=table, write=write,
  first=('patch_embed.proj.0.0',), any_size=True,
)  # fmt: skip
