"""Hugging Face folders: config.json, safetensors, preprocessor_config.json.

transformers' ViTModel, ViTForImageClassification, DeiTModel,
DeiTForImageClassification and DeiTForImageClassificationWithTeacher, with the
array names of its version 4, which version 5 writes as well, or those of 5.
"""

import pathlib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import flax.linen as nn

from vit_jax import models
from vit_jax.pretrained import arrays, base, convert, families, preprocess
from vit_jax.pretrained import huggingface_config as configs

LOOKS = 'a folder of Hugging Face (config.json with model_type)'
CONFIG, PREPROCESSOR = 'config.json', 'preprocessor_config.json'

BLOCKS = ('encoder.layer.', 'layers.')  # in front of a block's number, 4 and 5
# A block's modules: kind, name in version 4, name in version 5, ours.
ATTENTION = 'MultiHeadDotProductAttention_0'
MODULES = (
  ('norm', 'layernorm_before', 'layernorm_before', 'LayerNorm_0'),
  ('heads', 'attention.attention.query', 'attention.q_proj', 'query'),
  ('heads', 'attention.attention.key', 'attention.k_proj', 'key'),
  ('heads', 'attention.attention.value', 'attention.v_proj', 'value'),
  ('out', 'attention.output.dense', 'attention.o_proj', 'out'),
  ('norm', 'layernorm_after', 'layernorm_after', 'LayerNorm_1'),
  ('dense', 'intermediate.dense', 'mlp.fc1', 'MlpBlock_0/Dense_0'),
  ('dense', 'output.dense', 'mlp.fc2', 'MlpBlock_0/Dense_1'),
)


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
  prefix = f'{kind}.' if any(n.startswith(f'{kind}.') for n in found) else ''
  config = configs.read(where, said, found, prefix)
  version = 0 if any(n.startswith(prefix + BLOCKS[0]) for n in found) else 1
  _check_blocks(where, found, prefix + BLOCKS[version], config['num_layers'])
  channels = said['num_channels']
  return base.fill(
    where,
    config=config,
    arrays=found,
    table=_table(kind, models.build(**config), prefix, version),
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
    # transformers' bare models have no prefix.
    table = _table(kind, model, f'{kind}.' if model.num_classes else '', 0)
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
  kind: str, model: nn.Module, prefix: str, version: int
) -> list[convert.Pair]:
  rows = _rows(kind, model, prefix, version)
  return convert.pairs(rows, i=range(model.num_layers))


def _rows(
  kind: str, model: nn.Module, prefix: str, version: int
) -> Iterator[convert.Row]:
  """Rows of `convert.pairs`, where '{i}' is a block's number."""
  teacher = kind == 'deit' and not model.num_registers
  stem = f'{prefix}embeddings'
  patches = f'{stem}.patch_embeddings.projection'
  positions = 'Transformer/posembed_input/pos_embedding'
  yield f'{stem}.cls_token', 'cls', convert.SAME
  if kind == 'deit':
    token = 'dist' if teacher else 'register'
    yield f'{stem}.distillation_token', token, convert.SAME
  yield f'{stem}.position_embeddings', positions, convert.SAME
  yield f'{patches}.weight', 'embedding/kernel', convert.CONV
  yield f'{patches}.bias', 'embedding/bias', convert.SAME
  for part, *theirs, ours in MODULES:
    name = f'{prefix}{BLOCKS[version]}{{i}}.{theirs[version]}'
    ours = f'{ATTENTION}/{ours}' if part in ('heads', 'out') else ours
    ours = f'Transformer/encoderblock_{{i}}/{ours}'
    bias = part != 'heads' or model.qkv_bias
    yield from _module(part, name, ours, model.num_heads, bias)
  yield from _module('norm', f'{prefix}layernorm', 'Transformer/encoder_norm')
  if model.representation_size is not None:
    yield from _module('dense', f'{prefix}pooler.dense', 'pre_logits')
  if model.num_classes and teacher:
    yield from _module('dense', 'cls_classifier', 'head')
    yield from _module('dense', 'distillation_classifier', 'head_dist')
  elif model.num_classes:
    yield from _module('dense', 'classifier', 'head')


def _module(
  part: str, theirs: str, ours: str, heads: int = 1, bias: bool = True
) -> Iterator[convert.Row]:
  """The rows of one module's weight and bias."""
  name, layout = {
    'norm': ('scale', convert.SAME),
    'dense': ('kernel', convert.DENSE),
    'heads': ('kernel', convert.heads(heads)),
    'out': ('kernel', convert.heads_out(heads)),
  }[part]
  yield f'{theirs}.weight', f'{ours}/{name}', layout
  if bias:
    same = convert.heads_bias(heads) if part == 'heads' else convert.SAME
    yield f'{theirs}.bias', f'{ours}/bias', same
