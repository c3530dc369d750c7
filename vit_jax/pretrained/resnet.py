"""timm's and Hugging Face's ResNets with BatchNorm ↔ ours."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn

from vit_jax import layers
from vit_jax.models.resnet_classifier import ResNetClassifier
from vit_jax.pretrained import base, timm_checks
from vit_jax.pretrained.convert import CONV, DENSE, SAME, Pair, Row, pairs
from vit_jax.pretrained.family import Arrays, HuggingFace, Timm

# timm's names: the block and the depths of each.
NAMES = {
  'resnet18': ('basic', (2, 2, 2, 2)),
  'resnet34': ('basic', (3, 4, 6, 3)),
  'resnet26': ('bottleneck', (2, 2, 2, 2)),
  'resnet50': ('bottleneck', (3, 4, 6, 3)),
  'resnet101': ('bottleneck', (3, 4, 23, 3)),
  'resnet152': ('bottleneck', (3, 8, 36, 3)),
}
PLANES = (64, 128, 256, 512)
WIDER = {'basic': 1, 'bottleneck': 4}  # times the planes is a stage's width
KNOWN = ('layers', 'channels', 'in_chans', 'num_classes')
NEEDLESS = (
  'drop_rate', 'drop_path_rate', 'drop_block_rate', 'zero_init_last',
  'stem_width',  # of deep stems
)  # fmt: skip
FIXED = {
  'output_stride': (32,), 'global_pool': ('avg',), 'cardinality': (1,),
  'base_width': (64,), 'stem_type': ('',), 'replace_stem_pool': (False,),
  'block_reduce_first': (1,), 'down_kernel_size': (1,), 'avg_down': (False,),
  'act_layer': ('relu',), 'norm_layer': ('batchnorm2d',),
  'aa_layer': (None, ''), 'block_args': (None, {}),
}  # fmt: skip


def norm(theirs: str, ours: str) -> list[Row]:
  """Rows of a BatchNorm: scale, bias, and running averages."""
  state = f'batch_stats/{ours}'
  return [
    (f'{theirs}.weight', f'{ours}/scale', SAME),
    (f'{theirs}.bias', f'{ours}/bias', SAME),
    (f'{theirs}.running_mean', f'{state}/mean', SAME),
    (f'{theirs}.running_var', f'{state}/var', SAME),
  ]


def _unit(conv: str, normed: str, ours: str) -> list[Row]:
  return [
    (f'{conv}.weight', f'{ours}/conv/kernel', CONV),
    *norm(normed, f'{ours}/norm'),
  ]


def timm_table(model: nn.Module) -> list[Pair]:
  """Which arrays of timm's are which variables."""
  rows = _unit('conv1', 'bn1', 'embedding')
  for stage, depth in enumerate(model.depths):
    for i in range(depth):
      theirs, ours = f'layer{stage + 1}.{i}.', f'stage_{stage}/block_{i}/'
      for n in range(1, 3 if model.block == 'basic' else 4):
        rows += _unit(
          f'{theirs}conv{n}', f'{theirs}bn{n}', f'{ours}conv{n}'
        )
      if not i and _projected(model, stage):
        down = f'{theirs}downsample.'
        rows += _unit(f'{down}0', f'{down}1', f'{ours}shortcut')
  if model.num_classes:
    rows += [
      ('fc.weight', 'head/kernel', DENSE), ('fc.bias', 'head/bias', SAME)
    ]  # fmt: skip
  return pairs(rows)


