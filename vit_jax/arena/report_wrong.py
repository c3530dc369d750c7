"""The report's section on known-wrong kernels beside the right ones."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy import stats

from vit_jax.arena import comparison, page, ranking, statistics, wrong
from vit_jax.arena.page import Cell, Column, Heading, Table, Text
from vit_jax.arena.standings import Standing


class Pair(NamedTuple):
  """A known-wrong kernel and the right one, both with results.

  Attributes:
    right, wrong: their standings.
    kernel: the fault.
    compared: wrong − right, in percentage points.
    same: whether every seed of both gave the same numbers.
    masked: whether attention saw a mask of padding; None: not recorded.
  """

  right: Standing
  wrong: Standing
  kernel: wrong.Wrong
  compared: comparison.Comparison
  same: bool
  masked: bool | None

  @property
  def idle(self) -> str:
    """Why the fault could not show on this board; '' if it could."""
    if self.kernel.padding and self.masked is False:
      return 'no mask of padding on this board'
    if self.same:
      return 'the same numbers with every seed'
    return ''

  @property
  def shows(self) -> str:
    """Whether the fault could show, in a word or two."""
    if self.idle:
      return f'no: {self.idle}'
    if self.kernel.padding and self.masked is None:
      return 'unknown: masks were not recorded'
    return 'yes'


def section(found: Sequence[Standing]) -> list[page.Block]:
  """What known-wrong kernels do to a board; [] if none has a result.

  Args:
    found: the standings of a board on a device, best first.
  """
  of = {wrong.spelled(s.choice): s for s in found}
  bad = [c for c in of if wrong.of(c) is not None]
  if not bad:
    return []
  order = list(wrong.WRONG)
  bad.sort(key=lambda c: (order.index(wrong.of(c).name), c))
  matched = [_pair(of[wrong.right(c)], of[c])
             for c in bad if wrong.right(c) in of]  # fmt: skip
  alone = [c for c in bad if wrong.right(c) not in of]
  blocks = [
    Heading(3, 'Known-wrong kernels'),
    Text(
      'Kernels that we made wrong on purpose, each with a fault that was found '
      'in public code and otherwise the right kernel: the same recipe, tuning '
      'and seeds. A difference is wrong minus right in percentage points, with '
      'the t-interval of that pair by itself, seed by seed; an interval that '
      'holds 0 says that this board does not tell them apart, not that the '
      'fault is harmless.'
    ),
  ]
  if alone:
    missing = ', '.join(f'{c} (no {wrong.right(c)})' for c in alone)
    blocks.append(Text(
      f'Without a result of the right kernel to be held against: {missing}.',
      warning=True,
    ))  # fmt: skip
  if matched:
    blocks += [_table(found, matched), *_idle(matched)]
    blocks += _changes(found, matched)
  return blocks


def _pair(right: Standing, bad: Standing) -> Pair:
  size = right.first('test_size')
  compared = comparison.paired(bad.scores(), right.scores(), 100 / size)
  shared = set(right.rows) & set(bad.rows)
  fields = ('accuracy', 'loss', 'validation', 'validation_loss')
  same = bool(shared) and bad.rate == right.rate and all(
    right.rows[seed][f] == bad.rows[seed][f] for seed in shared for f in fields
  )
  known = [
    row['masked'] for s in (right, bad) for row in s.rows.values()
    if 'masked' in row
  ]  # fmt: skip
  masked = any(known) if known else None
  entry = wrong.WRONG[wrong.of(bad.choice).name]
  return Pair(right, bad, entry, compared, same, masked)


def _places(found: Sequence[Standing]) -> dict[str, int]:
  """Choice → place; equal accuracies share the best of their places."""
  means = {s.choice: s.mean('accuracy') for s in found}
  return {
    c: 1 + sum(other > mean for other in means.values())
    for c, mean in means.items()
  }


def _table(found: Sequence[Standing], matched: Sequence[Pair]) -> Table:
  places = _places(found)
  columns = [
    Column('wrong'), Column('its accuracy, %', 'mean ± std. error'),
    Column('#', f'place among all {len(found)} choices of the board'),
    Column('right'), Column('its accuracy, %', 'mean ± std. error'),
    Column('#', f'place among all {len(found)} choices of the board'),
    Column('wrong minus right', 'percentage points, uncorrected t-interval'),
    Column('fault'), Column('found in'), Column('could it show?'),
  ]  # fmt: skip
  lines = []
  for pair in matched:
    cells = []
    for s in (pair.wrong, pair.right):
      place = places[s.choice]
      cells += [page.name(s.choice), accuracy(s), Cell(str(place), place)]
    c = pair.compared
    cells += [
      Cell(page.NONE) if pair.idle
      else Cell(ranking.difference(c), c.difference),
      Cell(pair.kernel.fault), Cell(pair.kernel.where),
      Cell(pair.shows),
    ]  # fmt: skip
    lines.append(cells)
  return Table('Each known-wrong kernel beside the right one.', columns, lines)


def accuracy(s: Standing) -> Cell:
  """Mean ± standard error over the seeds, in %."""
  mean, error = 100 * s.mean('accuracy'), statistics.standard_error(s.percent())
  plus = '' if math.isnan(error) else f' ± {error:.2f}'
  return Cell(f'{mean:.2f}{plus}', mean)


def _idle(matched: Sequence[Pair]) -> list[page.Block]:
  some = [p for p in matched if p.idle]
  if not some:
    return []
  said = '; '.join(f'{p.wrong.choice}: {p.idle}' for p in some)
  return [Text(
    f'Where the fault could not show, nothing follows from these rows: {said}. '
    'A mask of padding can only be ignored to the harm of sequences that have '
    'padding.'
  )]  # fmt: skip


def _changes(
  found: Sequence[Standing], matched: Sequence[Pair]
) -> list[page.Block]:
  """The ranking of the right kernels, and with wrong ones in their place."""
  rights = [s for s in found if wrong.of(s.choice) is None]
  first: dict[str, Pair] = {}
  shown = [pair for pair in matched if not pair.idle]
  for pair in shown:  # the first of several, in the order of the table
    first.setdefault(pair.right.choice, pair)
  if len(rights) < 2 or not first:
    return []
  swapped = [
    first[s.choice].wrong if s.choice in first else s for s in rights
  ]
  one = [s.mean('accuracy') for s in rights]
  other = [s.mean('accuracy') for s in swapped]
  before = _places(rights)
  # By the right one's name: a swapped list has the same order of entries.
  after = {
    s.choice: 1 + sum(x > mean for x in other)
    for s, mean in zip(rights, other, strict=True)
  }
  turned, clear = _turned(rights, swapped)
  pairs = len(rights) * (len(rights) - 1) // 2
  text = (
    f'The {len(rights)} right kernels, ranked, and ranked again with '
    f'{len(first)} of them replaced by {"its" if len(first) == 1 else "their"} '
    f'wrong {"one" if len(first) == 1 else "ones"}: Kendall’s τ-b = '
    f'{kendall(one, other)}; {len(turned)} of {pairs} pairs change order'
  )
  if turned:
    text += (
      f', {len(clear)} of them with intervals of the pair by itself that '
      'exclude 0 both before and after'
    )
    text += f' ({_named(clear)})' if clear else ''
    text += '. Changed: ' + _named(turned)
  text += '.'
  several = [p.wrong.choice for p in shown if p not in first.values()]
  if several:
    text += (
      f' Of kernels with several wrong forms only the first was put in; left '
      f'out here: {", ".join(several)}.'
    )
  blocks = [Text(text)]
  moved = [s for s in rights if before[s.choice] != after[s.choice]]
  if moved:
    lines = []
    for s in sorted(moved, key=lambda s: (before[s.choice], s.choice)):
      a, b = before[s.choice], after[s.choice]
      put = first[s.choice].wrong.choice if s.choice in first else ''
      lines.append([
        page.name(s.choice), page.name(put) if put else Cell(page.NONE),
        Cell(str(a), a), Cell(str(b), b), Cell(f'{a - b:+d}', a - b),
      ])  # fmt: skip
    blocks.append(Table(
      'Places that change, among the right kernels.', [
        Column('right kernel'), Column('replaced by'), Column('place'),
        Column('place then'), Column('places won'),
      ], lines,
    ))  # fmt: skip
  return blocks


def kendall(one: Sequence[float], other: Sequence[float]) -> str:
  """τ-b in words: a list without an order has none."""
  found = float(stats.kendalltau(one, other).statistic)
  return 'none (all are equal)' if math.isnan(found) else f'{found:.2f}'


def _turned(
  rights: Sequence[Standing], swapped: Sequence[Standing]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
  """Pairs (once better, once worse), and those clear in both rankings."""
  turned, clear = [], []
  for i, j in itertools.combinations(range(len(rights)), 2):
    said = []
    for among in (rights, swapped):
      a, b = among[i], among[j]
      size = a.first('test_size')
      compared = comparison.paired(a.scores(), b.scores(), 100 / size)
      sign = a.mean('accuracy') - b.mean('accuracy')
      said.append((sign, compared.low > 0 or compared.high < 0))
    if said[0][0] * said[1][0] < 0:
      better = (i, j) if said[0][0] > 0 else (j, i)
      names = tuple(rights[k].choice for k in better)
      turned.append(names)
      if said[0][1] and said[1][1]:
        clear.append(names)
  return turned, clear


def _named(pairs: Sequence[tuple[str, str]], most: int = 12) -> str:
  text = ', '.join(f'{a} over {b}' for a, b in pairs[:most])
  return text + f' and {len(pairs) - most} more' * (len(pairs) > most)

