"""Every attention in the same small ViT on the digits, through `vit_jax.main`.

python -m benchmarks.attention_digits --workdir=runs/attentions [NAME …]

600 steps of configs/digits.py each, default options, one seed; one process
after another. What is already in `results.jsonl` is not run again. With
--write, the table goes into docs/attention.md.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

from docs import attention_table as page

STEPS = 600
PASS = 0.93
# Why some stay below at the default options.
REASONS = {
  'reformer': 'keys are unit queries, so its logits, cos·‖q‖/√D, start flat',
  'routing': 'a third of the queries is taken by no centroid and gets zeros',
}


def run(name: str, folder: pathlib.Path) -> dict:
  """Trains one; its row: accuracy, or the last line of what went wrong."""
  begin = time.perf_counter()
  done = subprocess.run(
    [
      sys.executable, '-m', 'vit_jax.main', '--config=configs/digits.py',
      f'--workdir={folder / name}', f'--config.steps={STEPS}',
      f'--config.eval_every={STEPS}', f'--config.checkpoint_every={STEPS}',
      f'--config.model.attention={name}',
    ],
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  row = {'name': name, 'seconds': round(time.perf_counter() - begin, 1)}
  if done.returncode:
    return {**row, 'error': done.stderr.strip().splitlines()[-1]}
  lines = (folder / name / 'metrics.jsonl').read_text().splitlines()
  last = json.loads(lines[-1])
  return {
    **row, 'accuracy': last['test/accuracy'], 'loss': last['test/loss']
  }  # fmt: skip


def read(file: pathlib.Path) -> dict[str, dict]:
  """The rows so far, by name."""
  if not file.exists():
    return {}
  rows = [json.loads(line) for line in file.read_text().splitlines()]
  return {row['name']: row for row in rows}


def markdown(rows: dict[str, dict]) -> str:
  """Accuracy of all, best first; failures last, with their reason."""
  lines = ['| attention | test accuracy | test loss |', '|---|---|---|']
  ok = [r for r in rows.values() if 'error' not in r]
  for r in sorted(ok, key=lambda r: (-r['accuracy'], r['loss'])):
    note = '' if r['accuracy'] >= PASS else ' (below 93 %)'
    if note and r['name'] in REASONS:
      note = f' (below 93 %: {REASONS[r["name"]]})'
    lines.append(
      f'| `{r["name"]}`{note} | {100 * r["accuracy"]:.1f} % | '
      f'{r["loss"]:.3f} |'
    )
  lines += [
    f'| `{r["name"]}` | failed: {r["error"]} | – |'
    for r in rows.values()
    if 'error' in r
  ]
  return '\n'.join(lines) + '\n'


def main() -> None:
  """Runs what is missing and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('names', nargs='*')
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--write', action='store_true')
  given = parser.parse_args()
  names = given.names or sorted(page.ENTRIES)
  unknown = set(names) - set(page.ENTRIES)
  if unknown:
    parser.error(f'unknown attention {sorted(unknown)}')
  given.workdir.mkdir(parents=True, exist_ok=True)
  file = given.workdir / 'results.jsonl'
  for name in names:
    if name in read(file):
      continue
    row = run(name, given.workdir)
    print(row, flush=True)
    with file.open('a') as f:
      f.write(json.dumps(row) + '\n')
  table = markdown({k: v for k, v in read(file).items() if k in page.ENTRIES})
  print(table)
  if given.write:
    page.put('digits', table)


if __name__ == '__main__':
  main()
