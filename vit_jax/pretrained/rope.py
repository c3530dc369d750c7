"""RoPE-ViT in timm's format, vit_SIZE_patch16_rope[_mixed][_ape]_224.

timm's other rotary models (EVA-02, DINOv3, the Perception Encoder, …_reg1_gap)
are not read: they scale or centre the coordinates, put y before x, or have
keys without biases.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from vit_jax import layers, specs
from vit_jax.models.positions import split_position
from vit_jax.pretrained import base, family, fields, steps, timm_write
from vit_jax.pretrained import timm_tables as tables
from vit_jax.pretrained.convert import Layout, Pair, pairs
from vit_jax.pretrained.rows import ATTENTION
from vit_jax.pretrained.timm_checks import (
  NEEDLESS,
  check_arguments,
  check_ratio,
  check_said,
  count_blocks,
  shape,
  square,
  table_size,
)

# Width and heads of the sizes in the names.
SIZES = {'small': (384, 6), 'base': (768, 12), 'large': (1024, 16)}
# rope_type → our position, and the temperature that is not written.
ROTATIONS = {'cat': ('rotary', 100.0), 'mixed': ('rotary_mixed', 10.0)}

KNOWN = (
  'img_size', 'patch_size', 'in_chans', 'num_classes', 'embed_dim', 'depth',
  'num_heads', 'mlp_ratio', 'qkv_bias', 'qk_norm', 'init_values',
  'class_token', 'num_reg_tokens', 'rope_temperature', 'use_fc_norm',
  'use_post_transformer_norm',
)  # fmt: skip
FREE = (
  *NEEDLESS, 'head_init_scale', 'rope_shift_coords', 'rope_jitter_coords',
  'rope_rescale_coords',
)  # fmt: skip
FIXED = {
  'rope_type': tuple(ROTATIONS),
  'global_pool': tuple(fields.POOLS),
  'no_embed_class': (False, True),
  'use_abs_pos_emb': (False, True),
  'use_rot_pos_emb': (True,),
  'rope_grid_indexing': ('xy',),
  'rope_grid_offset': (0.0,),
  'rope_rotate_half': (False,),
  'ref_feat_shape': (None,),
  'attn_type': ('rope',),
  'num_kv_heads': (None,),
  'qkv_fused': (True,),
  'swiglu_mlp': (False,),
  'scale_mlp': (False,),
  'scale_attn_inner': (False,),
  'attn_only_layer_scale': (False,),
  'use_post_norm': (False,),
  'use_pre_transformer_norm': (False,),
  'use_naflex': (None, False),
}


def read(
  where: str, architecture: str, args: Mapping[str, Any],
  image_size: tuple[int, int], found: family.Arrays,
) -> tuple[dict[str, Any], int]:  # fmt: skip
  """The model's section of a config, and the channels of its images."""
  check_arguments(where, args, KNOWN, FIXED, FREE)
  kind = 'mixed' if '_mixed' in architecture else 'cat'
  with_table = '_ape' in architecture
  said = {
    'num_heads': SIZES[architecture.split('_')[1]][1], 'mlp_ratio': 4,
    'qkv_bias': True, 'qk_norm': False, 'init_values': 1e-5,
    'class_token': True, 'num_reg_tokens': 0, 'global_pool': 'token',
    'rope_type': kind, 'rope_temperature': ROTATIONS[kind][1],
    'use_abs_pos_emb': with_table, 'no_embed_class': with_table,
  }  # fmt: skip
  # None is the default, but for init_values.
  said |= {
    k: v for k, v in args.items() if v is not None or k == 'init_values'
  }
  said = {'use_fc_norm': said['global_pool'] == 'avg', **said}
  said = {'use_post_transformer_norm': not said['use_fc_norm'], **said}
  width, channels, side, _ = square(where, found, 'patch_embed.proj.weight')
  seen = {
    'class_token': 'cls_token' in found,
    'num_reg_tokens': fields.size_of(where, found, 'reg_token', 3, axis=1),
    'rope_type': 'mixed' if 'rope.freqs' in found else 'cat',
    'use_abs_pos_emb': 'pos_embed' in found,
    'embed_dim': width,
    'depth': count_blocks(where, found),
    'patch_size': side,
    'in_chans': channels,
    'num_classes': fields.size_of(where, found, 'head.weight'),
    'qkv_bias': 'blocks.0.attn.qkv.bias' in found,
    'qk_norm': 'blocks.0.attn.q_norm.weight' in found,
    'init_values': 'blocks.0.gamma_1' in found,
    'use_fc_norm': 'fc_norm.weight' in found,
    'use_post_transformer_norm': 'norm.weight' in found,
  }
  scale = said['init_values']
  check_said(where, {**said, 'init_values': scale is not None}, seen)
  if seen['use_fc_norm'] == seen['use_post_transformer_norm']:
    raise ValueError(
      f'{where}: our models have one norm, before or after pooling: an array '
      'norm.weight or fc_norm.weight'
    )
  if scale is not None:
    scale = fields.number(where, 'init_values', scale)
  mlp_dim = shape(where, found, 'blocks.0.mlp.fc1.weight', 2)[0]
  check_ratio(where, said['mlp_ratio'], width, mlp_dim)
  prefix = seen['class_token'] + seen['num_reg_tokens']
  rows = 0 if said['no_embed_class'] else prefix
  cells = None
  if seen['use_abs_pos_emb']:
    cells = shape(where, found, 'pos_embed', 3)[1] - rows
  config = {
    'name': 'rope',
    'num_classes': seen['num_classes'],
    'patch_size': side,
    'hidden_size': width,
    'num_layers': seen['depth'],
    'num_heads': base.bounded(where, 'num_heads', said['num_heads'], width),
    'mlp_dim': mlp_dim,
    'image_size': table_size(where, cells, image_size, side),
    'classifier': fields.POOLS[said['global_pool']],
    'num_registers': seen['num_reg_tokens'],
    'position': _position(where, said, seen['use_abs_pos_emb']),
    'norm_after_pooling': seen['use_fc_norm'],
    'layer_scale': scale,
    'qkv_bias': seen['qkv_bias'],
    'qk_norm': seen['qk_norm'],
    'qk_norm_bias': seen['qk_norm'],
  }
  if seen['class_token'] and config['classifier'] == 'gap':
    config['class_token'] = True
  if seen['use_abs_pos_emb'] and rows:
    config['prefix_positions'] = rows
  return config, channels


