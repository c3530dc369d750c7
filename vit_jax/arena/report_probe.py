"""The report on probes: what kernels do to real weights on real images."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.arena import figures, page, plots, statistics
from vit_jax.arena.page import Cell, Column, Figure, Heading, Table, Text

FIELDS = ('layers', 'checks', 'flagged')
# What is drawn, and what it says; other numbers of a layer are in the menu.
MEASURES = {
  'local': 'error of the layer alone, on what exact attention feeds it, '
           'relative to softmax',
  'accumulated': 'error after this layer with all layers before it replaced',
  'entropy': 'of the map’s rows, nats',
  'rank': 'effective rank of the map',
  'distance': 'mean attention distance, pixels',
}  # fmt: skip


def section(
  workdir: pathlib.Path, slug: str, title: str,
  rows: Sequence[Mapping[str, Any]],
) -> tuple[list[page.Block], list[str]]:  # fmt: skip
  """The blocks of all probes of one device, and warnings.

  Args:
    workdir: gets the pictures.
    slug: how their names begin.
    title: of the section.
    rows: of the device.
  """
  rows = sorted(rows, key=lambda r: (r['choice'], r['key']))
  good = [r for r in rows if r['status'] == 'ok' and r['layers']]
  flagged = [r['choice'] for r in rows if r.get('flagged')]
  blocks = [
    Heading(2, title),
    Text(
      'Each attention put into a pretrained model in the place of its own, '
      'without training. ' + '; '.join(
        f'{name}: {what}' for name, what in MEASURES.items()
      ) + '. A flag means that a check of the kernel failed: it does not do '
      'what its definition says.'
    ),
    _summary(rows),
    *_checks(rows),
  ]  # fmt: skip
  warnings = []
  if flagged:
    warnings.append(f'{title}: flagged as wrong: {", ".join(flagged)}.')
  if not good:
    return blocks, [*warnings, f'{title}: nothing was probed.']
  depth = max(len(r['layers']) for r in good)
  labels = _labels(good)
  columns = [f'layer {i}' for i in range(depth)]
  panels = {
    name: [_by_layer(r['layers'], name, depth) for r in good]
    for name in measured(good)
  }
  drawn = {name: panels[name] for name in MEASURES if name in panels}
  if drawn:
    file = f'{slug}-layers.png'
    figures.heatmap(
      workdir / file, labels, [str(i) for i in range(depth)], drawn
    )
    blocks.append(Figure(
      'By layer; a menu chooses the measure.', file,
      plots.heatmap(labels, columns, panels),
    ))  # fmt: skip
  for name, values in drawn.items():
    table = [
      [page.name(label), *(page.number(v, '.4g') for v in row)]
      for label, row in zip(labels, values, strict=True)
    ]
    blocks.append(Table(
      f'{name} by layer: {MEASURES[name]}.',
      [Column('choice'), *(Column(c) for c in columns)], table, folded=True,
    ))  # fmt: skip
  return blocks, warnings


def measured(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """Names of a layer's numbers, those of MEASURES first."""
  found = {
    name
    for row in rows
    for layer in row['layers']
    for name, value in layer.items()
    if isinstance(value, float | int) and not isinstance(value, bool)
  } - {'layer', 'images'}
  return [n for n in MEASURES if n in found] + sorted(found - set(MEASURES))


def _labels(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """Choices; with the key where a choice is there more than once."""
  choices = [r['choice'] for r in rows]
  return [
    c if choices.count(c) == 1 else f'{c} ({r["key"]})'
    for c, r in zip(choices, rows, strict=True)
  ]


def _by_layer(layers, name: str, depth: int) -> list[float | None]:
  out = [None] * depth
  for place, layer in enumerate(layers):
    value = layer.get(name)
    if value is not None and math.isfinite(value):
      out[place] = value
  return out


def _summary(rows) -> Table:
  columns = [Column('choice'), Column('flag')]
  columns += [
    Column(f'{name}, {of}', what)
    for name, what in MEASURES.items()
    for of in (('mean', 'worst') if name == 'local' else (_of(name),))
  ]
  columns += [
    Column('map', 'the weights of the values, or the norms of gradients'),
    Column('fresh', 'parameters that the checkpoint does not have'),
    Column('notes'),
  ]
  table = []
  for row in rows:
    checks = row.get('checks') or {}
    wrong = [f'{k}: {v}' for k, v in sorted(checks.items()) if v]
    flag = Cell('passed', 1) if checks else Cell(page.NONE)
    if row.get('flagged'):
      flag = Cell('wrong', 0, 'bad')
    if row['status'] != 'ok':
      wrong.append(f'{row["status"]}: {row["error"]}')
    cells = [page.name(row['choice']), flag]
    for name in MEASURES:
      layers = row.get('layers') or []
      values = _by_layer(layers, name, len(layers))
      known = [v for v in values if v is not None]
      if name == 'local':
        cells.append(page.number(_mean(known), '.4g'))
        cells.append(page.number(max(known, default=None), '.4g'))
      elif _of(name) == 'last':
        cells.append(page.number(values[-1] if values else None, '.4g'))
      else:
        cells.append(page.number(_mean(known), '.4g'))
    cells.append(Cell(row.get('map') or page.NONE, row.get('map')))
    cells.append(page.number(row.get('fresh'), ',d'))
    note = '; '.join(wrong)
    cells.append(Cell(note, note, 'bad' if wrong else ''))
    table.append(cells)
  return Table('Summary over the layers.', columns, table)


def _of(name: str) -> str:
  """An error that accumulates is read at the end."""
  return 'last' if name == 'accumulated' else 'mean'


def _mean(values: Sequence[float]) -> float | None:
  return statistics.mean(values) if values else None


def _checks(rows) -> list[page.Block]:
  good = [r for r in rows if r.get('checks')]
  names = sorted({name for r in good for name in r['checks']})
  if not names:
    return []
  table = []
  for row in good:
    cells = [page.name(row['choice'])]
    for name in names:
      if name not in row['checks']:
        cells.append(Cell(page.NONE))
      elif row['checks'][name]:
        cells.append(Cell('wrong', 'wrong', 'bad', row['checks'][name]))
      else:
        cells.append(Cell('ok', 'ok'))
    table.append(cells)
  columns = [Column('choice'), *(Column(n.replace('_', ' ')) for n in names)]
  return [Table(
    'Every check; a dash where it does not apply.', columns, table, folded=True
  )]  # fmt: skip
