"""The published Long-Range Arena, and how well two orders agree.

Tay et al. 2021, "Long Range Arena: A Benchmark for Efficient Transformers",
table 1 (accuracy) and table 2 (speed and memory on byte-level text).
"""

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from vit_jax import specs
from vit_jax.arena.statistics import LEVEL

EXACT = 8  # so many choices have 8! = 40,320 orders: all of them are counted
DRAWN = 20_000  # orders drawn where there are more


class Task(NamedTuple):
  """A task as it was published.

  Attributes:
    title: in the paper's table.
    size: model, lengths and training, in words.
    steps: of training; None where the paper counts epochs or says nothing.
  """

  title: str
  size: str
  steps: int | None


TASKS = {
  'listops': Task(
    'ListOps', 'sequences of up to 2,000 symbols, 4 layers of width 512 with 8 '
    'heads, 5,000 steps', 5000,
  ),
  'text': Task(
    'Text', '1,000 to 4,000 bytes, 4 layers of width 256 with 4 heads, 20,000 '
    'steps', 20_000,
  ),
  'retrieval': Task(
    'Retrieval', 'two documents of 4,000 bytes, 4 layers of width 128 with 4 '
    'heads', None,
  ),
  'image': Task(
    'Image', 'CIFAR-10 as 1,024 grey pixels, 200 epochs', None
  ),
  'pathfinder': Task('Pathfinder', 'pictures of 1,024 pixels', None),
}  # fmt: skip


class Model(NamedTuple):
  """A line of the published tables.

  Attributes:
    ours: names of our attentions that it may stand beside, the likest first.
    percent: test accuracy in %, in the order of `TASKS`.
    steps: training steps a second at 1K and at 4K bytes; None: not published.
    gigabytes: of memory a device at 1K and at 4K bytes.
  """

  ours: tuple[str, ...]
  percent: tuple[float, float, float, float, float]
  steps: tuple[float, float] | None = None
  gigabytes: tuple[float, float] | None = None


MODELS = {
  'Transformer': Model(
    ('softmax', 'chunked'), (36.37, 64.27, 57.46, 42.44, 71.40), (8.1, 1.4),
    (0.85, 9.48),
  ),
  'Local': Model(
    ('window',), (15.82, 52.98, 53.39, 41.46, 66.63), (9.2, 7.4), (0.42, 1.37),
  ),
  'Sparse': Model(
    ('fixed', 'strided'), (17.07, 63.58, 59.59, 44.24, 71.71)
  ),
  'Longformer': Model(
    ('longformer',), (35.63, 62.85, 56.89, 42.22, 69.71)
  ),
  'Linformer': Model(
    ('linformer',), (35.70, 53.94, 52.27, 38.56, 76.34), (9.3, 7.7),
    (0.37, 0.99),
  ),
  'Reformer': Model(
    ('reformer',), (37.27, 56.10, 53.40, 38.07, 68.50), (4.4, 1.1),
    (0.48, 2.28),
  ),
  'Sinkhorn': Model(
    ('sinkhorn',), (33.67, 61.20, 53.83, 41.23, 67.45), (9.1, 5.3),
    (0.47, 1.48),
  ),
  # The default of the released code is the factorised random one.
  'Synthesizer': Model(
    ('synthesizer_factorized_random', 'synthesizer_dense',
     'synthesizer_random', 'synthesizer_factorized_dense'),
    (36.99, 61.68, 54.67, 41.61, 69.45), (8.7, 1.9), (0.65, 6.99),
  ),
  'BigBird': Model(
    ('bigbird',), (36.05, 64.02, 59.29, 40.83, 74.87), (7.4, 1.5), (0.77, 2.88),
  ),
  'Linear': Model(
    ('linear',), (16.13, 65.90, 53.09, 42.34, 75.30), (9.1, 7.8), (0.37, 1.03),
  ),
  'Performer': Model(
    ('performer',), (18.01, 65.40, 53.82, 42.77, 77.05), (9.5, 8.0),
    (0.37, 1.06),
  ),
}  # fmt: skip


def task_of(board: str) -> str | None:
  """The task that a board's name begins with: 'listops' of 'listops short'."""
  first = re.split(r'[^a-z0-9]+', board.lower())[0]
  return first if first in TASKS else None


def accuracy(model: str, task: str) -> float:
  """The published test accuracy, in %.

  Raises:
    ValueError: no such model or task.
  """
  specs.lookup(TASKS, task, 'task')
  found = specs.lookup(MODELS, model, 'model of the Long-Range Arena')
  return found.percent[list(TASKS).index(task)]


