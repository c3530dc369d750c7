r"""Two cures for the data hunger of ViTs, on a part of CIFAR-10.

python -m benchmarks.data_hunger --source=data/cifar10 --workdir=runs/hunger

PATH holds train/CLASS/*.jpg and test/CLASS/*.jpg. The same SHOTS images of each
class train (a) a small CNN, configs/teacher.py; (b) the DeiT of
configs/distill.py from the labels alone, and distilled, softly and hard, from
that CNN; (c) the same DeiT with a convolutional stem, one block fewer, from the
labels alone. All of (b) and (c) with every seed; the whole test split counts.
What is in `results.jsonl` is not run again; the table of means and standard
deviations over the seeds is printed and written to `table.md`.
"""

import argparse
import hashlib
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.attention_digits import read

MIXED = 'pad_crop(padding=4), flip, mixup_or_cutmix'
# What changes in configs/distill.py, and whether there is a teacher.
STUDENTS = {
  'labels': (False, {}),
  'hard': (True, {'task.labels': 0.5, 'task.hard': 0.5, 'task.soft': 0.0}),
  # Touvron et al. 2021: λ = .1 and τ = 3.
  'soft': (True, {'task.labels': 0.9, 'task.hard': 0.0, 'task.soft': 0.1}),
  'conv stem': (
    False, {'model.stem': 'conv(widths=(24, 48, 96))', 'model.num_layers': 3}
  ),
}  # fmt: skip
ABOUT = {
  'teacher': 'ResNet, 3 basic blocks, 32 to 128 channels',
  'labels': 'DeiT, patches of 8×8, labels alone',
  'hard': 'the same, ½ labels and ½ decisions of the teacher',
  'soft': 'the same, .9 labels and .1 probabilities of the teacher, τ = 3',
  'conv stem': 'DeiT with three 3×3 convolutions, a block fewer, labels alone',
}


def subset(source: pathlib.Path, folder: pathlib.Path, shots: int) -> None:
  """Links `shots` training images of each class, and the whole test split.

  The first in the order of a hash of their names: the same on every machine.

  Raises:
    ValueError: a class has fewer.
  """
  if folder.exists():
    return
  whole = folder.with_name(f'{folder.name}.part')
  for place in sorted((source / 'train').iterdir()):
    files = sorted(place.iterdir(), key=drawn)
    if len(files) < shots:
      raise ValueError(
        f'--shots={shots}, but {place} has {len(files)} images'
      )
    into = whole / 'train' / place.name
    into.mkdir(parents=True, exist_ok=True)
    for file in files[:shots]:
      if not (into / file.name).is_symlink():
        (into / file.name).symlink_to(file.resolve())
  if not (whole / 'test').is_symlink():
    (whole / 'test').symlink_to((source / 'test').resolve())
  os.replace(whole, folder)


def drawn(file: pathlib.Path) -> bytes:
  """The place of a file in an order that chance made."""
  return hashlib.sha256(f'{file.parent.name}/{file.name}'.encode()).digest()


def run(
  config: str, folder: pathlib.Path, changes: dict[str, object]
) -> dict[str, object]:
  """Trains one run of a config; its accuracy, or what went wrong."""
  begin = time.perf_counter()
  done = subprocess.run(
    [
      sys.executable, '-m', 'vit_jax.main', f'--config=configs/{config}',
      f'--workdir={folder}',
      *(f'--config.{name}={value}' for name, value in changes.items()),
    ],
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  row = {'seconds': round(time.perf_counter() - begin, 1)}
  if done.returncode:
    return {**row, 'error': done.stderr.strip().splitlines()[-1]}
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  found = json.loads(lines[-1])
  size = re.search(r'([\d,]+) parameters', done.stdout)
  return {
    **row, 'accuracy': found['test/accuracy'],
    'parameters': size[1] if size else '', 'steps': changes['steps'],
  }  # fmt: skip


def train(name: str, seed: int, given: argparse.Namespace) -> dict[str, object]:
  """One row: the teacher, or one of `STUDENTS`."""
  data, folder = given.workdir / 'data', given.workdir / f'{name}-{seed}'
  folder = pathlib.Path(str(folder).replace(' ', '-'))
  if name == 'teacher':
    found = run(
      f'teacher.py:{data}', folder, {'steps': given.teacher_steps, 'seed': seed}
    )
  else:
    told, changes = STUDENTS[name]
    teacher = given.workdir / 'teacher-0' if told else 'none'
    found = run(
      f'distill.py:{teacher},{data}', folder,
      {
        'steps': given.steps, 'seed': seed, 'task.augment': given.augment,
        **changes,
      },
    )  # fmt: skip
  return {'name': f'{name} {seed}', **found}


def markdown(rows: dict[str, dict], seeds: Sequence[int]) -> str:
  """Mean and standard deviation of each, and what it gains over the labels."""
  lines = [
    '| trained | parameters | test accuracy, % | of each seed | gain of each | '
    'seconds |',
    '|---|---|---|---|---|---|',
  ]
  for name, about in ABOUT.items():
    some = [rows[k] for s in seeds if (k := f'{name} {s}') in rows]
    wrong = [r['error'] for r in some if 'error' in r]
    if wrong or not some:
      lines.append(f'| {about} | – | {(wrong or ["not run"])[0]} | | | |')
      continue
    found = [100 * r['accuracy'] for r in some]
    spread = f' ± {statistics.stdev(found):.1f}' if len(found) > 1 else ''
    plain = [f'labels {s}' for s in seeds]
    gains = [
      f'{a - 100 * rows[k]["accuracy"]:+.1f}'
      for a, k in zip(found, plain, strict=False)
      if k in rows and 'error' not in rows[k]
      and name not in ('teacher', 'labels')
    ]  # fmt: skip
    lines.append(
      f'| {about} | {some[0]["parameters"]} | '
      f'{statistics.mean(found):.1f}{spread} | '
      f'{", ".join(f"{a:.1f}" for a in found)} | {", ".join(gains)} | '
      f'{statistics.mean(r["seconds"] for r in some):.0f} |'
    )
  return '\n'.join(lines) + '\n'


def main() -> None:
  """Runs what is missing, the teacher first, and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('names', nargs='*', help=', '.join(STUDENTS))
  parser.add_argument('--source', type=pathlib.Path, required=True)
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--shots', type=int, default=500)
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--steps', type=int, default=1200)
  parser.add_argument('--teacher_steps', type=int, default=1200)
  parser.add_argument('--augment', default=MIXED)
  given = parser.parse_args()
  unknown = set(given.names) - set(STUDENTS)
  if unknown:
    parser.error(f'unknown {sorted(unknown)}; choices: {", ".join(STUDENTS)}')
  given.workdir.mkdir(parents=True, exist_ok=True)
  subset(given.source, given.workdir / 'data', given.shots)
  file, seeds = given.workdir / 'results.jsonl', range(given.seeds)
  wanted = [
    ('teacher', 0),
    *((n, s) for n in given.names or STUDENTS for s in seeds),
  ]
  for name, seed in wanted:
    if f'{name} {seed}' in read(file):
      continue
    row = train(name, seed, given)
    print(row, flush=True)
    with file.open('a') as f:
      f.write(json.dumps(row) + '\n')
    if name == 'teacher' and 'error' in row:
      break
  table = markdown(read(file), seeds)
  (given.workdir / 'table.md').write_text(table)
  print(table)


if __name__ == '__main__':
  main()
