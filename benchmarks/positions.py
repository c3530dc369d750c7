"""Every position encoding in the same small ViT, at two sizes of images.

python -m benchmarks.positions --source=PATH --workdir=runs/positions \
  [--seeds=3] [--steps=500] [WORD …]

Trains configs/positions.py with every word and seed on MNIST (PATH holds
train/DIGIT/*.png and test/DIGIT/*.png) at 24 pixels, then tests it there and,
with no further training, at 36: the checkpoint is loaded with image_size=36, so
that tables are resized and everything else is computed for the larger grid.
A word that cannot change its size is a row that says why. Every third test
image counts. What is in `results.jsonl` is not run again; the table, of means
and standard deviations over the seeds, is printed and written to `table.md`.
"""

import argparse
import copy
import json
import math
import pathlib
import statistics
import time

import jax

from benchmarks.attention_digits import read
from configs import positions as recipe
from vit_jax import main as command
from vit_jax.attention.positions import POSITIONS as INSIDE
from vit_jax.data import views
from vit_jax.models.positions import POSITIONS as ADDED

WORDS = (*ADDED, 'conditional', *INSIDE)
LARGER = 36
EACH = 3  # test images
TABLES = ('learned', 'relative_bias', 'decomposed_bias')  # of one grid


def config_of(word: str, given: argparse.Namespace) -> dict:
  """The recipe with that position."""
  config = recipe.get_config(f'none,{given.source}').to_dict()
  config['model']['position'] = word
  return config


def build(config: dict, folder: pathlib.Path) -> dict:
  """The arguments of a run, which tests on some of the images only."""
  arguments = command.build(config, folder)
  data = copy.copy(arguments['data'])
  data._test = views.Picked(data._test, range(0, data.test_size, EACH))
  data.test_size = len(data._test)
  return arguments | {'data': data}


def train(word: str, seed: int, given: argparse.Namespace) -> dict:
  """Trains one and tests it at its size."""
  config = config_of(word, given) | {'seed': seed, 'steps': given.steps}
  folder = given.workdir / f'{word}-{seed}'
  found = command.RUNS['train'](folder, **build(config, folder))
  return {'accuracy': found['test/accuracy']}


def enlarge(word: str, seed: int, given: argparse.Namespace) -> dict:
  """Tests one on larger images."""
  config = config_of(word, given)
  folder = given.workdir / f'{word}-{seed}'
  config = {
    'run': 'evaluate', 'init': str(folder), 'head': 'by_number',
    'model': {'image_size': LARGER}, 'task': config['task'],
    # The sizes of the checkpoint's own transform follow its image_size.
    'data': {**config['data'], 'train': '', 'test': ''},
    'sharding': config['sharding'], 'batch_size': 128,
  }  # fmt: skip
  try:
    arguments = build(config, folder / 'larger')
  except ValueError as e:
    return {'refused': str(e).splitlines()[0]}
  found = command.RUNS['evaluate'](folder / 'larger', **arguments)
  return {'larger': found['accuracy']}


def run(word: str, seed: int, given: argparse.Namespace) -> dict:
  """One row."""
  begin = time.perf_counter()
  row = {'name': f'{word} {seed}', **train(word, seed, given)}
  row |= {'steps': given.steps, **enlarge(word, seed, given)}
  return {**row, 'seconds': round(time.perf_counter() - begin, 1)}


def spread(values: list[float]) -> str:
  """'93.1 ± 0.4 %', without a deviation for one seed."""
  text = f'{100 * statistics.fmean(values):.1f}'
  if len(values) > 1:
    text += f' ± {100 * statistics.stdev(values):.1f}'
  return f'{text} %'


def markdown(rows: dict[str, dict]) -> str:
  """Means over the seeds, best at the larger size first."""
  size = recipe.get_config().model.image_size
  lines = [
    f'| position | top-1 at {size} px | at {LARGER} px | difference '
    '| how it gets there |',
    '|---|---|---|---|---|',
  ]
  found = []
  for word in dict.fromkeys(name.rsplit(' ', 1)[0] for name in rows):
    ours = [r for name, r in rows.items() if name.rsplit(' ', 1)[0] == word]
    small = [r['accuracy'] for r in ours]
    if any('refused' in r for r in ours):
      why = next(r['refused'] for r in ours if 'refused' in r)
      cells = [f'`{word}`', spread(small), '–', '–', why]
      found.append((math.inf, f'| {" | ".join(cells)} |'))
      continue
    large = [r['larger'] for r in ours]
    change = [b - a for a, b in zip(small, large, strict=True)]
    tables = any(name in word for name in TABLES)
    how = 'tables resized' if tables else 'as it is'
    cells = [f'`{word}`', *map(spread, (small, large, change)), how]
    found.append((-statistics.fmean(large), f'| {" | ".join(cells)} |'))
  return '\n'.join([*lines, *(line for _, line in sorted(found))]) + '\n'


def main() -> None:
  """Runs what is missing and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('words', nargs='*')
  parser.add_argument('--source', default='data/mnist')
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--seeds', type=int, default=3)
  steps = recipe.get_config().steps
  parser.add_argument('--steps', type=int, default=steps)
  given = parser.parse_args()
  given.workdir.mkdir(parents=True, exist_ok=True)
  # A word's seeds are one program.
  cache = str(given.workdir.absolute() / 'compiled')
  jax.config.update('jax_compilation_cache_dir', cache)
  file = given.workdir / 'results.jsonl'
  other = {row['steps'] for row in read(file).values()} - {given.steps}
  if other:
    parser.error(f'{file} has rows of {other} steps; take another workdir')
  for word in given.words or WORDS:
    for seed in range(given.seeds):
      if f'{word} {seed}' in read(file):
        continue
      row = run(word, seed, given)
      print(row, flush=True)
      with file.open('a') as f:
        f.write(json.dumps(row) + '\n')
  table = markdown(read(file))
  (given.workdir / 'table.md').write_text(table)
  print(table)


if __name__ == '__main__':
  main()
