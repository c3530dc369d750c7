"""Pieces of recipes. Each returns a locked ConfigDict: a typo is an error."""

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
      'seed': 0,
      'steps': steps,
      'batch_size': batch_size,
      'accumulate': 1,
      'log_every': 50,
      'eval_every': 1000,
      'checkpoint_every': 1000,
      'profile': (),
      'model': locked(**model),
      'task': locked(name='classification', **(task or {})),
      'data': locked(**data),
      'optimizer': optimizer,
      'sharding': locked(data=-1, fsdp=1, tensor=1, rules=()),
      **fields,
    }
  )
