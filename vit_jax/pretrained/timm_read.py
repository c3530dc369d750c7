"""The model of a timm folder, from its config.json and its arrays."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vit_jax.models import resnet
from vit_jax.pretrained import base
from vit_jax.pretrained.fields import depths, size_of
from vit_jax.pretrained.timm_checks import (
  GELUS,
  MIXER,
  POOLS,
  VIT,
  Arrays,
  check_arguments,
  check_ratio,
  check_said,
  count_blocks,
  shape,
  square,
  table_size,
)
from vit_jax.pretrained.timm_names import Defaults

EPSILON = 1e-6  # of timm's LayerNorms; a config.json cannot say another


def vit(
  where: str, known: Defaults, args: Mapping[str, Any],
  image_size: tuple[int, int], found: Arrays,
) -> tuple[dict[str, Any], int]:  # fmt: skip
  """Config of a ViT, a DeiT or a hybrid, and the channels of its images.

  Args:
    where: the folder, for errors.
    known: what the architecture's name means.
    args: what config.json says besides, by timm's names.
    image_size: pixels.
    found: the arrays.

  Raises:
    ValueError: an argument that our model cannot follow, or arrays that are
      not what the config says.
  """
  check_arguments(where, args, VIT)
  said = {**dataclasses.asdict(known), **args}
  width, channels, side, _ = square(where, found, 'patch_embed.proj.weight')
  mlp_dim = shape(where, found, 'blocks.0.mlp.fc1.weight', 2)[0]
  hybrid = {}
  if known.family == 'hybrid':
    hybrid, channels = _hybrid(where, found)
  tokens = {
    'class_token': 'cls_token' in found,
    'distilled': 'dist_token' in found,
    'reg_tokens': size_of(where, found, 'reg_token', 3, axis=1),
  }
  seen = {
    **tokens,
    'resnet': hybrid['resnet'] if hybrid else None,
    'pos_embed': 'pos_embed' in found,
    'embed_dim': width,
    'depth': count_blocks(where, found),
    'patch_size': side,
    'in_chans': channels,
    'num_classes': size_of(where, found, 'head.weight'),
    'qkv_bias': 'blocks.0.attn.qkv.bias' in found,
    'qk_norm': 'blocks.0.attn.q_norm.weight' in found,
    'init_values': 'blocks.0.ls1.gamma' in found,
    'fc_norm': 'fc_norm.weight' in found,
  }
  scale = said['init_values']
  if scale is not None and not isinstance(scale, int | float):
    raise ValueError(f'{where}: init_values={scale!r} must be a number')
  there = {
    'init_values': bool(scale), 'pos_embed': said['pos_embed'] == 'learn'
  }
  check_said(where, {**said, **there}, seen)
  if 'mlp_ratio' in said:
    check_ratio(where, said['mlp_ratio'], width, mlp_dim)
  _check_pool(where, said, seen)
  prefix = sum(tokens.values())
  embedded = 0 if said['no_embed_class'] else prefix
  cells = None
  if seen['pos_embed']:
    cells = shape(where, found, 'pos_embed', 3)[1] - embedded
  stride = side * (resnet.stride(hybrid['resnet']) if hybrid else 1)
  config = {
    'name': 'deit' if known.family == 'deit' else 'vit',
    'num_classes': seen['num_classes'],
    'patch_size': side,
    'hidden_size': width,
    'num_layers': seen['depth'],
    'num_heads': _heads(where, said['num_heads'], width),
    'mlp_dim': mlp_dim,
    'image_size': table_size(where, cells, image_size, stride),
    'classifier': POOLS[said['global_pool']],
    'num_registers': seen['reg_tokens'],
    'position': 'learned' if seen['pos_embed'] else 'none',
    'position_resize': 'bicubic',
    'norm_after_pooling': seen['fc_norm'],
    'layer_scale': (scale or 1e-5) if seen['init_values'] else None,
    'qkv_bias': seen['qkv_bias'],
    'qk_norm': seen['qk_norm'],
    'qk_norm_bias': seen['qk_norm'],
    'gelu': GELUS[said['act_layer'] or 'gelu'],
    'epsilon': EPSILON,
    **hybrid,
  }
  if seen['distilled']:
    config['distilled'] = True
  if seen['class_token'] and said['global_pool'] != 'token':
    if said['global_pool'] == '':
      config['classifier'] = 'token_unpooled'
    else:
      config['class_token'] = True
  pool, whole = said['global_pool'], said['pool_include_prefix']
  # Ours pools all tokens by attention, and the patches by mean, if not told.
  if prefix and pool in ('avg', 'map') and whole is not (pool == 'map'):
    config['pool_prefix'] = whole
  if seen['pos_embed'] and embedded != prefix - seen['reg_tokens']:
    config['prefix_positions'] = embedded
  return config, channels


def mixer(
  where: str, known: Defaults, args: Mapping[str, Any],
  image_size: tuple[int, int], found: Arrays,
) -> tuple[dict[str, Any], int]:  # fmt: skip
  """Config of a Mixer; as `vit`."""
  check_arguments(where, args, MIXER)
  said = {**dataclasses.asdict(known), **args}
  width, channels, side, _ = square(where, found, 'stem.proj.weight')
  hidden = [
    shape(where, found, f'blocks.0.mlp_{part}.fc1.weight', 2)
    for part in ('tokens', 'channels')
  ]
  seen = {
    'in_chans': channels,
    'num_classes': size_of(where, found, 'head.weight'),
    'global_pool': 'avg',
  }  # fmt: skip
  check_said(where, said, seen)
  if 'mlp_ratio' in said:
    ratios = said['mlp_ratio']
    ratios = ratios if isinstance(ratios, list) else [ratios] * 2
    if len(ratios) != 2:
      raise ValueError(f'{where}: mlp_ratio={ratios!r} must be two numbers')
    for ratio, (size, _) in zip(ratios, hidden, strict=True):
      check_ratio(where, ratio, width, size)
  config = {
    'name': 'mixer',
    'num_classes': seen['num_classes'],
    'patch_size': side,
    'hidden_size': width,
    'num_layers': count_blocks(where, found),
    'tokens_mlp_dim': hidden[0][0],
    'channels_mlp_dim': hidden[1][0],
    'image_size': table_size(where, hidden[0][1], image_size, side),
    'gelu': GELUS[said['act_layer'] or 'gelu'],
    'epsilon': EPSILON,
  }
  return config, channels


def _heads(where: str, count: Any, width: int) -> int:
  base.bounded(where, 'num_heads', count, width)
  if width % count:
    raise ValueError(
      f'{where}: {count} heads do not divide the width {width}; model_args '
      'can give num_heads'
    )
  return count


def _check_pool(
  where: str, said: Mapping[str, Any], seen: Mapping[str, Any]
) -> None:
  pool = said['global_pool']
  if pool == 'token' and not seen['class_token']:
    raise ValueError(
      f"{where}: global_pool='token', but there is no array cls_token"
    )
  if seen['distilled'] and (
    pool != 'token' or seen['reg_tokens'] or seen['fc_norm']
    or said['no_embed_class'] or not seen['class_token']
  ):  # fmt: skip
    raise ValueError(
      f'{where}: a distilled DeiT has a class token, its own positions, no '
      "registers, and global_pool='token'"
    )


def _hybrid(
  where: str, found: Arrays
) -> tuple[dict[str, Any], int]:
  """Fields of the ResNet, and the channels of the images."""
  backbone, units = 'patch_embed.backbone.', ()
  stem = f'{backbone}conv.weight'
  if stem not in found:
    stem = f'{backbone}stem.conv.weight'
    pattern = r'patch_embed\.backbone\.stages\.(\d)\.blocks\.(\d{1,9})\.'
    units = tuple(depths(found, pattern))
  width, channels, *_ = shape(where, found, stem, 4)
  fields = {
    'resnet': units, 'resnet_width': width, 'resnet_convention': 'timm',
  }  # fmt: skip
  return fields, channels