def _position(where: str, said: Mapping[str, Any], with_table: bool) -> str:
  name, usual = ROTATIONS[said['rope_type']]
  given = said['rope_temperature']
  if not (steps.number(given) and given > 0):
    raise ValueError(
      f'{where}: rope_temperature={given!r} must be a number above 0'
    )
  options = {} if given == usual else {'base': float(given)}
  return 'learned, ' * with_table + str(specs.Spec(name, options))


def _by_layer(count: int) -> Layout:
  """One array [2 L H P] ↔ one [2 H P] a layer."""

  def read(x):
    if x.ndim != 4 or x.shape[1] != count:
      raise ValueError(f'its second axis is not one of {count} layers')
    return tuple(np.moveaxis(x, 1, 0))

  return Layout(read, lambda *found: (np.stack(found, axis=1),))


def table(model: nn.Module) -> list[Pair]:
  """Which arrays are which variables."""
  position = split_position(model.position)
  around = tables.around(model, position.added == 'learned')
  if specs.parse(position.inside)[0].name == 'rotary_mixed':
    names = tuple(
      f'{tables.OURS.format(i=i)}{ATTENTION}/position/frequencies'
      for i in range(model.num_layers)
    )
    around.append(('rope.freqs', names, _by_layer(model.num_layers)))
  rows = tables.block(model, ('gamma_1', 'gamma_2')) + around
  return pairs(rows, i=range(model.num_layers))


def write(model: nn.Module) -> tuple[str, dict[str, Any]]:
  """The architecture and model_args; a ValueError where timm has none."""
  timm_write.check_rest(model)
  position, kinds = split_position(model.position), {}
  for theirs, (ours, temperature) in ROTATIONS.items():
    kinds[ours] = theirs, temperature
  inside = specs.parse(position.inside)
  fits = len(inside) == 1 and inside[0].name in kinds
  learned = position.added == 'learned'
  if not fits or position.conditional or position.added not in (
    'learned', 'none'
  ):
    raise ValueError(
      f'timm has no place for position={model.position!r} of these models; it '
      f'would have to be {" or ".join(kinds)}, alone or after learned'
    )
  fields.must(
    model, 'timm', classifier=tuple(fields.POOLED), pool_prefix=(None, False),
    resnet=(None,), gelu=('exact',), qk_norm_bias=(model.qk_norm,),
  )  # fmt: skip
  if learned:
    fields.must(model, 'timm', learned_prefix=(0, model.prefix))
  kind, temperature = kinds[inside[0].name]
  options = {'base': temperature, **inside[0].options}
  width = model.hidden_size
  size = min(SIZES, key=lambda s: abs(math.log(SIZES[s][0] / width)))
  name = f'vit_{size}_patch16_rope'
  name += '_mixed' * (kind == 'mixed') + '_ape' * learned + '_224'
  return name, {
    'img_size': list(layers.pair(model.image_size)),
    'patch_size': model.patch_size,
    'embed_dim': width,
    'depth': model.num_layers,
    'num_heads': model.num_heads,
    'mlp_ratio': timm_write.ratio(width, model.mlp_dim),
    'qkv_bias': model.qkv_bias,
    'qk_norm': model.qk_norm,
    'init_values': model.layer_scale,
    'class_token': model.has_class_token,
    'num_reg_tokens': model.num_registers,
    'no_embed_class': learned and model.learned_prefix == 0,
    'use_abs_pos_emb': learned,
    'rope_type': kind,
    'rope_temperature': options['base'],
    'global_pool': fields.POOLED[model.classifier],
    'use_fc_norm': model.norm_after_pooling,
    'use_post_transformer_norm': not model.norm_after_pooling,
    # Other sizes resize the table as timm does, or are not taken.
    'dynamic_img_size': not learned or model.position_resize == 'bicubic',
  }


TIMM = family.Timm(
  names=r'vit_(small|base|large)_patch16_rope(_mixed)?(_ape)?_224',
  read=read, table=table, write=write, first=('patch_embed.proj',),
)  # fmt: skip
