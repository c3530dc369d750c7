"""timm's CaiT ↔ ours."""

import math
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from vit_jax import layers
from vit_jax.models.cait import SIZES, CaiT
from vit_jax.pretrained import fields, rows, timm_checks, timm_write
from vit_jax.pretrained.convert import DENSE, SAME, Pair, Row, pairs
from vit_jax.pretrained.family import Arrays, Timm
from vit_jax.pretrained.rows import ATTENTION
from vit_jax.pretrained.timm_tables import BLOCK, OURS

KNOWN = (
  'img_size', 'patch_size', 'in_chans', 'num_classes', 'embed_dim', 'depth',
  'num_heads', 'mlp_ratio', 'qkv_bias', 'init_values', 'depth_token_only',
  'mlp_ratio_token_only',
)  # fmt: skip
FIXED = {'global_pool': tuple(fields.POOLS)}
NAMES = rf'cait_({"|".join(SIZES).lower()})_\d+'
WRITTEN = {  # the name to write a size under
  'XXS24': 'cait_xxs24_224', 'XXS36': 'cait_xxs36_224',
  'XS24': 'cait_xs24_384', 'S24': 'cait_s24_224', 'S36': 'cait_s36_384',
  'M36': 'cait_m36_384', 'M48': 'cait_m48_448',
}  # fmt: skip
CLASS_BLOCK = re.compile(r'blocks_token_only\.(\d{1,9})\.')
EPSILON = 1e-6


def _class_block(model: nn.Module, index: int) -> list[Row]:
  theirs = f'blocks_token_only.{index}.'
  ours = f'class_block_{model.num_layers + index}/'
  names = [f'{theirs}attn.{name}' for name in ('q', 'k', 'v', 'proj')]
  return [
    *rows.norm(f'{theirs}norm1', f'{ours}LayerNorm_0'),
    *rows.attention(
      names, f'{ours}{ATTENTION}', model.num_heads, model.qkv_bias
    ),
    *rows.norm(f'{theirs}norm2', f'{ours}LayerNorm_1'),
    *rows.mlp(f'{theirs}mlp.fc1', f'{theirs}mlp.fc2', ours),
    *rows.scales(f'{theirs}gamma_1', f'{theirs}gamma_2', ours),
  ]


def table(model: nn.Module) -> list[Pair]:
  """Which arrays of timm's are which variables."""
  to = f'{OURS}{ATTENTION}'
  found = [
    ('cls_token', 'cls', SAME),
    ('pos_embed', rows.POSITIONS, SAME),
    *rows.embedding('patch_embed.proj', 'embedding'),
    *rows.timm_block(BLOCK, OURS, model.num_heads, model.qkv_bias),
    *rows.scales(f'{BLOCK}gamma_1', f'{BLOCK}gamma_2', OURS),
    (f'{BLOCK}attn.proj_l.weight', f'{to}/attend/logits_kernel', DENSE),
    (f'{BLOCK}attn.proj_l.bias', f'{to}/attend/logits_bias', SAME),
    (f'{BLOCK}attn.proj_w.weight', f'{to}/attend/weights_kernel', DENSE),
    (f'{BLOCK}attn.proj_w.bias', f'{to}/attend/weights_bias', SAME),
    *rows.norm('norm', 'encoder_norm'),
  ]
  for i in range(model.num_class_layers):
    found += _class_block(model, i)
  if model.num_classes:
    found += rows.dense('head', 'head')
  return pairs(found, i=range(model.num_layers))


def read(
  where: str, architecture: str, args: Mapping[str, Any],
  image_size: tuple[int, int], found: Arrays,
) -> tuple[dict[str, Any], int]:  # fmt: skip
  """Config of a timm folder; see `family.Timm`."""
  timm_checks.check_arguments(where, args, KNOWN, FIXED, fields.RATES)
  size = re.fullmatch(NAMES, architecture.split('.')[0])[1]
  width, depth, count, scale = SIZES[size.upper()]
  said = {
    'embed_dim': width, 'depth': depth, 'num_heads': count, 'patch_size': 16,
    'in_chans': 3, 'qkv_bias': True, 'depth_token_only': 2, 'mlp_ratio': 4.0,
    'mlp_ratio_token_only': 4.0, 'global_pool': 'token', 'init_values': scale,
    **args,
  }  # fmt: skip
  width, channels, side, _ = timm_checks.square(
    where, found, 'patch_embed.proj.weight'
  )
  numbers = {int(m[1]) for n in found if (m := CLASS_BLOCK.match(n))}
  seen = {
    'embed_dim': width, 'depth': timm_checks.count_blocks(where, found),
    'patch_size': side, 'in_chans': channels,
    'num_classes': fields.size_of(where, found, 'head.weight'),
    'qkv_bias': 'blocks.0.attn.qkv.bias' in found,
    'depth_token_only': len(numbers),
  }  # fmt: skip
  timm_checks.check_said(where, said, seen)
  hidden = _hidden(where, found, 'blocks.0', said['mlp_ratio'], width)
  config = {
    'name': 'cait',
    'num_classes': seen['num_classes'],
    'patch_size': side,
    'hidden_size': width,
    'num_layers': seen['depth'],
    'num_heads': fields.divided(where, 'num_heads', said['num_heads'], width),
    'mlp_dim': hidden,
    'num_class_layers': seen['depth_token_only'],
    'image_size': timm_checks.table_size(
      where, timm_checks.shape(where, found, 'pos_embed', 3)[1], image_size,
      side,
    ),
    'classifier': fields.POOLS[said['global_pool']],
    'position_resize': 'bicubic',
    'layer_scale': fields.number(where, 'init_values', said['init_values']),
    'qkv_bias': seen['qkv_bias'],
    'epsilon': EPSILON,
  }  # fmt: skip
  if numbers:
    config['class_mlp_dim'] = _hidden(
      where, found, f'blocks_token_only.{min(numbers)}',
      said['mlp_ratio_token_only'], width,
    )  # fmt: skip
  return config, channels


def _hidden(
  where: str, found: Arrays, block: str, ratio: Any, width: int
) -> int:
  """Hidden units of a block's MLP, which are `ratio` times the width."""
  name = f'{block}.mlp.fc1.weight'
  hidden = timm_checks.shape(where, found, name, 2)[0]
  timm_checks.check_ratio(where, ratio, width, hidden)
  return hidden


def write(model: CaiT) -> tuple[str, dict[str, Any]]:
  """Architecture and model_args of ours; see `family.Timm`."""
  fields.must(
    model, 'timm', gelu=('exact',), epsilon=(EPSILON,),
    attention=(CaiT.attention,),
  )  # fmt: skip
  width = model.hidden_size
  name = min(
    SIZES,
    key=lambda n: (
      abs(math.log(SIZES[n][0] / width)), abs(SIZES[n][1] - model.num_layers)
    ),
  )
  ratio = timm_write.ratio
  args = {
    'img_size': list(layers.pair(model.image_size)),
    'patch_size': model.patch_size,
    'embed_dim': width,
    'depth': model.num_layers,
    'num_heads': model.num_heads,
    'mlp_ratio': ratio(width, model.mlp_dim),
    'qkv_bias': model.qkv_bias,
    'init_values': model.layer_scale,
    'depth_token_only': model.num_class_layers,
    'mlp_ratio_token_only': ratio(width, model.class_mlp_dim or model.mlp_dim),
    'global_pool': fields.POOLED[model.classifier],
  }
  return WRITTEN[name], args


TIMM = Timm(
  names=NAMES, read=read, table=table, write=write,
  first=('patch_embed.proj',),
)  # fmt: skip
