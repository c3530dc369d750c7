"""Learning curves: accuracy against steps, FLOPs and seconds."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vit_jax.arena import figures, page, plots, statistics
from vit_jax.arena.standings import Standing

NAMED = 10  # so many of the best are coloured, and the baseline
GREY = '#b4bac6'
# Axis → the column of a curve, and its unit in ones of the curve.
AXES = {
  'training steps': (statistics.STEP, 1.0),
  'training GFLOPs': (statistics.FLOPS, 1e9),
  'seconds of training steps': (statistics.SECONDS, 1.0),
}


class Course(NamedTuple):
  """A choice's way, point by point.

  Attributes:
    choice: what learns.
    spent: axis → what it had spent by then, the mean over the seeds.
    mean: test accuracies, %, over the seeds.
    low: of the worst seed then.
    high: of the best.
    seeds: how many.
  """

  choice: str
  spent: Mapping[str, Sequence[float]]
  mean: Sequence[float]
  low: Sequence[float]
  high: Sequence[float]
  seeds: int


def course(s: Standing) -> Course:
  """The mean over the seeds, at the steps that all of them evaluated."""
  curves = [
    {point[statistics.STEP]: point for point in row['curve']}
    for row in s.rows.values()
  ]
  steps = sorted(set.intersection(*(set(curve) for curve in curves)))
  points = [[curve[step] for curve in curves] for step in steps]
  scores = [[100 * p[statistics.ACCURACY] for p in some] for some in points]
  return Course(
    s.choice,
    {
      axis: [statistics.mean([p[at] / unit for p in some]) for some in points]
      for axis, (at, unit) in AXES.items()
    },
    [statistics.mean(of) for of in scores],
    [min(of) for of in scores], [max(of) for of in scores], len(curves),
  )  # fmt: skip


def figure(
  workdir: pathlib.Path, slug: str, found: Sequence[Standing],
  base: Standing | None,
) -> page.Figure:  # fmt: skip
  """All choices' curves, drawn: the best ones and the baseline in colours.

  Args:
    workdir: gets the picture.
    slug: how its name begins.
    found: the standings, best first.
    base: the baseline's, if there is one.
  """
  courses = [course(s) for s in found]
  named = [s.choice for s in found[:NAMED]]
  if base is not None and base.choice not in named:
    named.append(base.choice)
  baseline = None if base is None else base.choice
  file = f'{slug}-learning.png'
  draw(workdir / file, courses, named, baseline)
  few = len(named) < len(courses)
  return page.Figure(
    'Test accuracy while training, at the learning rate that was chosen: the '
    'mean over the seeds, and a band from the worst seed to the best. '
    + (f'Coloured are the {NAMED} best in the end and the baseline; the thin '
       'grey ones are the others. ' if few else '')
    + 'A line begins at the first evaluation.',
    file, live(courses, named, baseline),
  )  # fmt: skip


def colour(name: str, named: Sequence[str], baseline: str | None) -> str:
  """Black for the baseline, a colour for the others with a name."""
  if name == baseline:
    return '#000000'
  if name not in named:
    return GREY
  return figures.COLOURS[named.index(name) % len(figures.COLOURS)]


def reach(courses: Sequence[Course], named: Sequence[str]) -> tuple:
  """Ends of the axis of accuracy: the coloured courses, and all ends nearby.

  An end that is further below the coloured ones than they are high is left
  out: it would press all others together.
  """
  coloured = [c for c in courses if c.choice in named]
  low = min(min(c.low) for c in coloured)
  high = max(max(c.high) for c in courses)
  ends = [c.mean[-1] for c in courses]
  low = min([low, *(e for e in ends if e >= low - (high - low))])
  margin = 0.03 * (high - low) or 1.0
  return low - margin, high + margin


def logarithmic(courses: Sequence[Course], axis: str) -> bool:
  """Whether the choices spend so unlike that a plain axis would hide some."""
  ends = [c.spent[axis][-1] for c in courses]
  return 0 < 3 * min(ends) < max(ends)


def draw(
  file: str | os.PathLike, courses: Sequence[Course], named: Sequence[str],
  baseline: str | None,
) -> None:  # fmt: skip
  """A panel for steps, FLOPs and seconds each; names in the ranking's order."""
  with figures.canvas(file, 9, 3.4 * len(AXES), nrows=len(AXES)) as axes:
    for axis, label in zip(axes[:, 0], AXES, strict=True):
      for c in courses:
        x, mine = c.spent[label], c.choice in named
        look = {'color': colour(c.choice, named, baseline)}
        if not mine:
          axis.plot(x, c.mean, linewidth=0.6, zorder=1, **look)
          continue
        axis.fill_between(x, c.low, c.high, alpha=0.13, linewidth=0, **look)
        axis.plot(
          x, c.mean, zorder=3 if c.choice == baseline else 2, markersize=3.5,
          marker=figures.MARKERS[named.index(c.choice) % len(figures.MARKERS)],
          linewidth=2 if c.choice == baseline else 1.2, **look,
          label=figures.short(c.choice),
        )  # fmt: skip
      if logarithmic(courses, label):
        figures.logarithmic(axis, 'x')
      axis.set_ylim(*reach(courses, named))
      axis.set(xlabel=label, ylabel='test accuracy, %')
      axis.grid(alpha=0.3)
    if len(named) < len(courses):
      axes[0, 0].plot([], [], color=GREY, linewidth=0.6, label='others')
    axes[0, 0].legend(
      loc='upper left', bbox_to_anchor=(1.01, 1), frameon=False
    )


