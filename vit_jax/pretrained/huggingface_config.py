"""config.json of Hugging Face's ViT and DeiT ↔ the model's section of ours."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from vit_jax import layers, models, specs
from vit_jax.pretrained import base, families, fields
from vit_jax.pretrained.family import ACTIVATIONS, GELUS

ARCHITECTURES = {  # by model_type
  'vit': ('ViTModel', 'ViTForImageClassification'),
  'deit': (
    'DeiTModel', 'DeiTForImageClassification',
    'DeiTForImageClassificationWithTeacher',
  ),
}  # fmt: skip
# transformers' own, where config.json says nothing. What is not here begins
# training, or says how to call the model.
DEFAULTS = {
  'architectures': None, 'hidden_size': 768, 'num_hidden_layers': 12,
  'num_attention_heads': 12, 'intermediate_size': 3072, 'hidden_act': 'gelu',
  'hidden_dropout_prob': 0.0, 'attention_probs_dropout_prob': 0.0,
  'layer_norm_eps': 1e-12, 'image_size': 224, 'patch_size': 16,
  'num_channels': 3, 'qkv_bias': True, 'pooler_act': 'tanh',
  'num_labels': None, 'id2label': None, 'head_dim': None, 'pruned_heads': None,
}  # fmt: skip

# Fields of a model that a folder holds, or that change no logits: how it is
# trained, begins, computes, and takes images of another size. Any other must be
# what it is by default.
FREE = (
  'name', 'parent', 'num_classes', 'patch_size', 'hidden_size', 'num_layers',
  'num_heads', 'mlp_dim', 'image_size', 'representation_size', 'qkv_bias',
  'gelu', 'epsilon', 'dropout_rate', 'attention_dropout_rate',
  'drop_path_rate', 'drop_path_rule', 'patch_dropout_rate', 'head_bias',
  'initialization', 'remat', 'dtype', 'feature_layers', 'position_resize',
)  # fmt: skip
# Fields that say which tokens there are.
TOKENS = ('class_token', 'num_registers', 'prefix_positions', 'distilled')


def model_type(where: str, said: Mapping[str, Any]) -> str:
  """'vit' or 'deit'; `said` is config.json over `DEFAULTS`.

  Raises:
    ValueError: it is another, or the architecture is.
  """
  kind = said['model_type']
  if kind not in tuple(ARCHITECTURES):
    raise ValueError(
      f'{where}: model_type={kind!r} is not read; choices: '
      f'{", ".join((*ARCHITECTURES, *families.HUGGINGFACE))}'
    )
  check_architecture(where, said, ARCHITECTURES[kind])
  return kind


def check_architecture(
  where: str, said: Mapping[str, Any], known: Sequence[str]
) -> None:
  """Raises a ValueError on `architectures` that are not one of `known`."""
  named = said['architectures']
  if named not in (None, [], *([name] for name in known)):
    raise ValueError(
      f'{where}: architectures={named!r} is not read; choices: '
      f'{", ".join(known)}'
    )


def read(
  where: str, said: Mapping[str, Any], found: Mapping[str, np.ndarray],
  prefix: str,
) -> dict[str, Any]:  # fmt: skip
  """The model's section: `models.build(**section)`.

  Args:
    where: the folder, for errors.
    said: what config.json holds, over `DEFAULTS`.
    found: the arrays, whose sizes config.json must agree with.
    prefix: in front of the names of all but the classifiers.

  Raises:
    ValueError: a field that our models cannot follow, or not the arrays'.
  """
  kind = model_type(where, said)
  _check_words(where, said)
  width = base.bounded(where, 'hidden_size', said['hidden_size'], 2**16)
  heads = base.bounded(
    where, 'num_attention_heads', said['num_attention_heads'], 2**10
  )
  if width % heads or said['head_dim'] not in (None, width // heads):
    raise ValueError(
      f'{where}: num_attention_heads={heads}, head_dim={said["head_dim"]!r}: '
      f'heads must share hidden_size={width} equally'
    )
  image_size = fields.sides(where, 'image_size', said['image_size'])
  patch = fields.sides(where, 'patch_size', said['patch_size'], fields.LARGEST)
  if patch[0] != patch[1]:
    raise ValueError(f'{where}: patch_size={list(patch)} must be square')
  section = {
    'name': kind,
    'num_classes': (
      fields.size_of(where, found, 'classifier.weight')
      or fields.size_of(where, found, 'cls_classifier.weight')
    ),
    'patch_size': patch[0],
    'hidden_size': width,
    'num_layers': base.bounded(
      where, 'num_hidden_layers', said['num_hidden_layers'], 2**12
    ),
    'num_heads': heads,
    'mlp_dim': base.bounded(
      where, 'intermediate_size', said['intermediate_size'], 2**18
    ),
    'image_size': fields.short(image_size),
    'dropout_rate': fields.rate(
      where, 'hidden_dropout_prob', said['hidden_dropout_prob']
    ),
    'attention_dropout_rate': fields.rate(
      where, 'attention_probs_dropout_prob',
      said['attention_probs_dropout_prob'],
    ),
    'qkv_bias': said['qkv_bias'],
    'gelu': GELUS[said['hidden_act']],
    'epsilon': fields.between(
      where, 'layer_norm_eps', said['layer_norm_eps']
    ),
    'position_resize': 'bicubic_torch',
  }  # fmt: skip
  pooler = f'{prefix}pooler.dense.bias'
  if not section['num_classes'] and pooler in found:
    section['representation_size'] = found[pooler].size
  if 'distillation_classifier.weight' in found:
    section['distilled'] = True
  elif kind == 'deit':
    section.update(num_registers=1, prefix_positions=2)
  try:
    rows, columns = layers.grid_of(image_size, patch)
  except ValueError as e:
    raise ValueError(f'{where}: {e}') from None
  tokens = (2 if kind == 'deit' else 1) + rows * columns
  channels = base.bounded(where, 'num_channels', said['num_channels'], 64)
  _check_shapes(
    where, found,
    {
      f'{prefix}embeddings.patch_embeddings.projection.weight': (
        width, channels, *patch
      ),
      f'{prefix}embeddings.position_embeddings': (1, tokens, width),
    },
  )  # fmt: skip
  return section


def labels(
  where: str, said: Mapping[str, Any], num_classes: int
) -> tuple[str, ...]:
  """Names of the classes, () without a classifier or without names.

  Raises:
    ValueError: they are not those of classes 0 to num_classes - 1.
  """
  count, named = said['num_labels'], said['id2label']
  if not num_classes:
    return ()
  if count not in (None, num_classes):
    raise ValueError(
      f'{where}: num_labels={count!r}; the classifier has {num_classes}'
    )
  if named is None:
    return ()
  keys = [str(i) for i in range(num_classes)]
  good = isinstance(named, Mapping) and all(
    isinstance(name, str) for name in named.values()
  )
  if not good or set(named) != set(keys):
    raise ValueError(
      f'{where}: id2label must name the classes "0" to "{num_classes - 1}" of '
      'the classifier'
    )
  return tuple(named[key] for key in keys)


def _check_words(where: str, said: Mapping[str, Any]) -> None:
  """Raises a ValueError on a value that our models cannot follow."""
  fields.choose(
    where, said, hidden_act=tuple(GELUS), pooler_act=('tanh',),
    pruned_heads=(None, {}),
  )  # fmt: skip
  if not isinstance(said['qkv_bias'], bool):
    raise ValueError(
      f'{where}: qkv_bias={said["qkv_bias"]!r} must be true or false'
    )


def _check_shapes(
  where: str, found: Mapping[str, np.ndarray],
  expected: Mapping[str, Sequence[int]],
) -> None:  # fmt: skip
  for name, shape in expected.items():
    if name in found and found[name].shape != tuple(shape):
      raise ValueError(
        f'{where}: {name} has shape {found[name].shape}, and after config.json '
        f'it has {tuple(shape)}'
      )


def write(found: base.Pretrained) -> dict[str, Any]:
  """A config.json for a model.

  Raises:
    ValueError: transformers' ViT and DeiT are no such model.
  """
  model = found.model
  kind, architecture = _architecture(model)
  out = {
    'architectures': [architecture],
    'model_type': kind,
    'hidden_size': model.hidden_size,
    'num_hidden_layers': model.num_layers,
    'num_attention_heads': model.num_heads,
    'intermediate_size': model.mlp_dim,
    'hidden_act': ACTIVATIONS[model.gelu],
    'image_size': fields.short(layers.pair(model.image_size)),
    'patch_size': model.patch_size,
    'num_channels': found.channels,
    'qkv_bias': model.qkv_bias,
    'layer_norm_eps': model.epsilon,
    'hidden_dropout_prob': model.dropout_rate,
    'attention_probs_dropout_prob': model.attention_dropout_rate,
  }
  if model.representation_size is not None:
    out.update(pooler_output_size=model.representation_size, pooler_act='tanh')
  return {**out, **written_labels(found)}


def written_labels(found: base.Pretrained) -> dict[str, Any]:
  """The labels, or else their number, as a config.json has them."""
  if found.labels:
    return {
      'id2label': {str(i): name for i, name in enumerate(found.labels)},
      'label2id': {name: i for i, name in enumerate(found.labels)},
    }
  count = found.model.num_classes
  return {'num_labels': count} if count else {}


def _architecture(model: nn.Module) -> tuple[str, str]:
  """(model_type, class) of transformers that computes what the model does."""
  cannot = 'the format huggingface has no place for '
  if not isinstance(model, models.VisionTransformer):
    raise ValueError(
      f'{cannot}{type(model).__name__}; it has one for VisionTransformer, DeiT'
    )
  if model.num_classes and model.representation_size is not None:
    raise ValueError(
      f'{cannot}representation_size={model.representation_size} with a '
      'classifier: its pooled models have num_classes=0'
    )
  attention = model.attention
  if not isinstance(attention, str) or {
    str(spec) for spec in specs.parse(attention)
  } != {'softmax'}:
    raise ValueError(f"{cannot}attention={attention!r}, only for 'softmax'")
  for field in dataclasses.fields(models.VisionTransformer):
    value = getattr(model, field.name)
    looked_at = (*FREE, *TOKENS, 'attention')
    if field.name not in looked_at and value != field.default:
      raise ValueError(
        f'{cannot}{field.name}={value!r}, only for {field.default!r}'
      )
  distilled = isinstance(model, models.DeiT) and model.distilled
  tokens = (model.prefix, model.num_registers, model.learned_prefix, distilled)
  bare = not model.num_classes
  if tokens == (1, 0, 1, False):
    return 'vit', ARCHITECTURES['vit'][0 if bare else 1]
  if tokens == (2, 1, 2, False):
    return 'deit', ARCHITECTURES['deit'][0 if bare else 1]
  if tokens == (2, 0, 2, True) and not bare:
    return 'deit', ARCHITECTURES['deit'][2]
  raise ValueError(
    f'{cannot}these tokens: ' + ', '.join(
      f'{name}={getattr(model, name)!r}' for name in TOKENS
      if hasattr(model, name)
    ) + '; it has one for a class token with a position, and with it for a '
    'distillation token, or a register, with a position'
  )  # fmt: skip
