"""timm's CaiT ↔ ours."""

import math
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from vit_jax import layers
from vit_jax.models.cait import SIZES, CaiT
from vit_jax.pretrained import base, timm_checks, timm_tables, timm_write
from vit_jax.pretrained.convert import (
  DENSE,
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

KNOWN = (
  'img_size', 'patch_size', 'in_chans', 'num_classes', 'embed_dim', 'depth',
  'num_heads', 'mlp_ratio', 'qkv_bias', 'init_values', 'depth_token_only',
  'mlp_ratio_token_only',
)  # fmt: skip
NEEDLESS = (
  'drop_rate', 'pos_drop_rate', 'proj_drop_rate', 'attn_drop_rate',
  'drop_path_rate',
)  # fmt: skip
POOLS = {'token': 'token', 'avg': 'gap'}
FIXED = {'global_pool': tuple(POOLS)}
NAMES = rf'cait_({"|".join(SIZES).lower()})_\d+'
WRITTEN = {  # the name to write a size under
  'XXS24': 'cait_xxs24_224', 'XXS36': 'cait_xxs36_224',
  'XS24': 'cait_xs24_384', 'S24': 'cait_s24_224', 'S36': 'cait_s36_384',
  'M36': 'cait_m36_384', 'M48': 'cait_m48_448',
}  # fmt: skip
CLASS_BLOCK = re.compile(r'blocks_token_only\.(\d{1,9})\.')
OURS = 'Transformer/encoderblock_{i}/'
ATTENTION = 'MultiHeadDotProductAttention_0/'
EPSILON = 1e-6


def _mlp(theirs: str, ours: str) -> list[Row]:
  """Norms, LayerScale and MLP, which all blocks have."""
  return [
    *timm_tables.norm(f'{theirs}norm1', f'{ours}LayerNorm_0'),
    *timm_tables.norm(f'{theirs}norm2', f'{ours}LayerNorm_1'),
    *timm_tables.dense(f'{theirs}mlp.fc1', f'{ours}MlpBlock_0/Dense_0'),
    *timm_tables.dense(f'{theirs}mlp.fc2', f'{ours}MlpBlock_0/Dense_1'),
    (f'{theirs}gamma_1', f'{ours}LayerScale_0/scale', SAME),
    (f'{theirs}gamma_2', f'{ours}LayerScale_1/scale', SAME),
  ]


def _class_block(model: nn.Module, index: int) -> list[Row]:
  theirs = f'blocks_token_only.{index}.'
  ours = f'class_block_{model.num_layers + index}/'
  h, at = model.num_heads, f'{ours}{ATTENTION}'
  rows = _mlp(theirs, ours)
  for name, part in (('q', 'query'), ('k', 'key'), ('v', 'value')):
    rows.append((f'{theirs}attn.{name}.weight', f'{at}{part}/kernel', heads(h)))
    if model.qkv_bias:
      bias = f'{theirs}attn.{name}.bias'
      rows.append((bias, f'{at}{part}/bias', heads_bias(h)))
  return [*rows, *projection(f'{theirs}attn.proj', f'{at}out', h)]


def projection(theirs: str, ours: str, h: int) -> list[Row]:
  """Rows of an attention's last projection, from `h` heads."""
  return [
    (f'{theirs}.weight', f'{ours}/kernel', heads_out(h)),
    (f'{theirs}.bias', f'{ours}/bias', SAME),
  ]


def table(model: nn.Module) -> list[Pair]:
  """Which arrays of timm's are which variables."""
  theirs, h, at = 'blocks.{i}.', model.num_heads, f'{OURS}{ATTENTION}'
  parts = ('query', 'key', 'value')
  rows = [
    ('cls_token', 'cls', SAME),
    ('pos_embed', 'Transformer/posembed_input/pos_embedding', SAME),
    *timm_tables.embedding('patch_embed.proj', 'embedding'),
    *_mlp(theirs, OURS),
    (
      f'{theirs}attn.qkv.weight',
      tuple(f'{at}{part}/kernel' for part in parts),
      fused(heads(h)),
    ),
    *projection(f'{theirs}attn.proj', f'{at}out', h),
    (f'{theirs}attn.proj_l.weight', f'{at}attend/logits_kernel', DENSE),
    (f'{theirs}attn.proj_l.bias', f'{at}attend/logits_bias', SAME),
    (f'{theirs}attn.proj_w.weight', f'{at}attend/weights_kernel', DENSE),
    (f'{theirs}attn.proj_w.bias', f'{at}attend/weights_bias', SAME),
    *timm_tables.norm('norm', 'encoder_norm'),
  ]
  if model.qkv_bias:
    ours = tuple(f'{at}{part}/bias' for part in parts)
    rows.append((f'{theirs}attn.qkv.bias', ours, fused(heads_bias(h))))
  for i in range(model.num_class_layers):
    rows += _class_block(model, i)
  if model.num_classes:
    rows += timm_tables.dense('head', 'head')
  return pairs(rows, i=range(model.num_layers))


def read(
  where: str, architecture: str, args: Mapping[str, Any],
  image_size: tuple[int, int], found: Arrays,
) -> tuple[dict[str, Any], int]:  # fmt: skip
  """Config of a timm folder; see `family.Timm`."""
  timm_checks.check_arguments(where, args, KNOWN, FIXED, NEEDLESS)
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
    'num_classes': classes(where, found),
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
    'num_heads': divided(where, 'num_heads', said['num_heads'], width),
    'mlp_dim': hidden,
    'num_class_layers': seen['depth_token_only'],
    'image_size': timm_checks.table_size(
      where, timm_checks.shape(where, found, 'pos_embed', 3)[1], image_size,
      side,
    ),
    'classifier': POOLS[said['global_pool']],
    'position_resize': 'bicubic',
    'layer_scale': _scale(where, said['init_values']),
    'qkv_bias': seen['qkv_bias'],
    'epsilon': EPSILON,
  }  # fmt: skip
  if numbers:
    config['class_mlp_dim'] = _hidden(
      where, found, f'blocks_token_only.{min(numbers)}',
      said['mlp_ratio_token_only'], width,
    )  # fmt: skip
  return config, channels


