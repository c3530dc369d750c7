"""The report on the data suite: accuracy against data, and the claims."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.arena import claims, figures_data, page, statistics
from vit_jax.arena.claims import CNN, VIT, Scores
from vit_jax.arena.figures_data import Line
from vit_jax.arena.page import Cell, Column, Figure, Heading, Table, Text
from vit_jax.arena.standings import Standing, standings

# Of rows of suite 'train' that a share of the data was trained on.
DATA = ('set', 'share', 'examples', 'subset')
LOOKS = {'yes': 'good', 'no': 'bad', 'undecided': 'weak'}


def section(
  workdir: pathlib.Path, slug: str, title: str,
  rows: Sequence[Mapping[str, Any]], whole: Sequence[Mapping[str, Any]],
) -> tuple[list[page.Block], list[str]]:  # fmt: skip
  """The blocks of one set of data on a device, and what to be warned of.

  What failed, and why, is in the sections of the shares' boards.

  Args:
    workdir: gets the pictures.
    slug: how their names begin.
    title: of the section.
    rows: of the set and the device.
    whole: of the set, all devices.
  """
  by_share = {}
  for share in sorted({r['share'] for r in rows}):
    found = standings(
      [r for r in rows if r['share'] == share],
      [r for r in whole if r['share'] == share],
    )
    if found:
      by_share[share] = {s.choice: s for s in found}
  blocks = [Heading(2, title)]
  if not by_share:
    return blocks, [f'{title}: nothing was trained to the end.']
  names = _names(by_share)
  examples = {
    share: next(iter(of.values())).first('examples')
    for share, of in by_share.items()
  }
  size = next(iter(by_share[min(by_share)].values())).first('test_size')
  scores = {
    name: {s: of[name].scores() for s, of in by_share.items() if name in of}
    for name in names
  }
  lines = [_against_data(name, by_share, examples) for name in names]
  grid = {
    f'{100 * share:g} %, {examples[share]:,} examples': [
      [_against_cost(of[n], column) for n in names if n in of]
      for column in (statistics.FLOPS, statistics.SECONDS)
    ]
    for share, of in by_share.items()
  }
  files = f'{slug}-accuracy.png', f'{slug}-costs.png'
  figures_data.against_data(workdir / files[0], lines)
  figures_data.against_costs(workdir / files[1], grid)
  blocks += [
    Text(_about(rows, by_share, names)),
    _accuracies(by_share, examples, names),
    Figure(
      'Test accuracy by the number of training examples. Bands are one '
      'standard error over the seeds to each side.', files[0],
      figures_data.live_data(lines),
    ),
    Heading(3, 'Claims'), _claims(scores, examples, 100 / size),
    Text(_crossing(scores, examples)),
    Heading(3, 'Against FLOPs and time'),
    Figure(
      'Test accuracy during training, mean over the seeds, by the training '
      'FLOPs (three times the forward pass) and by the seconds of training '
      'steps so far. The schedule was made for the whole run: a point before '
      'the end is not what a run as short as that would reach.', files[1],
      figures_data.live_costs(grid),
    ),
    _costs(by_share, names),
  ]  # fmt: skip
  return blocks, _warnings(title, by_share, names)


def _names(by_share: Mapping[float, Mapping[str, Standing]]) -> list[str]:
  """Choices: those of the claims first."""
  found = {name for of in by_share.values() for name in of}
  first = [n for n in (VIT, CNN, claims.HYBRID) if n in found]
  return first + sorted(found - set(first))


def _about(
  rows: Sequence[Mapping[str, Any]],
  by_share: Mapping[float, Mapping[str, Standing]], names: Sequence[str],
) -> str:  # fmt: skip
  flops = {
    name: next(of[name] for of in by_share.values() if name in of)
    .first('flops')
    for name in names
  }
  ratio = max(flops.values()) / min(flops.values())
  steps = sorted({r['steps'] for r in rows if r['status'] == 'ok'})
  seeds = sorted({r['seed'] for r in rows if r['status'] == 'ok'})
  begin = (
    'fine-tuned, each from its own checkpoint,' if rows[0]['leaf'] == 'init'
    else 'from scratch'
  )  # fmt: skip
  return (
    f'Models whose forward FLOPs differ by {ratio - 1:.1%} at most ('
    + ', '.join(f'{n} {f / 1e6:,.3g} MFLOP' for n, f in flops.items())
    + f') {begin} on nested shares of the training examples, as many of '
    'every class; all see the same ones. Each share is a board of its own, '
    'with learning rates tuned on held-out examples of that share. Steps: '
    + ' to '.join(f'{s:,}' for s in dict.fromkeys((steps[0], steps[-1])))
    + f'; seeds {", ".join(map(str, seeds))}. The examples of a share were '
    'drawn once for all: intervals are over seeds, not over other draws.'
  )


def _accuracies(
  by_share: Mapping[float, Mapping[str, Standing]],
  examples: Mapping[float, int], names: Sequence[str],
) -> Table:  # fmt: skip
  table = []
  for share, of in by_share.items():
    best = max(s.mean('accuracy') for s in of.values())
    cells = [
      Cell(f'{100 * share:g} %', share), page.number(examples[share], ',d'),
    ]
    for name in names:
      if name not in of:
        cells.append(Cell(page.NONE))
        continue
      scores = of[name].percent()
      middle, error = statistics.mean(scores), _error(scores)
      is_best = of[name].mean('accuracy') == best
      cells.append(Cell(
        f'{middle:.2f}' + f' ± {error:.2f}' * (len(scores) > 1),
        middle, 'best' if is_best else '',
        f'seeds: {", ".join(f"{x:.2f}" for x in scores)}; learning rate '
        f'{of[name].rate:g}',
      ))  # fmt: skip
    cells.append(Cell(next(iter(of.values())).first('subset')))
    table.append(cells)
  columns = [
    Column('share'), Column('examples', 'trained on, all classes together'),
    *(Column(f'{name}, %') for name in names),
    Column('digest', 'of which examples they are'),
  ]
  return Table(
    'Test accuracy: mean ± standard error over the seeds. The highest mean of '
    'a share is marked, whether or not intervals set it apart.',
    columns, table,
  )  # fmt: skip


def _error(scores: Sequence[float]) -> float:
  return statistics.standard_error(scores) if len(scores) > 1 else 0.0


def _against_data(
  name: str, by_share: Mapping[float, Mapping[str, Standing]],
  examples: Mapping[float, int],
) -> Line:  # fmt: skip
  scores = {
    examples[s]: of[name].percent() for s, of in by_share.items() if name in of
  }
  return Line(
    name, list(scores), [statistics.mean(x) for x in scores.values()],
    [_error(x) for x in scores.values()],
  )  # fmt: skip


def _against_cost(found: Standing, column: int) -> Line:
  """A choice's curve, mean over the seeds, point by point."""
  curves = [row['curve'] for row in found.rows.values()]
  points = list(zip(*curves, strict=True))
  scores = [[100 * p[statistics.ACCURACY] for p in of] for of in points]
  return Line(
    found.choice, [statistics.mean([p[column] for p in of]) for of in points],
    [statistics.mean(x) for x in scores], [_error(x) for x in scores],
  )  # fmt: skip


