"""timm's TNT ↔ ours."""

import math
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from vit_jax import layers
from vit_jax.models.tnt import TNT
from vit_jax.pretrained import fields, rows, timm_checks, timm_write
from vit_jax.pretrained.convert import SAME, Layout, Pair, Row, pairs
from vit_jax.pretrained.family import Arrays, Timm
from vit_jax.pretrained.rows import ATTENTION

KNOWN = (
  'img_size', 'patch_size', 'in_chans', 'num_classes', 'embed_dim',
  'inner_dim', 'depth', 'num_heads_inner', 'num_heads_outer', 'mlp_ratio',
  'qkv_bias', 'first_stride', 'legacy',
)  # fmt: skip
FIXED = {'global_pool': tuple(fields.POOLS)}
NAMES = r'tnt_(s|b)(_legacy)?_patch16_\d+'
#        width heads words' width
SIZES = {
  's': (  384,    6,          24),
  'b': (  640,   10,          40),
}  # fmt: skip
BLOCK, OURS = 'blocks.{i}.', 'block_{i}/'
EPSILON = 1e-5


def _words(side: int) -> Layout:
  """Positions [1 c m m] ↔ [1 m·m c]."""
  return Layout(
    lambda x: (x.reshape(1, -1, side * side).transpose(0, 2, 1),),
    lambda x: (x.transpose(0, 2, 1).reshape(1, -1, side, side),),
  )


def _half(model: nn.Module, part: str, end: str, count: int) -> list[Row]:
  """Rows of the inner or outer half of a block; `end` ends its names."""
  ours, theirs = f'{OURS}{part}/', f'{BLOCK}attn{end}.'
  to, bias = f'{ours}{ATTENTION}', model.qkv_bias
  mlp = 'mlp_in' if part == 'inner' else 'mlp'
  return [
    *rows.norm(f'{BLOCK}norm{end}', f'{ours}LayerNorm_0'),
    *rows.projected(f'{theirs}qk', to, count, bias, ('query', 'key')),
    *rows.projected(f'{theirs}v', to, count, bias, ('value',)),
    *rows.out(f'{theirs}proj', to, count),
    *rows.norm(f'{BLOCK}norm_{mlp}', f'{ours}LayerNorm_1'),
    *rows.mlp(f'{BLOCK}{mlp}.fc1', f'{BLOCK}{mlp}.fc2', ours),
  ]


