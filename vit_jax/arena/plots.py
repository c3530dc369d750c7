"""The report's live plots, by plotly: choices are switched on and off."""

import html
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vit_jax.arena import figures, page

DASHES = ('solid', 'dash', 'dot', 'dashdot')
SYMBOLS = ('circle', 'square', 'diamond', 'triangle-up', 'cross', 'x', 'star')
LINE = 15  # pixels of a line of labels


def text(name: str, whole: bool = False) -> str:
  """A name for plotly, which reads a little HTML in every text."""
  name = page.plain(name) if whole else figures.short(name)
  return html.escape(name, quote=False)


def layout(figure: Any, height: int, **more: Any) -> Any:
  """The figure with what all plots look like; height in pixels."""
  # Texts keep their own size and place, so the same rows give the same bytes.
  figure.update_layout(
    template='plotly_white', height=height, font={'size': 12},
    margin={'l': 60, 'r': 20, 't': 50, 'b': 50}, **more,
  )  # fmt: skip
  return figure


def ranking(
  names: Sequence[str], means: Sequence[float],
  intervals: Sequence[tuple[float, float]], seeds: Sequence[str],
  baseline: str | None,
) -> Any:  # fmt: skip
  """Mean and interval of every choice, the best on top."""
  import plotly.graph_objects as go

  figure = go.Figure(
    go.Scatter(
      x=list(means), y=list(range(len(names))), mode='markers',
      error_x={
        'type': 'data', 'symmetric': False, 'color': figures.COLOURS[1],
        'array': [h - m for m, (_, h) in zip(means, intervals, strict=True)],
        'arrayminus': [
          m - low for m, (low, _) in zip(means, intervals, strict=True)
        ],
      },
      text=[
        f'{text(n, True)}<br>{of}' for n, of in zip(names, seeds, strict=True)
      ],
      hovertemplate='%{text}<extra></extra>',
      marker={'color': [
        figures.COLOURS[name != baseline] for name in names
      ]},
    )
  )  # fmt: skip
  figure.update_xaxes(title='test accuracy, %')
  _names(figure.update_yaxes, names)
  figure.update_yaxes(range=[len(names) - 0.4, -0.6])
  return layout(figure, 130 + LINE * len(names))


def _names(update: Any, names: Sequence[str], **more: Any) -> None:
  """Ticks that are names; two choices whose short names agree stay apart."""
  update(
    tickmode='array', tickvals=list(range(len(names))), automargin=True,
    ticktext=[text(n) for n in names], tickfont={'size': 10}, **more,
  )  # fmt: skip


def matrix(
  names: Sequence[str], signs: Sequence[Sequence[int]],
  hover: Sequence[Sequence[str]],
) -> Any:  # fmt: skip
  """Row against column; what was found is said under the mouse."""
  import plotly.graph_objects as go

  n = len(figures.SIGNS)
  scale = [
    [(i + end) / n, colour]
    for i, colour in enumerate(figures.SIGNS)
    for end in (0, 1)
  ]
  figure = go.Figure(
    go.Heatmap(
      z=[list(row) for row in signs], zmin=-2.5, zmax=2.5, colorscale=scale,
      showscale=False, text=[list(row) for row in hover], xgap=1, ygap=1,
      hovertemplate='%{text}<extra></extra>',
    )
  )  # fmt: skip
  _names(figure.update_yaxes, names, autorange='reversed')
  _names(figure.update_xaxes, names, tickangle=-90, side='top')
  size = 260 + LINE * len(names)
  return layout(figure, size, width=size + 60)


def pareto(panels: Sequence[figures.Panel]) -> Any:
  """A panel a cost; the front is a line, its members numbered and named."""
  import plotly.graph_objects as go
  from plotly import subplots

  figure = subplots.make_subplots(
    rows=len(panels), cols=1, vertical_spacing=0.09,
    subplot_titles=[panel.label for panel in panels],
  )  # fmt: skip
  for at, panel in enumerate(panels, 1):
    rest = [i for i in range(len(panel.names)) if i not in panel.front]
    for some, line in ((rest, False), (panel.front, True)):
      figure.add_trace(
        go.Scatter(
          x=[panel.costs[i] for i in some], y=[panel.scores[i] for i in some],
          hovertext=[text(panel.names[i], True) for i in some],
          text=[str(k) for k in range(1, len(some) + 1)],
          mode='lines+markers+text' if line else 'markers',
          textposition='top left', textfont={'color': '#7d1a10'},
          line={'shape': 'hv', 'width': 1}, showlegend=False,
          marker={'color': '#c0392b' if line else '#9aa3b2', 'size': 7},
          hovertemplate='%{hovertext}<br>%{x:.4g}, %{y:.2f} %<extra></extra>',
        ),
        row=at, col=1,
      )  # fmt: skip
    low, high, below = panel.reach()
    domain = figure.layout['yaxis' + str(at) * (at > 1)].domain
    said = [html.escape(line, quote=False) for line in panel.legend()]
    if below:
      said += ['', 'lower:', *(text(name) for name in below[:9])]
      said += ['…'] * (len(below) > 9)
    figure.add_annotation(
      x=1.01, y=domain[1], xref='paper', yref='paper', xanchor='left',
      yanchor='top', align='left', showarrow=False, text='<br>'.join(said),
      font={'size': 11},
    )  # fmt: skip
    if panel.logarithmic():
      ends = ticks(min(panel.costs), max(panel.costs))
      figure.update_xaxes(type='log', row=at, col=1, **ends)
    figure.update_yaxes(
      title='test accuracy, %', range=[low, high], row=at, col=1
    )
  figure = layout(figure, 80 + 430 * len(panels))
  return figure.update_layout(margin={'r': 230})