def _claims(
  scores: Scores, examples: Mapping[float, int], resolution: float
) -> Table:
  table = []
  for claim in claims.claims(scores, examples, resolution):
    found = claim.found
    cells = [Cell(claim.text, claim.text)]
    cells.append(Cell(claim.verdict, claim.verdict, LOOKS[claim.verdict]))
    if found is None:
      cells += [Cell(page.NONE)] * 3
    else:
      interval = Cell(page.NONE)
      if math.isfinite(found.low):
        said = f'{found.low:+.2f} to {found.high:+.2f}'
        interval = Cell(said, found.low)
      cells += [
        page.number(found.difference, '+.2f'), interval,
        page.number(found.seeds, 'd'),
      ]  # fmt: skip
    table.append([*cells, Cell(claim.measured)])
  columns = [
    Column(c)
    for c in ('claim', 'measured', 'difference, points', '95 % interval',
              'seeds', 'of what')
  ]  # fmt: skip
  return Table(
    'The documents’ claims, of these models, this data and this budget: yes '
    'where all of Student’s interval over the seeds is above 0, no where all '
    'of it is below; each claim looked at alone.', columns, table,
  )  # fmt: skip


def _crossing(scores: Scores, examples: Mapping[float, int]) -> str:
  """Where ViT passes the CNN, said in words."""
  both = [
    s for s in examples
    if all(c in scores and s in scores[c] for c in (VIT, CNN))
  ]  # fmt: skip
  if not both:
    return f'Crossover: {VIT!r} and {CNN!r} are not both here.'
  found = claims.crossing_of(
    [examples[s] for s in both],
    *([scores[c][s] for s in both] for c in (VIT, CNN)),
  )
  if found is None:
    return 'Crossover: no seed has results at all shares.'
  middle = found.middle
  ends = f'{examples[both[0]]:,} to {examples[both[-1]]:,}'
  if middle.bound == '>':
    said = (
      f'none in the range of {ends} examples: at its end the CNN is ahead of '
      'ViT, or equal'
    )
  elif middle.bound == '<':
    said = f'none in the range of {ends} examples: ViT is ahead all along'
  else:
    said = f'ViT passes the CNN at about {middle} examples'
  if found.seeds == 1:
    return f'Crossover: {said}. One seed has no interval.'
  return (
    f'Crossover: {said}. Bootstrap interval (95 %, {found.seeds} seeds drawn '
    f'with replacement): {found.low} to {found.high} examples, where < and > '
    'stand for before the first and after the last that were measured'
    + ('; of few seeds it is too narrow.' if found.seeds < 6 else '.')
  )