def table(model: nn.Module) -> list[Pair]:
  """Which arrays of timm's are which variables."""
  side = -(-model.patch_size // model.word_stride)
  added = f'{OURS}from_words/'
  found = [
    ('cls_token', 'cls', SAME),
    ('patch_pos', 'posembed_input/pos_embedding', SAME),
    ('pixel_pos', 'word_positions', _words(side)),
    *rows.embedding('pixel_embed.proj', 'word_embedding'),
    *rows.norm('norm1_proj', 'embedding/norm'),
    *rows.dense('proj', 'embedding/projection'),
    *rows.norm('norm2_proj', 'embedding/norm_after'),
    *_half(model, 'inner', '_in', model.inner_heads),
    *_half(model, 'outer', '_out', model.num_heads),
    *rows.norm(f'{BLOCK}norm1_proj', f'{added}norm'),
    *rows.norm('norm', 'encoder_norm'),
  ]
  # The weight alone, or what the first version has: a bias and no norm.
  weight, bias = rows.dense(f'{BLOCK}proj', f'{added}projection')
  found.append(weight)
  if model.legacy:
    found.append(bias)
  else:
    found += rows.norm(f'{BLOCK}norm2_proj', f'{added}norm_after')
  if model.num_classes:
    found += rows.dense('head', 'head')
  return pairs(found, i=range(model.num_layers))


def read(
  where: str, architecture: str, args: Mapping[str, Any],
  image_size: tuple[int, int], found: Arrays,
) -> tuple[dict[str, Any], int]:  # fmt: skip
  """Config of a timm folder; see `family.Timm`."""
  timm_checks.check_arguments(where, args, KNOWN, FIXED, fields.RATES)
  size, first = re.fullmatch(NAMES, architecture.split('.')[0]).groups()
  width, outer_heads, inner = SIZES[size]
  said = {
    'embed_dim': width, 'inner_dim': inner, 'depth': 12, 'patch_size': 16,
    'first_stride': 4, 'in_chans': 3, 'qkv_bias': False, 'legacy': bool(first),
    'num_heads_inner': 4, 'num_heads_outer': outer_heads, 'mlp_ratio': 4.0,
    'global_pool': 'token', **args,
  }  # fmt: skip
  shape = timm_checks.shape
  width = shape(where, found, 'patch_pos', 3)[2]
  inner, channels = shape(where, found, 'pixel_embed.proj.weight', 4)[:2]
  patch, stride = (
    _number(where, name, said[name]) for name in ('patch_size', 'first_stride')
  )
  words = timm_checks.square(where, found, 'pixel_pos')[2]
  if words != -(-patch // stride):
    raise ValueError(
      f'{where}: patch_size={patch} and first_stride={stride} make '
      f'{-(-patch // stride)} words a side, but pixel_pos has {words}'
    )
  seen = {
    'embed_dim': width, 'inner_dim': inner,
    'depth': timm_checks.count_blocks(where, found), 'in_chans': channels,
    'num_classes': fields.size_of(where, found, 'head.weight'),
    'qkv_bias': 'blocks.0.attn_out.v.bias' in found,
    'legacy': 'blocks.0.proj.bias' in found,
  }  # fmt: skip
  timm_checks.check_said(where, said, seen)
  hidden = shape(where, found, 'blocks.0.mlp.fc1.weight', 2)[0]
  timm_checks.check_ratio(where, said['mlp_ratio'], width, hidden)
  cells = shape(where, found, 'patch_pos', 3)[1] - 1
  return {
    'name': 'tnt',
    'num_classes': seen['num_classes'],
    'patch_size': patch,
    'hidden_size': width,
    'num_layers': seen['depth'],
    'num_heads': fields.divided(
      where, 'num_heads_outer', said['num_heads_outer'], width
    ),
    'mlp_dim': hidden,
    'inner_size': inner,
    'inner_heads': fields.divided(
      where, 'num_heads_inner', said['num_heads_inner'], inner
    ),
    'word_stride': stride,
    'image_size': timm_checks.table_size(where, cells, image_size, patch),
    'classifier': fields.POOLS[said['global_pool']],
    'position_resize': 'bicubic',
    'legacy': seen['legacy'],
    'qkv_bias': seen['qkv_bias'],
    'epsilon': EPSILON,
  }, channels


def _number(where: str, name: str, value: Any) -> int:
  """A number of pixels, or the same number twice."""
  sides = value if isinstance(value, list) else [value]
  whole = all(isinstance(n, int) and not isinstance(n, bool) for n in sides)
  if not whole or len(set(sides)) != 1 or not 0 < sides[0] <= timm_checks.SIDE:
    raise ValueError(
      f'{where}: {name}={value!r} must be a positive number of pixels; ours '
      'are square'
    )
  return sides[0]


def write(model: TNT) -> tuple[str, dict[str, Any]]:
  """Architecture and model_args of ours; see `family.Timm`."""
  fields.must(
    model, 'timm', gelu=('exact',), epsilon=(EPSILON,),
    attention=('softmax',), inner_attention=('softmax',),
  )  # fmt: skip
  width = model.hidden_size
  size = min(SIZES, key=lambda n: abs(math.log(SIZES[n][0] / width)))
  size = 's_legacy' if model.legacy else size  # the only one that timm has
  return f'tnt_{size}_patch16_224', {
    'img_size': list(layers.pair(model.image_size)),
    'patch_size': model.patch_size,
    'embed_dim': width,
    'inner_dim': model.inner_size,
    'depth': model.num_layers,
    'num_heads_inner': model.inner_heads,
    'num_heads_outer': model.num_heads,
    'mlp_ratio': timm_write.ratio(width, model.mlp_dim),
    'qkv_bias': model.qkv_bias,
    'first_stride': model.word_stride,
    'legacy': model.legacy,
    'global_pool': fields.POOLED[model.classifier],
  }


TIMM = Timm(
  names=NAMES, read=read, table=table, write=write,
  first=('pixel_embed.proj',),
)  # fmt: skip
