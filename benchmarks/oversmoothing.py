"""How alike the patches of deep models become, block by block.

python -m benchmarks.oversmoothing --workdir=runs/oversmoothing \
  [--steps=400] [--mnist=PATH] [MODEL …]

Trains models of configs/oversmoothing.py one after another, all but `mixed` if
none are named, measures each with `vit_jax.smoothing` on test images, and
writes oversmoothing.md and oversmoothing.png. What is in `results.jsonl` is not
run again, and a run that was interrupted goes on from its last checkpoint.
"""

import argparse
import json
import pathlib
import time

import numpy as np

from benchmarks.attention_digits import read
from configs import oversmoothing
from vit_jax import main as command
from vit_jax import pretrained, smoothing

LABELS = {
  'vit': 'ViT',
  'deepvit': 'DeepViT',
  'cait': 'CaiT',
  'diverse': 'ViT, cosine and contrastive losses',
  'mixed': 'ViT, all diversity losses, CutMix',
}


def run(name: str, given: argparse.Namespace) -> dict:
  """Trains one model and measures it."""
  begin = time.perf_counter()
  arg = f'{name},{given.mnist}' if given.mnist else name
  config = oversmoothing.get_config(arg).to_dict()
  if given.steps:
    config['steps'] = given.steps
  folder = given.workdir / name
  arguments = command.build(config, folder)
  found = command.RUNS['train'](folder, **arguments)
  trained = pretrained.load(str(folder))
  batches = arguments['data'].test_batches(given.images)
  images = np.asarray(next(batches)['image'])
  batches.close()
  return {
    'name': name,
    'steps': config['steps'],
    'accuracy': found['test/accuracy'],
    'loss': found['test/loss'],
    'rows': smoothing.measure(trained.model, trained.variables, images),
    'seconds': round(time.perf_counter() - begin),
  }


def markdown(found: dict[str, dict]) -> str:
  """Accuracies, and a table of every measure."""
  lines = ['| model | steps | test accuracy |', '|---|---:|---:|']
  for name, row in found.items():
    lines.append(
      f'| {LABELS[name]} | {row["steps"]} | {100 * row["accuracy"]:.1f} % |'
    )
  rows = {LABELS[name]: row['rows'] for name, row in found.items()}
  tables = [smoothing.markdown(rows, name) for name in smoothing.MEASURES]
  return '\n'.join(['\n'.join(lines) + '\n', *tables])


def main() -> None:
  """Runs what is missing, writes and prints the tables, draws the plot."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('models', nargs='*')
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--mnist', help="MNIST's folder, instead of the digits")
  parser.add_argument('--steps', type=int, help='of the config, if not given')
  parser.add_argument('--images', type=int, default=256)
  given = parser.parse_args()
  names = given.models or [name for name in LABELS if name != 'mixed']
  unknown = set(names) - set(LABELS)
  if unknown:
    parser.error(f'unknown {sorted(unknown)}; choices: {", ".join(LABELS)}')
  given.workdir.mkdir(parents=True, exist_ok=True)
  file = given.workdir / 'results.jsonl'
  for name in names:
    if name not in read(file):
      row = run(name, given)
      print({k: v for k, v in row.items() if k != 'rows'}, flush=True)
      with file.open('a') as f:
        f.write(json.dumps(row) + '\n')
  found = {name: row for name, row in read(file).items() if name in LABELS}
  text = markdown(found)
  (given.workdir / 'oversmoothing.md').write_text(text)
  rows = {LABELS[name]: row['rows'] for name, row in found.items()}
  smoothing.plot(rows, given.workdir / 'oversmoothing.png')
  print(text)


if __name__ == '__main__':
  main()