def classes(where: str, found: Arrays) -> int:
  """Rows of the head; 0 without one."""
  if 'head.weight' not in found:
    return 0
  return timm_checks.shape(where, found, 'head.weight', 2)[0]


def divided(where: str, name: str, count: Any, width: int) -> int:
  """The number of heads; a ValueError unless it divides the width."""
  base.bounded(where, name, count, width)
  if width % count:
    raise ValueError(
      f'{where}: {name}={count} does not divide the width {width}; model_args '
      f'can give {name}'
    )
  return count


def _hidden(
  where: str, found: Arrays, block: str, ratio: Any, width: int
) -> int:
  """Hidden units of a block's MLP, which are `ratio` times the width."""
  name = f'{block}.mlp.fc1.weight'
  hidden = timm_checks.shape(where, found, name, 2)[0]
  timm_checks.check_ratio(where, ratio, width, hidden)
  return hidden


def _scale(where: str, value: Any) -> float:
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise ValueError(f'{where}: init_values={value!r} must be a number')
  return float(value)


def refuse(model: nn.Module, rows: Mapping[str, tuple[Any, ...]]) -> None:
  """Raises a ValueError on a field that timm's model has no place for."""
  for name, choices in rows.items():
    if getattr(model, name) not in choices:
      raise ValueError(
        f'timm has no place for {name}={getattr(model, name)!r} of a '
        f'{type(model).__name__}; it would have to be '
        f'{" or ".join(map(repr, choices))}'
      )


def write(model: CaiT) -> tuple[str, dict[str, Any]]:
  """Architecture and model_args of ours; see `family.Timm`."""
  refuse(model, {
    'gelu': ('exact',), 'epsilon': (EPSILON,),
    'attention': (CaiT.attention,),
  })  # fmt: skip
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
    'global_pool': {ours: pool for pool, ours in POOLS.items()}[
      model.classifier
    ],
  }
  return WRITTEN[name], args


TIMM = Timm(
  names=NAMES, read=read, table=table, write=write,
  first=('patch_embed.proj',),
)  # fmt: skip
