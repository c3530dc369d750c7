"""Who beats whom on a board: pairs one by one, and all of them at once."""

import functools
import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from vit_jax.arena.statistics import LEVEL, mean, standard_error


class Comparison(NamedTuple):
  """a − b over the seeds both have, looked at as if it were the only pair.

  Attributes:
    difference: mean, in the unit of the scores.
    low: end of Student's t-interval.
    high: the other end.
    p: two-sided, of no difference.
    seeds: how many both have.
    verdict: of all pairs at once, 1: a beats b; −1: b beats a; 0: open.
  """

  difference: float
  low: float
  high: float
  p: float
  seeds: int
  verdict: int = 0

  def flip(self) -> 'Comparison':
    """The same the other way round, b − a."""
    return self._replace(
      difference=-self.difference, low=-self.high, high=-self.low,
      verdict=-self.verdict,
    )  # fmt: skip


def paired(
  a: Mapping[int, float], b: Mapping[int, float], resolution: float = 0.0,
  level: float = LEVEL,
) -> Comparison:  # fmt: skip
  """Student's t-interval of the mean difference, seed by seed.

  d ± t_{n−1}((1 + level)/2) · s/√n, with s² the variance of the n differences,
  and the two-sided p of d = 0. A seed fixes data order and shared
  initialisation, so differencing removes what both owe to it.

  s² is at least resolution²/6, the variance of the difference of two numbers
  that were rounded to that step: on a test set of a few hundred examples three
  differences are easily equal by chance, and no certainty follows from it.

  Args:
    a: seed → score.
    b: the same of the other.
    resolution: step of the scores: 1 / (test examples) for an accuracy.
    level: of the interval.

  Returns:
    The comparison, without a verdict. With fewer than two seeds in common the
    interval is infinite and p is 1.
  """
  shared = sorted(set(a) & set(b))
  d = [a[s] - b[s] for s in shared]
  n = len(d)
  if n < 2:
    return Comparison(mean(d) if d else math.nan, -math.inf, math.inf, 1.0, n)
  middle = mean(d)
  error = max(standard_error(d), resolution / math.sqrt(6 * n))
  if error == 0:
    return Comparison(middle, middle, middle, float(middle == 0), n)
  half = float(special.stdtrit(n - 1, (1 + level) / 2)) * error
  p = 2 * float(special.stdtr(n - 1, -abs(middle) / error))
  return Comparison(middle, middle - half, middle + half, p, n)


def angle(accuracy: np.ndarray, test_size: int) -> np.ndarray:
  """The angular transformation, arcsin √accuracy. Bartlett 1947.

  A share of n examples has the variance p (1 − p) / n; its angle has 1 / (4 n)
  whatever p is. As Bartlett advises, 0 and 1 count as 1/(4 n) and 1 − 1/(4 n):
  the step away from the end would otherwise be twice as long as it should be.

  Returns:
    Radians.
  """
  end = 1 / (4 * test_size)
  return np.arcsin(np.sqrt(np.clip(accuracy, end, 1 - end)))


def rounding(accuracy: np.ndarray, test_size: int) -> float:
  """Mean variance of the angles for n = test_size having made steps of 1/n.

  An accuracy a stands for all of a ± 1/(2 n), and its angle for a stretch of
  width w = arcsin √(a + 1/(2 n)) − arcsin √(a − 1/(2 n)), both cut to [0, 1];
  w²/12 is the variance of what is spread evenly over it. With the derivative
  of the angle, 1 / (2 √(a (1 − a))), that is about 1/(4 n) · 1/(12 n a (1 −
  a)): the binomial variance of the angle, over 12 times the binomial variance
  of the number of right answers.
  """
  half = 0.5 / test_size
  low, high = (
    np.arcsin(np.sqrt(np.clip(accuracy + d, 0, 1))) for d in (-half, half)
  )
  return float(np.mean((high - low) ** 2)) / 12


@functools.cache
def quantile(level: float, choices: int, freedom: int) -> float:
  """Of the studentised range of so many means; SciPy integrates for 0.3 s."""
  return float(stats.studentized_range.ppf(level, choices, freedom))


class Tukey(NamedTuple):
  """The verdict on all pairs of a board.

  Attributes:
    angles: choice → mean angle, of the choices that were tested.
    seeds: that they were tested on.
    quantile: q of the studentised range.
    error: variance of a mean angle, pooled.
    own: choice → variance of its mean angle, from its own residuals.
  """

  angles: Mapping[str, float]
  seeds: tuple[int, ...]
  quantile: float
  error: float
  own: Mapping[str, float]

  @property
  def least(self) -> float:
    """Radians by which two of the usual variance must differ."""
    return self.quantile * math.sqrt(self.error)

  def beats(self, a: str, b: str) -> bool:
    """Whether a is better than b; no, if one of them was not tested."""
    if a not in self.angles or b not in self.angles:
      return False
    error = max(self.error, (self.own[a] + self.own[b]) / 2)
    least = self.quantile * math.sqrt(error)
    return self.angles[a] - self.angles[b] > least

  def around(self, accuracy: float) -> float:
    """The difference of two accuracies, this one amid them, that just counts.

    sin²(θ + least/2) − sin²(θ − least/2), θ = arcsin √accuracy, pushed inwards
    at the ends; inf where not even 1 against 0 would count.
    """
    if self.least > math.pi / 2:
      return math.inf
    low = math.asin(math.sqrt(accuracy)) - self.least / 2
    low = min(max(low, 0.0), math.pi / 2 - self.least)
    return math.sin(low + self.least) ** 2 - math.sin(low) ** 2


