"""The cells of one choice: tuned with the first seed, repeated with the others.

`python -m vit_jax.arena.training` takes a job on its standard input.
"""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from vit_jax.arena import fairness, memory, process, results
from vit_jax.arena.board import Board
from vit_jax.arena.trainer import DivergedError, Trainer


def run(
  board: Board, label: str, value: Any, file: pathlib.Path
) -> Iterator[dict[str, Any]]:
  """Trains the cells of a choice that `file` lacks, and appends them there.

  What goes wrong in all cells is one row; what goes wrong in one is that one's.
  """
  rows = {row['key']: row for row in results.read(file)}
  first, *others = board.seeds_of()
  trainer = None

  def cell(rate, seed):
    nonlocal trainer
    key = board.key(label, rate, seed)
    if key in rows:
      return None
    if trainer is None:
      trainer = Trainer(board, value, file.parent)
    row = {
      'key': key, **trainer.fixed, 'choice': label, 'learning_rate': rate,
      'seed': seed, 'environment': results.environment(),
    }  # fmt: skip
    try:
      row |= {'status': 'ok', 'error': '', **trainer.cell(rate, seed)}
    except DivergedError as e:
      row |= {'status': 'failed', 'error': str(e)}
    results.append(file, row)
    rows[key] = row
    return row

  try:
    for rate in board.rates:
      if (row := cell(rate, first)) is not None:
        yield row
    trials = [rows[board.key(label, rate, first)] for rate in board.rates]
    trials = [row for row in trials if row['status'] == 'ok']
    if trials:
      best = fairness.tuned(trials)['learning_rate']
      for seed in others:
        if (row := cell(best, seed)) is not None:
          yield row
  except (ValueError, RuntimeError, MemoryError) as e:
    row = failure(board, label, *_status(e), results.environment())
    results.append(file, row)
    yield row


def _status(error: Exception) -> tuple[str, str]:
  text = f'{error}'.strip().splitlines()[0] if str(error) else repr(error)
  if isinstance(error, MemoryError) or process.out_of_memory(str(error)):
    return 'out_of_memory', text
  if isinstance(error, ValueError):  # a model or a kernel says that it cannot
    return 'refused', text
  return 'failed', f'{type(error).__name__}: {text}'


def failure(
  board: Board, label: str, status: str, error: str,
  environment: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
  """The row of a choice that cannot be trained."""
  return {
    'key': f'{board.name}/{label}', 'suite': 'train', 'board': board.name,
    'leaf': board.leaf, 'choice': label, 'status': status, 'error': error,
    'environment': dict(environment),
  }  # fmt: skip


def main() -> None:
  """Does the job that the arena sent."""
  job = process.receive()
  memory.keep_freed()
  board = Board(**{**job['board'], 'rates': tuple(job['board']['rates'])})
  jax.config.update('jax_compilation_cache_dir', job['cache'])
  for row in run(board, job['label'], job['value'], pathlib.Path(job['file'])):
    print(json.dumps({k: row[k] for k in ('key', 'status')}), flush=True)


if __name__ == '__main__':
  main()
