"""timm's Twins ↔ ours."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from vit_jax import layers
from vit_jax.models.twins import GLOBAL, LOCAL
from vit_jax.pretrained import base, fields, timm_checks
from vit_jax.pretrained.convert import Pair, pairs
from vit_jax.pretrained.family import Arrays, Timm
from vit_jax.pretrained.rows import (
  ATTENTION,
  dense,
  embedding,
  norm,
  reduction,
  timm_block,
  timm_reduced,
)
from vit_jax.pretrained.timm_checks import shape

SVT, PCPVT = f'{LOCAL}, {GLOBAL}', GLOBAL
# timm's names: attention, widths, blocks, heads, ratios of the MLPs.
NAMES = {
  **{
    f'twins_svt_{size}': (
      SVT, [w * 2**s for s in range(4)], depths,
      [w * 2**s // 32 for s in range(4)], [4] * 4,
    )
    for size, w, depths in (
      ('small', 64, [2, 2, 10, 4]), ('base', 96, [2, 2, 18, 2]),
      ('large', 128, [2, 2, 18, 2]),
    )
  },
  **{
    f'twins_pcpvt_{size}': (
      PCPVT, [64, 128, 320, 512], depths, [1, 2, 5, 8], [8, 8, 4, 4]
    )
    for size, depths in (
      ('small', [3, 4, 6, 3]), ('base', [3, 4, 18, 3]),
      ('large', [3, 8, 27, 3]),
    )
  },
}  # fmt: skip
KNOWN = (
  'img_size', 'patch_size', 'in_chans', 'num_classes', 'embed_dims', 'depths',
  'num_heads', 'mlp_ratios', 'sr_ratios', 'wss',
)  # fmt: skip
FIXED = {'global_pool': ('avg',)}
OURS = 'stage_{s}/block_{j}/'
THEIRS = 'blocks.{s}.{j}.'


def table(model: nn.Module) -> list[Pair]:
  """Which arrays are which variables."""
  rows = norm('norm', 'encoder_norm')
  if model.num_classes:
    rows += dense('head', 'head')
  out = pairs(rows)
  for s, depth in enumerate(model.depths):
    parts = [
      *embedding('patch_embeds.{s}.proj', 'stage_{s}/embedding/projection'),
      *norm('patch_embeds.{s}.norm', 'stage_{s}/embedding/norm'),
      *embedding('pos_block.{s}.proj.0', 'stage_{s}/position'),
    ]
    out += pairs(parts, s=[s])
    words = model.words((LOCAL, GLOBAL))
    for j in range(depth):
      local = words[j] == LOCAL
      block = timm_block if local else timm_reduced
      rows = block(THEIRS, OURS, model.num_heads[s], True)
      if not local and model.reductions[s] > 1:
        rows += reduction(
          f'{THEIRS}attn.sr', f'{THEIRS}attn.norm', f'{OURS}{ATTENTION}', False
        )
      out += pairs(rows, s=[s], j=[j])
  return out


def read(
  where: str, architecture: str, args: Mapping[str, Any],
  image_size: tuple[int, int], found: Arrays,
) -> tuple[dict[str, Any], int]:  # fmt: skip
  """Config of a timm folder; see `family.Timm`."""
  timm_checks.check_arguments(where, args, KNOWN, FIXED)
  known, *row = NAMES[architecture.split('.')[0]]
  names = ('embed_dims', 'depths', 'num_heads', 'mlp_ratios')
  said = {
    **dict(zip(names, row, strict=True)), 'patch_size': 4,
    'sr_ratios': [8, 4, 2, 1], 'wss': [7] * 4 if known == SVT else None, **args,
  }  # fmt: skip
  first = 'patch_embeds.{}.proj.weight'.format
  count = sum(first(s) in found for s in range(10))
  _, channels, side, _ = timm_checks.square(where, found, first(0))
  block = r'blocks\.(\d{1,3})\.(\d{1,4})\.norm1\.weight$'
  seen = {
    'embed_dims': [
      shape(where, found, first(s), 4)[0] for s in range(count)
    ],
    'depths': fields.depths(found, block, most=count),
    'patch_size': side,
    'in_chans': channels,
    'num_classes': fields.size_of(where, found, 'head.weight'),
  }
  timm_checks.check_said(where, said, seen)
  for key in ('num_heads', 'mlp_ratios', 'sr_ratios', 'wss'):
    if key == 'wss' and said[key] is None:
      continue
    if not isinstance(said[key], list) or len(said[key]) != count:
      raise ValueError(
        f'{where}: {key}={said[key]!r} must hold a number for each of its '
        f'{count} stages'
      )
  for s, width in enumerate(seen['embed_dims']):
    hidden = shape(where, found, f'blocks.{s}.0.mlp.fc1.weight', 2)[0]
    timm_checks.check_ratio(where, said['mlp_ratios'][s], width, hidden)
    heads_here = base.bounded(where, 'num_heads', said['num_heads'][s], width)
    base.bounded(where, 'sr_ratios', said['sr_ratios'][s], 2**10)
    if width % heads_here:
      raise ValueError(
        f'{where}: {heads_here} heads do not divide the width {width}'
      )
  section = {
    'name': 'twins',
    'num_classes': seen['num_classes'],
    'hidden_sizes': tuple(seen['embed_dims']),
    'depths': tuple(seen['depths']),
    'num_heads': tuple(said['num_heads']),
    'mlp_ratios': tuple(said['mlp_ratios']),
    'reductions': tuple(said['sr_ratios']),
    'patch_size': side,
    'image_size': timm_checks.table_size(
      where, None, image_size, side * 2 ** (count - 1)
    ),
    **_attention(where, said['wss']),
  }
  if count != 4:
    section['feature_layers'] = tuple(range(count))
  return section, channels


def _attention(where: str, windows: list[Any] | None) -> dict[str, Any]:
  """Which attentions take turns; timm's window 1 is no window."""
  sizes = {base.bounded(where, 'wss', n, 2**10) for n in windows or [1]}
  if sizes == {1}:
    return {'attention': PCPVT}
  if len(sizes) != 1:
    raise ValueError(
      f'{where}: wss={windows!r}; ours has one size of windows for all stages'
    )
  return {'attention': SVT, 'window_size': sizes.pop()}


def write(model: nn.Module) -> tuple[str, dict[str, Any]]:
  """Architecture and model_args of ours; see `family.Timm`."""
  fields.must(
    model, 'timm', attention=(SVT, PCPVT), gelu=('exact',), epsilon=(1e-6,),
    embedding_epsilon=(1e-5,),
  )  # fmt: skip
  local = model.attention == SVT
  if local and model.window_size == 1:
    raise ValueError("timm's windows are of 2×2 tokens or more: window_size=1")
  args = {
    'img_size': list(layers.pair(model.image_size)),
    'patch_size': model.patch_size,
    'embed_dims': list(model.hidden_sizes),
    'depths': list(model.depths),
    'num_heads': list(model.num_heads),
    'mlp_ratios': list(model.mlp_ratios),
    'sr_ratios': list(model.reductions),
    'wss': [model.window_size] * len(model.depths) if local else None,
  }
  names = [
    name
    for name, (attention, *row) in NAMES.items()
    if attention == model.attention
    and row[:2] == [args['embed_dims'], args['depths']]
  ]
  other = 'twins_svt_small' if local else 'twins_pcpvt_small'
  return (names or [other])[0], args


TIMM = Timm(
  names='|'.join(NAMES), read=read, table=table, write=write,
  first=('patch_embeds.0.proj',),
)  # fmt: skip
