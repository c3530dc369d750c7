"""What a timm folder says of a model: its architecture and model_args."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import flax.linen as nn

from vit_jax import layers
from vit_jax.pretrained import timm_names
from vit_jax.pretrained.fields import must
from vit_jax.pretrained.timm_checks import GELUS, POOLS
from vit_jax.pretrained.timm_read import EPSILON

# Fields that are written one by one.
WRITTEN = (
  'num_classes', 'patch_size', 'hidden_size', 'num_layers', 'num_heads',
  'mlp_dim', 'tokens_mlp_dim', 'channels_mlp_dim', 'image_size', 'classifier',
  'class_token', 'pool_prefix', 'norm_after_pooling', 'position',
  'position_resize',
  'prefix_positions', 'num_registers', 'layer_scale', 'qkv_bias', 'qk_norm',
  'qk_norm_bias', 'resnet', 'gelu', 'distilled',
)  # fmt: skip
# Fields that say how training begins, what it drops and how it runs, not what
# the model computes; timm does not save the first two.
FREE = (
  'head_bias', 'initialization', 'dropout_rate', 'attention_dropout_rate',
  'drop_path_rate', 'drop_path_rule', 'patch_dropout_rate', 'feature_layers',
  'remat', 'dtype', 'name', 'parent',
)  # fmt: skip


def vit(model: nn.Module, name: str) -> tuple[str, dict[str, Any]]:
  """Architecture and model_args of a ViT, a DeiT or a hybrid.

  Every argument is written, so that the name says only which class it is.

  Args:
    model: ours.
    name: its name, 'vit' or 'deit'.

  Raises:
    ValueError: timm has no such model.
  """
  check_rest(model)
  learned = model.position == 'learned'
  distilled = getattr(model, 'distilled', False)
  _check(model, learned, distilled)
  pools = {ours: theirs for theirs, ours in POOLS.items()}
  gelus = {ours: theirs for theirs, ours in GELUS.items()}
  must(model, 'timm', gelu=tuple(gelus))
  args = {
    'img_size': list(layers.pair(model.image_size)),
    'patch_size': model.patch_size,
    'embed_dim': model.hidden_size,
    'depth': model.num_layers,
    'num_heads': model.num_heads,
    'mlp_ratio': ratio(model.hidden_size, model.mlp_dim),
    'qkv_bias': model.qkv_bias,
    'qk_norm': model.qk_norm,
    'class_token': model.has_class_token,
    'reg_tokens': model.num_registers,
    'no_embed_class': learned and model.prefix > model.learned_prefix,
    'pos_embed': 'learn' if learned else 'none',
    'global_pool': pools[model.classifier.removeprefix('token_')],
    'fc_norm': model.norm_after_pooling,
    # Its 0 would be none; what it is does not count once there are weights.
    'init_values': model.layer_scale if model.layer_scale != 0 else 1e-5,
    'act_layer': gelus[model.gelu],
    # Other sizes resize the positions as timm does, or are not taken.
    'dynamic_img_size': model.position_resize == 'bicubic',
  }
  if model.classifier in ('gap', 'map') and model.prefix:
    ours = model.pool_prefix
    whole = model.classifier == 'map' if ours is None else ours
    args['pool_include_prefix'] = whole
  if model.resnet is not None:
    architecture = timm_names.hybrid(model.hidden_size, model.resnet)
  else:
    kind = 'deit3' if name == 'deit' and args['no_embed_class'] else name
    architecture = timm_names.nearest(
      kind, model.hidden_size, model.patch_size, distilled
    )
  return architecture, args


def mixer(model: nn.Module) -> tuple[str, dict[str, Any]]:
  """Architecture and model_args of a Mixer; as `vit`."""
  check_rest(model)
  must(model, 'timm', gelu=('exact',))  # no name for another is taken
  width = model.hidden_size
  hidden = (model.tokens_mlp_dim, model.channels_mlp_dim)
  args = {
    'img_size': list(layers.pair(model.image_size)),
    'mlp_ratio': [ratio(width, size) for size in hidden],
  }
  return timm_names.mixer(width, model.num_layers, model.patch_size), args


def check_rest(model: nn.Module, written: Iterable[str] = WRITTEN) -> None:
  """Raises a ValueError on a field that timm's models have not.

  Args:
    model: ours.
    written: fields that are written one by one; the rest must be as they are
      by default.
  """
  wanted: dict[str, Any] = {'epsilon': EPSILON}
  if getattr(model, 'resnet', None) is not None:
    wanted['resnet_convention'] = 'timm'
  for field in dataclasses.fields(model):
    if field.name in wanted:
      must(model, 'timm', **{field.name: (wanted[field.name],)})
    elif field.name not in (*written, *FREE):
      must(model, 'timm', **{field.name: (field.default,)})


def _check(model: nn.Module, learned: bool, distilled: bool) -> None:
  must(
    model, 'timm', position=('learned', 'none'), qk_norm_bias=(model.qk_norm,)
  )
  if learned:
    must(model, 'timm', learned_prefix=(0, model.prefix))
  if distilled:
    for key, value in {
      'num_registers': 0, 'norm_after_pooling': False, 'position': 'learned',
      'learned_prefix': 2,
    }.items():  # fmt: skip
      if getattr(model, key) != value:
        raise ValueError(
          f'timm has no place for {key}={getattr(model, key)!r} of a '
          f'distilled DeiT; it would have to be {value!r}'
        )


def ratio(width: int, hidden: int) -> float:
  """The r with int(r · width) = hidden, which is how timm counts."""
  exact = hidden / width
  return exact if int(exact * width) == hidden else (hidden + 0.5) / width
