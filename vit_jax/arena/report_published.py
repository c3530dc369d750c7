"""The report's section beside the published Long-Range Arena."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.arena import page, published, statistics
from vit_jax.arena.page import Cell, Column, Heading, Table, Text
from vit_jax.arena.standings import Standing

LEVEL = f'{100 * statistics.LEVEL:g} %'
CRITICISM = (
  'The published numbers are no ground truth. The configurations that were '
  'released differ from model to model and from the paper (issues 17, 33, 34, '
  '35 and 37 of its repository); well-tuned or self-pretrained plain '
  'Transformers close most of the gaps (arXiv 2112.07210 and 2310.02980); and '
  'several of its kernels have faults, see vit_jax.arena.wrong. Here all '
  'choices have one recipe and one grid of learning rates, and no pretraining.'
)


def section(
  found: Sequence[Standing], rows: Sequence[Mapping[str, Any]]
) -> list[page.Block]:
  """Ours beside the published; [] of other tasks and of other leaves.

  Args:
    found: the standings of a board on a device, best first.
    rows: all of the board and the device.
  """
  if not found:
    return []
  task = published.task_of(rows[0]['board'])
  if task is None or rows[0]['leaf'].rpartition('.')[2] != 'attention':
    return []
  of = {s.choice: s for s in found}
  matched = published.matched(of)
  lost = {r['choice']: f'{r["status"]}: {r["error"]}'
          for r in rows if r['choice'] not in of}  # fmt: skip
  why = published.missing(matched, lost)
  return [
    Heading(3, 'Beside the published Long-Range Arena'),
    Text(_differs(task, found)),
    _table(task, of, matched, why),
    Text(_agrees(task, of, matched)),
    Text(CRITICISM),
  ]


def _differs(task: str, found: Sequence[Standing]) -> str:
  one, what = found[0], published.TASKS[task]
  steps, batch = one.first('steps'), one.first('batch_size')
  sizes = sorted({s.first('parameters') for s in found})
  span = f'{sizes[0]:,}'
  span += f' to {sizes[-1]:,}' if len(sizes) > 1 else ''
  text = (
    f'{what.title} of Tay et al. 2021, tables 1 and 2. What differs: there, '
    f'{what.size}; here, on board {one.first("board")!r}, {steps:,} steps of '
    f'{batch:,} examples, models of {span} parameters, tested on '
    f'{one.first("test_size"):,} examples'
  )
  if what.steps is not None:
    ratio = steps / what.steps
    text += (
      ', the same number of steps' if ratio == 1
      else f', {ratio:.2g} times as many steps'
    )
  return text + (
    '. Lengths, depth and width here are those of the board’s config. Other '
    'sizes and budgets make other numbers: only orders are compared.'
  )


def _table(
  task: str, of: Mapping[str, Standing], matched: Mapping[str, str],
  why: Mapping[str, str],
) -> Table:  # fmt: skip
  theirs = {m: published.accuracy(m, task) for m in published.MODELS}
  ours = {m: of[c].mean('accuracy') for m, c in matched.items()}
  place = lambda values, m: 1 + sum(  # noqa: E731
    values[o] > values[m] for o in matched
  )
  lines = []
  order = sorted(theirs, key=lambda m: (m not in matched, -theirs[m], m))
  for model in order:
    line = published.MODELS[model]
    cells = [Cell(model, model.lower()), page.number(theirs[model])]
    if model in matched:
      s = of[matched[model]]
      error = statistics.standard_error(s.percent())
      plus = '' if math.isnan(error) else f' ± {error:.2f}'
      there, here = place(theirs, model), place(ours, model)
      cells += [
        Cell(str(there), there), page.name(s.choice),
        Cell(f'{100 * ours[model]:.2f}{plus}', 100 * ours[model]),
        Cell(str(here), here),
        page.number(s.median('step_seconds'), ',.1f', 1e3),
      ]
    else:
      cells += [Cell(page.NONE), Cell(why[model]), *[Cell(page.NONE)] * 3]
    for pair, form in ((line.steps, '.1f'), (line.gigabytes, '.2f')):
      cells.append(
        Cell(' → '.join(format(x, form) for x in pair), pair[1]) if pair
        else Cell(page.NONE)
      )
    lines.append(cells)
  columns = [
    Column('published'), Column('its accuracy, %'),
    Column('#', 'among the models that both have'), Column('ours'),
    Column('accuracy, %', 'mean ± std. error over the seeds'),
    Column('#', 'among the models that both have'),
    Column('ms a step', 'ours, on this device'),
    Column('steps/s', 'published, on text of 1K → 4K bytes'),
    Column('GB', 'published, a device, on text of 1K → 4K bytes'),
  ]  # fmt: skip
  return Table('Published and ours, side by side.', columns, lines)


def _agrees(
  task: str, of: Mapping[str, Standing], matched: Mapping[str, str]
) -> str:
  n = len(matched)
  if n < 3:
    return (
      f'{n} of the {len(published.MODELS)} published models '
      f'{"has" if n == 1 else "have"} a result here: no orders to be compared; '
      'that takes 3.'
    )
  found = published.agreement(
    [of[c].percent() for c in matched.values()],
    [published.accuracy(m, task) for m in matched],
  )
  exact = published.orders(n)[1]
  how = f'all {math.factorial(n):,}' if exact else f'{published.DRAWN:,} random'
  said = []
  signs = {'kendall': 'Kendall’s τ-b', 'spearman': 'Spearman’s ρ'}
  for name, sign in signs.items():
    a = found[name]
    if math.isnan(a.value):
      return (
        f'The {n} models that both have are all equal here, so there is no '
        'order to be compared.'
      )
    span = '' if math.isnan(a.low) else f' [{a.low:.2f}, {a.high:.2f}]'
    said.append(f'{sign} = {a.value:.2f}{span}, p = {a.p:.2g}')
  tau = found['kendall']
  alpha = 1 - statistics.LEVEL
  text = (
    f'Order of the {n} models that both have: {"; ".join(said)}. p is the '
    f'share of {how} orders that agree with the published one at least as '
    f'well. In brackets the {LEVEL} bootstrap over our seeds alone, too narrow '
    'for few of them: it knows nothing of other sizes, nor of the published '
    'runs, which say no spread. '
  )
  if tau.p < alpha:
    return text + (
      f'The order agrees with the published one: p of τ is below {alpha:.2g}, '
      'so chance alone would seldom do so.'
    )
  least = 1 / math.factorial(n)
  text += (
    'That the order agrees with the published one is not shown: p of τ is not '
    f'below {alpha:.2g}'
  )
  if least >= alpha:
    text += f', and {n} models cannot make it so (the least is {least:.2g})'
  return text + '.'
