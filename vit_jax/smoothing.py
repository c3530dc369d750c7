"""Over-smoothing: how alike a model's patches, blocks and maps become in depth.

Deep Transformers may map all patches of an image to nearly the same vector, and
repeat the maps of their attention from block to block: Gong et al. 2021, Zhou
et al. 2021 (DeepViT).
"""

import os
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.attention import probe
from vit_jax.attention.base import Attention
from vit_jax.shapes import Array, Float

NEEDED = ('embed', 'encode', 'num_layers')
# The blocks of flat models; class blocks change no patches.
BLOCK = re.compile(r'((?:.*/)?(?:encoder|Mixer)?[bB]lock_(\d+))(/.*)?')
# What is measured, and how it is called.
MEASURES = {
  'patches': 'patches of an image',
  'blocks': 'a block and the one before',
  'maps': 'attention of a block and the one before',
}
Rows = list[dict[str, Any]]


def measure(
  model: nn.Module,
  variables: Mapping[str, Any],
  images: Float[Array, 'B Y X C'] | Float[np.ndarray, 'B Y X C'],
  batch_size: int = 32,
) -> Rows:
  """Mean cosines in every block, in evaluation.

  With x_l the patches [N C] that block l returns, before any last norm, and A_l
  the map of a head of its attention:

    patches  over i ≠ j, of x_l[i] and x_l[j]: 1 is a single patch repeated
    blocks   over i, of x_l[i] and x_{l-1}[i]
    maps     over heads and tokens t, of the columns A_l[:, t] and A_{l-1}[:, t]
             (DeepViT, eq. 2)

  Each is averaged over the images. The first block has no block before it, and
  attentions without an N×M map of their values have no maps: None.

  Args:
    model: flat, with blocks of patches.
    variables: the model's.
    images: in the model's value range.
    batch_size: images at a time; the result does not depend on it.

  Returns:
    {'block': l, 'patches': …, 'blocks': …, 'maps': …} for l = 0, 1, ….

  Raises:
    ValueError: a model without such blocks, no images, or one patch an image.
  """
  missing = [name for name in NEEDED if not hasattr(model, name)]
  if missing:
    raise ValueError(
      f'{type(model).__name__} has no row of blocks on the same patches (it '
      f'lacks {", ".join(missing)})'
    )
  if not len(images):
    raise ValueError('images is empty: there is nothing to measure')
  model = model.clone(remat=False)  # nothing may leave rematerialised blocks

  @jax.jit
  def sums(variables, images):
    """Sums over the images, of every measure and block."""
    outputs, maps = _watch(model, variables, images)
    return {
      'patches': [_among(x) for x in outputs],
      'blocks': [None, *(_between(x, y) for x, y in pairwise(outputs))],
      'maps': [None, *(_between_columns(a, b) for a, b in pairwise(maps))],
    }

  total = [
    sums(variables, jnp.asarray(images[i : i + batch_size]))
    for i in range(0, len(images), batch_size)
  ]
  means = jax.tree.map(lambda *x: float(sum(x)) / len(images), *total)
  return [
    {'block': i, **{name: means[name][i] for name in MEASURES}}
    for i in range(model.num_layers)
  ]


