"""What the documents claim of ViT, CNN and hybrid, as measured: yes or no."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vit_jax.arena import comparison, statistics
from vit_jax.arena.comparison import Comparison
from vit_jax.arena.statistics import LEVEL, Crossover

VIT, CNN, HYBRID = 'ViT', 'CNN', 'hybrid'
# Choice → share of the data → seed → test accuracy in %.
Scores = Mapping[str, Mapping[float, Mapping[int, float]]]


class Claim(NamedTuple):
  """A claim, and what was measured of it.

  Attributes:
    text: the claim.
    verdict: 'yes' or 'no' where the whole interval says so, else 'undecided'.
    measured: what the difference is of.
    found: the difference in points of accuracy; None if a model lacks results.
  """

  text: str
  verdict: str
  measured: str
  found: Comparison | None


def claims(
  scores: Scores, examples: Mapping[float, int], resolution: float
) -> list[Claim]:
  """The claims on choices named 'ViT', 'CNN' and 'hybrid'.

  - 'a CNN beats ViT with little data': CNN − ViT at the smallest share;
  - 'ViT catches up with more data': how much ViT − CNN is larger at the
    largest share than at the smallest; whether it passes is the crossover's;
  - 'the hybrid lies between or above with little data': the hybrid less the
    worse of the two at the smallest share.

  Each difference is over the seeds that both sides have, see
  `comparison.paired`: yes if all of its 95 % interval is above 0, no if all of
  it is below, each claim looked at alone.

  Args:
    scores: choice → share → seed → %.
    examples: by share.
    resolution: of a score, 100 / test examples.
  """
  small, large = min(examples), max(examples)

  def at(choice, share):
    if choice in scores and share in scores[choice]:
      return scores[choice][share]
    return {}

  def minus(a, b):
    return {seed: a[seed] - b[seed] for seed in set(a) & set(b)}

  few = f'at {examples[small]:,} examples'
  gaps = [minus(at(VIT, s), at(CNN, s)) for s in (small, large)]
  cases = [
    (
      'A CNN beats ViT with little data', f'CNN − ViT {few}', at(CNN, small),
      at(VIT, small), resolution,
    ),
    (
      'ViT catches up with more data',
      f'ViT − CNN at {examples[large]:,} examples, less the same {few}',
      # One share catches up with nothing; four rounded numbers are compared.
      gaps[1] if large > small else {}, gaps[0], math.sqrt(2) * resolution,
    ),
  ]  # fmt: skip
  known = [c for c in (VIT, CNN) if at(c, small)]
  worse = min(
    known, key=lambda c: statistics.mean(list(at(c, small).values())),
    default=VIT,
  )  # fmt: skip
  cases.append((
    'The hybrid lies between them or above with little data',
    f'hybrid − {worse}, the worse of the two, {few}', at(HYBRID, small),
    at(worse, small) if len(known) == 2 else {}, resolution,
  ))  # fmt: skip
  return [_claim(*case) for case in cases]


def _claim(
  text: str, measured: str, a: Mapping[int, float], b: Mapping[int, float],
  resolution: float,
) -> Claim:  # fmt: skip
  if not set(a) & set(b):
    return Claim(text, 'undecided', measured, None)
  found = comparison.paired(a, b, resolution)
  verdict = 'undecided'
  if found.low > 0:
    verdict = 'yes'
  elif found.high < 0:
    verdict = 'no'
  return Claim(text, verdict, measured, found)


def crossing(
  examples: Sequence[int], differences: Sequence[float]
) -> Crossover:
  """From how many examples on a difference stays above 0.

  Linear between neighbours, in the logarithm of the number of examples.

  Args:
    examples: ascending.
    differences: at each of them, ViT − CNN.

  Returns:
    The number; '< first' if all are above 0, '> last' if the last is not.

  Raises:
    ValueError: none, or not one difference for each number.
  """
  if not examples or len(examples) != len(differences):
    raise ValueError(
      f'{len(differences)} differences for {len(examples)} numbers of '
      'examples; one or more, and one for each'
    )
  if differences[-1] <= 0:
    return Crossover('>', examples[-1])
  for i in range(len(examples) - 1, 0, -1):
    low, high = differences[i - 1], differences[i]
    if low <= 0:
      a, b = math.log(examples[i - 1]), math.log(examples[i])
      return Crossover('', math.exp(a - low / (high - low) * (b - a)))
  return Crossover('<', examples[0])


class Crossing(NamedTuple):
  """Where one passes the other: of the means, and an interval of it."""

  middle: Crossover
  low: Crossover
  high: Crossover
  seeds: int


def crossing_of(
  examples: Sequence[int], a: Sequence[Mapping[int, float]],
  b: Sequence[Mapping[int, float]], level: float = LEVEL,
  samples: int = 10_000, seed: int = 0,
) -> Crossing | None:  # fmt: skip
  """Where a passes b, with a percentile bootstrap interval over the seeds.

  Seeds are drawn with replacement, the same ones for all numbers of examples,
  and the crossing of the means of those is taken; the ends are the smallest
  value that (1 − level)/2 and (1 + level)/2 of the crossings do not exceed.
  Efron and Tibshirani 1993, chapter 13. It is too narrow for three seeds, of
  which there are ten different draws.

  Args:
    examples: ascending.
    a: for each of them, seed → score.
    b: the same of the other.
    level: of the interval.
    samples: draws.
    seed: of the draws.

  Returns:
    None if there is no seed that has all scores; with one seed the interval
    is its value.
  """
  shared = sorted(set.intersection(*(set(x) for x in (*a, *b))))
  if not shared:
    return None
  differences = np.array([
    [x[s] - y[s] for x, y in zip(a, b, strict=True)] for s in shared
  ])  # fmt: skip
  n = len(shared)
  drawn = np.random.default_rng(seed).integers(n, size=(samples, n))
  kinds, counts = np.unique(
    np.sort(drawn, axis=1), axis=0, return_counts=True
  )
  found = [
    crossing(examples, differences[kind].mean(axis=0).tolist())
    for kind in kinds
  ]
  places = sorted(range(len(found)), key=lambda i: _place(found[i]))
  reached = np.cumsum(counts[places]) / samples

  def end(share):
    return found[places[int(np.searchsorted(reached, share - 1e-12))]]

  middle = crossing(examples, differences.mean(axis=0).tolist())
  return Crossing(middle, end((1 - level) / 2), end((1 + level) / 2), n)


def _place(found: Crossover) -> float:
  ends = {'<': -math.inf, '>': math.inf}
  return ends[found.bound] if found.bound else found.length
