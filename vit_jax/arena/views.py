"""A board seen at equal parameters, at equal FLOPs and at equal time.

Nothing trains again for a view: it reads the rows and their curves.
"""

import math
import pathlib
import statistics as stdlib
from collections.abc import Mapping, Sequence

from vit_jax.arena import learning, page, ranking, statistics
from vit_jax.arena.page import Cell, Column, Heading, Table, Text
from vit_jax.arena.standings import Standing


def blocks(
  workdir: pathlib.Path, slug: str, found: Sequence[Standing],
  base: Standing | None,
) -> list[page.Block]:  # fmt: skip
  """The three views and the learning curves.

  Args:
    workdir: gets the picture.
    slug: how its name begins.
    found: the standings, best first.
    base: the baseline's, if there is one.
  """
  return [
    Heading(3, 'At equal parameters'), *_parameters(found, base),
    Heading(3, 'At equal FLOPs and at equal time'), *_costs(found, base),
    Heading(3, 'Learning curves'),
    learning.figure(workdir, slug, found, base),
  ]  # fmt: skip


def places(scores: Mapping[str, float]) -> dict[str, int | None]:
  """1 + how many are better; none for a score that is nan."""
  known = [v for v in scores.values() if not math.isnan(v)]
  return {
    choice: None if math.isnan(v) else 1 + sum(other > v for other in known)
    for choice, v in scores.items()
  }


def equal_parameters(
  found: Sequence[Standing], base: Standing | None
) -> tuple[int, list[Standing], list[Standing]]:
  """A number of parameters, who has it within `ranking.SIGNIFICANT`, who not.

  It is the baseline's; without one, that of the median choice.
  """
  counts = [s.first('parameters') for s in found]
  usual = base.first('parameters') if base else stdlib.median_low(counts)
  near, far = [], []
  for s in found:
    off = abs(s.first('parameters') - usual)
    (near if off <= ranking.SIGNIFICANT * usual else far).append(s)
  return usual, near, far


def _parameters(
  found: Sequence[Standing], base: Standing | None
) -> list[page.Block]:
  usual, near, far = equal_parameters(found, base)
  whose = f'of {base.choice}' if base else 'of the median choice'
  among = places({s.choice: s.mean('accuracy') for s in near})
  lines = []
  for s in [*near, *far]:
    own = s.first('parameters')
    cell, _ = ranking.parameters(own, usual)
    place = among[s.choice] if s in near else None
    lines.append([
      Cell(page.NONE) if place is None else Cell(str(place), place),
      page.name(s.choice), cell, page.number(own / usual - 1, '+.2f', 100),
      *_score(s.percent()),
    ])  # fmt: skip
  share = f'{100 * ranking.SIGNIFICANT:g} %'
  text = (
    f'{len(near)} of {len(found)} choices have the {usual:,} parameters '
    f'{whose}, within {share}, and are ranked among themselves. '
  )
  if far:
    text += (
      f'The other {len(far)} are marked ≠ and have no place: what they gain or '
      'lose may be due to their size. Nothing was trained again at another '
      'size to make them equal.'
    )
  return [
    Text(text),
    Table(
      f'Mean test accuracy, and place among those within {share} of the '
      f'parameters {whose}.',
      [Column('#'), Column('choice'), Column('parameters'),
       Column('off by, %', f'from the {usual:,} {whose}'),
       Column('accuracy, %'), Column('± std. error')],
      lines,
    ),
  ]  # fmt: skip


def _score(values: Sequence[float]) -> list[Cell]:
  """Mean and standard error of percentages, none where one is nan."""
  mean = statistics.mean(values)
  return [
    page.number(mean), page.number(statistics.standard_error(values), '.2f')
  ]  # fmt: skip


def _costs(
  found: Sequence[Standing], base: Standing | None
) -> list[page.Block]:
  curves = {
    s.choice: {seed: row['curve'] for seed, row in s.rows.items()}
    for s in found
  }
  said, views = [], [{s.choice: s.percent() for s in found}]
  for column, form in (
    (statistics.FLOPS, '{:.3g} training FLOPs'),
    (statistics.SECONDS, '{:.3g} seconds of training steps'),
  ):
    budget, reached = statistics.equal_budget(curves, column)
    who = min(curves, key=lambda c: (_total(curves[c], column), c))
    views.append({
      c: [100 * v for v in of.values()] for c, of in reached.items()
    })  # fmt: skip
    late = sum(math.isnan(statistics.mean(v)) for v in views[-1].values())
    said.append(
      f'{form.format(budget)} ({who} was ready'
      + (f'; {late} of {len(found)} had not been evaluated yet' if late else '')
      + ')'
    )
  ranks = [
    places({c: statistics.mean(v) for c, v in view.items()}) for view in views
  ]
  lines = []
  for s in found:
    cells = [page.name(s.choice)]
    for view, rank in zip(views, ranks, strict=True):
      place = rank[s.choice]
      cells += _score(view[s.choice])
      cells.append(
        Cell(page.NONE) if place is None else Cell(str(place), place, 'weak')
      )
    usual = base.first('parameters') if base else s.first('parameters')
    cells += [
      ranking.parameters(s.first('parameters'), usual)[0],
      page.number(_loss(s), '.3f'),
      page.number(s.mean('train_seconds'), ',.1f'),
      page.number(s.first('compile_seconds'), ',.1f'),
    ]
    lines.append(cells)
  columns = [Column('choice')]
  for name in ('as trained, %', 'equal FLOPs, %', 'equal time, %'):
    columns += [Column(name), Column('±', 'std. error'), Column('#', 'place')]
  columns += [
    Column(c)
    for c in ('parameters', 'test loss', 'training s', 'compilation s')
  ]
  return [
    Text(
      'Every choice read from its curve where the thriftiest was ready: after '
      f'{said[0]}, and after {said[1]} on this device, compilation not '
      'counted. Between evaluations the curve is a straight line; a dash says '
      'that the first evaluation came later. The learning rate’s schedule was '
      'made for the whole run, so whoever is stopped early has not had its end.'
    ),
    Table('Mean test accuracy over the seeds, and place.', columns, lines),
  ]  # fmt: skip


def _total(of: Mapping[int, Sequence[Sequence[float]]], column: int) -> float:
  return statistics.mean([curve[-1][column] for curve in of.values()])


def _loss(s: Standing) -> float | None:
  known = [r['loss'] for r in s.rows.values() if r['loss'] is not None]
  return statistics.mean(known) if known else None