def huggingface_table(model: nn.Module, found: Arrays | None) -> list[Pair]:
  """Which arrays of transformers' are which variables."""
  bare = not model.num_classes if found is None else not _prefix(found)
  prefix = '' if bare else 'resnet.'

  def unit(theirs: str, ours: str) -> list[Row]:
    return _unit(f'{theirs}.convolution', f'{theirs}.normalization', ours)

  rows = unit(f'{prefix}embedder.embedder', 'embedding')
  for stage, depth in enumerate(model.depths):
    for i in range(depth):
      theirs = f'{prefix}encoder.stages.{stage}.layers.{i}.'
      ours = f'stage_{stage}/block_{i}/'
      for n in range(2 if model.block == 'basic' else 3):
        rows += unit(f'{theirs}layer.{n}', f'{ours}conv{n + 1}')
      if not i and _projected(model, stage):
        rows += unit(f'{theirs}shortcut', f'{ours}shortcut')
  if model.num_classes:
    rows += [
      ('classifier.1.weight', 'head/kernel', DENSE),
      ('classifier.1.bias', 'head/bias', SAME),
    ]
  return pairs(rows)


def _prefix(found: Arrays) -> str:
  return 'resnet.' if any(n.startswith('resnet.') for n in found) else ''


def _projected(model: nn.Module, stage: int) -> bool:
  """Whether the first shortcut of a stage has a convolution."""
  before = (model.embedding_size, *model.hidden_sizes)[stage]
  return model.steps[stage] != 1 or before != model.hidden_sizes[stage]


def read_timm(
  where: str, architecture: str, args: Mapping[str, Any],
  image_size: tuple[int, int], found: Arrays,
) -> tuple[dict[str, Any], int]:  # fmt: skip
  """Config of a timm folder; see `family.Timm`."""
  timm_checks.check_arguments(where, args, KNOWN, FIXED, NEEDLESS)
  block, depths = NAMES[architecture.split('.')[0]]
  said = {'layers': list(depths), 'channels': list(PLANES), **args}
  shape = timm_checks.shape
  width, channels = shape(where, found, 'conv1.weight', 4)[:2]
  places = {
    (int(m[1]), int(m[2]))
    for name in found
    if (m := re.match(r'layer([1-4])\.(\d{1,3})\.', name))
  }
  seen = {
    'layers': [sum(s == n for s, _ in places) for n in range(1, 5)],
    'channels': [
      shape(where, found, f'layer{n}.0.conv2.weight', 4)[0]
      for n in range(1, 5)
    ],
    'in_chans': channels,
    'num_classes': _classes(where, found, 'fc.weight'),
    'embedding_size': width,
    'block': (
      'bottleneck' if 'layer1.0.conv3.weight' in found else 'basic'
    ),
  }
  timm_checks.check_said(
    where, {**said, 'embedding_size': 64, 'block': block}, seen
  )
  fields = {
    'name': 'resnet',
    'num_classes': seen['num_classes'],
    'depths': tuple(seen['layers']),
    'hidden_sizes': tuple(c * WIDER[block] for c in seen['channels']),
    'block': block,
    'image_size': _size(image_size),
  }
  return fields, channels