def ticks(low: float, high: float, prefix: str = '') -> dict[str, Any]:
  """Plain numbers, 1, 2, 3, 5 and 7, along a logarithmic axis; low > 0.

  Args:
    low: the least value, see above.
    high: the greatest.
    prefix: of the properties' names, as 'xaxis.' in a menu.
  """
  first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
  values = [
    k * 10.0**e for e in range(first, last + 1) for k in (1, 2, 3, 5, 7)
  ]
  return {
    f'{prefix}tickvals': values,
    f'{prefix}ticktext': [f'{v:g}' for v in values],
  }


def growth(
  lengths: Sequence[int], names: Sequence[str], shown: Collection[str],
  measures: Mapping[str, Mapping[str, Sequence[float | None]]],
) -> Any:  # fmt: skip
  """Log–log lines; a menu chooses the measure, the legend the choices.

  Args:
    lengths: the tokens N.
    names: of the choices, in the legend's order.
    shown: those that are switched on at first.
    measures: label → choice → a value for each length, None where it has none.
  """
  import plotly.graph_objects as go

  first = next(iter(measures))
  figure = go.Figure()
  for i, name in enumerate(names):
    figure.add_trace(
      go.Scatter(
        x=list(lengths), y=list(measures[first][name]), name=text(name),
        mode='lines+markers', visible=True if name in shown else 'legendonly',
        line={
          'color': figures.COLOURS[i % len(figures.COLOURS)], 'width': 1.5,
          'dash': DASHES[i // len(figures.COLOURS) % len(DASHES)],
        },
        marker={'symbol': SYMBOLS[i % len(SYMBOLS)], 'size': 6},
        hovertemplate='N = %{x:,}: %{y:.4g}',
      )
    )  # fmt: skip
  choose = [
    {
      'label': label, 'method': 'update',
      'args': [
        {'y': [list(of[n]) for n in names]}, {'yaxis.title.text': label},
      ],
    }
    for label, of in measures.items()
  ]  # fmt: skip
  show = [
    {'label': label, 'method': 'restyle', 'args': [{'visible': visible}]}
    for label, visible in (
      ('a few', [True if n in shown else 'legendonly' for n in names]),
      ('all', [True] * len(names)),
      ('none', ['legendonly'] * len(names)),
    )
  ]
  figure.update_xaxes(
    type='log', title='tokens N', tickvals=list(lengths),
    ticktext=[f'{n:,}' for n in lengths],
  )  # fmt: skip
  figure.update_yaxes(type='log', title=first, exponentformat='power', dtick=1)
  return layout(
    figure, 640, legend={'font': {'size': 10}, 'tracegroupgap': 0},
    updatemenus=[
      {'buttons': choose, 'x': 0, 'xanchor': 'left', 'y': 1.12},
      {
        'buttons': show, 'type': 'buttons', 'direction': 'right', 'x': 0.3,
        'xanchor': 'left', 'y': 1.12,
      },
    ],
  )  # fmt: skip


def heatmap(
  rows: Sequence[str], columns: Sequence[str],
  panels: Mapping[str, Sequence[Sequence[float | None]]],
  diverging: bool = False,
) -> Any:  # fmt: skip
  """Rows × columns; a menu chooses the panel.

  `diverging` values are ratios, coloured by their logarithm as in
  `figures.heatmap`.
  """
  import plotly.graph_objects as go

  def colours(values):
    if not diverging:
      return [list(row) for row in values]
    return [[None if v is None else math.log2(v) for v in r] for r in values]

  def said(values):
    return [[figures.brief(v) for v in row] for row in values]

  whole = [[text(name, True)] * len(columns) for name in rows]
  first = panels[next(iter(panels))]
  scale = (
    {'colorscale': 'RdYlGn', 'zmin': -3, 'zmax': 3, 'colorbar': {
      'tickvals': list(range(-3, 4)),
      'ticktext': ['⅛', '¼', '½', '1', '2', '4', '8'],
    }} if diverging else {'colorscale': 'Blues'}
  )  # fmt: skip
  figure = go.Figure(
    go.Heatmap(
      z=colours(first), x=list(columns), text=said(first), xgap=1, ygap=1,
      customdata=whole, texttemplate='%{text}', textfont={'size': 10},
      hovertemplate='%{customdata}<br>%{x}: %{text}<extra></extra>', **scale,
    )
  )  # fmt: skip
  menu = [
    {
      'label': label, 'method': 'restyle',
      'args': [{'z': [colours(values)], 'text': [said(values)]}],
    }
    for label, values in panels.items()
  ]  # fmt: skip
  _names(figure.update_yaxes, rows, autorange='reversed', showgrid=False)
  figure.update_xaxes(type='category', showgrid=False)
  return layout(
    figure, 170 + LINE * len(rows),
    updatemenus=[
      {'buttons': menu, 'x': 0, 'xanchor': 'left', 'y': 1, 'yanchor': 'bottom'}
    ] * (len(panels) > 1),
    plot_bgcolor='#d0d3da',
  )  # fmt: skip
