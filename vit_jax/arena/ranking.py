"""The report's ranking of a board, and who beats whom."""

import math
import pathlib
import statistics as stdlib
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.arena import comparison, figures, page, plots, statistics
from vit_jax.arena.page import Cell, Column, Figure, Heading, Table
from vit_jax.arena.standings import Standing

# Share of the baseline's parameters from which a difference is said.
SIGNIFICANT = 0.01
Comparisons = Mapping[tuple[str, str], comparison.Comparison]


def power(found: Sequence[Standing], test: comparison.Tukey) -> str:
  """What the signs mean, what is assumed, and what difference counts."""
  level = f'{100 * statistics.LEVEL:g} %'
  text = (
    f'Mean ± standard error over the seeds; {level} percentile-bootstrap '
    'intervals, which for few seeds are too narrow. '
  )
  tested = [s for s in found if s.choice in test.angles]
  if not tested:
    return text + (
      'Nothing beats anything: that takes two choices with two seeds in common.'
    )
  k = len(tested)
  text += (
    '▲ beats, ▼ is beaten: Tukey’s honest significant difference says so of '
    f'all {k * (k - 1) // 2:,} pairs at once; as far as its assumptions hold, '
    f'with {level} probability not one of these statements is wrong. An '
    'accuracy a is taken as the angle arcsin √a, on which chance moves it as '
    'much near 100 % as near 50 %. What neither the mean of its choice nor '
    'that of its seed explains is noise, and one variance of the noise is '
    'assumed for all choices and estimated from all of them. Unstable choices '
    'inflate it and make the test cautious about the others; for a pair with '
    'more noise than that its own counts. The seeds vary the training, not the '
    'test examples, so it is said of these examples. '
  )
  middle = stdlib.median(s.mean('accuracy') for s in tested)
  least = 100 * test.around(middle)
  text += f'With {len(test.seeds)} seeds and {k} choices, ' + (
    f'two around the median accuracy of {100 * middle:.2f} % have to differ '
    f'by {least:.2f} percentage points. '
    if math.isfinite(least) else 'no difference would be large enough. '
  )
  if k < len(found):
    text += (
      f'{len(found) - k} of {len(found)} choices lack one of these seeds and '
      'are not in the test. '
    )
  return text + (
    'In brackets is the t-interval of a pair by itself, seed by seed; it rests '
    'on that pair’s few differences and may hold 0 even beside ▲. △ and ▽ mark '
    'those that do not hold 0, uncorrected for the number of pairs: hints, no '
    'findings.'
  )


def sign(c: comparison.Comparison) -> int:
  """2: a beats b; 1: only the uncorrected interval says so; 0, −1, −2."""
  return 2 * c.verdict or int(c.low > 0) - int(c.high < 0)


def difference(c: comparison.Comparison) -> str:
  """'▲ +1.20 [+0.30, +2.10]', in percentage points."""
  mark = {2: '▲ ', 1: '△ ', 0: '', -1: '▽ ', -2: '▼ '}[sign(c)]
  if c.seeds == 0:
    return page.NONE
  if c.seeds == 1:
    return f'{c.difference:+.2f}'
  return f'{mark}{c.difference:+.2f} [{c.low:+.2f}, {c.high:+.2f}]'


def _against(c: comparison.Comparison | None) -> Cell:
  if c is None or c.seeds == 0:
    return Cell(page.NONE)
  kind = {2: 'good', -2: 'bad'}[sign(c)] if abs(sign(c)) == 2 else ''
  return Cell(
    difference(c), c.difference, kind,
    f'by itself p = {c.p:.2g}, {c.seeds} seeds',
  )  # fmt: skip


def parameters(own: int, usual: int) -> tuple[Cell, str]:
  """A number of parameters, marked if it is not the usual one; and a note."""
  cell = page.number(own, ',.0f')
  if abs(own - usual) <= SIGNIFICANT * usual:
    return cell, ''
  note = f'{100 * (own / usual - 1):+.1f} % parameters'
  return cell._replace(text=f'≠ {cell.text}', kind='bad', title=note), note


