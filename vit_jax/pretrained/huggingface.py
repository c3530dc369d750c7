"""Hugging Face folders: config.json, safetensors, preprocessor_config.json.

transformers' ViTModel, ViTForImageClassification, DeiTModel,
DeiTForImageClassification and DeiTForImageClassificationWithTeacher, with the
array names of its version 4, which version 5 writes as well, or those of 5.
"""

import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import flax.linen as nn

from vit_jax import models
from vit_jax.pretrained import (
  arrays,
  base,
  convert,
  families,
  fields,
  preprocess,
  rows,
)
from vit_jax.pretrained import huggingface_config as configs

LOOKS = 'a folder of Hugging Face (config.json with model_type)'
CONFIG, PREPROCESSOR = 'config.json', 'preprocessor_config.json'


class Names(NamedTuple):
  """Names of a block's modules but its norms.

  Attributes:
    block: in front of its number.
    attention: query, key, value and out.
    mlp: its two linear layers.
  """

  block: str
  attention: tuple[str, str, str, str]
  mlp: tuple[str, str]


VERSIONS = (  # 4 and 5 of transformers
  Names(
    'encoder.layer.',
    ('attention.attention.query', 'attention.attention.key',
     'attention.attention.value', 'attention.output.dense'),
    ('intermediate.dense', 'output.dense'),
  ),
  Names(
    'layers.',
    ('attention.q_proj', 'attention.k_proj', 'attention.v_proj',
     'attention.o_proj'),
    ('mlp.fc1', 'mlp.fc2'),
  ),
)  # fmt: skip


def matches(path: pathlib.Path) -> bool:
  """Whether it is a folder whose config.json names a model_type.

  Raises:
    ValueError: its config.json cannot be read.
  """
  file = path / CONFIG
  return file.is_file() and 'model_type' in arrays.read_json(file)


def read(path: pathlib.Path) -> base.Pretrained:
  """Loads a folder.

  - A pooler (dense, tanh; bare models may have one) becomes `pre_logits`.
  - Without a classifier, `num_classes` is 0 and there are no labels.
  - Without a teacher, DeiT's distillation token is attended to but classifies
    nothing: it becomes a register that has a position.
  - Images of another size resize positions as `interpolate_pos_encoding` does.
  - Without preprocessor_config.json: `preprocess.default_huggingface`.

  Raises:
    ValueError: a model_type, or a field, that our models cannot follow; arrays
      and config.json that contradict each other; a damaged file.
  """
  where = str(path)
  said = arrays.read_json(path / CONFIG)
  if said['model_type'] in tuple(families.HUGGINGFACE):
    return _read_family(path, where, said)
  said = {**configs.DEFAULTS, **said}
  kind = configs.model_type(where, said)
  found = arrays.read_safetensors_folder(path)
  prefix = fields.found_prefix(found, kind)
  config = configs.read(where, said, found, prefix)
  four, five = VERSIONS
  old = any(n.startswith(prefix + four.block) for n in found)
  names = four if old else five
  _check_blocks(where, found, prefix + names.block, config['num_layers'])
  channels = said['num_channels']
  return base.fill(
    where,
    config=config,
    arrays=found,
    table=_table(kind, models.build(**config), prefix, names),
    preprocess=_preprocess(path, kind, config['image_size'], channels),
    labels=configs.labels(where, said, config['num_classes']),
    channels=channels,
  )


def _read_family(
  path: pathlib.Path, where: str, said: Mapping[str, Any]
) -> base.Pretrained:
  """Loads a folder of one of `families.HUGGINGFACE`."""
  kind = said['model_type']
  family = families.HUGGINGFACE[kind]
  known = {'architectures': None, 'num_labels': None, 'id2label': None}
  said = {**known, **said}
  configs.check_architecture(where, said, family.architectures)
  found = arrays.read_safetensors_folder(path)
  config, channels = family.read(where, said, found)
  base.check_fields(where, config, len(found))
  return base.fill(
    where,
    config=config,
    arrays=found,
    table=family.table(models.build(**config), found),
    preprocess=_preprocess(path, kind, config['image_size'], channels),
    labels=configs.labels(where, said, config['num_classes']),
    channels=channels,
    dropped=convert.COUNTED + family.dropped,
  )


