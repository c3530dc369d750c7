"""Means, intervals, fronts, crossovers, slopes, budgets."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

LEVEL = 0.95  # of every interval, and of all that a board says at once
# Columns of a cell's `curve`.
STEP, FLOPS, SECONDS, ACCURACY = range(4)


def mean(values: Sequence[float]) -> float:
  """Σ x / n, the sum rounded once, so that it does not depend on the order."""
  _some(values)
  return math.fsum(values) / len(values)


def standard_error(values: Sequence[float]) -> float:
  """√(s²/n), s² = Σ (x − mean)² / (n − 1); nan for one value."""
  middle = mean(values)
  if len(values) == 1:
    return math.nan
  squares = math.fsum((x - middle) ** 2 for x in values)
  return math.sqrt(squares / (len(values) - 1) / len(values))


def bootstrap(
  values: Sequence[float], level: float = LEVEL, samples: int = 10_000,
  seed: int = 0,
) -> tuple[float, float]:  # fmt: skip
  """Percentile interval of the mean. Efron and Tibshirani 1993, chapter 13.

  Of the n values, sorted, `samples` times n are drawn with replacement: rows
  of `numpy.random.default_rng(seed).integers(n, size=(samples, n))`. The
  interval goes from the (1 − level)/2 to the (1 + level)/2 quantile of their
  means, interpolated linearly. It never leaves [min, max], so for three
  values it is too narrow; who beats whom is decided in `comparison`.

  Returns:
    (low, high); (nan, nan) for one value, which says nothing of its spread.
  """
  _some(values)
  n = len(values)
  if n == 1:
    return math.nan, math.nan
  drawn = np.random.default_rng(seed).integers(n, size=(samples, n))
  means = np.sort(np.asarray(values, np.float64))[drawn].mean(axis=1)
  low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
  """Which (cost, score) no other beats in one without losing in the other."""
  def better(p, q):
    return p[0] <= q[0] and p[1] >= q[1] and p != q

  return [not any(better(p, q) for p in points) for q in points]


class Crossover(NamedTuple):
  """A length, or a bound of it: '<' the first or '>' the last measured."""

  bound: str
  length: float

  def __str__(self) -> str:
    """'< 64', '1,234' or '> 4,096'."""
    return f'{self.bound} {self.length:,.0f}'.strip()


def crossover(lengths: Sequence[int], ratios: Sequence[float]) -> Crossover:
  """From which length on the ratio stays above 1, on a line in log–log.

  Args:
    lengths: ascending.
    ratios: softmax's time over the kernel's at each of them.
  """
  _ascending(lengths)
  if len(lengths) != len(ratios):
    raise ValueError(
      f'{len(ratios)} ratios for {len(lengths)} lengths; one for each'
    )
  if ratios[-1] <= 1:
    return Crossover('>', lengths[-1])
  for i in range(len(lengths) - 1, 0, -1):
    if ratios[i - 1] <= 1:
      a, b = math.log(ratios[i - 1]), math.log(ratios[i])
      low, high = math.log(lengths[i - 1]), math.log(lengths[i])
      return Crossover('', math.exp(low - a / (b - a) * (high - low)))
  return Crossover('<', lengths[0])


def slope(
  lengths: Sequence[int], values: Sequence[float], last: int = 3
) -> float:
  """Exponent p of value ∝ length^p, by least squares over the `last` lengths.

  Lower orders and overheads fade there. Values that are 0 have no logarithm
  and are left out; nan where fewer than two remain.
  """
  _ascending(lengths)
  pairs = [
    (math.log(n), math.log(v))
    for n, v in zip(lengths, values, strict=True)
    if v > 0
  ][-last:]
  if len(pairs) < 2:
    return math.nan
  x, y = np.array(pairs).T
  x = x - x.mean()
  return float(x @ (y - y.mean()) / (x @ x))


def at_budget(
  curve: Sequence[Sequence[float]], budget: float, column: int
) -> float:
  """Test accuracy when so much was spent, between evaluations linear.

  Args:
    curve: rows of [step, FLOPs so far, seconds so far, test accuracy].
    budget: in the unit of the column; beyond the curve its last point counts.
    column: FLOPS or SECONDS.

  Returns:
    The accuracy; nan where the first evaluation came later than the budget.
  """
  _some(curve)
  spent = [point[column] for point in curve]
  if budget < spent[0]:
    return math.nan
  return float(np.interp(budget, spent, [point[ACCURACY] for point in curve]))


def equal_budget(
  curves: Mapping[str, Mapping[int, Sequence[Sequence[float]]]], column: int
) -> tuple[float, dict[str, dict[int, float]]]:
  """All choices read where the thriftiest of them was ready.

  Args:
    curves: choice → seed → curve.
    column: FLOPS or SECONDS.

  Returns:
    The budget, the smallest of the choices' mean totals; choice → seed →
    accuracy at it.
  """
  _some(curves)
  budget = min(
    mean([curve[-1][column] for curve in of.values()])
    for of in curves.values()
  )
  return budget, {
    choice: {s: at_budget(curve, budget, column) for s, curve in of.items()}
    for choice, of in curves.items()
  }


def _some(values: Any) -> None:
  if not len(values):
    raise ValueError('no values; at least one is needed')


def _ascending(lengths: Sequence[int]) -> None:
  _some(lengths)
  if any(a >= b for a, b in itertools.pairwise(lengths)):
    raise ValueError(f'lengths {list(lengths)} do not ascend')
