"""timm's `pvt_v2_*` and Hugging Face's PvtV2 ↔ ours."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from vit_jax import layers, models
from vit_jax.pretrained import base, fields, pvt, timm_checks, timm_write
from vit_jax.pretrained.convert import Pair, pairs
from vit_jax.pretrained.family import Arrays, HuggingFace, Timm
from vit_jax.pretrained.rows import (
  ATTENTION,
  attention,
  dense,
  embedding,
  mlp,
  norm,
  reduction,
  timm_reduced,
)

# Of timm's norms: of blocks and stages, and after convolutions.
EPSILON, EMBEDDING_EPSILON = 1e-6, 1e-5
KNOWN = (
  'in_chans', 'num_classes', 'depths', 'embed_dims', 'num_heads', 'sr_ratios',
  'mlp_ratios', 'qkv_bias', 'linear',
)  # fmt: skip
FIXED = {'global_pool': ('avg',)}
DEFAULTS = {  # transformers' own
  **pvt.DEFAULTS, 'hidden_sizes': [32, 64, 160, 256],
  'patch_sizes': [7, 3, 3, 3], 'sr_ratios': [8, 4, 2, 1],
  'linear_attention': False,
}  # fmt: skip


def _patches(count: int) -> dict[str, tuple[int, ...]]:
  """The patches of so many stages in timm."""
  more = count - 1
  return {
    'patch_sizes': (7, *(3,) * more), 'patch_strides': (4, *(2,) * more)
  }  # fmt: skip


def read_timm(
  where: str, architecture: str, args: Mapping[str, Any],
  image_size: tuple[int, int], found: Arrays,
) -> tuple[dict[str, Any], int]:  # fmt: skip
  """See `family.Timm`; the sizes are those of the arrays."""
  timm_checks.check_arguments(where, args, KNOWN, FIXED)
  name = architecture.split('.')[0].removeprefix('pvt_v2_').replace('_', '-')
  row = models.MODELS['pvt_v2'].VARIANTS[name]
  said = {
    'depths': list(row['depths']), 'embed_dims': list(row['hidden_sizes']),
    'num_heads': list(row['num_heads']), 'sr_ratios': [8, 4, 2, 1],
    'mlp_ratios': list(row['mlp_ratios']), 'linear': row['linear'],
    'qkv_bias': True, **args,
  }  # fmt: skip
  depths = fields.depths(found, r'stages\.(\d{1,3})\.blocks\.(\d{1,4})\.')
  base.bounded(where, 'number of stages', len(depths), fields.LARGEST)

  def shape(name: str, rank: int) -> tuple[int, ...]:
    return timm_checks.shape(where, found, name, rank)

  first = [
    'patch_embed.proj.weight',
    *(f'stages.{s}.downsample.proj.weight' for s in range(1, len(depths))),
  ]
  sizes = [shape(name, 4)[0] for name in first]
  hidden = [
    shape(f'stages.{s}.blocks.0.mlp.fc1.weight', 2)[0]
    for s in range(len(depths))
  ]
  windows = [f'stages.{s}.blocks.0.attn.sr.weight' for s in range(len(depths))]
  ratios = [shape(n, 4)[2] if n in found else 1 for n in windows]
  linear = windows[-1] in found and set(ratios) == {1}
  seen = {
    'depths': depths,
    'embed_dims': sizes,
    'linear': linear,
    'qkv_bias': 'stages.0.blocks.0.attn.q.bias' in found,
    'in_chans': shape(first[0], 4)[1],
    'num_classes': fields.size_of(where, found, 'head.weight'),
  }
  if not linear:  # its reductions are of no effect
    seen['sr_ratios'] = ratios
  for key in ('num_heads', 'sr_ratios', 'mlp_ratios'):  # one, or one a stage
    if not isinstance(said[key], list):
      said[key] = [said[key]] * len(depths)
  timm_checks.check_said(where, said, seen)
  counted = fields.several(where, said, 'num_heads', len(depths))
  reductions = fields.several(where, said, 'sr_ratios', len(depths))
  for ratio, size, wide in zip(
    fields.ratios(where, said, 'mlp_ratios', len(depths)), sizes, hidden,
    strict=True,
  ):  # fmt: skip
    timm_checks.check_ratio(where, ratio, size, wide)
  return {
    'name': 'pvt_v2',
    'num_classes': seen['num_classes'],
    'hidden_sizes': tuple(sizes),
    'depths': tuple(depths),
    'num_heads': counted,
    'mlp_ratios': tuple(said['mlp_ratios']),
    'linear': linear,
    'reductions': reductions,
    **_patches(len(depths)),
    'image_size': fields.short(image_size),
    'qkv_bias': seen['qkv_bias'],
    'epsilon': EPSILON,
    'embedding_epsilon': EMBEDDING_EPSILON,
    'feature_layers': tuple(range(len(depths))),
  }, seen['in_chans']


def write_timm(model: nn.Module) -> tuple[str, dict[str, Any]]:
  """See `family.Timm`; every argument is written."""
  fields.must(
    model, 'timm', attention=('spatial_reduction',), gelu=('exact',),
    epsilon=(EPSILON,), embedding_epsilon=(EMBEDDING_EPSILON,),
    **{name: (x,) for name, x in _patches(len(model.depths)).items()},
  )  # fmt: skip
  names = [
    name
    for name, row in type(model).VARIANTS.items()
    if all(getattr(model, key) == value for key, value in row.items())
  ]
  name = (names or ['b2-li' if model.linear else 'b2'])[0]
  return f'pvt_v2_{name.replace("-", "_")}', {
    'depths': list(model.depths),
    'embed_dims': list(model.hidden_sizes),
    'num_heads': list(model.num_heads),
    'sr_ratios': list(model.reductions),
    'mlp_ratios': [
      timm_write.ratio(size, int(size * ratio))
      for size, ratio in zip(model.hidden_sizes, model.mlp_ratios, strict=True)
    ],
    'qkv_bias': model.qkv_bias,
    'linear': model.linear,
  }


def _norm_of(model: nn.Module, s: int) -> str:
  """The name of a stage's norm."""
  return 'encoder_norm' if s == len(model.depths) - 1 else f'stage_{s}/norm'


