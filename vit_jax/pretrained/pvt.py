"""Hugging Face's PVT ↔ ours, and what PVTv2's config.json shares with it."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from vit_jax import layers
from vit_jax.pretrained import base, timm_checks
from vit_jax.pretrained.convert import SAME, Pair, pairs
from vit_jax.pretrained.family import ACTIVATIONS, GELUS, Arrays, HuggingFace
from vit_jax.pretrained.fields import (
  between,
  choose,
  must,
  prefix,
  rate,
  ratios,
  several,
  size_of,
)
from vit_jax.pretrained.rows import (
  ATTENTION,
  attention,
  dense,
  embedding,
  mlp,
  norm,
  reduction,
)

DEFAULTS = {  # transformers' own
  'image_size': 224, 'num_channels': 3, 'num_encoder_blocks': 4,
  'depths': [2, 2, 2, 2], 'sequence_reduction_ratios': [8, 4, 2, 1],
  'hidden_sizes': [64, 128, 320, 512], 'patch_sizes': [4, 2, 2, 2],
  'strides': [4, 2, 2, 2], 'num_attention_heads': [1, 2, 5, 8],
  'mlp_ratios': [8, 8, 4, 4], 'hidden_act': 'gelu', 'hidden_dropout_prob': 0.0,
  'attention_probs_dropout_prob': 0.0, 'drop_path_rate': 0.0,
  'layer_norm_eps': 1e-6, 'qkv_bias': True,
}  # fmt: skip


def common(where: str, said: Mapping[str, Any]) -> dict[str, Any]:
  """The fields that PVT and PVTv2 have in common; `said` is over DEFAULTS.

  Raises:
    ValueError: a value that our models cannot follow.
  """
  depths = several(where, said, 'depths')
  count = len(depths)
  choose(
    where, said, num_encoder_blocks=(count,), qkv_bias=(True, False),
    hidden_act=tuple(GELUS),
  )  # fmt: skip
  epsilon = between(where, 'layer_norm_eps', said['layer_norm_eps'])
  return {
    'hidden_sizes': several(where, said, 'hidden_sizes', count, 2**16),
    'depths': depths,
    'num_heads': several(where, said, 'num_attention_heads', count),
    'mlp_ratios': ratios(where, said, 'mlp_ratios', count),
    'dropout_rate': rate(
      where, 'hidden_dropout_prob', said['hidden_dropout_prob']
    ),
    'attention_dropout_rate': rate(
      where, 'attention_probs_dropout_prob',
      said['attention_probs_dropout_prob'],
    ),
    'drop_path_rate': rate(where, 'drop_path_rate', said['drop_path_rate']),
    'feature_layers': tuple(range(count)),
    'qkv_bias': said['qkv_bias'],
    'gelu': GELUS[said['hidden_act']],
    'epsilon': epsilon,
    'embedding_epsilon': epsilon,
  }  # fmt: skip


def written(found: base.Pretrained) -> dict[str, Any]:
  """The inverse of `common`, and the rest that both have in common.

  Raises:
    ValueError: transformers has no such model.
  """
  model = found.model
  must(
    model, 'the format huggingface', attention=('spatial_reduction',),
    gelu=tuple(ACTIVATIONS), embedding_epsilon=(model.epsilon,),
  )  # fmt: skip
  if any(ratio != int(ratio) for ratio in model.mlp_ratios):
    raise ValueError(
      'the format huggingface has a place for whole mlp_ratios; they are '
      f'{model.mlp_ratios}'
    )
  return {
    'num_labels': model.num_classes,
    'num_channels': found.channels,
    'num_encoder_blocks': len(model.depths),
    'depths': list(model.depths),
    'hidden_sizes': list(model.hidden_sizes),
    'num_attention_heads': list(model.num_heads),
    'mlp_ratios': list(map(int, model.mlp_ratios)),
    'hidden_act': ACTIVATIONS[model.gelu],
    'hidden_dropout_prob': model.dropout_rate,
    'attention_probs_dropout_prob': model.attention_dropout_rate,
    'drop_path_rate': model.drop_path_rate,
    'layer_norm_eps': model.epsilon,
    'qkv_bias': model.qkv_bias,
  }


def read(
  where: str, said: Mapping[str, Any], found: Arrays
) -> tuple[dict[str, Any], int]:
  """See `family.HuggingFace`."""
  said = {**DEFAULTS, **said}
  fields = common(where, said)
  count = len(fields['depths'])
  # Its position tables are of these steps, whatever the sizes of patches.
  choose(
    where, said, patch_sizes=([4, *[2] * (count - 1)],),
    strides=(list(said['patch_sizes']),),
  )  # fmt: skip
  return {
    'name': 'pvt',
    'num_classes': size_of(where, found, 'classifier.weight'),
    **fields,
    'reductions': several(where, said, 'sequence_reduction_ratios', count),
    'patch_size': 4,
    'image_size': base.bounded(
      where, 'image_size', said['image_size'], timm_checks.SIDE
    ),
  }, base.bounded(where, 'num_channels', said['num_channels'], 64)


def write(found: base.Pretrained) -> dict[str, Any]:
  """See `family.HuggingFace`."""
  model, bare = found.model, not found.model.num_classes
  height, width = layers.pair(model.image_size)
  must(model, 'the format huggingface', patch_size=(4,))
  if height != width:
    raise ValueError(
      f'the format huggingface has no place for image_size={height}×{width} '
      'of a PVT, only for a square'
    )
  return {
    'architectures': ['PvtModel' if bare else 'PvtForImageClassification'],
    'model_type': 'pvt',
    **written(found),
    'image_size': height,
    'patch_sizes': list(model.steps),
    'strides': list(model.steps),
    'sequence_reduction_ratios': list(model.reductions),
  }


def table(model: nn.Module, found: Arrays | None) -> list[Pair]:
  """See `family.HuggingFace`."""
  top = prefix(model, found, 'pvt')
  out = []
  for s, depth in enumerate(model.depths):
    theirs, ours = f'{top}encoder.patch_embeddings.{s}.', f'stage_{s}/'
    rows = [
      (
        f'{theirs}position_embeddings', f'{ours}posembed_input/pos_embedding',
        SAME,
      ),
      *embedding(f'{theirs}projection', f'{ours}embedding/projection'),
      *norm(f'{theirs}layer_norm', f'{ours}embedding/norm'),
    ]  # fmt: skip
    if s == len(model.depths) - 1:
      rows.append((f'{theirs}cls_token', f'{ours}cls', SAME))
    theirs, ours = f'{top}encoder.block.{s}.{{i}}.', f'{ours}block_{{i}}/'
    attend = f'{ours}{ATTENTION}'
    own = f'{theirs}attention.self.'
    rows += [
      *norm(f'{theirs}layer_norm_1', f'{ours}LayerNorm_0'),
      *attention(
        (f'{own}query', f'{own}key', f'{own}value',
         f'{theirs}attention.output.dense'),
        attend, model.num_heads[s], model.qkv_bias,
      ),
      *norm(f'{theirs}layer_norm_2', f'{ours}LayerNorm_1'),
      *mlp(f'{theirs}mlp.dense1', f'{theirs}mlp.dense2', ours),
    ]  # fmt: skip
    if model.reductions[s] > 1:
      rows += reduction(
        f'{own}sequence_reduction', f'{own}layer_norm', attend, False
      )
    out += pairs(rows, i=range(depth))
  rows = norm(f'{top}encoder.layer_norm', 'encoder_norm')
  if model.num_classes:
    rows += dense('classifier', 'head')
  return out + pairs(rows)


HUGGINGFACE = HuggingFace(
  architectures=('PvtModel', 'PvtForImageClassification'),
  read=read, table=table, write=write,
)  # fmt: skip
