"""timm's and Hugging Face's ResNets with BatchNorm ↔ ours."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from vit_jax import layers
from vit_jax.pretrained import base, fields, timm_checks
from vit_jax.pretrained.convert import CONV, Pair, Row, pairs
from vit_jax.pretrained.family import Arrays, HuggingFace, Timm
from vit_jax.pretrained.rows import batch_norm as norm
from vit_jax.pretrained.rows import dense

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
    rows += dense('fc', 'head')
  return pairs(rows)


def huggingface_table(model: nn.Module, found: Arrays | None) -> list[Pair]:
  """Which arrays of transformers' are which variables."""
  prefix = fields.prefix(model, found, 'resnet')

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
    rows += dense('classifier.1', 'head')
  return pairs(rows)


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
  seen = {
    'layers': fields.depths(found, r'layer([1-4])\.(\d{1,3})\.', first=1),
    'channels': [
      shape(where, found, f'layer{n}.0.conv2.weight', 4)[0]
      for n in range(1, 5)
    ],
    'in_chans': channels,
    'num_classes': fields.size_of(where, found, 'fc.weight'),
    'embedding_size': width,
    'block': (
      'bottleneck' if 'layer1.0.conv3.weight' in found else 'basic'
    ),
  }
  timm_checks.check_said(
    where, {**said, 'embedding_size': 64, 'block': block}, seen
  )
  section = {
    'name': 'resnet',
    'num_classes': seen['num_classes'],
    'depths': tuple(seen['layers']),
    'hidden_sizes': tuple(c * WIDER[block] for c in seen['channels']),
    'block': block,
    'image_size': fields.short(image_size),
  }
  return section, channels


def write_timm(model: nn.Module) -> tuple[str, dict[str, Any]]:
  """Architecture and model_args of ours; see `family.Timm`."""
  fields.must(
    model, 'timm', stem=('imagenet',), embedding_size=(64,), epsilon=(1e-5,),
    downsample_in_first_stage=(False,), downsample_in_bottleneck=(False,),
  )  # fmt: skip
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
  fields.choose(
    where, said, hidden_act=('relu',), layer_type=tuple(WIDER),
    downsample_in_first_stage=(False, True),
    downsample_in_bottleneck=(False, True),
  )  # fmt: skip
  sizes = {
    name: fields.several(where, said, name, high=2**16)
    for name in ('depths', 'hidden_sizes')
  }
  if len(sizes['depths']) != len(sizes['hidden_sizes']):
    raise ValueError(
      f'{where}: depths={said["depths"]!r} and hidden_sizes='
      f'{said["hidden_sizes"]!r} must be as many'
    )
  prefix = fields.found_prefix(found, 'resnet')
  stem = f'{prefix}embedder.embedder.convolution.weight'
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
    'num_classes': fields.size_of(where, found, 'classifier.1.weight'),
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
  fields.must(
    model, 'the format huggingface', stem=('imagenet',), epsilon=(1e-5,)
  )
  kind = 'ResNetForImageClassification' if model.num_classes else 'ResNetModel'
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
    'image_size': fields.short(layers.pair(model.image_size)),
  }


TIMM = Timm(
  names='|'.join(NAMES), read=read_timm, table=timm_table, write=write_timm,
  first=('conv1',), heads=('fc',), any_size=True,
)  # fmt: skip
HUGGINGFACE = HuggingFace(
  architectures=('ResNetModel', 'ResNetForImageClassification'),
  read=read_huggingface, table=huggingface_table, write=write_huggingface,
)  # fmt: skip