def timm_table(model: nn.Module) -> list[Pair]:
  """See `family.Timm`."""
  out = []
  for s, depth in enumerate(model.depths):
    ours = f'stage_{s}/block_{{i}}/'
    down = f'stages.{s}.downsample.' if s else 'patch_embed.'
    theirs = f'stages.{s}.blocks.{{i}}.'
    rows = [
      *embedding(f'{down}proj', f'stage_{s}/embedding/projection'),
      *norm(f'{down}norm', f'stage_{s}/embedding/norm'),
      *norm(f'stages.{s}.norm', _norm_of(model, s)),
      *timm_reduced(theirs, ours, model.num_heads[s], model.qkv_bias),
      *embedding(f'{theirs}mlp.dwconv', f'{ours}MlpBlock_0/depthwise'),
    ]
    if model.linear or model.reductions[s] > 1:
      rows += reduction(
        f'{theirs}attn.sr', f'{theirs}attn.norm', f'{ours}{ATTENTION}',
        model.linear,
      )  # fmt: skip
    out += pairs(rows, i=range(depth))
  return out + pairs(dense('head', 'head') if model.num_classes else [])


def read_huggingface(
  where: str, said: Mapping[str, Any], found: Arrays
) -> tuple[dict[str, Any], int]:
  """See `family.HuggingFace`."""
  said = {**DEFAULTS, **said}
  common = pvt.common(where, said)
  count = len(common['depths'])
  fields.choose(where, said, linear_attention=(True, False))
  return {
    'name': 'pvt_v2',
    'num_classes': fields.size_of(where, found, 'classifier.weight'),
    **common,
    'linear': said['linear_attention'],
    'reductions': fields.several(where, said, 'sr_ratios', count),
    'patch_sizes': fields.several(where, said, 'patch_sizes', count),
    'patch_strides': fields.several(where, said, 'strides', count),
    'image_size': fields.short(
      fields.sides(where, 'image_size', said['image_size'])
    ),
  }, base.bounded(where, 'num_channels', said['num_channels'], 64)


def write_huggingface(found: base.Pretrained) -> dict[str, Any]:
  """See `family.HuggingFace`."""
  model, bare = found.model, not found.model.num_classes
  return {
    'architectures': ['PvtV2Model' if bare else 'PvtV2ForImageClassification'],
    'model_type': 'pvt_v2',
    **pvt.written(found),
    'image_size': list(layers.pair(model.image_size)),
    'patch_sizes': list(model.patch_sizes),
    'strides': list(model.patch_strides),
    'sr_ratios': list(model.reductions),
    'linear_attention': model.linear,
  }


def huggingface_table(model: nn.Module, found: Arrays | None) -> list[Pair]:
  """See `family.HuggingFace`."""
  top = fields.prefix(model, found, 'pvt_v2')
  out = []
  for s, depth in enumerate(model.depths):
    stage, ours = f'{top}encoder.layers.{s}.', f'stage_{s}/block_{{i}}/'
    theirs, attend = f'{stage}blocks.{{i}}.', f'{ours}{ATTENTION}'
    own = f'{theirs}attention.'
    rows = [
      *embedding(
        f'{stage}patch_embedding.proj', f'stage_{s}/embedding/projection'
      ),
      *norm(f'{stage}patch_embedding.layer_norm', f'stage_{s}/embedding/norm'),
      *norm(f'{stage}layer_norm', _norm_of(model, s)),
      *norm(f'{theirs}layer_norm_1', f'{ours}LayerNorm_0'),
      *norm(f'{theirs}layer_norm_2', f'{ours}LayerNorm_1'),
      *mlp(f'{theirs}mlp.dense1', f'{theirs}mlp.dense2', ours),
      *embedding(f'{theirs}mlp.dwconv.dwconv', f'{ours}MlpBlock_0/depthwise'),
      *attention(
        [f'{own}{part}' for part in ('query', 'key', 'value', 'proj')],
        attend, model.num_heads[s], model.qkv_bias,
      ),
    ]  # fmt: skip
    if model.linear or model.reductions[s] > 1:
      rows += reduction(
        f'{own}spatial_reduction', f'{own}layer_norm', attend, model.linear
      )
    out += pairs(rows, i=range(depth))
  return out + pairs(dense('classifier', 'head') if model.num_classes else [])


TIMM = Timm(
  names=r'pvt_v2_b([0-5]|2_li)', read=read_timm, table=timm_table,
  write=write_timm, first=('patch_embed.proj',), any_size=True,
)  # fmt: skip
HUGGINGFACE = HuggingFace(
  architectures=('PvtV2Model', 'PvtV2ForImageClassification'),
  read=read_huggingface, table=huggingface_table, write=write_huggingface,
)  # fmt: skip
