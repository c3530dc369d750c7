"""Which arrays of timm's and Hugging Face's Swins are which variables."""

import flax.linen as nn

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
from vit_jax.pretrained.family import Arrays
from vit_jax.pretrained.timm_tables import PARTS, dense, embedding, norm

# Of the tables of biases, within a block.
TIMM_BIASES = 'attn.relative_position_bias_table'
HUGGINGFACE_BIASES = 'attention.self.relative_position_bias_table'
OURS = 'stage_{s}/block_{j}/'
ATTENTION = f'{OURS}MultiHeadDotProductAttention_0/'


def prefix_of(found: Arrays) -> str:
  """In front of all but the classifier; bare models have none."""
  return 'swin.' if any(n.startswith('swin.') for n in found) else ''


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
      *norm(f'{theirs}norm1', f'{OURS}LayerNorm_0'),
      (
        f'{theirs}attn.qkv.weight',
        tuple(f'{ATTENTION}{p}/kernel' for p in PARTS),
        fused(heads(h)),
      ),
      (f'{theirs}attn.proj.weight', f'{ATTENTION}out/kernel', heads_out(h)),
      (f'{theirs}attn.proj.bias', f'{ATTENTION}out/bias', SAME),
      *_shared(theirs, TIMM_BIASES, 'norm2', 'mlp.fc1', 'mlp.fc2'),
    ]
    if model.qkv_bias:
      ours = tuple(f'{ATTENTION}{p}/bias' for p in PARTS)
      rows.append((f'{theirs}attn.qkv.bias', ours, fused(heads_bias(h))))
    table += pairs(rows, s=[s], j=range(depth))
    if s:
      table += pairs(_merging('layers.{s}.downsample', s), s=[s])
  return table


def huggingface_table(model: nn.Module, found: Arrays | None) -> list[Pair]:
  """Which arrays of transformers' are which variables."""
  prefix = 'swin.' if model.num_classes else ''
  prefix = prefix if found is None else prefix_of(found)
  patches = f'{prefix}embeddings.'
  rows = [
    *embedding(
      f'{patches}patch_embeddings.projection', 'stage_0/embedding/projection'
    ),
    *norm(f'{patches}norm', 'stage_0/embedding/norm'),
    *norm(f'{prefix}layernorm', 'encoder_norm'),
  ]
  if model.num_classes:
    rows += dense('classifier', 'head')
  table = pairs(rows)
  for s, (depth, h) in enumerate(
    zip(model.depths, model.num_heads, strict=True)
  ):
    theirs = f'{prefix}encoder.layers.{{s}}.blocks.{{j}}.'
    inner = f'{theirs}attention.'
    rows = [
      *norm(f'{theirs}layernorm_before', f'{OURS}LayerNorm_0'),
      *(
        (f'{inner}self.{p}.weight', f'{ATTENTION}{p}/kernel', heads(h))
        for p in PARTS
      ),
      (f'{inner}output.dense.weight', f'{ATTENTION}out/kernel', heads_out(h)),
      (f'{inner}output.dense.bias', f'{ATTENTION}out/bias', SAME),
      *_shared(
        theirs, HUGGINGFACE_BIASES, 'layernorm_after',
        'intermediate.dense', 'output.dense',
      ),
    ]  # fmt: skip
    if model.qkv_bias:
      rows += [
        (f'{inner}self.{p}.bias', f'{ATTENTION}{p}/bias', heads_bias(h))
        for p in PARTS
      ]
    table += pairs(rows, s=[s], j=range(depth))
    if s:  # at the end of the stage before
      table += pairs(_merging(f'{prefix}encoder.layers.{s - 1}.downsample', s))
  return table


def _shared(
  block: str, table: str, after: str, first: str, second: str
) -> list[Row]:
  """Rows of a block that differ by their names alone."""
  return [
    (f'{block}{table}', f'{ATTENTION}attend/relative_bias', SAME),
    *norm(f'{block}{after}', f'{OURS}LayerNorm_1'),
    *dense(f'{block}{first}', f'{OURS}MlpBlock_0/Dense_0'),
    *dense(f'{block}{second}', f'{OURS}MlpBlock_0/Dense_1'),
  ]


def _merging(theirs: str, stage: int) -> list[Row]:
  ours = f'stage_{stage}/embedding'
  kernel = (f'{theirs}.reduction.weight', f'{ours}/reduction/kernel', DENSE)
  return [*norm(f'{theirs}.norm', f'{ours}/norm'), kernel]
