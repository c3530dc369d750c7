"""Which arrays of a timm file are which of our variables."""

from collections.abc import Sequence

import flax.linen as nn

from vit_jax.pretrained.convert import CONV, SAME, Pair, Row, pairs
from vit_jax.pretrained.rows import (
  ATTENTION,
  POSITIONS,
  dense,
  embedding,
  mlp,
  norm,
  out,
  projected,
  scales,
  timm_block,
)

BLOCK, OURS = 'blocks.{i}.', 'Transformer/encoderblock_{i}/'


def vit(model: nn.Module) -> list[Pair]:
  """The table of a ViT, a DeiT or a hybrid."""
  rows = block(model, ('ls1.gamma', 'ls2.gamma'))
  rows += around(model, model.position == 'learned') + _hybrid(model.resnet)
  return pairs(rows, i=range(model.num_layers))


def block(model: nn.Module, scaled: tuple[str, str]) -> list[Row]:
  """Every block of a ViT; `scaled` are timm's names of its LayerScales."""
  rows = timm_block(BLOCK, OURS, model.num_heads, model.qkv_bias)
  if model.qk_norm:
    rows += norm(f'{BLOCK}attn.q_norm', f'{OURS}{ATTENTION}/query_ln')
    rows += norm(f'{BLOCK}attn.k_norm', f'{OURS}{ATTENTION}/key_ln')
  if model.layer_scale is not None:
    rows += scales(*(f'{BLOCK}{name}' for name in scaled), OURS)
  return rows


def around(model: nn.Module, learned: bool) -> list[Row]:
  """Patches, tokens, learned positions, the last norm and the heads."""
  distilled = getattr(model, 'distilled', False)
  rows = embedding('patch_embed.proj', 'embedding')
  rows += [
    (theirs, ours, SAME)
    for theirs, ours, there in (
      ('cls_token', 'cls', model.has_class_token),
      ('dist_token', 'dist', distilled),
      ('reg_token', 'register', model.num_registers),
      ('pos_embed', POSITIONS, learned),
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


def _map_head(count: int) -> list[Row]:
  pool, head = 'attn_pool.', 'MAPHead_0/'
  to = f'{head}{ATTENTION}'
  return [
    (f'{pool}latent', f'{head}probe', SAME),
    *projected(f'{pool}q', to, count, True, ('query',)),
    *projected(f'{pool}kv', to, count, True, ('key', 'value')),
    *out(f'{pool}proj', to, count),
    *norm(f'{pool}norm', f'{head}LayerNorm_0'),
    *mlp(f'{pool}mlp.fc1', f'{pool}mlp.fc2', head),
  ]


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
