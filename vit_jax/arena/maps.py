"""Measures of attention maps: entropy, effective rank, distance, row sums.

And the maps themselves, of every layer of a model, on what another feeds it.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import layers
from vit_jax.attention import probe
from vit_jax.attention.base import Attention
from vit_jax.shapes import Array, Float

# A ViT's attention layers, and the kernel inside one.
LAYER = re.compile(
  r'Transformer/encoderblock_(\d+)/MultiHeadDotProductAttention_0(/attend)?'
)
TINY = 1e-30  # below it a row has no mass


def shares(a: Float[Array, '*B N M']) -> Float[Array, '*B N M']:
  """|a| with rows that sum to 1, or are zeros: negative weights count too."""
  size = jnp.abs(a.astype(jnp.float32))
  total = size.sum(-1, keepdims=True)
  return jnp.where(total > TINY, size / jnp.maximum(total, TINY), 0)


def entropy(a: Float[Array, '*B N M']) -> Float[Array, '*B']:
  """Mean over rows of -Σ p log p in nats, p = `shares(a)`; at most log M.

  A row of zeros has none.
  """
  p = shares(a)
  rows = -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.maximum(p, TINY)), 0), -1)
  return rows.mean(-1)


def rank(a: Float[Array, '*B N M']) -> Float[Array, '*B']:
  """The exponential of the entropy of σ / Σ σ, σ the singular values.

  Roy and Vetterli 2007, "The effective rank", definition 1. From 1 to
  min(N, M); a map of zeros has rank 0.
  """
  values = jnp.linalg.svd(a.astype(jnp.float32), compute_uv=False)
  there = values.max(-1) > TINY
  return jnp.where(there, jnp.exp(entropy(values[..., None, :])), 0)


def distance(
  a: Float[Array, '*B N N'],
  grid: tuple[int, int],
  patch: tuple[int, int],
  prefix: int = 0,
) -> Float[Array, '*B']:
  """Mean distance in pixels of query and key patch, weighted by |a|.

  Between the centres of patches; tokens before the grid are left out, and the
  weights of a row's patches made to sum to 1. Rows without weight on a patch
  are left out of the mean (0 if none is left). Dosovitskiy et al. 2021, figure
  7 and appendix D.7, averaged over the queries.

  Args:
    a: maps, prefix tokens first.
    grid: rows and columns of patches.
    patch: height and width of one in pixels.
    prefix: tokens before the grid.

  Raises:
    ValueError: prefix and grid do not make N tokens.
  """
  count = grid[0] * grid[1]
  if prefix + count != a.shape[-1]:
    raise ValueError(
      f'a map of {a.shape[-1]} tokens, but prefix={prefix} and grid={grid} '
      f'make {prefix + count}'
    )
  p = shares(a[..., prefix:, prefix:])
  there = p.sum(-1) > 0
  total = jnp.einsum('...nm,nm->...', p, apart(grid, patch).astype(np.float32))
  return total / jnp.maximum(there.sum(-1), 1)


def apart(grid: tuple[int, int], patch: tuple[int, int]) -> np.ndarray:
  """Pixels between the centres of patches, [N N] in raster order."""
  places = np.stack(
    [x.ravel() * side for x, side in zip(np.indices(grid), patch, strict=True)]
  )
  offset = places[:, :, None] - places[:, None]
  return np.sqrt(np.square(offset.astype(np.float64)).sum(0))


@functools.partial(jax.jit, static_argnames=('grid', 'patch', 'prefix'))
def measures(
  a: Float[Array, 'B H N M'],
  grid: tuple[int, int],
  patch: tuple[int, int],
  prefix: int,
) -> dict[str, Float[Array, 'B H *N']]:
  """Every measure by example and head; row sums by row too."""
  return {
    'entropy': entropy(a),
    'rank': rank(a),
    'distance': distance(a, grid, patch, prefix),
    'row_sum': a.astype(jnp.float32).sum(-1),
  }


def by_layer(
  exact: Any,
  swapped: Any,
  images: Float[Array, 'B Y X C'],
  influences: int = 2,
) -> list[dict[str, Any]]:
  """The measures of every attention of a ViT, on what the exact one feeds it.

  `map` says of what: 'weights' is A with out = A V, the identity probe.
  'influence', of attentions without such a map, has the norms ‖∂out_n / ∂v_m‖,
  and of whole layers x → x ‖∂out_n / ∂x_m‖, rows made to sum to 1, all heads
  in one; `row_sum` then says nothing and is None.

  Args:
    exact: a loaded ViT, see `pretrained.base.Pretrained`.
    swapped: the same with another attention.
    images: in the models' value range.
    influences: images that an influence, which takes N backward passes, is
      averaged over, the first ones.

  Returns:
    {'layer', 'map', 'images', 'entropy' (nats), 'entropy_share' (of log N),
    'rank', 'distance' (pixels), 'row_sum', 'row_sum_low', 'row_sum_high',
    'distances' (by head), 'entropies' (by head)} for every layer.
  """
  model = swapped.model
  fed, _ = jax.jit(lambda v, x: _watch(exact.model, v, x)[:2])(
    exact.variables, images
  )
  places = {}

  def look(variables, images, fed):
    _, calls, found = _watch(model, variables, images, fed)
    places.update(found)
    return calls

  calls = jax.jit(look)(swapped.variables, images, fed)
  grid = layers.grid_of(images.shape[1:3], model.stride)
  patch = layers.pair(model.stride)
  out = []
  for index in range(model.num_layers):
    module, path = places[index]
    args, given = calls[index]
    own = probe.own_variables(swapped.variables, path)
    weighed = (
      isinstance(module, Attention)
      and module.linear_in_values and not module.mixes_channels
    )  # fmt: skip
    if weighed:
      a = _weights(module, own, *args[:2], given)
    else:
      args, given = jax.tree.map(lambda x: x[:influences], (args, given))
      a = shares(_influence(module, own, args, given))[:, None]
    found = {
      k: np.asarray(v, np.float64)
      for k, v in measures(a, grid, patch, model.prefix).items()
    }
    row = {
      'layer': index, 'map': 'weights' if weighed else 'influence',
      'images': int(a.shape[0]),
      **{k: float(found[k].mean()) for k in ('entropy', 'rank', 'distance')},
      'row_sum': None, 'row_sum_low': None, 'row_sum_high': None,
      'distances': found['distance'].mean(0).tolist(),
      'entropies': found['entropy'].mean(0).tolist(),
    }  # fmt: skip
    row['entropy_share'] = row['entropy'] / max(np.log(a.shape[-1]), TINY)
    if weighed:
      row |= {
        'row_sum': float(found['row_sum'].mean()),
        'row_sum_low': float(found['row_sum'].min()),
        'row_sum_high': float(found['row_sum'].max()),
      }
    out.append(row)
  return out


@functools.partial(jax.jit, static_argnums=0)
def _weights(kernel, variables, q, k, given) -> Float[Array, 'B H N M']:
  return probe.attention_map(kernel, variables, q, k, **given)


@functools.partial(jax.jit, static_argnums=0)
def _influence(module, variables, args, given) -> Float[Array, 'B N N']:
  *first, last = args
  flat = last.reshape(*last.shape[:2], -1)

  def layer(x):
    out = module.apply(variables, *first, x.reshape(last.shape), **given)
    return out.reshape(flat.shape)

  return probe.influence(layer, flat)


def _watch(
  model: nn.Module,
  variables: Mapping[str, Any],
  images: Array,
  fed: Sequence[Array] | None = None,
) -> tuple[list[Array], list[tuple[Any, Any]], dict[int, tuple[Any, Any]]]:
  """Inputs of the layers; arguments of what has a map; which modules those are.

  With `fed`, layer l gets `fed[l]` instead of its own input.
  """
  count = model.num_layers
  inputs, calls, places = [None] * count, [None] * count, {}

  def intercept(next_fun, args, kwargs, context):
    path = context.module.path
    found = LAYER.fullmatch('/'.join(path))
    if context.method_name != '__call__' or not found:
      return next_fun(*args, **kwargs)
    index = int(found[1])
    if not found[2]:
      if fed is not None:
        args = (fed[index], *args[1:])
      inputs[index] = args[0]
    # An attention is called inside of its layer, and takes the layer's place.
    given = {
      k: v for k, v in kwargs.items() if k != 'train' and v is not None
    }
    calls[index] = args, given
    places[index] = context.module.clone(parent=None, name=None), path
    return next_fun(*args, **kwargs)

  # Rematerialised blocks are traced on their own: nothing may leave them.
  model = model.clone(remat=False)
  with nn.intercept_methods(intercept):
    model.apply(variables, images, train=False)
  return inputs, calls, places
