"""A choice's result on a board: its cells at the rate it was tuned to."""

import statistics as stdlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vit_jax.arena import fairness, statistics

FIELDS = (
  'board', 'leaf', 'learning_rate', 'seed', 'accuracy', 'loss', 'validation',
  'validation_loss', 'parameters', 'flops', 'memory', 'step_seconds',
  'train_seconds', 'compile_seconds', 'curve', 'recipe', 'order', 'start',
  'rates', 'steps', 'batch_size', 'test_size',
)  # fmt: skip


class Standing(NamedTuple):
  """A choice's result on a board.

  Attributes:
    choice: what is compared.
    rate: the learning rate that it was tuned to.
    rows: seed → its row at that rate.
    trials: rate → its row with the tuning seed.
    failures: rows of it that are not ok.
  """

  choice: str
  rate: float
  rows: Mapping[int, Mapping[str, Any]]
  trials: Mapping[float, Mapping[str, Any]]
  failures: Sequence[Mapping[str, Any]]

  def percent(self) -> list[float]:
    """Test accuracies in %, in the order of the seeds."""
    return [100 * self.rows[seed]['accuracy'] for seed in sorted(self.rows)]

  def scores(self) -> dict[int, float]:
    """Test accuracies in %, by seed."""
    return {seed: 100 * row['accuracy'] for seed, row in self.rows.items()}

  def first(self, field: str) -> Any:
    """What does not depend on the seed."""
    return self.rows[min(self.rows)][field]

  def mean(self, field: str) -> float:
    """Over the seeds."""
    return statistics.mean([row[field] for row in self.rows.values()])

  def median(self, field: str) -> float:
    """Over the seeds."""
    return stdlib.median([row[field] for row in self.rows.values()])

  def edges(self) -> tuple[float, ...]:
    """Ends of the grid of learning rates; none of a grid of one."""
    rates = self.first('rates')
    return (min(rates), max(rates)) if len(rates) > 1 else ()


def standings(
  rows: Sequence[Mapping[str, Any]], trials: Sequence[Mapping[str, Any]] = ()
) -> list[Standing]:  # fmt: skip
  """Every choice with a result, best first.

  Args:
    rows: of one board and one device.
    trials: all rows of the board, if the tuning was done on another device.
  """
  out = []
  trials = [r for r in trials or rows if r['status'] == 'ok']
  first = min((r['seed'] for r in trials), default=0)
  for choice in sorted({r['choice'] for r in rows}):
    mine = [r for r in rows if r['choice'] == choice]
    tuning = [r for r in trials if r['choice'] == choice and r['seed'] == first]
    good = [r for r in mine if r['status'] == 'ok']
    if not good:
      continue
    rate = fairness.tuned(tuning or good)['learning_rate']
    chosen = {r['seed']: r for r in good if r['learning_rate'] == rate}
    if chosen:
      out.append(Standing(
        choice, rate, chosen, {r['learning_rate']: r for r in tuning},
        [r for r in mine if r['status'] != 'ok'],
      ))  # fmt: skip
  return sorted(out, key=lambda s: (-s.mean('accuracy'), s.choice))
