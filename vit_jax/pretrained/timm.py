"""timm folders: config.json with an `architecture`, and model.safetensors.

ViT, DeiT, DeiT-III, hybrids and Mixer, with what they can be told by
`model_args`: registers, LayerScale, query and key norms, pooling by mean or
attention, other sizes. What a folder becomes:

- sizes come from the arrays; the name and `model_args` say what arrays cannot
  (heads, pooling, GELU) and must agree with the arrays in everything else;
- a hybrid's ResNet has the epsilons of timm's (`resnet_convention='timm'`);
- images of another size resize the positions as timm's `dynamic_img_size`
  does (`position_resize='bicubic'`);
- a label is a name of `label_names`, with ': ' and its description where
  `label_descriptions` has one.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from vit_jax import layers, models
from vit_jax.pretrained import (
  arrays,
  base,
  convert,
  families,
  preprocess,
  timm_checks,
  timm_names,
  timm_read,
  timm_tables,
  timm_write,
)

LOOKS = 'a timm folder (config.json with architecture)'
CONFIG, WEIGHTS = 'config.json', 'model.safetensors'
BETWEEN = ': '  # a label's name and its description
# The first of those that a hybrid, a ViT or a Mixer has.
FIRST = (
  'patch_embed.backbone.conv', 'patch_embed.backbone.stem.conv',
  'patch_embed.proj', 'stem.proj',
)  # fmt: skip
HEADS = ('head', 'head_dist')


def matches(path: pathlib.Path) -> bool:
  """Whether config.json there has an architecture, and no model_type.

  Raises:
    ValueError: a config.json that cannot be read.
  """
  file = path / CONFIG
  if not file.is_file():
    return False
  config = arrays.read_json(file)
  return 'architecture' in config and 'model_type' not in config


def read(path: pathlib.Path) -> base.Pretrained:
  """Loads a timm folder.

  Raises:
    ValueError: a model that ours cannot be, arrays that are not as config.json
      says, or a damaged file.
  """
  config = arrays.read_json(path / CONFIG)
  name, args, cfg = _parts(str(path), config)
  where = f'{path} ({name})'
  family = families.of_timm(name)
  if family is None:
    known = timm_names.defaults(where, name)
  look = preprocess.from_timm(where, cfg)
  free = family is not None and family.any_size
  image_size = _image_size(where, args, cfg, free)
  found = arrays.read_safetensors_folder(path)
  if family is not None:
    fields, channels = family.read(where, name, args, image_size, found)
  else:
    reader = timm_read.mixer if known.family == 'mixer' else timm_read.vit
    fields, channels = reader(where, known, args, image_size, found)
  base.check_fields(where, fields, len(found))
  model = models.build(**fields)
  return base.fill(
    where,
    config=fields,
    arrays=found,
    table=_table(model),
    preprocess=look,
    labels=_labels(where, config, cfg, fields['num_classes']),
    channels=channels,
    dropped=() if family is None else convert.COUNTED + family.dropped,
  )


def _table(model: Any) -> list[convert.Pair]:
  for name, family in families.TIMM.items():
    if type(model) is models.MODELS[name]:
      return family.table(model)
  if isinstance(model, models.MODELS['mixer']):
    return timm_tables.mixer(model)
  return timm_tables.vit(model)


def _parts(
  where: str, config: Mapping[str, Any]
) -> tuple[str, dict[str, Any], dict[str, Any]]:
  """The architecture, its arguments and pretrained_cfg of a config.json."""
  name = config['architecture']
  if not isinstance(name, str):
    raise ValueError(f'{where}: architecture={name!r} must be a name')
  # Old files have everything in one object.
  sources = {'model_args': {}, 'pretrained_cfg': config, **config}
  args, cfg = (sources[key] for key in ('model_args', 'pretrained_cfg'))
  if not isinstance(args, dict) or not isinstance(cfg, dict):
    raise ValueError(f'{where}: model_args and pretrained_cfg must be objects')
  if 'label_offset' in cfg and cfg['label_offset']:
    raise ValueError(
      f'{where}: label_offset={cfg["label_offset"]!r}: the head has a row '
      'before its classes; cut it off and say 0'
    )
  said = {
    key: source[key]
    for source in (cfg, config)  # the outer one counts
    for key in ('num_classes', 'global_pool')
    if key in source and source[key] is not None
  }
  both = 'num_classes' in said and 'num_classes' in args
  if both and said['num_classes'] != args['num_classes']:
    raise ValueError(
      f'{where}: num_classes is {said["num_classes"]!r}, and in its model_args '
      f'{args["num_classes"]!r}'
    )
  return name, {**said, **args}, cfg


def _image_size(
  where: str, args: Mapping[str, Any], cfg: Mapping[str, Any], free: bool
) -> tuple[int, int]:
  """The size that timm builds the model for, or feeds a model of any size."""
  if 'img_size' in args:
    return timm_checks.pixels(where, args['img_size'])
  fixed = free or ('fixed_input_size' in cfg and cfg['fixed_input_size'])
  if fixed and 'input_size' in cfg and cfg['input_size'] is not None:
    return timm_checks.pixels(where, cfg['input_size'][1:])
  return timm_checks.pixels(where, 224)


def _labels(
  where: str, config: Mapping[str, Any], cfg: Mapping[str, Any], classes: int
) -> tuple[str, ...]:
  """The labels of config.json, or else of its pretrained_cfg; () for none."""
  sources = {**cfg, **config}
  key = 'label_names' if 'label_names' in sources else 'labels'
  if key not in sources or not sources[key] or not classes:
    return ()
  names = sources[key]
  if isinstance(names, dict):
    if set(names) != {str(i) for i in range(classes)}:
      raise ValueError(
        f'{where}: {key} must name the classes 0 to {classes - 1}, each once; '
        f'it has {len(names)} keys, such as {", ".join(list(names)[:4])}'
      )
    names = [names[str(i)] for i in range(classes)]
  if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
    raise ValueError(f'{where}: {key} must hold names')
  about = {}
  if 'label_descriptions' in sources and sources['label_descriptions']:
    about = sources['label_descriptions']
  if not isinstance(about, dict):
    raise ValueError(f'{where}: label_descriptions must be an object')
  return tuple(
    f'{name}{BETWEEN}{about[name]}' if name in about else name
    for name in names
  )


def write(
  path: pathlib.Path, found: base.Pretrained
) -> tuple[tuple[str, str], ...]:
  """Writes a folder that `timm.create_model('local-dir:PATH')` opens.

  Raises:
    ValueError: timm has no such model, or no such preprocessing.
  """
  model, name = found.model, found.config['name']
  family = {**dict.fromkeys(models.MODELS), **families.TIMM}[name]
  if family is not None:
    architecture, args = family.write(model)
  elif name == 'mixer':
    architecture, args = timm_write.mixer(model)
  elif name in ('vit', 'deit'):
    architecture, args = timm_write.vit(model, name)
  else:
    choices = ', '.join(('vit', 'deit', 'mixer', *families.TIMM))
    raise ValueError(f"timm's format is for {choices}, not {name!r}")
  cfg = preprocess.to_timm(found.preprocess, model.image_size)
  flexible = 'dynamic_img_size' in args and args['dynamic_img_size']
  flexible = flexible or (family is not None and family.any_size)
  channels, *size = cfg['input_size']
  own = list(layers.pair(model.image_size))
  if channels != found.channels or not (flexible or size == own):
    raise ValueError(
      f'the preprocessing gives images of {size} pixels and {channels} '
      f'channels; the model is for {own} and {found.channels}, and in timm it '
      'takes no other'
    )
  table = _table(model)
  flat = convert.flatten(found.variables)
  out = convert.write(flat, table, found.dtypes, f"timm's {architecture}")
  # The first of those that a hybrid, a ViT or a Mixer has.
  names = FIRST if family is None else family.first
  first = next(name for name in names if f'{name}.weight' in out)
  names = HEADS if family is None else family.heads
  heads = [name for name in names if f'{name}.weight' in out] or ['head']
  heads = heads[0] if len(heads) == 1 else heads
  config = {
    'architecture': architecture,
    'num_classes': model.num_classes,
    'num_features': model.hidden_size,
    'model_args': args,
    **_described(found.labels),
    'pretrained_cfg': {
      **cfg,
      'fixed_input_size': not flexible,
      'num_classes': model.num_classes,
      'first_conv': first,
      'classifier': heads,
    },
  }
  path.mkdir()
  text = json.dumps(config, indent=2, ensure_ascii=False)
  (path / CONFIG).write_text(text + '\n', encoding='utf-8')
  arrays.write_safetensors(path / WEIGHTS, convert.with_counts(out))
  return base.shown(table)


def _described(labels: tuple[str, ...]) -> dict[str, Any]:
  """label_names, and label_descriptions if every label has one."""
  if not labels:
    return {}
  names, between, about = zip(
    *(label.partition(BETWEEN) for label in labels), strict=True
  )
  if not all(between) or len(set(names)) < len(names):
    return {'label_names': list(labels)}
  return {
    'label_names': list(names),
    'label_descriptions': dict(zip(names, about, strict=True)),
  }