def matched(choices: Iterable[str]) -> dict[str, str]:
  """Model → the one of our choices that stands beside it.

  Of several, the likest attention, then without options, then by name; a
  choice with several specs, or with a name of its own, is none of them.
  """
  found = {}
  for choice in sorted(choices):
    try:
      some = specs.parse(choice)
    except ValueError:  # a label of a notebook
      continue
    if len(some) == 1:
      found.setdefault(some[0].name, []).append((bool(some[0].options), choice))
  out = {}
  for model, line in MODELS.items():
    known = [name for name in line.ours if name in found]
    if known:
      out[model] = min(found[known[0]])[1]
  return out


class Agreement(NamedTuple):
  """How well two orders of the same things agree.

  Attributes:
    value: the rank correlation, 1 for the same order, −1 for the opposite; nan
      if one of them has no order.
    p: share of all orders of the one that agree with the other at least so
      well; one-sided, of no agreement.
    low: end of its bootstrap interval over the seeds; nan without seeds.
    high: the other end.
  """

  value: float
  p: float
  low: float = math.nan
  high: float = math.nan


def kendall(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """τ-b of every row of a [S n] with b [n]. Kendall 1945, ties in both.

  Σ_{i<j} sign(a_i − a_j) sign(b_i − b_j) / √(pairs untied in a · in b).
  """
  i, j = np.triu_indices(len(b), 1)
  x = np.sign(a[:, i] - a[:, j])
  y = np.sign(b[i] - b[j])
  norm = np.sqrt((x**2).sum(1) * (y**2).sum())
  return np.where(norm > 0, x @ y, np.nan) / np.where(norm > 0, norm, 1)


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """ρ of every row of a [S n] with b [n]: the correlation of mean ranks."""
  x, y = stats.rankdata(a, axis=1), stats.rankdata(b)
  x, y = x - x.mean(1, keepdims=True), y - y.mean()
  norm = np.sqrt((x**2).sum(1) * (y**2).sum())
  return np.where(norm > 0, x @ y, np.nan) / np.where(norm > 0, norm, 1)


def orders(n: int) -> tuple[np.ndarray, bool]:
  """Permutations of n [S n], and whether they are all there are.

  All up to n = EXACT; else DRAWN by `default_rng(0)`.
  """
  if n <= EXACT:
    return np.array(list(itertools.permutations(range(n)))).reshape(-1, n), True
  start = np.tile(np.arange(n), (DRAWN, 1))
  return np.random.default_rng(0).permuted(start, axis=1), False


def agreement(
  scores: Sequence[Sequence[float]], other: Sequence[float],
  samples: int = 2000,
) -> dict[str, Agreement]:  # fmt: skip
  """Rank correlations of the means of our scores with other numbers.

  p counts the permutations with a correlation of at least the found one, all
  of them, or of those drawn (c + 1)/(DRAWN + 1), Phipson and Smyth 2010. The
  interval draws every choice's seeds with replacement, `samples` times by
  `default_rng(0)`, and takes percentiles; it knows our seeds' noise only.

  Args:
    scores: of each choice, one a seed.
    other: of each choice, a number.
    samples: of the bootstrap.

  Returns:
    'kendall' (τ-b) and 'spearman' (ρ).

  Raises:
    ValueError: fewer than two choices, or not as many numbers.
  """
  if len(scores) < 2 or len(scores) != len(other):
    raise ValueError(
      f'{len(scores)} choices and {len(other)} numbers: as many of both are '
      'needed, at least 2'
    )
  theirs = np.asarray(other, np.float64)
  # Accuracies are shares of a few examples: sums of equal ones may differ in
  # the last bit, which is no order.
  means = np.array([round(math.fsum(of) / len(of), 9) for of in scores])
  rng = np.random.default_rng(0)
  drawn = np.stack([
    np.asarray(of)[rng.integers(len(of), size=(samples, len(of)))].mean(1)
    for of in scores
  ], 1).round(9)  # fmt: skip
  places, all_of_them = orders(len(theirs))
  spread = min(len(of) for of in scores) > 1
  out = {}
  for name, rule in (('kendall', kendall), ('spearman', spearman)):
    value = float(rule(means[None], theirs)[0])
    if math.isnan(value):
      out[name] = Agreement(math.nan, 1.0)
      continue
    least = rule(means[places], theirs) >= value - 1e-12
    p = least.mean() if all_of_them else (least.sum() + 1) / (len(least) + 1)
    found = rule(drawn, theirs)
    found = found[~np.isnan(found)]
    low, high = math.nan, math.nan
    if spread and found.size:
      ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
      low, high = map(float, np.quantile(found, ends))
    out[name] = Agreement(value, float(p), low, high)
  return out


def missing(
  matched_: Mapping[str, str], lost: Mapping[str, str]
) -> dict[str, str]:
  """Model → why it has no number of ours.

  Args:
    matched_: model → choice with a result.
    lost: choice without one → why.
  """
  absent = matched(lost)
  return {
    model: f'{absent[model]}: {lost[absent[model]]}' if model in absent
    else 'not on this board'
    for model in MODELS if model not in matched_
  }  # fmt: skip