def table(
  found: Sequence[Standing], rows: Sequence[Mapping[str, Any]],
  intervals: Sequence[tuple[float, float]], compared: Comparisons,
  base: Standing | None,
) -> Table:  # fmt: skip
  """A row a choice, best first; those without a result last, with the why.

  Args:
    found: the standings, best first.
    rows: all of the board and the device.
    intervals: of the means, in the order of `found`.
    compared: (a, b) → comparison.
    base: the baseline's standing, if there is one.
  """
  columns = [
    Column('#'), Column('choice'), Column('accuracy, %', 'mean ± std. error'),
    Column('interval', 'percentile bootstrap of the mean'), Column('seeds'),
    Column(
      f'minus {base.choice if base else "baseline"}',
      'percentage points, with the uncorrected t-interval',
    ),
    Column('beats'), Column('beaten by'), Column('rate'),
    Column('parameters', 'those more than 1 % off the baseline are marked'),
    Column('MFLOP', 'forward, one example'),
    Column('ms a step'), Column('MiB', 'planned for a training step'),
    Column('notes'),
  ]  # fmt: skip
  lines = []
  for place, (s, (low, high)) in enumerate(
    zip(found, intervals, strict=True), 1
  ):
    signs = [sign(compared[s.choice, o.choice]) for o in found if o != s]
    mean = 100 * s.mean('accuracy')
    error = statistics.standard_error(s.percent())
    size, note = parameters(
      s.first('parameters'), (base or s).first('parameters')
    )
    notes = [note] * bool(note)
    if s.rate in s.edges():
      notes.append('rate at the edge')
    if s.failures:
      notes.append(f'{len(s.failures)} of its cells failed')
    against = None if base in (None, s) else compared[s.choice, base.choice]
    lines.append([
      Cell(str(place), place), page.name(s.choice),
      Cell(f'{mean:.2f}' + _plus(error), mean),
      Cell(page.NONE) if math.isnan(low) else Cell(
        f'[{low:.2f}, {high:.2f}]', low
      ),
      page.number(len(s.rows), 'd'), _against(against),
      page.number(signs.count(2), 'd'), page.number(signs.count(-2), 'd'),
      page.number(s.rate, 'g'), size,
      page.number(s.first('flops'), ',.3f', 1e-6),
      page.number(s.median('step_seconds'), ',.2f', 1e3),
      page.number(s.first('memory'), ',.1f', 2**-20),
      Cell('; '.join(notes), '; '.join(notes)),
    ])  # fmt: skip
  lost = sorted({r['choice'] for r in rows} - {s.choice for s in found})
  for choice in lost:
    why = [r for r in rows if r['choice'] == choice and r['status'] != 'ok']
    text = f'{why[-1]["status"]}: {why[-1]["error"]}' if why else (
      'not run at the rate it was tuned to'
    )
    lines.append([Cell(page.NONE), page.name(choice), Cell(text, None, 'bad')])
  return Table('Ranking by mean test accuracy.', columns, lines)


def _plus(error: float) -> str:
  return '' if math.isnan(error) else f' ± {error:.2f}'


def picture(
  workdir: pathlib.Path, slug: str, found: Sequence[Standing],
  intervals: Sequence[tuple[float, float]], base: Standing | None,
) -> Figure:  # fmt: skip
  """The ranking, drawn."""
  names = [s.choice for s in found]
  scores = [s.percent() for s in found]
  means = [statistics.mean(of) for of in scores]
  # One seed has no interval: the line shrinks to its point.
  spans = [
    (m, m) if math.isnan(low) else (low, high)
    for m, (low, high) in zip(means, intervals, strict=True)
  ]
  file = f'{slug}-ranking.png'
  figures.ranking(
    workdir / file, names, scores, spans, base.choice if base else None,
    'Test accuracy: seeds, mean, bootstrap interval',
  )
  said = [', '.join(f'{x:.2f}' for x in of) + ' %' for of in scores]
  return Figure(
    'Test accuracy of every choice: mean and bootstrap interval over the '
    'seeds.', file, plots.ranking(
      names, means, spans, said, base.choice if base else None
    ),
  )  # fmt: skip


def pairwise(
  workdir: pathlib.Path, slug: str, names: Sequence[str],
  compared: Comparisons,
) -> list[page.Block]:  # fmt: skip
  """The matrix of who beats whom, drawn and as a table."""
  signs = [
    [0 if a == b else sign(compared[a, b]) for b in names] for a in names
  ]
  hover = [
    [
      page.NONE if a == b else f'{plots.text(a)} minus {plots.text(b)}:<br>'
      f'{difference(compared[a, b])}<br>by itself p = '
      f'{compared[a, b].p:.2g}'
      for b in names
    ]
    for a in names
  ]
  file = f'{slug}-beats.png'
  figures.matrix(
    workdir / file, names, signs,
    'Row against column: green beats, red is beaten; pale: only uncorrected',
  )

  def those(row, wanted):
    return [n for n, s in zip(names, row, strict=True) if s == wanted]

  table = []
  for name, row in zip(names, signs, strict=True):
    cells = [page.name(name)]
    for wanted in (2, -2, 1, -1):
      some = those(row, wanted)
      cells.append(Cell(str(len(some)), len(some), title=', '.join(some)))
    cells.append(Cell(', '.join(those(row, 2)) or page.NONE))
    table.append(cells)
  return [
    Heading(3, 'Who beats whom'),
    Figure(
      'Row against column, in the order of the ranking. Green: beats; red: is '
      'beaten; pale: only the uncorrected interval excludes 0.',
      file, plots.matrix(names, signs, hover),
    ),
    Table(
      'The same as a table.',
      [Column('choice'), Column('▲ beats'), Column('▼ is beaten by'),
       Column('△ uncorrected'), Column('▽ uncorrected'), Column('beats whom')],
      table, folded=True,
    ),
  ]  # fmt: skip
