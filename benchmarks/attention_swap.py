"""Other attentions in a trained ViT: what breaks, and what a teacher repairs.

python -m benchmarks.attention_swap --checkpoint=PATH --source=SOURCE \
  --workdir=runs/swap [--steps=100] [--images=1000] [--write] [SPEC …]

For every attention: the model's accuracy with nothing but the attention
swapped, its errors block by block (`pretrained.layer_errors`), and its accuracy
after a short run of configs/distill_attention.py, in which the exact model
teaches. What is already in `results.jsonl` is not run again. With --write, the
tables go into docs/swap.md.
"""

import argparse
import copy
import json
import pathlib
import time

import jax.numpy as jnp
import numpy as np

from benchmarks.attention_digits import read
from configs import distill_attention
from docs import attention_table as page
from vit_jax import main as command
from vit_jax import pretrained
from vit_jax.data import views

PAGE = pathlib.Path(page.__file__).with_name('swap.md')
SPECS = (
  'softmax', 'neighborhood(size=7)', 'window(size=7)', 'linformer(rank=64)',
  'performer(features=256)', 'bigbird', 'nystrom(landmarks=49)', 'linear',
  'sinkhorn(blocks=7)', 'axial', 'sigmoid', 'longformer', 'cosine', 'routing',
  'hydra',
)  # fmt: skip


def config_of(spec: str, given: argparse.Namespace) -> dict:
  """The config of one attention's run."""
  config = distill_attention.get_config(f'{given.checkpoint},{spec}').to_dict()
  config['data'] |= {'source': given.source, 'test_split': given.split}
  config['optimizer'] |= {
    'learning_rate': given.learning_rate, 'warmup': given.steps // 10
  }  # fmt: skip
  if given.image_size:
    config['model']['image_size'] = given.image_size
  return config | {
    'steps': given.steps, 'batch_size': given.batch_size, 'log_every': 10,
    'eval_every': 0, 'checkpoint_every': 0,
  }  # fmt: skip


def build(config: dict, folder: pathlib.Path, images: int) -> dict:
  """The arguments of a run, which tests on the first images only."""
  arguments = command.build(config, folder)
  data = copy.copy(arguments['data'])
  data.test_size = min(images, data.test_size)
  data._test = views.Picked(data._test, range(data.test_size))
  return arguments | {'data': data}


def swap(spec: str, given: argparse.Namespace) -> dict:
  """The model with nothing but its attention swapped: accuracy and errors."""
  config = config_of(spec, given)
  config |= {'run': 'evaluate', 'batch_size': given.test_batch}
  config['task'] = {'name': 'classification'}
  config = {
    k: v for k, v in config.items() if k not in ('optimizer', 'accumulate')
  }
  folder = given.workdir / 'swapped' / spec
  arguments = build(config, folder, given.images)
  found = command.RUNS['evaluate'](folder, **arguments)
  batches = arguments['data'].test_batches(given.error_images)
  images = jnp.asarray(next(batches)['image'])
  batches.close()
  fields = {'image_size': given.image_size} if given.image_size else {}
  exact, other = (
    pretrained.load(given.checkpoint, attention=a, **fields)
    for a in ('softmax', spec)
  )
  rows = pretrained.layer_errors(exact, other, images)
  return {
    'accuracy': found['accuracy'],
    'local': [r['local'] for r in rows],
    'accumulated': [r['accumulated'] for r in rows],
  }


def distill(spec: str, given: argparse.Namespace) -> dict:
  """The same after a short distillation."""
  folder = given.workdir / 'distilled' / spec
  arguments = build(config_of(spec, given), folder, given.images)
  found = command.RUNS['train'](folder, **arguments)
  return {
    'accuracy': found['test/accuracy'], 'agreement': found['test/agreement']
  }  # fmt: skip


STAGES = {'swapped': swap, 'distilled': distill}


def run(name: str, stage: str, given: argparse.Namespace) -> dict:
  """One row; an error, where the attention does not fit."""
  begin = time.perf_counter()
  row = {'name': f'{stage} {name}'}
  try:
    row |= STAGES[stage](name, given)
  except ValueError as e:
    row['error'] = str(e)
  return {**row, 'seconds': round(time.perf_counter() - begin)}


def markdown(rows: dict[str, dict]) -> str:
  """Accuracy before and after and errors, best first."""
  lines = [
    '| attention | swapped: top-1 | local error, mean (least–largest) '
    '| accumulated error, last block | distilled: top-1 | agreement |',
    '|' + '---|' * 6,
  ]
  names = [n.removeprefix('swapped ') for n in rows if n.startswith('swapped ')]
  line = {}
  for name in names:
    before = rows[f'swapped {name}']
    if 'error' in before:
      line[name] = -1.0, f'| `{name}` | {before["error"]} | – | – | – | – |'
      continue
    local = np.array(before['local'])
    after, key = ['–', '–'], before['accuracy'] - 1
    if f'distilled {name}' in rows:
      found = rows[f'distilled {name}']
      key = found['accuracy']
      after = [f'{100 * found[k]:.1f} %' for k in ('accuracy', 'agreement')]
    line[name] = (
      key,
      f'| `{name}` | {100 * before["accuracy"]:.1f} % | {local.mean():.2f} '
      f'({local.min():.2f}–{local.max():.2f}) '
      f'| {before["accumulated"][-1]:.2f} | {after[0]} | {after[1]} |',
    )
  ordered = sorted(names, key=lambda n: (n != 'softmax', -line[n][0]))
  return '\n'.join([*lines, *(line[n][1] for n in ordered)]) + '\n'


def put(table: str) -> None:
  """Rewrites the table of docs/swap.md."""
  begin, end = page.marks('swap')
  head, _, rest = PAGE.read_text().partition(begin)
  PAGE.write_text(head + begin + table + end + rest.partition(end)[2])


def main() -> None:
  """Runs what is missing, all swaps first, and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('specs', nargs='*')
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--checkpoint', required=True)
  parser.add_argument('--source', required=True)
  parser.add_argument('--split', default='val')
  parser.add_argument('--image_size', type=int)
  parser.add_argument('--images', type=int, default=1000)
  parser.add_argument('--error_images', type=int, default=16)
  parser.add_argument('--test_batch', type=int, default=50)
  parser.add_argument('--steps', type=int, default=100)
  parser.add_argument('--batch_size', type=int, default=16)
  parser.add_argument('--learning_rate', type=float, default=5e-4)
  parser.add_argument('--stages', nargs='+', default=list(STAGES))
  parser.add_argument('--write', action='store_true')
  given = parser.parse_args()
  given.workdir.mkdir(parents=True, exist_ok=True)
  file = given.workdir / 'results.jsonl'
  for stage in given.stages:
    for spec in given.specs or SPECS:
      rows = read(file)
      if f'{stage} {spec}' in rows:
        continue
      if stage == 'distilled' and spec == 'softmax':
        continue  # the teacher itself
      row = run(spec, stage, given)
      print(row, flush=True)
      with file.open('a') as f:
        f.write(json.dumps(row) + '\n')
  table = markdown(read(file))
  print(table)
  if given.write:
    put(table)


if __name__ == '__main__':
  main()
