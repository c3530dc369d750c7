"""Pieces of recipes, in locked ConfigDicts: a typo is an error."""

import re

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def locked(**fields) -> ConfigDict:
  """A locked ConfigDict of these fields."""
  return ConfigDict(fields).lock()


def adamw(learning_rate=1e-3, weight_decay=0.05, warmup=0, **fields):
  """AdamW, cosine schedule, gradient norm clipped at 1."""
  return locked(
    name='adamw',
    learning_rate=learning_rate,
    weight_decay=weight_decay,
    warmup=warmup,
    **{'schedule': 'cosine', 'clip': 1.0, **fields},
  )


def classification(
  *, model, data, optimizer, steps, batch_size, task=None, **fields
) -> ConfigDict:
  """A classification run; `fields` are further arguments of `train.train`."""
  return locked(
    **{
      'run': 'train',
      'init': placeholder(str),
      'head': 'by_name',
      'seed': 0,
      'steps': steps,
      'batch_size': batch_size,
      'accumulate': 1,
      'log_every': 50,
      'eval_every': 1000,
      'checkpoint_every': 1000,
      'profile': (),
      'model': locked(**model),
      'task': locked(**{'name': 'classification', **(task or {})}),
      'data': locked(**data),
      'optimizer': optimizer,
      'sharding': locked(data=-1, fsdp=1, tensor=1, rules=()),
      **fields,
    }
  )


def of_checkpoint(**fields) -> dict:
  """`config.model` of a run with an init: None leaves what it says as it is."""
  kinds = {
    'num_classes': int, 'image_size': int, 'patch_size': int,
    'attention': str, 'position_resize': str, 'dtype': str, 'remat': bool,
    'dropout_rate': float, 'attention_dropout_rate': float,
    'drop_path_rate': float, 'patch_dropout_rate': float,
  }  # fmt: skip
  return {**{name: placeholder(kind) for name, kind in kinds.items()}, **fields}


def split_arg(arg: str) -> list[str]:
  """'a,b(c,d)' → ['a', 'b(c,d)']: the commas outside brackets separate."""
  return [part.strip() for part in re.split(r',(?![^(]*\))', arg)]


def source(dataset: str) -> str:
  """A source by its spec, as 'tfds:NAME', or the path of a folder."""
  if re.fullmatch(r'\w+\(.*\)', dataset):
    return dataset
  if dataset.startswith('tfds:'):
    return f'tfds(name={dataset.removeprefix("tfds:")!r})'
  return f'folder(path={dataset!r})'


def finetuning(recipe: str) -> ConfigDict:
  """An optimiser: 'sgd' as the original fine-tunes, 'adamw' or 'probe'."""
  recipes = {
    'sgd': {'name': 'sgd', 'learning_rate': 0.03, 'weight_decay': 0.0},
    'adamw': {'learning_rate': 1e-3, 'layer_decay': 0.75},
    # Only the head learns.
    'probe': {
      'name': 'sgd', 'learning_rate': 0.3, 'weight_decay': 0.0,
      'freeze': r'^(?!head(_dist)?/)',
    },
  }  # fmt: skip
  if recipe not in recipes:
    raise ValueError(f'no recipe {recipe!r}; choices: {", ".join(recipes)}')
  return locked(
    **{
      'name': 'adamw', 'weight_decay': 0.05, 'warmup': 500,
      'schedule': 'cosine', 'clip': 1.0, 'layer_decay': 1.0, 'freeze': '',
      'ema': 0.0, **recipes[recipe],
    }
  )  # fmt: skip


EPOCH = 1_281_167  # images of ImageNet-1k
NORMALIZE = 'normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))'
RANDAUGMENT = "randaugment(layers=2, magnitude=9, magnitude_std=0.5)"


def deit(
  *, model, size=224, resize=256, transforms=RANDAUGMENT, repeats=3, task=None,
  epochs=300, batch_size=1024, optimizer=None, **fields,
) -> ConfigDict:  # fmt: skip
  """Training on ImageNet-1k as DeiT's (Touvron et al. 2021, table 9).

  What the recipes that followed changed is an argument: the transforms after
  crop and flip, repeated augmentation, fields of the task and the optimiser
  (whose `warmup` is in epochs), `resize` before the central crop.
  """
  epoch = EPOCH / batch_size
  settings = {
    'name': 'adamw', 'learning_rate': 5e-4 * batch_size / 512,
    'weight_decay': 0.05, 'warmup': 5, 'clip': 0.0,
    'schedule': 'cosine(end=0.01)',
    **(optimizer or {}),
  }  # fmt: skip
  settings['warmup'] = round(settings['warmup'] * epoch)
  return classification(
    model={'num_classes': 1000, 'dtype': 'bfloat16', **model},
    task={
      'augment': 'erasing(probability=0.25), mixup_or_cutmix',
      'label_smoothing': 0.1, **(task or {}),
    },
    data={
      'source': "tfds(name='imagenet2012')",
      'train_split': 'train', 'test_split': 'validation',
      'train': f"inception_crop(size={size}, area_min=0.08, "
               f"resample='bicubic'), flip, {transforms}, {NORMALIZE}",
      'test': f"resize_short(size={resize}, resample='bicubic'), "
              f'center_crop(size={size}), {NORMALIZE}',
      'decode': 'decode(channels=3, convert=True)', 'workers': 16,
      'repeats': repeats,
    },
    optimizer=locked(**settings),
    steps=round(epochs * epoch), batch_size=batch_size, eval_every=5000,
    checkpoint_every=5000, **fields,
  )  # fmt: skip