def blocks(accuracies: Mapping[str, Mapping[int, float]]) -> tuple[int, ...]:
  """The seeds to test on.

  Of the sets of seeds that choices have, the one that leaves the most degrees
  of freedom when the choices that lack one of its seeds are left out.
  """
  def freedom(seeds):
    having = sum(set(seeds) <= set(of) for of in accuracies.values())
    return (having - 1) * (len(seeds) - 1)

  sets = sorted({tuple(sorted(of)) for of in accuracies.values()})
  return max(sets, key=freedom, default=())


def tukey(
  accuracies: Mapping[str, Mapping[int, float]], test_size: int,
  level: float = LEVEL,
) -> Tukey:  # fmt: skip
  """Tukey's honest significant difference in randomised blocks.

  Tukey 1953, The problem of multiple comparisons. y[c, s] is the angle of
  choice c (k of them) with seed s (b of them, the blocks: a seed fixes data
  order and shared initialisation). a beats b where

    mean_s y[a] − mean_s y[b] > q · √(MSE / b),
    MSE = Σ (y − mean_s y − mean_c y + mean y)² / ((k − 1)(b − 1)),

  with q the quantile of the studentised range of k means with (k − 1)(b − 1)
  degrees of freedom. If choices and seeds add up and the noise is normal, of
  one variance for all, then no statement is wrong with probability `level`.
  The pooled variance is what makes three seeds enough: there are 2 degrees of
  freedom in a pair and 128 in 65 choices. Of a choice much noisier than the
  others it would say too much: for a pair whose own residuals give a larger
  variance than MSE, theirs counts (not Tukey's, and only ever more cautious).

  MSE / b is at least `rounding`. It is not divided by b: seeds that all give
  the same number were all rounded the same way, and nothing averages out.

  Args:
    accuracies: choice → seed → accuracy in 0..1.
    test_size: examples it was counted on.
    level: probability that all statements are right.

  Returns:
    The test. Choices that lack one of the seeds of `blocks` are not in it;
    with fewer than two choices or seeds none are.

  Raises:
    ValueError: an accuracy is not in 0..1.
  """
  seeds = blocks(accuracies)
  tested = sorted(c for c, of in accuracies.items() if set(seeds) <= set(of))
  k, b = len(tested), len(seeds)
  if k < 2 or b < 2:
    return Tukey({}, (), math.inf, 1.0, {})
  table = np.array([[accuracies[c][s] for s in seeds] for c in tested])
  if not np.all((table >= 0) & (table <= 1)):
    raise ValueError(
      f'accuracies from {table.min():g} to {table.max():g}; they lie in 0..1'
    )
  y = angle(table, test_size)
  means = y.mean(1)
  residuals = y - means[:, None] - y.mean(0) + y.mean()
  freedom = (k - 1) * (b - 1)
  error = max(
    float(np.sum(residuals**2)) / freedom / b, rounding(table, test_size)
  )
  # Of k residuals of a seed the means take one away.
  own = np.sum(residuals**2, 1) / ((b - 1) * (1 - 1 / k)) / b
  return Tukey(
    dict(zip(tested, means.tolist(), strict=True)), seeds,
    quantile(level, k, freedom), error,
    dict(zip(tested, own.tolist(), strict=True)),
  )  # fmt: skip


def compare(
  scores: Mapping[str, Mapping[int, float]], test: Tukey,
  resolution: float = 0.0, level: float = LEVEL,
) -> dict[tuple[str, str], Comparison]:  # fmt: skip
  """Every choice against every other, with the verdict of the test.

  Args:
    scores: choice → seed → accuracy, in the unit that is to be shown.
    test: of all pairs. Where its angles and the accuracies disagree on who is
      the better one, which takes a very uneven choice, the verdict is open.
    resolution: step of the scores, as in `paired`.
    level: of the intervals, which are not corrected for the number of pairs.

  Returns:
    Comparisons by (a, b), both orders.
  """
  found = {}
  for a, b in itertools.combinations(sorted(scores), 2):
    c = paired(scores[a], scores[b], resolution, level)
    verdict = int(c.difference > 0 and test.beats(a, b)) - int(
      c.difference < 0 and test.beats(b, a)
    )
    found[a, b] = c._replace(verdict=verdict)
    found[b, a] = found[a, b].flip()
  return found
