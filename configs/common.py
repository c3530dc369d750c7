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
