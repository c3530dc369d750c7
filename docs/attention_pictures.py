"""Draws docs/patterns.png: what every sparse attention sees, from its code.

python -m docs.attention_pictures
"""

import pathlib

import matplotlib.pyplot as plt
import numpy as np

from docs import attention_table as page
from vit_jax.attention import probe

FILE = pathlib.Path(__file__).with_name('patterns.png')
ROWS, COLUMNS = page.GRID
QUERY = (5, 8)  # row, column of the query that is shown
SHOWN = ('fixed pattern', 'combined pattern', 'learned pattern',
         'optimal transport')  # fmt: skip
ACROSS = 6


def main() -> None:
  """One column of two pictures an entry: one query's keys, and the map."""
  names = [
    name
    for family in SHOWN
    for name in sorted(page.ENTRIES)
    if page.ENTRIES[name].family == family
  ]
  down = -(-len(names) // ACROSS)
  figure, axes = plt.subplots(
    2 * down, ACROSS, figsize=(1.9 * ACROSS, 4.1 * down), squeeze=False,
    layout='constrained',
  )  # fmt: skip
  for axis in axes.flat:
    axis.set_axis_off()
  at = QUERY[0] * COLUMNS + QUERY[1]
  for i, name in enumerate(names):
    found = probe.support(page.built(name, grid=page.GRID), page.TOKENS)
    line, column = divmod(i, ACROSS)
    seen = found[at].reshape(ROWS, COLUMNS).astype(float)
    seen[QUERY] = 2.0
    for axis, picture, title in (
      (axes[2 * line, column], seen, name),
      (axes[2 * line + 1, column], found.astype(float), None),
    ):
      axis.set_axis_on()
      axis.set(xticks=[], yticks=[])
      axis.imshow(picture, cmap='Blues', vmin=0, vmax=np.max(seen),
                  interpolation='nearest')  # fmt: skip
      if title:
        density = found.mean()
        axis.set_title(f'{title}\n{100 * density:.0f} % of the pairs',
                       fontsize=9)  # fmt: skip
  figure.savefig(FILE, dpi=80)


if __name__ == '__main__':
  main()
