"""Which arrays of a timm file are which of our variables."""

from collections.abc import Sequence

import flax.linen as nn

from vit_jax.pretrained.convert import (
  CONV,
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

BLOCK, OURS = 'blocks.{i}.', 'Transformer/encoderblock_{i}/'
ATTENTION = f'{OURS}MultiHeadDotProductAttention_0/'
PARTS = ('query', 'key', 'value')


def norm(theirs: str, ours: str) -> list[Row]:
  """Rows of a norm."""
  return [
    (f'{theirs}.weight', f'{ours}/scale', SAME),
    (f'{theirs}.bias', f'{ours}/bias', SAME),
  ]


def dense(theirs: str, ours: str) -> list[Row]:
  """Rows of a linear layer."""
  return [
    (f'{theirs}.weight', f'{ours}/kernel', DENSE),
    (f'{theirs}.bias', f'{ours}/bias', SAME),
  ]


def embedding(theirs: str, ours: str) -> list[Row]:
  """Rows of a patch embedding."""
  return [
    (f'{theirs}.weight', f'{ours}/kernel', CONV),
    (f'{theirs}.bias', f'{ours}/bias', SAME),
  ]


def vit(model: nn.Module) -> list[Pair]:
  """The table of a ViT, a DeiT or a hybrid."""
  h = model.num_heads
  rows = [
    *embedding('patch_embed.proj', 'embedding'),
    *norm(f'{BLOCK}norm1', f'{OURS}LayerNorm_0'),
    (
      f'{BLOCK}attn.qkv.weight',
      tuple(f'{ATTENTION}{p}/kernel' for p in PARTS),
      fused(heads(h)),
    ),
    (f'{BLOCK}attn.proj.weight', f'{ATTENTION}out/kernel', heads_out(h)),
    (f'{BLOCK}attn.proj.bias', f'{ATTENTION}out/bias', SAME),
    *norm(f'{BLOCK}norm2', f'{OURS}LayerNorm_1'),
    *dense(f'{BLOCK}mlp.fc1', f'{OURS}MlpBlock_0/Dense_0'),
    *dense(f'{BLOCK}mlp.fc2', f'{OURS}MlpBlock_0/Dense_1'),
  ]
  if model.qkv_bias:
    ours = tuple(f'{ATTENTION}{p}/bias' for p in PARTS)
    rows.append((f'{BLOCK}attn.qkv.bias', ours, fused(heads_bias(h))))
  if model.qk_norm:
    rows += norm(f'{BLOCK}attn.q_norm', f'{ATTENTION}query_ln')
    rows += norm(f'{BLOCK}attn.k_norm', f'{ATTENTION}key_ln')
  if model.layer_scale is not None:
    rows += [
      (f'{BLOCK}ls1.gamma', f'{OURS}LayerScale_0/scale', SAME),
      (f'{BLOCK}ls2.gamma', f'{OURS}LayerScale_1/scale', SAME),
    ]
  table = pairs(rows, i=range(model.num_layers))
  return table + pairs(_around(model)) + pairs(_hybrid(model.resnet))


def _around(model: nn.Module) -> list[Row]:
  """Tokens, positions, the last norm and the heads."""
  distilled = getattr(model, 'distilled', False)
  rows = [
    (theirs, ours, SAME)
    for theirs, ours, there in (
      ('cls_token', 'cls', model.has_class_token),
      ('dist_token', 'dist', distilled),
      ('reg_token', 'register', model.num_registers),
      (
        'pos_embed',
        'Transformer/posembed_input/pos_embedding',
        model.position == 'learned',
      ),
    )
    if there
  ]
  if model.norm_after_pooling:
    rows += norm('fc_norm', 'fc_norm')
  else:
    rows += norm('norm', 'Transformer/encoder_norm')
  if model.classifier == 'map':
    rows += _map_head(model.num_heads)
  if model.num_classes:
    rows += dense('head', 'head')
    if distilled:
      rows += dense('head_dist', 'head_dist')
  return rows


def _map_head(h: int) -> list[Row]:
  pool, head = 'attn_pool.', 'MAPHead_0/'
  ours = f'{head}MultiHeadDotProductAttention_0/'
  return [
    (f'{pool}latent', f'{head}probe', SAME),
    (f'{pool}q.weight', f'{ours}query/kernel', heads(h)),
    (f'{pool}q.bias', f'{ours}query/bias', heads_bias(h)),
    *(
      (
        f'{pool}kv.{theirs}',
        (f'{ours}key/{name}', f'{ours}value/{name}'),
        fused(layout, 2),
      )
      for theirs, name, layout in (
        ('weight', 'kernel', heads(h)), ('bias', 'bias', heads_bias(h))
      )
    ),
    (f'{pool}proj.weight', f'{ours}out/kernel', heads_out(h)),
    (f'{pool}proj.bias', f'{ours}out/bias', SAME),
    *norm(f'{pool}norm', f'{head}LayerNorm_0'),
    *dense(f'{pool}mlp.fc1', f'{head}MlpBlock_0/Dense_0'),
    *dense(f'{pool}mlp.fc2', f'{head}MlpBlock_0/Dense_1'),
  ]  # fmt: skip


def _hybrid(depths: Sequence[int] | None) -> list[Row]:
  """A ResNet before the patches; one without stages is its stem alone."""
  if depths is None:
    return []
  backbone = 'patch_embed.backbone.'
  stem = f'{backbone}stem.' if depths else backbone
  rows = [
    (f'{stem}conv.weight', 'conv_root/kernel', CONV),
    *norm(f'{stem}norm', 'gn_root'),
  ]
  for stage, depth in enumerate(depths):
    for unit in range(depth):
      theirs = f'{backbone}stages.{stage}.blocks.{unit}.'
      ours = f'block{stage + 1}/unit{unit + 1}/'
      for n in (1, 2, 3):
        rows.append((f'{theirs}conv{n}.weight', f'{ours}conv{n}/kernel', CONV))
        rows += norm(f'{theirs}norm{n}', f'{ours}gn{n}')
      if not unit:
        theirs = f'{theirs}downsample.'
        rows.append((f'{theirs}conv.weight', f'{ours}conv_proj/kernel', CONV))
        rows += norm(f'{theirs}norm', f'{ours}gn_proj')
  return rows


def mixer(model: nn.Module) -> list[Pair]:
  """The table of a Mixer."""
  ours = 'MixerBlock_{i}/'
  rows = [
    *embedding('stem.proj', 'stem'),
    *norm(f'{BLOCK}norm1', f'{ours}LayerNorm_0'),
    *norm(f'{BLOCK}norm2', f'{ours}LayerNorm_1'),
    *dense(f'{BLOCK}mlp_tokens.fc1', f'{ours}token_mixing/Dense_0'),
    *dense(f'{BLOCK}mlp_tokens.fc2', f'{ours}token_mixing/Dense_1'),
    *dense(f'{BLOCK}mlp_channels.fc1', f'{ours}channel_mixing/Dense_0'),
    *dense(f'{BLOCK}mlp_channels.fc2', f'{ours}channel_mixing/Dense_1'),
    *norm('norm', 'pre_head_layer_norm'),
  ]
  if model.num_classes:
    rows += dense('head', 'head')
  return pairs(rows, i=range(model.num_layers))
