"""What makes a comparison fair, checked on the rows before they are shown."""

from collections.abc import Mapping, Sequence
from typing import Any

# Of all rows of a board, and of all rows of a board with the same seed.
OF_BOARD = {
  'recipe': 'the same recipe but for the leaf, the rate and the seed',
  'leaf': 'the same leaf',
  'rates': 'the same grid of learning rates to be tuned over',
  'steps': 'the same number of steps',
  'batch_size': 'the same batch size',
  'test_size': 'the same test examples',
}
OF_SEED = {
  'order': 'the same examples in the same order, with the same augmentation',
  'start': 'the same initial values of the parameters they share',
}


class UnfairError(ValueError):
  """Rows that must not be compared."""


def check(rows: Sequence[Mapping[str, Any]]) -> None:
  """Raises an `UnfairError` on rows of a board that break a rule.

  Each rule is named with the choices that break it: those whose value differs
  from what most rows have.
  """
  rows = [r for r in rows if r['suite'] == 'train' and r['status'] == 'ok']
  for name in sorted({r['board'] for r in rows}):
    board = [r for r in rows if r['board'] == name]
    for field, rule in OF_BOARD.items():
      _same(board, field, rule, f'board {name!r}')
    for seed in sorted({r['seed'] for r in board}):
      some = [r for r in board if r['seed'] == seed]
      for field, rule in OF_SEED.items():
        _same(some, field, rule, f'board {name!r}, seed {seed}')
    _tuned(board, name)


def _same(
  rows: Sequence[Mapping[str, Any]], field: str, rule: str, where: str
) -> None:
  groups = {}
  for row in rows:
    groups.setdefault(repr(row[field]), []).append(row['choice'])
  if len(groups) < 2:
    return
  usual = max(groups, key=lambda value: (len(groups[value]), value))
  strange = sorted({
    f'{c!r} ({field}={v})'
    for v, choices in groups.items()
    if v != usual
    for c in choices
  })  # fmt: skip
  raise UnfairError(
    f'{where}: a fair comparison has {rule}; most rows have {field}={usual}, '
    f'but not {", ".join(strange[:5])}'
    + f' and {len(strange) - 5} more' * (len(strange) > 5)
  )


def _tuned(board: Sequence[Mapping[str, Any]], name: str) -> None:
  """The other seeds have the rate that the first one chose, and only that."""
  first = min(r['seed'] for r in board)
  for choice in sorted({r['choice'] for r in board}):
    mine = [r for r in board if r['choice'] == choice]
    trials = [r for r in mine if r['seed'] == first]
    outside = {r['learning_rate'] for r in mine} - set(mine[0]['rates'])
    if outside:
      raise UnfairError(
        f'board {name!r}: {choice!r} was trained with {sorted(outside)}, '
        f'which is not in the grid {mine[0]["rates"]} of the others'
      )
    later = {r['learning_rate'] for r in mine if r['seed'] != first}
    if not later:
      continue
    if not trials:
      raise UnfairError(f'board {name!r}: {choice!r} was never tuned')
    best = tuned(trials)['learning_rate']
    if later != {best}:
      raise UnfairError(
        f'board {name!r}: {choice!r} was trained with {sorted(later)}, but '
        f'its validation examples chose {best:g}'
      )


def tuned(trials: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
  """The trial with the best validation accuracy; of equal ones, least loss."""
  return min(
    trials,
    key=lambda r: (-r['validation'], r['validation_loss'], r['learning_rate']),
  )
