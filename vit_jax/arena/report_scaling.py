"""The report on scaling: how time, memory and FLOPs of kernels grow with N."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.arena import figures, page, plots, statistics
from vit_jax.arena.page import Cell, Column, Figure, Heading, Table, Text

FIELDS = (
  'dtype', 'length', 'direction', 'seconds', 'seconds_low', 'seconds_high',
  'ratio', 'flops', 'declared_flops', 'bytes', 'declared_bytes',
)  # fmt: skip
# Between the exponents that are measured and declared, from which it is said:
# over a factor of 16 in N, lower orders change an exponent that much.
APART = 0.25
SHOWN = 8  # choices that a plot begins with: the fastest
# Heading → field, and what it is multiplied by.
MEASURES = {
  'time, ms': ('seconds', 1e3),
  'softmax’s time over this one’s': ('ratio', 1.0),
  'FLOPs, forward': ('flops', 1.0),
  'bytes of temporaries': ('bytes', 1.0),
}


def section(
  workdir: pathlib.Path, slug: str, title: str,
  rows: Sequence[Mapping[str, Any]], baseline: str,
) -> tuple[list[page.Block], list[str]]:  # fmt: skip
  """The blocks of one dtype, direction and device, and warnings.

  Args:
    workdir: gets the pictures.
    slug: how their names begin.
    title: of the section.
    rows: of the dtype, the direction and the device; of a choice that failed
      as a whole there is one without a length.
    baseline: exact attention's name.
  """
  choices = sorted({r['choice'] for r in rows})
  lengths = sorted({r['length'] for r in rows if r.get('length') is not None})
  good = {
    (r['choice'], r['length']): r for r in rows if r['status'] == 'ok'
  }
  blocks = [Heading(2, title)]
  failed = _failed(rows)
  if not good:
    return [*blocks, *failed], [f'{title}: nothing was measured.']

  def column(choice, field):
    """(lengths, values) where there is a value."""
    some = [
      (n, good[choice, n][field]) for n in lengths
      if (choice, n) in good and good[choice, n][field] is not None
    ]  # fmt: skip
    return [n for n, _ in some], [v for _, v in some]

  blocks += [
    Text(
      f'{len(choices)} kernels alone, N from {lengths[0]:,} to '
      f'{lengths[-1]:,}, medians. Exponents are slopes in log–log by least '
      'squares over the three largest N that were measured: 1 is linear, 2 '
      'quadratic; at small N the overhead of a call hides them. Faster from: '
      'the N from which on softmax (beside a whole layer, a layer of '
      'softmax), timed in turns with the kernel in one process, stays slower; '
      '< and > mean outside of what was measured.'
    ),
    _exponents(choices, lengths, rows, good, column),
    *_pictures(workdir, slug, title, choices, lengths, good, column, baseline),
    _times(choices, lengths, rows, good),
    *failed,
  ]
  missing = [c for c in choices if not any((c, n) in good for n in lengths)]
  if missing:
    return blocks, [f'{title}: nothing measured for {", ".join(missing)}.']
  return blocks, []


def _exponents(choices, lengths, rows, good, column) -> Table:
  columns = [
    Column('choice'),
    Column('time exponent', 'over the three largest N'),
    Column('FLOPs exponent', 'counted in the program, forward'),
    Column('declared', 'by the kernel’s class'),
    Column('bytes exponent', 'temporaries planned by XLA'),
    Column('declared', 'by the kernel’s class, a bound of the forward pass'),
    Column('faster from N =', 'than softmax, for good'),
    Column('ratio at the largest', 'softmax’s time over this one’s'),
    Column('largest N'), Column('ms there'), Column('MiB there'),
    Column('notes'),
  ]  # fmt: skip
  forward = rows[0]['direction'] == 'forward'
  table = []
  for choice in choices:
    slopes = {
      field: statistics.slope(*column(choice, field))
      if column(choice, field)[0] else math.nan
      for field in ('seconds', 'flops', 'declared_flops', 'bytes',
                    'declared_bytes')
    }  # fmt: skip
    cells, notes = [page.name(choice)], []
    cells.append(page.number(slopes['seconds']))
    for field in ('flops', 'bytes'):
      measured, declared = slopes[field], slopes[f'declared_{field}']
      cell = page.number(measured)
      apart = measured - declared
      if field == 'bytes':  # declared is a bound, of the forward pass only
        apart = max(0.0, apart) if forward else 0.0
      if abs(apart) > APART:
        cell = cell._replace(text=f'≠ {cell.text}', kind='bad')
        notes.append(f'{field} grow otherwise than declared')
      cells += [cell, page.number(declared)]
    cells.append(_crossover(*column(choice, 'ratio')))
    ratios = column(choice, 'ratio')[1]
    cells.append(page.number(ratios[-1] if ratios else None))
    reached = [n for n in lengths if (choice, n) in good]
    row = good[choice, reached[-1]] if reached else None
    cells += [
      page.number(reached[-1] if reached else None, ',d'),
      page.number(row and row['seconds'], ',.3f', 1e3),
      page.number(row and row['bytes'], ',.1f', 2**-20),
    ]
    bad = [r for r in rows if r['choice'] == choice and r['status'] != 'ok']
    if bad:
      notes.append(', '.join(sorted({_where(r) for r in bad})))
    note = '; '.join(notes)
    cells.append(Cell(note, note, 'bad' if bad else ''))
    table.append(cells)
  return Table(
    'Growth of every kernel, measured and declared.', columns, table
  )


def _where(row: Mapping[str, Any]) -> str:
  length = row.get('length')
  return row['status'] + ('' if length is None else f' at {length:,}')


def _crossover(lengths: Sequence[int], ratios: Sequence[float]) -> Cell:
  if not lengths:
    return Cell(page.NONE)
  found = statistics.crossover(lengths, ratios)
  order = {'<': 0, '': 1, '>': 2}[found.bound]
  # All the < before the lengths, all the > behind them.
  return Cell(str(found), order * 1e9 + found.length)


def _fastest(series: Mapping[str, tuple[list, list]]) -> list[str]:
  """The least at the largest N that SHOWN choices have, or the most do."""
  at = {}
  for name, (x, y) in series.items():
    for n, value in zip(x, y, strict=True):
      at.setdefault(n, []).append((value, name))
  enough = min(SHOWN, len(series))
  n = max(at, key=lambda n: (min(len(at[n]), enough), n))
  return [name for _, name in sorted(at[n])[:SHOWN]]


def _pictures(
  workdir, slug, title, choices, lengths, good, column, baseline
) -> list[page.Block]:  # fmt: skip
  series = {c: column(c, 'seconds') for c in choices}
  series = {
    c: (x, [1e3 * v for v in y]) for c, (x, y) in series.items() if x
  }
  lines, fast = f'{slug}-time.png', _fastest(series)
  figures.growth(
    workdir / lines, series, baseline, fast, title, 'milliseconds'
  )
  values = {
    label: {
      c: [
        good[c, n][field] * scale
        if (c, n) in good and good[c, n][field] is not None else None
        for n in lengths
      ]
      for c in choices
    }
    for label, (field, scale) in MEASURES.items()
  }  # fmt: skip
  out = [Figure(
    'Log–log. Choose the measure in the menu; a click in the legend switches a '
    'kernel on or off, a double click shows it alone.', lines,
    plots.growth(lengths, choices, {baseline, *fast}, values),
  )]  # fmt: skip
  ratios = values['softmax’s time over this one’s']
  if any(v is not None for of in ratios.values() for v in of):
    table = f'{slug}-ratio.png'
    titles = {'softmax’s time over this one’s': [ratios[c] for c in choices]}
    columns = [f'{n:,}' for n in lengths]
    figures.heatmap(workdir / table, choices, columns, titles, diverging=True)
    out.append(Figure(
      'How many times faster than softmax; red is slower, grey was not '
      'measured.', table,
      plots.heatmap(choices, columns, titles, diverging=True),
    ))  # fmt: skip
  return out


def _times(choices, lengths, rows, good) -> Table:
  bad = {
    (r['choice'], r.get('length')): r for r in rows if r['status'] != 'ok'
  }
  table = []
  for choice in choices:
    cells = [page.name(choice)]
    for n in lengths:
      if (choice, n) in good:
        r = good[choice, n]
        low, high = (
          page.number(r[f'seconds_{end}'], ',.4g', 1e3).text
          for end in ('low', 'high')
        )
        cells.append(
          page.number(r['seconds'], ',.4g', 1e3)._replace(
            title=f'{low} to {high}'
          )
        )
      else:
        key = (choice, n) if (choice, n) in bad else (choice, None)
        if key in bad:
          r = bad[key]
          cells.append(Cell(r['status'], None, 'bad', r['error']))
        else:
          cells.append(Cell(page.NONE))
    table.append(cells)
  columns = [Column('choice'), *(Column(f'N = {n:,}') for n in lengths)]
  return Table('Milliseconds by N.', columns, table)


def _failed(rows: Sequence[Mapping[str, Any]]) -> list[page.Block]:
  bad = [r for r in rows if r['status'] != 'ok']
  if not bad:
    return []
  key = lambda r: (r['choice'], r.get('length') or 0, r['key'])  # noqa: E731
  table = [
    [
      page.name(r['choice']), page.number(r.get('length'), ',d'),
      Cell(r['status'], r['status'], 'bad'), Cell(r['error'], r['error']),
    ]
    for r in sorted(bad, key=key)
  ]  # fmt: skip
  columns = [Column(c) for c in ('choice', 'N', 'status', 'why')]
  return [
    Heading(3, 'Failures'),
    Table('Everything that was not measured.', columns, table),
  ]
