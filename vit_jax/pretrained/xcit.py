"""timm's XCiT, `xcit_*` ↔ ours."""

import math
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from vit_jax.models.xcit import SIZES
from vit_jax.pretrained import base, timm_checks, timm_tables, timm_write
from vit_jax.pretrained.convert import (
  CONV,
  SAME,
  Layout,
  Pair,
  Row,
  fused,
  heads,
  heads_bias,
  heads_out,
  pairs,
  reshaped,
)
from vit_jax.pretrained.family import Arrays, Timm

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
NEEDLESS = (
  'drop_rate', 'pos_drop_rate', 'proj_drop_rate', 'attn_drop_rate',
  'drop_path_rate',
)  # fmt: skip
POOLS = {'token': 'token', 'avg': 'gap'}
FIXED = {
  'global_pool': tuple(POOLS), 'act_layer': (None,), 'norm_layer': (None,),
  'tokens_norm': (False, True),
}  # fmt: skip
PATCHES = (8, 16)
STEM = re.compile(r'patch_embed\.proj\.(\d{1,3})\.0\.weight')
CLASS_BLOCK = re.compile(r'cls_attn_blocks\.(\d{1,9})\.')
BLOCK, OURS = 'blocks.{i}.', 'Transformer/encoderblock_{i}/'
ATTENTION = 'MultiHeadDotProductAttention_0/'
# PyTorch's convolution 1×1, [out in 1 1] ↔ Dense [in out].
POINTWISE = Layout(
  lambda x: (CONV.read(x)[0].reshape(x.shape[1], -1),),
  lambda x: (x.T[:, :, None, None],),
)


def read(
  where: str,
  architecture: str,
  args: Mapping[str, Any],
  image_size: tuple[int, int],
  found: Arrays,
) -> tuple[dict[str, Any], int]:
  """See `family.Timm`."""
  timm_checks.check_arguments(where, args, KNOWN, FIXED, NEEDLESS)
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
  classes = shape('head.weight')[0] if 'head.weight' in found else 0
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
  scale = said['eta']
  if isinstance(scale, bool) or not isinstance(scale, int | float):
    raise ValueError(f'{where}: eta={scale!r} must be a number')
  height, across = image_size
  config = {
    'name': 'xcit',
    'num_classes': classes,
    'patch_size': seen['patch_size'],
    'hidden_size': width,
    'num_layers': seen['depth'],
    'num_heads': seen['num_heads'],
    'mlp_dim': hidden,
    'layer_scale': float(scale),
    'norm_tokens': said['tokens_norm'],
    'num_class_layers': seen['cls_attn_layers'],
    'image_size': height if height == across else image_size,
    'classifier': POOLS[said['global_pool']],
    'positions': seen['use_pos_embed'],
    'qkv_bias': seen['qkv_bias'],
  }
  return config, seen['in_chans']


def _batch_norm(theirs: str, ours: str) -> list[Row]:
  return [
    *timm_tables.norm(theirs, ours),
    (f'{theirs}.running_mean', f'batch_stats/{ours}/mean', SAME),
    (f'{theirs}.running_var', f'batch_stats/{ours}/var', SAME),
  ]


def _norms_and_mlp(theirs: str, ours: str, order: tuple[int, ...]) -> list[Row]:
  """Norms and LayerScale of every branch, by timm's numbers, and the MLP."""
  rows = [
    *timm_tables.dense(f'{theirs}mlp.fc1', f'{ours}MlpBlock_0/Dense_0'),
    *timm_tables.dense(f'{theirs}mlp.fc2', f'{ours}MlpBlock_0/Dense_1'),
  ]
  for i, number in enumerate(order):
    rows += timm_tables.norm(f'{theirs}norm{number}', f'{ours}LayerNorm_{i}')
    rows.append((f'{theirs}gamma{number}', f'{ours}LayerScale_{i}/scale', SAME))
  return rows


def table(model: nn.Module) -> list[Pair]:
  """Which arrays of timm's are which variables."""
  h, to = model.num_heads, f'{OURS}{ATTENTION}'
  parts = timm_tables.PARTS
  rows = [
    ('cls_token', 'cls', SAME),
    *_norms_and_mlp(BLOCK, OURS, (1, 3, 2)),
    (f'{BLOCK}attn.temperature', f'{to}attend/temperature',
     reshaped((-1,), (-1, 1, 1))),
    (f'{BLOCK}attn.qkv.weight', tuple(f'{to}{p}/kernel' for p in parts),
     fused(heads(h))),
    (f'{BLOCK}attn.proj.weight', f'{to}out/kernel', heads_out(h)),
    (f'{BLOCK}attn.proj.bias', f'{to}out/bias', SAME),
    *timm_tables.embedding(f'{BLOCK}local_mp.conv1', f'{OURS}Depthwise_0'),
    *_batch_norm(f'{BLOCK}local_mp.bn', f'{OURS}BatchNorm_0'),
    *timm_tables.embedding(f'{BLOCK}local_mp.conv2', f'{OURS}Depthwise_1'),
    *timm_tables.norm('norm', 'encoder_norm'),
  ]  # fmt: skip
  if model.qkv_bias:
    ours = tuple(f'{to}{p}/bias' for p in parts)
    rows.append((f'{BLOCK}attn.qkv.bias', ours, fused(heads_bias(h))))
  if model.positions:
    theirs, ours = 'pos_embed.token_projection', 'position_projection'
    rows += [
      (f'{theirs}.weight', f'{ours}/kernel', POINTWISE),
      (f'{theirs}.bias', f'{ours}/bias', SAME),
    ]
  for i in range(model.num_class_layers):
    rows += _class_block(model, i)
  for i in range(model.patch_size.bit_length() - 1):
    theirs = f'patch_embed.proj.{2 * i}'
    rows.append((f'{theirs}.0.weight', f'embedding/conv_{i}/kernel', CONV))
    rows += _batch_norm(f'{theirs}.1', f'embedding/norm_{i}')
  if model.num_classes:
    rows += timm_tables.dense('head', 'head')
  return pairs(rows, i=range(model.num_layers))


def _class_block(model: nn.Module, index: int) -> list[Row]:
  theirs = f'cls_attn_blocks.{index}.'
  ours = f'class_block_{model.num_layers + index}/'
  h, to = model.num_heads, f'{ours}{ATTENTION}'
  rows = _norms_and_mlp(theirs, ours, (1, 2))
  for part in timm_tables.PARTS:
    name = f'{theirs}attn.{part[0]}'
    rows.append((f'{name}.weight', f'{to}{part}/kernel', heads(h)))
    if model.qkv_bias:
      rows.append((f'{name}.bias', f'{to}{part}/bias', heads_bias(h)))
  return [
    *rows, (f'{theirs}attn.proj.weight', f'{to}out/kernel', heads_out(h)),
    (f'{theirs}attn.proj.bias', f'{to}out/bias', SAME),
  ]  # fmt: skip


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
  width, pools = model.hidden_size, {v: k for k, v in POOLS.items()}
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
    'global_pool': pools[model.classifier],
  }


TIMM = Timm(
  names=PATTERN, read=read, table=table, write=write,
  first=('patch_embed.proj.0.0',), any_size=True,
)  # fmt: skip