def _costs(
  by_share: Mapping[float, Mapping[str, Standing]], names: Sequence[str]
) -> Table:
  table = []
  for share, of in by_share.items():
    for name in names:
      if name in of:
        s = of[name]
        work = statistics.mean([
          r['curve'][-1][statistics.FLOPS] for r in s.rows.values()
        ])  # fmt: skip
        table.append([
          Cell(f'{100 * share:g} %', share), page.name(name),
          page.number(s.first('parameters'), ',d'),
          page.number(work, '.3g', 1e-12),
          page.number(s.mean('train_seconds'), ',.1f'),
          page.number(s.median('step_seconds'), ',.1f', 1e3),
          page.number(s.first('memory'), ',.1f', 2**-20),
        ])  # fmt: skip
  columns = [
    Column(c)
    for c in ('share', 'model', 'parameters', 'training TFLOP', 'training s',
              'ms a step', 'MiB planned for a step')
  ]  # fmt: skip
  return Table('What training cost.', columns, table, folded=True)


def _warnings(
  title: str, by_share: Mapping[float, Mapping[str, Standing]],
  names: Sequence[str],
) -> list[str]:  # fmt: skip
  out = []
  found = [s for of in by_share.values() for s in of.values()]
  least = min(len(s.rows) for s in found)
  if least < 3:
    out.append(f'{title}: {least} seeds somewhere; fewer than 3 say little.')
  for share, of in by_share.items():
    missing = [n for n in names if n not in of]
    if missing:
      out.append(f'{title}: {100 * share:g} % lacks {", ".join(missing)}.')
  edge = sorted({s.choice for s in found if s.rate in s.edges()})
  if edge:
    out.append(
      f'{title}: the best learning rate lies at an end of the grid at some '
      f'share for {", ".join(edge)}: a wider grid may change the result.'
    )
  return out