def write_timm(model: nn.Module) -> tuple[str, dict[str, Any]]:
  """Architecture and model_args of ours; see `family.Timm`."""
  _refuse(model, 'timm', (
    ('stem', ('imagenet',)), ('embedding_size', (64,)), ('epsilon', (1e-5,)),
    ('downsample_in_first_stage', (False,)),
    ('downsample_in_bottleneck', (False,)),
  ))  # fmt: skip
  if len(model.depths) != 4:
    raise ValueError(
      f"timm's ResNets have four stages; depths={model.depths}"
    )
  names = [k for k, row in NAMES.items() if row == (model.block, model.depths)]
  planes = [c // WIDER[model.block] for c in model.hidden_sizes]
  args = {'layers': list(model.depths), 'channels': planes}
  other = 'resnet18' if model.block == 'basic' else 'resnet50'
  return (names or [other])[0], args


def read_huggingface(
  where: str, said: Mapping[str, Any], found: Arrays
) -> tuple[dict[str, Any], int]:
  """Config of a Hugging Face folder; see `family.HuggingFace`."""
  said = {
    'num_channels': 3, 'embedding_size': 64, 'depths': [3, 4, 6, 3],
    'hidden_sizes': [256, 512, 1024, 2048], 'layer_type': 'bottleneck',
    'hidden_act': 'relu', 'downsample_in_first_stage': False,
    'downsample_in_bottleneck': False, 'image_size': 224, **said,
  }  # fmt: skip
  for name, choices in {
    'hidden_act': ('relu',), 'layer_type': tuple(WIDER),
    'downsample_in_first_stage': (False, True),
    'downsample_in_bottleneck': (False, True),
  }.items():  # fmt: skip
    if said[name] not in choices:
      raise ValueError(
        f'{where}: {name}={said[name]!r} is not read; choices: '
        f'{", ".join(map(repr, choices))}'
      )
  sizes = {
    name: tuple(base.bounded(where, name, n, 2**16) for n in said[name])
    for name in ('depths', 'hidden_sizes')
    if isinstance(said[name], Sequence)
  }
  if len({len(row) for row in sizes.values()}) != 1 or len(sizes) != 2:
    raise ValueError(
      f'{where}: depths={said["depths"]!r} and hidden_sizes='
      f'{said["hidden_sizes"]!r} must be as many'
    )
  stem = f'{_prefix(found)}embedder.embedder.convolution.weight'
  shape = timm_checks.shape(where, found, stem, 4)
  seen = {'embedding_size': shape[0], 'num_channels': shape[1]}
  for name, value in seen.items():
    if said[name] != value:
      raise ValueError(
        f'{where}: {name}={said[name]!r}, but {stem} is {shape}'
      )
  image_size, early = said['image_size'], said['downsample_in_bottleneck']
  if isinstance(image_size, list):
    image_size = tuple(image_size)
  return {
    'name': 'resnet',
    'num_classes': _classes(where, found, 'classifier.1.weight'),
    **sizes,
    'block': said['layer_type'],
    'embedding_size': shape[0],
    'downsample_in_first_stage': said['downsample_in_first_stage'],
    # transformers' basic layers take no notice of it.
    'downsample_in_bottleneck': early and said['layer_type'] == 'bottleneck',
    'image_size': image_size,
  }, shape[1]


def write_huggingface(found: base.Pretrained) -> dict[str, Any]:
  """config.json of ours; see `family.HuggingFace`."""
  model = found.model
  _refuse(
    model, 'huggingface', (('stem', ('imagenet',)), ('epsilon', (1e-5,)))
  )
  kind = 'ResNetForImageClassification' if model.num_classes else 'ResNetModel'
  size = _size(layers.pair(model.image_size))
  return {
    'architectures': [kind],
    'model_type': 'resnet',
    'num_channels': found.channels,
    'embedding_size': model.embedding_size,
    'hidden_sizes': list(model.hidden_sizes),
    'depths': list(model.depths),
    'layer_type': model.block,
    'hidden_act': 'relu',
    'downsample_in_first_stage': model.downsample_in_first_stage,
    'downsample_in_bottleneck': model.downsample_in_bottleneck,
    # Of no use to transformers; ours reads it.
    'image_size': list(size) if isinstance(size, tuple) else size,
  }


def _classes(where: str, found: Arrays, name: str) -> int:
  return timm_checks.shape(where, found, name, 2)[0] if name in found else 0


def _size(size: tuple[int, int]) -> int | tuple[int, int]:
  return size[0] if size[0] == size[1] else size


def _refuse(
  model: ResNetClassifier, form: str,
  rows: Sequence[tuple[str, tuple[Any, ...]]],
) -> None:  # fmt: skip
  """Raises a ValueError on a field that a format has no place for."""
  for name, choices in rows:
    value = getattr(model, name)
    if value not in choices:
      raise ValueError(
        f'the format {form} has no place for {name}={value!r} of a ResNet; it '
        f'would have to be {choices[0]!r}'
      )


TIMM = Timm(
  names='|'.join(NAMES), read=read_timm, table=timm_table, write=write_timm,
  first=('conv1',), heads=('fc',), any_size=True,
)  # fmt: skip
HUGGINGFACE = HuggingFace(
  architectures=('ResNetModel', 'ResNetForImageClassification'),
  read=read_huggingface, table=huggingface_table, write=write_huggingface,
)  # fmt: skip
