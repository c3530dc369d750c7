"""timm's `pvt_v2_*` and Hugging Face's PvtV2 ↔ ours."""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from vit_jax import layers, models
from vit_jax.pretrained import base, pvt, timm_checks, timm_write
from vit_jax.pretrained.convert import (
  SAME,
  Pair,
  Row,
  fused,
  heads,
  heads_bias,
  heads_out,
  pairs,
)
from vit_jax.pretrained.family import Arrays, HuggingFace, Timm
from vit_jax.pretrained.timm_tables import dense, embedding, norm

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
  block = re.compile(r'stages\.(\d{1,3})\.blocks\.(\d{1,4})\.')
  places = {
    tuple(map(int, m.groups())) for n in found if (m := block.match(n))
  }
  depths = [
    sum(s == stage for s, _ in places)
    for stage in range(max((s for s, _ in places), default=-1) + 1)
  ]
  base.bounded(where, 'number of stages', len(depths), pvt.LARGEST)

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
    'num_classes': shape('head.weight', 2)[0] if 'head.weight' in found else 0,
  }
  if not linear:  # its reductions are of no effect
    seen['sr_ratios'] = ratios
  for key in ('num_heads', 'sr_ratios', 'mlp_ratios'):  # one, or one a stage
    if not isinstance(said[key], list):
      said[key] = [said[key]] * len(depths)
  timm_checks.check_said(where, said, seen)
  counted = pvt.several(where, said, 'num_heads', len(depths))
  reductions = pvt.several(where, said, 'sr_ratios', len(depths))
  for ratio, size, wide in zip(
    pvt.ratios(where, said, 'mlp_ratios', len(depths)), sizes, hidden,
    strict=True,
  ):  # fmt: skip
    timm_checks.check_ratio(where, ratio, size, wide)
  height, width = image_size
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
    'image_size': height if height == width else (height, width),
    'qkv_bias': seen['qkv_bias'],
    'epsilon': EPSILON,
    'embedding_epsilon': EMBEDDING_EPSILON,
    'feature_layers': tuple(range(len(depths))),
  }, seen['in_chans']


def write_timm(model: nn.Module) -> tuple[str, dict[str, Any]]:
  """See `family.Timm`; every argument is written."""
  pvt.must(
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
    count, ours = model.num_heads[s], f'stage_{s}/block_{{i}}/'
    down = f'stages.{s}.downsample.' if s else 'patch_embed.'
    theirs, attend = (
      f'stages.{s}.blocks.{{i}}.', f'{ours}MultiHeadDotProductAttention_0'
    )
    rows: list[Row] = [
      *embedding(f'{down}proj', f'stage_{s}/embedding/projection'),
      *norm(f'{down}norm', f'stage_{s}/embedding/norm'),
      *norm(f'stages.{s}.norm', _norm_of(model, s)),
      *norm(f'{theirs}norm1', f'{ours}LayerNorm_0'),
      *norm(f'{theirs}norm2', f'{ours}LayerNorm_1'),
      *dense(f'{theirs}mlp.fc1', f'{ours}MlpBlock_0/Dense_0'),
      *embedding(f'{theirs}mlp.dwconv', f'{ours}MlpBlock_0/depthwise'),
      *dense(f'{theirs}mlp.fc2', f'{ours}MlpBlock_0/Dense_1'),
      (f'{theirs}attn.proj.weight', f'{attend}/out/kernel', heads_out(count)),
      (f'{theirs}attn.proj.bias', f'{attend}/out/bias', SAME),
    ]
    for kind, part, layout in (
      ('weight', 'kernel', heads(count)), ('bias', 'bias', heads_bias(count))
    ):  # fmt: skip
      if kind == 'weight' or model.qkv_bias:
        both = (f'{attend}/key/{part}', f'{attend}/value/{part}')
        rows += [
          (f'{theirs}attn.q.{kind}', f'{attend}/query/{part}', layout),
          (f'{theirs}attn.kv.{kind}', both, fused(layout, 2)),
        ]
    if model.linear or model.reductions[s] > 1:
      rows += pvt.reduction(
        f'{theirs}attn.sr', f'{theirs}attn.norm', attend, model.linear
      )
    out += pairs(rows, i=range(depth))
  return out + pairs(dense('head', 'head') if model.num_classes else [])


def read_huggingface(
  where: str, said: Mapping[str, Any], found: Arrays
) -> tuple[dict[str, Any], int]:
  """See `family.HuggingFace`."""
  said = {**DEFAULTS, **said}
  fields = pvt.common(where, said)
  count = len(fields['depths'])
  pvt.choose(where, said, linear_attention=(True, False))
  size = said['image_size']
  height, width = pvt.several(
    where, {'image_size': [size] * 2 if isinstance(size, int) else size},
    'image_size', 2, timm_checks.SIDE,
  )  # fmt: skip
  return {
    'name': 'pvt_v2',
    'num_classes': pvt.classes(where, found),
    **fields,
    'linear': said['linear_attention'],
    'reductions': pvt.several(where, said, 'sr_ratios', count),
    'patch_sizes': pvt.several(where, said, 'patch_sizes', count),
    'patch_strides': pvt.several(where, said, 'strides', count),
    'image_size': height if height == width else (height, width),
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
  top = pvt.prefix(model, found, 'pvt_v2')
  out = []
  for s, depth in enumerate(model.depths):
    stage, ours = f'{top}encoder.layers.{s}.', f'stage_{s}/block_{{i}}/'
    theirs, attend = (
      f'{stage}blocks.{{i}}.', f'{ours}MultiHeadDotProductAttention_0'
    )
    own = f'{theirs}attention.'
    rows: list[Row] = [
      *embedding(
        f'{stage}patch_embedding.proj', f'stage_{s}/embedding/projection'
      ),
      *norm(f'{stage}patch_embedding.layer_norm', f'stage_{s}/embedding/norm'),
      *norm(f'{stage}layer_norm', _norm_of(model, s)),
      *norm(f'{theirs}layer_norm_1', f'{ours}LayerNorm_0'),
      *norm(f'{theirs}layer_norm_2', f'{ours}LayerNorm_1'),
      *dense(f'{theirs}mlp.dense1', f'{ours}MlpBlock_0/Dense_0'),
      *embedding(f'{theirs}mlp.dwconv.dwconv', f'{ours}MlpBlock_0/depthwise'),
      *dense(f'{theirs}mlp.dense2', f'{ours}MlpBlock_0/Dense_1'),
      *pvt.attention(
        [f'{own}{part}' for part in ('query', 'key', 'value', 'proj')],
        attend, model.num_heads[s], model.qkv_bias,
      ),
    ]  # fmt: skip
    if model.linear or model.reductions[s] > 1:
      rows += pvt.reduction(
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
