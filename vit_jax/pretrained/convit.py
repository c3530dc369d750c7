"""timm's ConViT, `convit_*` ↔ ours.

timm counts offsets in a square of patches, and takes no other images.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from vit_jax import layers
from vit_jax.models.convit import HEAD_WIDTH, SIZES, ConViT
from vit_jax.pretrained import base, fields, rows, timm_checks, timm_write
from vit_jax.pretrained.convert import SAME, Pair, pairs
from vit_jax.pretrained.family import Arrays, Timm
from vit_jax.pretrained.rows import ATTENTION
from vit_jax.pretrained.timm_tables import BLOCK, OURS

NAMES = {
  'convit_tiny': 'Ti/16', 'convit_small': 'S/16', 'convit_base': 'B/16'
}  # fmt: skip
KNOWN = (
  'img_size', 'patch_size', 'in_chans', 'num_classes', 'embed_dim', 'depth',
  'num_heads', 'mlp_ratio', 'qkv_bias', 'local_up_to_layer', 'use_pos_embed',
)  # fmt: skip
NEEDLESS = (*fields.RATES, 'locality_strength')  # how training begins
FIXED = {'global_pool': tuple(fields.POOLS), 'hybrid_backbone': (None,)}
LOCAL = re.compile(r'blocks\.(\d{1,9})\.attn\.gating_param')


def read(
  where: str,
  architecture: str,
  args: Mapping[str, Any],
  image_size: tuple[int, int],
  found: Arrays,
) -> tuple[dict[str, Any], int]:
  """See `family.Timm`."""
  timm_checks.check_arguments(where, args, KNOWN, FIXED, NEEDLESS)
  _check_square(where, image_size)
  said = {
    'patch_size': 16, 'embed_dim': HEAD_WIDTH, 'depth': 12,
    'num_heads': SIZES[NAMES[architecture.split('.')[0]]], 'mlp_ratio': 4.0,
    'qkv_bias': False, 'local_up_to_layer': 10, 'use_pos_embed': True,
    'global_pool': 'token', **args,
  }  # fmt: skip
  width, channels, side, _ = timm_checks.square(
    where, found, 'patch_embed.proj.weight'
  )
  depth = timm_checks.count_blocks(where, found)
  local = {int(m[1]) for n in found if (m := LOCAL.match(n))}
  if local != set(range(len(local))) or not 0 < len(local) < depth:
    raise ValueError(
      f'{where}: of {depth} blocks those with a gating_param are '
      f'{sorted(local)}; they must be the first, and not all'
    )
  gates = timm_checks.shape(where, found, 'blocks.0.attn.gating_param', 1)[0]
  if width % base.bounded(where, 'num_heads', gates, width):
    raise ValueError(f'{where}: num_heads={gates} does not divide {width}')
  seen = {
    'patch_size': side,
    'in_chans': channels,
    'embed_dim': width // gates,
    'depth': depth,
    'num_heads': gates,
    'num_classes': fields.size_of(where, found, 'head.weight'),
    'qkv_bias': 'blocks.0.attn.v.bias' in found,
    'local_up_to_layer': len(local),
    'use_pos_embed': 'pos_embed' in found,
  }
  timm_checks.check_said(where, said, seen)
  hidden = timm_checks.shape(where, found, 'blocks.0.mlp.fc1.weight', 2)[0]
  timm_checks.check_ratio(where, said['mlp_ratio'], width, hidden)
  cells = None
  if seen['use_pos_embed']:
    cells = timm_checks.shape(where, found, 'pos_embed', 3)[1]
  config = {
    'name': 'convit',
    'num_classes': seen['num_classes'],
    'patch_size': side,
    'hidden_size': width,
    'num_layers': len(local),
    'num_heads': gates,
    'mlp_dim': hidden,
    'num_class_layers': depth - len(local),
    'image_size': timm_checks.table_size(where, cells, image_size, side),
    'classifier': fields.POOLS[said['global_pool']],
    'positions': seen['use_pos_embed'],
    'qkv_bias': seen['qkv_bias'],
  }
  return config, channels


def _check_square(where: str, size: tuple[int, int]) -> None:
  if size[0] != size[1]:
    raise ValueError(
      f"{where}: image_size={size}; timm's ConViT is for square images"
    )


def table(model: nn.Module) -> list[Pair]:
  """Which arrays of timm's are which variables."""
  depth, to = model.num_layers + model.num_class_layers, f'{OURS}{ATTENTION}'
  part, with_bias = f'{BLOCK}attn.', (model.num_heads, model.qkv_bias)
  both = [
    *rows.embedding('patch_embed.proj', 'embedding'),
    ('cls_token', 'cls', SAME),
    *rows.norm(f'{BLOCK}norm1', f'{OURS}LayerNorm_0'),
    *rows.out(f'{part}proj', to, model.num_heads),
    *rows.norm(f'{BLOCK}norm2', f'{OURS}LayerNorm_1'),
    *rows.mlp(f'{BLOCK}mlp.fc1', f'{BLOCK}mlp.fc2', OURS),
    *rows.norm('norm', 'Transformer/encoder_norm'),
  ]
  if model.positions:
    both.append(('pos_embed', rows.POSITIONS, SAME))
  if model.num_classes:
    both += rows.dense('head', 'head')
  local = [
    *rows.projected(f'{part}qk', to, *with_bias, ('query', 'key')),
    *rows.projected(f'{part}v', to, *with_bias, ('value',)),
    (f'{part}pos_proj.weight', f'{to}/attend/positions', SAME),
    (f'{part}pos_proj.bias', f'{to}/attend/bias', SAME),
    (f'{part}gating_param', f'{to}/attend/gate', SAME),
  ]
  rest = rows.projected(f'{part}qkv', to, *with_bias)
  return [
    *pairs(both, i=range(depth)),
    *pairs(local, i=range(model.num_layers)),
    *pairs(rest, i=range(model.num_layers, depth)),
  ]


def write(model: ConViT) -> tuple[str, dict[str, Any]]:
  """See `family.Timm`."""
  timm_write.check_rest(model, (
    'num_classes', 'patch_size', 'hidden_size', 'num_layers', 'num_heads',
    'mlp_dim', 'num_class_layers', 'image_size', 'classifier', 'positions',
    'position_resize', 'qkv_bias',
  ))  # fmt: skip
  size, width = layers.pair(model.image_size), model.hidden_size
  _check_square('our model', size)
  name = min(
    NAMES, key=lambda n: abs(math.log(SIZES[NAMES[n]] * HEAD_WIDTH / width))
  )
  return name, {
    'img_size': list(size),
    'patch_size': model.patch_size,
    'embed_dim': width // model.num_heads,
    'depth': model.num_layers + model.num_class_layers,
    'num_heads': model.num_heads,
    'mlp_ratio': timm_write.ratio(width, model.mlp_dim),
    'qkv_bias': model.qkv_bias,
    'local_up_to_layer': model.num_layers,
    'use_pos_embed': model.positions,
    'global_pool': fields.POOLED[model.classifier],
  }


TIMM = Timm(
  names='|'.join(NAMES), read=read, table=table, write=write,
  first=('patch_embed.proj',),
)  # fmt: skip
