"""A run small enough to train in a test: a tiny ViT on the real digits."""

import copy
import json
import pathlib

from vit_jax import main

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = {
  'run': 'train',
  'seed': 0,
  'steps': 6,
  'batch_size': 16,
  'log_every': 1,
  'eval_every': 3,
  'checkpoint_every': 3,
  'model': {
    'name': 'vit', 'patch_size': 4, 'hidden_size': 16, 'num_layers': 1,
    'num_heads': 2, 'mlp_dim': 32, 'image_size': 8, 'num_classes': 10,
  },
  'task': {'name': 'classification'},
  'data': {
    'source': 'digits',
    'train': 'affine(rotate=0.2, scale=0.1, shift=0.6), '
             'value_range(low=-1.0, high=1.0)',
    'test': 'value_range(low=-1.0, high=1.0)',
    'decode': 'decode(channels=1)',
  },
  'optimizer': {'name': 'adamw', 'learning_rate': 1e-2, 'ema': 0.9},
  'sharding': {'data': -1},
}  # fmt: skip


def config(**changes):
  """The config with changes; 'model__num_layers' changes a section's key."""
  out = copy.deepcopy(CONFIG)
  for path, value in changes.items():
    *sections, key = path.split('__')
    section = out
    for name in sections:
      section = section[name]
    section[key] = value
  return out


def run(workdir, **changes):
  """Builds and runs a config, as the command does."""
  chosen = config(**changes)
  arguments = main.build(chosen, workdir)
  return main.RUNS[chosen['run']](workdir, **arguments)


def rows(workdir):
  """The rows of metrics.jsonl without clocks and rates."""
  lines = (pathlib.Path(workdir) / 'metrics.jsonl').read_text().splitlines()
  return [
    {k: v for k, v in json.loads(line).items() if not k.startswith('time/')}
    for line in lines
  ]