def live(
  courses: Sequence[Course], named: Sequence[str], baseline: str | None
) -> Any:
  """The same for the page: a menu chooses the axis, every line has its name.

  Grey lines come first, under the others; the legend switches the coloured
  ones with their bands.
  """
  import plotly.graph_objects as go

  drawn = [c for c in courses if c.choice not in named]
  drawn += [c for c in courses if c.choice in named]
  whole = go.Figure()
  kinds = []  # of every trace: its course, and whether it is the band
  first = next(iter(AXES))
  for at, c in enumerate(drawn):
    mine, tone = c.choice in named, colour(c.choice, named, baseline)
    group = f'choice {at}'
    if mine:
      red, green, blue = (int(tone[i : i + 2], 16) for i in (1, 3, 5))
      whole.add_trace(go.Scatter(
        x=around(c, first), y=[*c.low, *reversed(c.high)], fill='toself',
        fillcolor=f'rgba({red},{green},{blue},0.13)', line={'width': 0},
        mode='lines', hoverinfo='skip', showlegend=False, legendgroup=group,
      ))  # fmt: skip
      kinds.append((c, True))
    whole.add_trace(go.Scatter(
      x=list(c.spent[first]), y=list(c.mean), name=plots.text(c.choice),
      mode='lines+markers', legendgroup=group, showlegend=mine,
      line={'color': tone, 'width': 2.5 if c.choice == baseline else
            1.5 if mine else 0.8},
      marker={'size': 5 if mine else 3},
      customdata=[
        [low, high] for low, high in zip(c.low, c.high, strict=True)
      ],
      hovertemplate=(
        f'{plots.text(c.choice, True)}<br>%{{x:.4g}}: %{{y:.2f}} %'
        f'<br>{c.seeds} seeds, %{{customdata[0]:.2f}} to '
        '%{customdata[1]:.2f}<extra></extra>'
      ),
    ))  # fmt: skip
    kinds.append((c, False))

  def said(label):
    ways = [c.spent[label] for c in courses]
    named = {'xaxis.title.text': label, 'xaxis.autorange': True}
    if not logarithmic(courses, label):
      return named | {'xaxis.type': 'linear', 'xaxis.tickmode': 'auto'}
    return named | {
      'xaxis.type': 'log', 'xaxis.tickmode': 'array',
      **plots.ticks(
        min(x[0] for x in ways), max(x[-1] for x in ways), 'xaxis.'
      ),
    }  # fmt: skip

  choose = [
    {
      'label': label, 'method': 'update',
      'args': [
        {'x': [around(c, label) if band else list(c.spent[label])
               for c, band in kinds]},
        said(label),
      ],
    }
    for label in AXES
  ]  # fmt: skip
  whole.update_xaxes(title=first)
  whole.update_yaxes(
    title='test accuracy, %', range=list(reach(courses, named))
  )
  return plots.layout(
    whole, 620, hovermode='closest',
    legend={'font': {'size': 10}, 'tracegroupgap': 0},
    updatemenus=[{'buttons': choose, 'x': 0, 'xanchor': 'left', 'y': 1.12}],
  )  # fmt: skip


def around(c: Course, axis: str) -> list[float]:
  """There and back: the outline of a band."""
  return [*c.spent[axis], *reversed(c.spent[axis])]
