"""Pictures of accuracy against data, training FLOPs and time."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vit_jax.arena import figures, plots

COSTS = ('training FLOPs', 'seconds of training steps')
# Of a band: its line's colour, made faint.
FAINT = 0.18


class Line(NamedTuple):
  """A choice's means and half widths of its band, at each x."""

  name: str
  x: Sequence[float]
  mean: Sequence[float]
  half: Sequence[float]

  def low(self) -> list[float]:
    """The lower edge."""
    return [m - h for m, h in zip(self.mean, self.half, strict=True)]

  def high(self) -> list[float]:
    """The upper edge."""
    return [m + h for m, h in zip(self.mean, self.half, strict=True)]


# Title → a panel for each of some quantities, each with a line a choice.
Grid = Mapping[str, Sequence[Sequence[Line]]]


def against_data(file: pathlib.Path, lines: Sequence[Line]) -> None:
  """Writes accuracy against the number of training examples."""
  with figures.canvas(file, 6.4, 4.0) as axes:
    ax = axes[0, 0]
    _draw(ax, lines)
    ticks = sorted({x for line in lines for x in line.x})
    ax.set_xscale('log')
    ax.set_xticks(ticks, [f'{x:,}' for x in ticks], minor=False)
    ax.minorticks_off()
    ax.set(xlabel='training examples', ylabel='test accuracy, %')
    ax.legend()


def against_costs(file: pathlib.Path, grid: Grid) -> None:
  """Writes a row of panels a title, a column a cost."""
  shape = {'nrows': len(grid), 'ncols': len(COSTS)}
  with figures.canvas(file, 9.0, 0.4 + 2.1 * len(grid), **shape) as axes:
    for row, (title, panels) in zip(axes, grid.items(), strict=True):
      for ax, lines, cost in zip(row, panels, COSTS, strict=True):
        _draw(ax, lines)
        ax.set_title(title)
        ax.set(xlabel=cost, ylabel='test accuracy, %')
    axes[0, 0].legend()


def _draw(ax: Any, lines: Sequence[Line]) -> None:
  for i, line in enumerate(lines):
    colour = figures.COLOURS[i % len(figures.COLOURS)]
    ax.plot(
      line.x, line.mean, color=colour, label=figures.short(line.name),
      marker=figures.MARKERS[i % len(figures.MARKERS)], markersize=4,
    )  # fmt: skip
    ax.fill_between(
      line.x, line.low(), line.high(), color=colour, alpha=FAINT, linewidth=0
    )
  ax.grid(alpha=0.3)


def live_data(lines: Sequence[Line]) -> Any:
  """The same live: choices are switched on and off."""
  import plotly.graph_objects as go

  figure = go.Figure()
  for i, line in enumerate(lines):
    for trace in _traces(i, line, True):
      figure.add_trace(trace)
  ticks = sorted({x for line in lines for x in line.x})
  figure.update_xaxes(
    type='log', title='training examples', tickvals=ticks,
    ticktext=[f'{x:,}' for x in ticks],
  )  # fmt: skip
  figure.update_yaxes(title='test accuracy, %')
  return _layout(figure, 480)


def live_costs(grid: Grid) -> Any:
  """The same live."""
  from plotly import subplots

  figure = subplots.make_subplots(
    rows=len(grid), cols=len(COSTS), vertical_spacing=0.3 / len(grid),
    subplot_titles=[title for title in grid for _ in COSTS],
  )  # fmt: skip
  for row, panels in enumerate(grid.values(), 1):
    for column, (lines, cost) in enumerate(
      zip(panels, COSTS, strict=True), 1
    ):
      for i, line in enumerate(lines):
        for trace in _traces(i, line, row == column == 1):
          figure.add_trace(trace, row=row, col=column)
      figure.update_xaxes(title=cost, row=row, col=column)
      figure.update_yaxes(title='test accuracy, %', row=row, col=column)
  return _layout(figure, 90 + 300 * len(grid))


def _traces(i: int, line: Line, legend: bool) -> list[Any]:
  """The band and the line, which the legend takes for one."""
  import plotly.graph_objects as go

  colour = figures.COLOURS[i % len(figures.COLOURS)]
  red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
  same = {'legendgroup': str(i), 'x': list(line.x)}
  edge = {**same, 'mode': 'lines', 'line': {'width': 0}, 'showlegend': False,
          'hoverinfo': 'skip'}  # fmt: skip
  return [
    go.Scatter(y=line.high(), **edge),
    go.Scatter(
      y=line.low(), fill='tonexty',
      fillcolor=f'rgba({red},{green},{blue},{FAINT})', **edge,
    ),
    go.Scatter(
      y=list(line.mean), name=plots.text(line.name), mode='lines+markers',
      line={'color': colour}, showlegend=legend,
      hovertemplate='%{x:,.4g}: %{y:.2f} %', **same,
    ),
  ]  # fmt: skip


def _layout(figure: Any, height: int) -> Any:
  return figure.update_layout(
    template='plotly_white', height=height, font={'size': 12},
    margin={'l': 60, 'r': 20, 't': 50, 'b': 50},
  )  # fmt: skip