def _unit(x: Array) -> Array:
  x = x.astype(jnp.float32)
  square = jnp.sum(x * x, axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def _among(x: Float[Array, 'B N C']) -> Float[Array, '']:
  """Σ over images of the mean cosine of two of its patches."""
  count = x.shape[1]
  total = _unit(x).sum(axis=1)
  # ‖Σ u_i‖² holds the N cosines of i = j as well.
  return jnp.sum((jnp.sum(total**2, -1) - count) / (count * (count - 1)))


def _between(
  x: Float[Array, 'B *N C'], y: Float[Array, 'B *N C']
) -> Float[Array, '']:
  """Σ over images of the mean cosine of a row of x and the same of y."""
  cosine = jnp.sum(_unit(x) * _unit(y), axis=-1)
  return jnp.sum(cosine.reshape(len(x), -1).mean(axis=1))


def _between_columns(a: Array | None, b: Array | None) -> Array | None:
  """The same of the columns of two maps [B H N M], if they are alike."""
  if a is None or b is None or a.shape != b.shape:
    return None
  return _between(a.swapaxes(2, 3), b.swapaxes(2, 3))


def _watch(
  model: nn.Module, variables: Mapping[str, Any], images: Array
) -> tuple[list[Array], list[Array | None]]:
  """The patches of every block, and the map of its (last) attention."""
  blocks, kernels = {}, {}

  def intercept(next_fun, args, kwargs, context):
    out = next_fun(*args, **kwargs)
    module, at = context.module, '/'.join(context.module.path)
    found = BLOCK.fullmatch(at)
    if context.method_name != '__call__' or not found:
      return out
    index = int(found[2])
    if found[3] is None:
      blocks[index] = out[-1] if isinstance(out, tuple) else out
    elif isinstance(module, Attention):
      free = module.clone(parent=None, name=None)
      given = {k: v for k, v in kwargs.items() if k != 'train'}
      kernels[index] = (free, module.path, args[:2], given)
    return out

  with nn.intercept_methods(intercept):
    _, grid = model.apply(variables, images, method=_run)
  count = grid[0] * grid[1]
  if count < 2:
    raise ValueError(
      f'images of {images.shape[1]}×{images.shape[2]} pixels are one patch of '
      f'this {type(model).__name__}: there is nothing to compare'
    )
  # Patches come after class tokens and registers.
  outputs = [blocks[i][:, -count:] for i in range(model.num_layers)]
  maps = [
    _map(variables, *kernels[i]) if i in kernels else None
    for i in range(model.num_layers)
  ]
  return outputs, maps


def _run(model: nn.Module, images: Array):
  tokens, grid = model.embed(images)
  return model.encode(tokens, grid)[0], grid


def _map(
  variables: Mapping[str, Any],
  kernel: Attention,
  path: Sequence[str],
  qk: tuple[Array, Array],
  given: Mapping[str, Any],
) -> Array | None:
  if not kernel.linear_in_values or kernel.mixes_channels:
    return None
  own = probe.own_variables(variables, path)
  return probe.attention_map(kernel, own, *qk, **given)


def markdown(found: Mapping[str, Rows], measure: str = 'patches') -> str:
  """A table of one measure: a row a model, its blocks by their depth.

  Args:
    found: label of a model → what `measure` returned.
    measure: a key of `MEASURES`.

  Raises:
    ValueError: no such measure.
  """
  if measure not in MEASURES:
    raise ValueError(f'measure={measure!r}; choices: {", ".join(MEASURES)}')
  depths = (0.0, 0.25, 0.5, 0.75, 1.0)
  lines = [
    f'| cosine of {MEASURES[measure]} | blocks | first | 1/4 | 1/2 | 3/4 '
    '| last |',
    '|---|' + '---:|' * 6,
  ]
  for label, rows in found.items():
    rows = [row for row in rows if row[measure] is not None]
    chosen = [rows[round(d * (len(rows) - 1))] for d in depths if rows]
    cells = [f'{row[measure]:.3f}' for row in chosen] or ['–'] * len(depths)
    lines.append(f'| {label} | {len(rows)} | {" | ".join(cells)} |')
  return '\n'.join(lines) + '\n'


def plot(found: Mapping[str, Rows], png: str | os.PathLike) -> Any:
  """Draws every measure against the depth: one panel each, a line a model.

  Args:
    found: label of a model → what `measure` returned.
    png: the picture to write.

  Returns:
    The matplotlib figure.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure  # no pyplot: no display, no state

  figure = Figure(figsize=(4.2 * len(MEASURES), 3.2), layout='constrained')
  FigureCanvasAgg(figure)
  axes = figure.subplots(1, len(MEASURES), squeeze=False)[0]
  for axis, (name, what) in zip(axes, MEASURES.items(), strict=True):
    for label, rows in found.items():
      points = [(r['block'] + 1, r[name]) for r in rows if r[name] is not None]
      if points:
        x, y = zip(*points, strict=True)
        axis.plot(x, y, 'o-', markersize=2.5, linewidth=1, label=label)
    axis.set_title(f'cosine of {what}', fontsize=9)
    axis.set_xlabel('block', fontsize=8)
    axis.set_ylim(top=1.02)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    if axis.lines:
      axis.legend(fontsize=8)
  figure.savefig(png, dpi=120)
  return figure
