"""The report's pictures, by matplotlib: PNG, without a display."""

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vit_jax.arena import page

LONGEST = 34  # characters of a label; the tables have the whole name
ROW = 0.17  # inches for a line of labels at 8 points
COLOURS = (
  '#c0392b', '#24508f', '#17733a', '#e08a00', '#7d3c98', '#00838f', '#6d4c41',
  '#d81b60', '#558b2f', '#5c6bc0',
)  # fmt: skip
MARKERS = 'osD^vPX*<>'


class Panel(NamedTuple):
  """Scores against one cost; `front` indexes the Pareto front, by cost."""

  label: str
  names: Sequence[str]
  costs: Sequence[float]
  scores: Sequence[float]
  front: Sequence[int]

  def logarithmic(self) -> bool:
    """Whether the costs span more than a factor of three."""
    return 0 < 3 * min(self.costs) < max(self.costs)

  def reach(self) -> tuple[float, float, list[str]]:
    """Ends of the axis of scores, and who is below it.

    What is more than three times as far below the median as the best is above
    it would press all others together.
    """
    ordered = sorted(self.scores)
    best, middle = ordered[-1], ordered[len(ordered) // 2]
    low = max(ordered[0], middle - 3 * (best - middle))
    if best == middle:
      low = ordered[0]
    below = [
      n for n, s in zip(self.names, self.scores, strict=True) if s < low
    ]
    low = min(s for s in ordered if s >= low)
    margin = 0.05 * (best - low) or 1.0
    low -= margin
    return low, best + 2 * margin, below

  def legend(self) -> list[str]:
    """The members of the front, numbered."""
    return [
      f'{k} {short(self.names[i])}' for k, i in enumerate(self.front, 1)
    ]


def short(name: str) -> str:
  """A label that fits."""
  name = page.plain(name)
  return name if len(name) <= LONGEST else name[: LONGEST - 1] + '…'


@contextlib.contextmanager
def canvas(file: str | os.PathLike, width: float, height: float, **grid: Any):
  """Gives the axes of a figure, inches, and saves it; `$` is no mathematics."""
  import matplotlib
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  with matplotlib.rc_context(
    {'text.parse_math': False, 'font.size': 8, 'svg.hashsalt': 'arena'}
  ):
    figure = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(figure)
    yield figure.subplots(squeeze=False, **grid)
    figure.savefig(file, dpi=130, metadata={'Software': None})


def ranking(
  file: str | os.PathLike, names: Sequence[str],
  scores: Sequence[Sequence[float]],
  intervals: Sequence[tuple[float, float]], baseline: str | None, title: str,
) -> None:  # fmt: skip
  """A line a choice, best first: seeds as dots, mean and interval on them."""
  n = len(names)
  with canvas(file, 8, 1 + ROW * n) as axes:
    axis = axes[0, 0]
    for i, (of, (low, high)) in enumerate(zip(scores, intervals, strict=True)):
      axis.plot(of, [i] * len(of), '.', color='#9aa3b2', markersize=4)
      axis.plot([low, high], [i, i], '-', color='#24508f', linewidth=1.5)
      axis.plot(sum(of) / len(of), i, 'o', color='#24508f', markersize=4)
      if names[i] == baseline:
        axis.axvline(sum(of) / len(of), color='#c0392b', linewidth=0.8)
    axis.set_yticks(range(n), [short(x) for x in names])
    for label, name in zip(axis.get_yticklabels(), names, strict=True):
      if name == baseline:
        label.set_color('#c0392b')
    axis.set_ylim(n - 0.3, -0.7)
    axis.grid(alpha=0.3)
    axis.set_xlabel('test accuracy, %')
    axis.set_title(title)


def matrix(
  file: str | os.PathLike, names: Sequence[str], signs: Sequence[Sequence[int]],
  title: str,
) -> None:  # fmt: skip
  """Row against column: 2 beats, 1 only uncorrected, 0 open, −1 and −2."""
  from matplotlib.colors import ListedColormap

  n = len(names)
  side = 2.5 + ROW * n
  with canvas(file, side, side) as axes:
    axis = axes[0, 0]
    axis.imshow(
      signs, vmin=-2.5, vmax=2.5, interpolation='nearest',
      cmap=ListedColormap(SIGNS),
    )  # fmt: skip
    labels = [short(x) for x in names]
    axis.set_yticks(range(n), labels)
    axis.set_xticks(range(n), labels, rotation=90)
    axis.set_title(title, fontsize=9, loc='left')


# Colours of −2 … 2.
SIGNS = ('#b3261e', '#f4c7c3', '#f3f4f7', '#bfe3c8', '#17733a')


def pareto(file: str | os.PathLike, panels: Sequence[Panel]) -> None:
  """A panel a cost; the front is drawn, its members numbered and named."""
  with canvas(
    file, 9, 3.6 * len(panels), nrows=len(panels)
  ) as axes:  # fmt: skip
    for axis, panel in zip(axes[:, 0], panels, strict=True):
      axis.plot(panel.costs, panel.scores, '.', color='#9aa3b2')
      x = [panel.costs[i] for i in panel.front]
      y = [panel.scores[i] for i in panel.front]
      axis.step(x, y, 'o-', where='post', color='#c0392b', markersize=4)
      if panel.logarithmic():
        logarithmic(axis, 'x')
      low, high, below = panel.reach()
      axis.set_ylim(low, high)
      axis.set_xlabel(panel.label)
      axis.set_ylabel('test accuracy, %')
      axis.grid(alpha=0.3, which='both')
      for number, place in enumerate(zip(x, y, strict=True), 1):
        axis.annotate(
          str(number), place, xytext=(-3, 3), textcoords='offset points',
          ha='right', color='#7d1a10',
        )  # fmt: skip
      axis.text(
        1.02, 1, '\n'.join(panel.legend()), transform=axis.transAxes, va='top',
        color='#7d1a10', linespacing=1.4,
      )  # fmt: skip
      if below:
        axis.text(
          0.99, 0.02, f'lower: {", ".join(short(n) for n in below)}'[:110],
          transform=axis.transAxes, ha='right', fontsize=7, color='#555555',
        )  # fmt: skip


def logarithmic(axis: Any, which: str) -> None:
  """Ticks at 1, 2 and 5, as plain numbers: `$` is no mathematics here."""
  from matplotlib import ticker

  getattr(axis, f'set_{which}scale')('log')
  one = getattr(axis, f'{which}axis')
  one.set_major_locator(ticker.LogLocator(10, subs=(1, 2, 3, 5, 7)))
  one.set_major_formatter(ticker.FuncFormatter(lambda v, _: f'{v:g}'))
  one.set_minor_locator(ticker.NullLocator())


def growth(
  file: str | os.PathLike, series: Mapping[str, tuple[list, list]],
  baseline: str | None, best: Sequence[str], title: str, label: str,
) -> None:  # fmt: skip
  """Log–log lines: the baseline's and those of `best` are named."""
  named = [name for name in best if name != baseline]
  if baseline in series:
    named.insert(0, baseline)
  with canvas(file, 9, 5) as axes:
    axis = axes[0, 0]
    for name, (x, y) in series.items():
      if name not in named:
        axis.plot(x, y, '-', color='#c3c8d2', linewidth=0.7, zorder=1)
    for i, name in enumerate(named):
      x, y = series[name]
      axis.plot(
        x, y, '-', marker=MARKERS[i % len(MARKERS)], markersize=4, zorder=2,
        color='black' if name == baseline else COLOURS[i % len(COLOURS)],
        linewidth=2 if name == baseline else 1.2, label=short(name),
      )  # fmt: skip
    if len(named) < len(series):
      axis.plot([], [], '-', color='#c3c8d2', label='others')
    axis.set(xscale='log', xlabel='tokens N', ylabel=label)
    logarithmic(axis, 'y')
    ticks = sorted({n for x, _ in series.values() for n in x})
    axis.set_xticks(ticks, [f'{n:,}' for n in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(loc='center left', bbox_to_anchor=(1.01, 0.5), frameon=False)
    axis.set_title(title)


def heatmap(
  file: str | os.PathLike, rows: Sequence[str], columns: Sequence[str],
  panels: Mapping[str, Sequence[Sequence[float | None]]],
  diverging: bool = False,
) -> None:  # fmt: skip
  """Rows × columns for each panel; one panel has its numbers written into it.

  `diverging` values are ratios: red below 1, green above, on a log scale. A
  place without a value is grey.
  """
  alone = len(panels) == 1
  cell = 0.5 if alone else 0.16
  with canvas(
    file, 2.4 + len(panels) * (0.7 + cell * len(columns)),
    1.1 + ROW * len(rows), ncols=len(panels), sharey=True,
  ) as axes:  # fmt: skip
    for axis, (title, values) in zip(axes[0], panels.items(), strict=True):
      _draw(axis, values, diverging, alone)
      axis.set_xticks(range(len(columns)), columns, rotation=90)
      axis.set_yticks(range(len(rows)), [short(x) for x in rows])
      axis.set_title(title, fontsize=9)


def _draw(axis: Any, values: Any, diverging: bool, alone: bool) -> None:
  import matplotlib
  import numpy as np

  known = np.array(
    [[math.nan if v is None else v for v in row] for row in values], float
  )
  shown = np.log2(known) if diverging else known
  palette = matplotlib.colormaps['RdYlGn' if diverging else 'Blues']
  palette = palette.with_extremes(bad='#d0d3da')
  # An eighth to eightfold.
  ends = {'vmin': -3.0, 'vmax': 3.0} if diverging else {}
  image = axis.imshow(
    np.ma.masked_invalid(shown), cmap=palette, aspect='auto',
    interpolation='nearest', **ends,
  )  # fmt: skip
  if not alone:
    axis.figure.colorbar(image, ax=axis, location='bottom', pad=0.02)
    return
  for (i, j), value in np.ndenumerate(known):
    if math.isfinite(value):
      r, g, b, _ = palette(image.norm(shown[i, j]))
      dark = 0.299 * r + 0.587 * g + 0.114 * b < 0.5  # luma, Rec. 601
      axis.text(
        j, i, brief(value), ha='center', va='center', fontsize=6,
        color='white' if dark else 'black', in_layout=False,
      )  # fmt: skip


def brief(value: float | None) -> str:
  """Two digits, or whole numbers from 10 on."""
  if value is None:
    return ''
  return f'{value:,.0f}' if abs(value) >= 9.95 else f'{value:.2g}'
