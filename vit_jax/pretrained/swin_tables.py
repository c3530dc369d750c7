"""Which arrays of timm's and Hugging Face's Swins are which variables."""

from typing import NamedTuple

import flax.linen as nn

from vit_jax.pretrained.convert import DENSE, SAME, Pair, Row, pairs
from vit_jax.pretrained.family import Arrays
from vit_jax.pretrained.fields import prefix
from vit_jax.pretrained.rows import (
  ATTENTION,
  PARTS,
  attention,
  dense,
  embedding,
  mlp,
  norm,
  timm_block,
)

# Of the tables of biases, within a block.
TIMM_BIASES = 'attn.relative_position_bias_table'
HUGGINGFACE_BIASES = 'attention.self.relative_position_bias_table'
OURS = 'stage_{s}/block_{j}/'
BIASES = f'{OURS}{ATTENTION}/attend/relative_bias'


class Names(NamedTuple):
  """Names of arrays, those from `bias_table` on within a block."""

  patches: str
  stages: str
  head: str
  bias_table: str
  hidden: str
  query_bias: str


TIMM_NAMES = Names(
  'patch_embed.proj.weight', 'layers.', 'head.fc.weight',
  TIMM_BIASES, 'mlp.fc1.weight', 'attn.qkv.bias',
)  # fmt: skip


def huggingface_names(prefix: str) -> Names:
  """Those of transformers; `prefix` is in front of all but the classifier."""
  return Names(
    f'{prefix}embeddings.patch_embeddings.projection.weight',
    f'{prefix}encoder.layers.', 'classifier.weight',
    HUGGINGFACE_BIASES, 'intermediate.dense.weight',
    'attention.self.query.bias',
  )  # fmt: skip


def timm_table(model: nn.Module) -> list[Pair]:
  """Which arrays of timm's are which variables."""
  rows = [
    *embedding('patch_embed.proj', 'stage_0/embedding/projection'),
    *norm('patch_embed.norm', 'stage_0/embedding/norm'),
    *norm('norm', 'encoder_norm'),
  ]
  if model.num_classes:
    rows += dense('head.fc', 'head')
  table = pairs(rows)
  for s, (depth, h) in enumerate(
    zip(model.depths, model.num_heads, strict=True)
  ):
    theirs = 'layers.{s}.blocks.{j}.'
    rows = [
      *timm_block(theirs, OURS, h, model.qkv_bias),
      (f'{theirs}{TIMM_BIASES}', BIASES, SAME),
    ]
    table += pairs(rows, s=[s], j=range(depth))
    if s:
      table += pairs(_merging('layers.{s}.downsample', s), s=[s])
  return table


def huggingface_table(model: nn.Module, found: Arrays | None) -> list[Pair]:
  """Which arrays of transformers' are which variables."""
  top = prefix(model, found, 'swin')
  patches = f'{top}embeddings.'
  rows = [
    *embedding(
      f'{patches}patch_embeddings.projection', 'stage_0/embedding/projection'
    ),
    *norm(f'{patches}norm', 'stage_0/embedding/norm'),
    *norm(f'{top}layernorm', 'encoder_norm'),
  ]
  if model.num_classes:
    rows += dense('classifier', 'head')
  table = pairs(rows)
  for s, (depth, h) in enumerate(
    zip(model.depths, model.num_heads, strict=True)
  ):
    theirs = f'{top}encoder.layers.{{s}}.blocks.{{j}}.'
    inner = f'{theirs}attention.'
    rows = [
      *norm(f'{theirs}layernorm_before', f'{OURS}LayerNorm_0'),
      *attention(
        [*(f'{inner}self.{part}' for part in PARTS), f'{inner}output.dense'],
        f'{OURS}{ATTENTION}', h, model.qkv_bias,
      ),
      (f'{theirs}{HUGGINGFACE_BIASES}', BIASES, SAME),
      *norm(f'{theirs}layernorm_after', f'{OURS}LayerNorm_1'),
      *mlp(f'{theirs}intermediate.dense', f'{theirs}output.dense', OURS),
    ]  # fmt: skip
    table += pairs(rows, s=[s], j=range(depth))
    if s:  # at the end of the stage before
      table += pairs(_merging(f'{top}encoder.layers.{s - 1}.downsample', s))
  return table


def _merging(theirs: str, stage: int) -> list[Row]:
  ours = f'stage_{stage}/embedding'
  kernel = (f'{theirs}.reduction.weight', f'{ours}/reduction/kernel', DENSE)
  return [*norm(f'{theirs}.norm', f'{ours}/norm'), kernel]
