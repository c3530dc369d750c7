"""The report on a board: who is better, by how much, and at what cost."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.arena import (
  comparison,
  figures,
  page,
  plots,
  ranking,
  statistics,
  views,
)
from vit_jax.arena.page import Cell, Column, Figure, Heading, Table, Text
from vit_jax.arena.standings import Standing, standings


def section(
  workdir: pathlib.Path, slug: str, title: str,
  rows: Sequence[Mapping[str, Any]], whole: Sequence[Mapping[str, Any]],
  baseline: str,
) -> tuple[list[page.Block], list[str]]:  # fmt: skip
  """The blocks of a board on a device, and what to be warned of.

  Args:
    workdir: gets the pictures.
    slug: how their names begin.
    title: of the section.
    rows: of the board and the device.
    whole: of the board, all devices.
    baseline: the choice that the others are held against, if it is there.
  """
  found = standings(rows, whole)
  blocks = [Heading(2, title), Text(_about(rows))]
  failed = _failed(rows)
  if not found:
    return [*blocks, *failed], [f'{title}: nothing was trained to the end.']
  names = [s.choice for s in found]
  base = next((s for s in found if s.choice == baseline), None)
  size = found[0].first('test_size')
  test = comparison.tukey({
    s.choice: {seed: row['accuracy'] for seed, row in s.rows.items()}
    for s in found
  }, size)  # fmt: skip
  compared = comparison.compare(
    {s.choice: s.scores() for s in found}, test, 100 / size
  )
  intervals = [statistics.bootstrap(s.percent()) for s in found]
  most = max(len(s.rows) for s in found)
  warnings = _warnings(title, found, most, baseline, base)

  blocks += [
    Heading(3, 'Ranking'), Text(ranking.power(found, test)),
    ranking.table(found, rows, intervals, compared, base),
    ranking.picture(workdir, slug, found, intervals, base),
    *ranking.pairwise(workdir, slug, names, compared),
    Heading(3, 'What it costs'), _pareto(workdir, slug, found),
    *views.blocks(workdir, slug, found, base),
    Heading(3, 'Learning rates'), *_tuning(found),
    *failed,
  ]  # fmt: skip
  return blocks, warnings


def _about(rows: Sequence[Mapping[str, Any]]) -> str:
  good = [r for r in rows if r['status'] == 'ok']
  text = (
    f'{len({r["choice"] for r in rows})} choices of {rows[0]["leaf"]}, '
    f'{len(rows)} rows, {len(rows) - len(good)} of them failures.'
  )
  if good:
    r = good[0]
    text += (
      f' Each trained {r["steps"]:,} steps of {r["batch_size"]:,} examples, '
      f'tested on {r["test_size"]:,}, tuned over the learning rates '
      f'{", ".join(f"{x:g}" for x in r["rates"])} with seed '
      f'{min(x["seed"] for x in good)} by held-out training examples; seeds '
      f'{", ".join(str(s) for s in sorted({x["seed"] for x in good}))}; '
      f'recipe {r["recipe"]}.'
    )
  return text


def _warnings(
  title: str, found: Sequence[Standing], most: int, baseline: str,
  base: Standing | None,
) -> list[str]:  # fmt: skip
  out = []
  if base is None:
    out.append(
      f'{title}: the baseline {baseline!r} has no result, so nothing is held '
      'against it.'
    )
  if most < 3:
    out.append(
      f'{title}: {most} seed{"s" * (most > 1)}; fewer than 3 say little'
      + (', and with one nothing beats anything.' if most == 1 else '.')
    )
  fewer = [s.choice for s in found if len(s.rows) < most]
  if fewer:
    out.append(f'{title}: fewer than {most} seeds for {", ".join(fewer)}.')
  return out


def _pareto(
  workdir: pathlib.Path, slug: str, found: Sequence[Standing]
) -> Figure:
  panels = []
  for label, cost in (
    ('milliseconds a training step',
     lambda s: 1e3 * s.median('step_seconds')),
    ('MiB planned for a training step', lambda s: _over(s.first('memory'))),
    ('MFLOP forward, one example', lambda s: s.first('flops') / 1e6),
  ):  # fmt: skip
    known = [s for s in found if cost(s) is not None]
    if not known:
      continue
    costs = [cost(s) for s in known]
    scores = [100 * s.mean('accuracy') for s in known]
    front = statistics.pareto(list(zip(costs, scores, strict=True)))
    ordered = sorted(range(len(known)), key=lambda i: (costs[i], -scores[i]))
    panels.append(figures.Panel(
      label, [s.choice for s in known], costs, scores,
      [i for i in ordered if front[i]],
    ))  # fmt: skip
  file = f'{slug}-pareto.png'
  figures.pareto(workdir / file, panels)
  return Figure(
    'Accuracy against time, memory and FLOPs. On the red line nothing is both '
    'cheaper and more accurate; even differences within the intervals count.',
    file, plots.pareto(panels),
  )  # fmt: skip


def _over(memory: float | None) -> float | None:
  return None if memory is None else memory / 2**20


def _tuning(found: Sequence[Standing]) -> list[page.Block]:
  rates = sorted(set(found[0].first('rates')))
  columns = [Column('choice'), *(Column(f'{rate:g}') for rate in rates)]
  columns += [Column('chosen'), Column('notes')]
  table, edge = [], 0
  for s in found:
    cells = [page.name(s.choice)]
    for rate in rates:
      if rate in s.trials:
        value = 100 * s.trials[rate]['validation']
        test = 100 * s.trials[rate]['accuracy']
        kind = 'best' if rate == s.rate else ''
        cells.append(Cell(f'{value:.2f}', value, kind, f'test {test:.2f}'))
      else:
        why = [r for r in s.failures if r.get('learning_rate') == rate]
        text = why[0]['status'] if why else page.NONE
        title = why[0]['error'] if why else ''
        cells.append(Cell(text, None, 'bad' if why else '', title))
    note = ''
    if s.rate in s.edges():
      edge += 1
      side = 'lower' if s.rate == min(rates) else 'upper'
      note = f'at the {side} edge: a better rate may lie outside'
    cells += [page.number(s.rate, 'g'), Cell(note, note, 'bad' if note else '')]
    table.append(cells)
  out = []
  if edge:
    out.append(Text(
      f'{edge} of {len(found)} choices have their best rate at the edge of the '
      'grid; a wider one may serve them better.', warning=True,
    ))  # fmt: skip
  out.append(Table(
    'Accuracy on the held-out training examples, %, by learning rate; the '
    'chosen one is marked.', columns, table,
  ))  # fmt: skip
  return out


def _failed(rows: Sequence[Mapping[str, Any]]) -> list[page.Block]:
  bad = [r for r in rows if r['status'] != 'ok']
  if not bad:
    return []
  table = [
    [
      page.name(r['choice']), page.number(r.get('learning_rate'), 'g'),
      page.number(r.get('seed'), 'd'), Cell(r['status'], r['status'], 'bad'),
      Cell(r['error'], r['error']),
    ]
    for r in sorted(bad, key=lambda r: (r['choice'], r['key']))
  ]  # fmt: skip
  columns = [Column(c) for c in ('choice', 'rate', 'seed', 'status', 'why')]
  return [
    Heading(3, 'Failures'),
    Table('Every cell that gave no result; a dash stands for all.', columns,
          table),
  ]  # fmt: skip
