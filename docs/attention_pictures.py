"""Draws docs/patterns.png: what every sparse attention sees, from its code.

python -m docs.attention_pictures
"""

import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from docs import attention_table as page
from vit_jax import attention
from vit_jax.attention import probe

FILE = pathlib.Path(__file__).with_name('patterns.png')
ROWS, COLUMNS = page.GRID
QUERY = (5, 8)  # row, column of the query that is shown
FIXED = ('fixed pattern', 'combined pattern')
CHOSEN = ('learned pattern', 'optimal transport')
# Options that show more than the defaults do on so small a grid.
SPECS = {
  'swin': 'swin(size=7, shift=3)',
  'bigbird': 'bigbird(block=14, random=2)',
  'longformer': 'longformer(size=5)',
  'pattern': "pattern(keep='sliding(size=3) | strided(size=5)')",
  'sinkhorn': 'sinkhorn(blocks=7, temperature=0.1)',
  'sortcut': 'sortcut(blocks=7, temperature=0.1)',
}
ACROSS = 6


def weights(name: str) -> np.ndarray:
  """A [N N] of one head, rows divided by their largest.

  A fixed pattern is shown with equal logits; where the data choose, the
  queries and keys are random.
  """
  cls = page.ENTRIES[name]
  if name in attention.MIXERS or cls.mixes_channels:
    kernel = page.built(name, grid=page.GRID)
    return probe.support(kernel, page.TOKENS).astype(float)
  kernel = attention.build({name: name, **SPECS}[name], grid=page.GRID)
  rng = np.random.default_rng(0)
  scale = 0.0 if cls.family in FIXED else 1.0
  q, k = (
    jnp.asarray(scale * rng.standard_normal((1, page.TOKENS, 1, 16)))
    for _ in range(2)
  )
  variables = jax.jit(kernel.init)(jax.random.key(0), q, k, k)
  found = jax.jit(lambda q, k: probe.attention_map(kernel, variables, q, k))
  rows = np.asarray(found(q, k)[0, 0])
  return rows / np.maximum(rows.max(axis=1, keepdims=True), 1e-9)


def main() -> None:
  """Two pictures an entry: one query's keys, and the map."""
  found = {
    name: weights(name)
    for family in (*FIXED, *CHOSEN)
    for name in sorted(page.ENTRIES)
    if page.ENTRIES[name].family == family
  }
  # What sees everything alike is no pattern.
  found = {name: x for name, x in found.items() if np.ptp(x) > 1e-3}
  down = -(-len(found) // ACROSS)
  figure, axes = plt.subplots(
    2 * down, ACROSS, figsize=(1.9 * ACROSS, 4.1 * down), squeeze=False,
    layout='constrained',
  )  # fmt: skip
  for axis in axes.flat:
    axis.set_axis_off()
  at = QUERY[0] * COLUMNS + QUERY[1]
  for i, (name, rows) in enumerate(found.items()):
    line, column = divmod(i, ACROSS)
    seen = rows[at].reshape(ROWS, COLUMNS)
    for axis, picture in (
      (axes[2 * line, column], seen),
      (axes[2 * line + 1, column], rows),
    ):
      axis.set_axis_on()
      axis.set(xticks=[], yticks=[])
      # A square root, so that small weights differ from none.
      axis.imshow(np.sqrt(picture), cmap='Blues', vmin=0, vmax=1.6,
                  interpolation='nearest')  # fmt: skip
    top = axes[2 * line, column]
    top.plot(QUERY[1], QUERY[0], 'o', color='crimson', markersize=4)
    share = 100 * (rows > 0).mean()
    top.set_title(f'{name}\n{share:.0f} % of the pairs', fontsize=9)
  figure.savefig(FILE, dpi=80)


if __name__ == '__main__':
  main()
