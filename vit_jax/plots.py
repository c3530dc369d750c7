"""Pictures of runs: curves."""

import os
import pathlib
from typing import Any

from vit_jax import writers


def curves(
  metrics_file: str | os.PathLike, png: str | os.PathLike
) -> Any:
  """Draws a run's metrics against steps: one panel a metric, train and test.

  Args:
    metrics_file: a metrics.jsonl; rows without numbers are left out.
    png: the picture to write.

  Returns:
    The matplotlib figure; None where there was nothing to draw.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure  # no pyplot: no display, no state

  series = {}
  for row in writers.read_rows(metrics_file):
    for key, value in row.items():
      part, _, name = key.partition('/')
      if part in ('train', 'test') and value is not None:
        series.setdefault(name, {}).setdefault(part, []).append(
          (row['step'], value)
        )
  order = ['loss', 'accuracy', 'accuracy_top5', 'learning_rate', 'grad_norm']
  names = [n for n in order if n in series]
  names += sorted(set(series) - set(order) - {'skipped'})
  if not names:
    return None
  columns = min(3, len(names))
  rows = -(-len(names) // columns)
  figure = Figure(figsize=(4 * columns, 2.8 * rows), layout='constrained')
  FigureCanvasAgg(figure)
  axes = list(figure.subplots(rows, columns, squeeze=False).flat)
  for axis, name in zip(axes, names, strict=False):
    for part, points in sorted(series[name].items()):
      x, y = zip(*points, strict=True)
      style = '-' if part == 'train' else 'o-'
      label = part
      if part == 'test':
        label = f'test, last {y[-1]:.4g}'
      axis.plot(x, y, style, markersize=3, linewidth=1, label=label)
    axis.set_title(name.replace('_', ' '), fontsize=10)
    axis.set_xlabel('step', fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
  for axis in axes[len(names) :]:
    axis.set_visible(False)
  figure.savefig(pathlib.Path(png), dpi=120)
  return figure