def _preprocess(
  path: pathlib.Path, kind: str, size: int | tuple[int, int], channels: int
) -> dict[str, str]:
  """Ours for what is in the folder, or for the default of its model."""
  if not (path / PREPROCESSOR).is_file():
    return preprocess.default_huggingface(kind, size, channels)
  processor = arrays.read_json(path / PREPROCESSOR)
  return preprocess.from_huggingface(
    str(path / PREPROCESSOR), processor, kind, channels
  )


def write(
  path: pathlib.Path, found: base.Pretrained
) -> tuple[tuple[str, str], ...]:
  """Writes a folder that transformers opens, with the names of its version 4.

  Fields that only matter in training (drop-path and patch dropout rates,
  initialisation) are left out; transformers resizes positions by its own rule.

  Returns:
    What mapped to what: (arrays of the folder, variables).

  Raises:
    ValueError: transformers' ViT and DeiT are no such model, or an image
      processor no such preprocessing.
  """
  model, name = found.model, found.config['name']
  processor = preprocess.to_huggingface(found.preprocess, model.image_size)
  if name in families.HUGGINGFACE:
    family = families.HUGGINGFACE[name]
    config = {**family.write(found), **configs.written_labels(found)}
    table = family.table(model, None)
  else:
    config = configs.write(found)
    kind = config['model_type']
    prefix = fields.prefix(model, None, kind)
    table = _table(kind, model, prefix, VERSIONS[0])
  flat = convert.flatten(found.variables)
  weights = convert.write(flat, table, found.dtypes, 'the format huggingface')
  path.mkdir()
  for name, content in ((CONFIG, config), (PREPROCESSOR, processor)):
    text = base.to_json(name, content)
    (path / name).write_text(text + '\n', encoding='utf-8')
  arrays.write_safetensors(path / arrays.WEIGHTS, convert.with_counts(weights))
  return base.shown(table)


def _check_blocks(
  where: str, names: Collection[str], blocks: str, count: int
) -> None:
  """Raises a ValueError unless the arrays have just as many blocks."""
  pattern = re.compile(re.escape(blocks) + r'(\d{1,9})\.')
  matched = (pattern.match(name) for name in names)
  indices = {int(m[1]) for m in matched if m}
  if len(indices) != count:
    raise ValueError(
      f'{where}: num_hidden_layers={count}, but the arrays are of '
      f'{len(indices)} blocks'
    )


def _table(
  kind: str, model: nn.Module, prefix: str, names: Names
) -> list[convert.Pair]:
  """Which arrays are which variables; `names` are those of a version."""
  teacher = kind == 'deit' and not model.num_registers
  stem, block = f'{prefix}embeddings', f'{prefix}{names.block}{{i}}.'
  ours = 'Transformer/encoderblock_{i}/'
  table = [
    (f'{stem}.cls_token', 'cls', convert.SAME),
    (f'{stem}.position_embeddings', rows.POSITIONS, convert.SAME),
    *rows.embedding(f'{stem}.patch_embeddings.projection', 'embedding'),
    *rows.norm(f'{block}layernorm_before', f'{ours}LayerNorm_0'),
    *rows.attention(
      [f'{block}{name}' for name in names.attention],
      f'{ours}{rows.ATTENTION}', model.num_heads, model.qkv_bias,
    ),
    *rows.norm(f'{block}layernorm_after', f'{ours}LayerNorm_1'),
    *rows.mlp(*(f'{block}{name}' for name in names.mlp), ours),
    *rows.norm(f'{prefix}layernorm', 'Transformer/encoder_norm'),
  ]  # fmt: skip
  if kind == 'deit':
    token = 'dist' if teacher else 'register'
    table.append((f'{stem}.distillation_token', token, convert.SAME))
  if model.representation_size is not None:
    table += rows.dense(f'{prefix}pooler.dense', 'pre_logits')
  if model.num_classes and teacher:
    table += rows.dense('cls_classifier', 'head')
    table += rows.dense('distillation_classifier', 'head_dist')
  elif model.num_classes:
    table += rows.dense('classifier', 'head')
  return convert.pairs(table, i=range(model.num_layers))
