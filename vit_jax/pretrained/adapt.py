"""Changes a loaded model: another size, head, attention or patch size."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import layers, models, specs
from vit_jax.pretrained import base
from vit_jax.shapes import Array, Float

# Fields that a loaded architecture may change; the rest is the checkpoint's.
OVERRIDES = (
  'num_classes', 'attention', 'image_size', 'patch_size', 'window_size',
  'position_resize',
  'dropout_rate', 'attention_dropout_rate', 'drop_path_rate',
  'patch_dropout_rate', 'remat', 'dtype',
)  # fmt: skip

HEAD = re.compile(r'params/head(_dist)?/')
KERNEL = '/attend/'  # an attention's own; they depend on its options and N
# Entries for the offsets in one grid, of relative or decomposed biases.
OFFSETS = re.compile(r'/position/(\w+/)?(table|row|column)$')
WINDOW = re.compile(r'/stage_(\d+)/.*/attend/relative_bias$')  # Swin's own


def check_overrides(overrides: Mapping[str, Any], where: str) -> None:
  """Raises a ValueError on a field that may not change."""
  for key, value in overrides.items():
    if key not in OVERRIDES:
      raise ValueError(
        f'{key}={value!r} is given, but the architecture is that of {where}; '
        f'what may change: {", ".join(OVERRIDES)}'
      )


def change(found: base.Pretrained, **overrides: Any) -> base.Pretrained:
  """The same weights in a model with other fields.

  Args:
    found: a loaded model.
    **overrides: of `OVERRIDES`. Another num_classes starts with a new head and
      drops the labels; another image_size resizes the position table and those
      of biases by offset, by the rule `position_resize` (Swin's for the latter
      is 'bicubic_torch'), and the sizes in the preprocessing; another
      patch_size resizes the patch embedding by pseudo-inverse; other windows
      of Swin, by window_size or image_size, resize their tables of biases
      (bicubic; Liu et al. 2021, section 3.2); the parameters of another
      attention are initialised.

  Raises:
    ValueError: a field that may not change, or a weight that cannot follow.
  """
  check_overrides(overrides, 'the checkpoint')
  if not overrides:
    return found
  config = {**found.config, **overrides}
  model = models.build(**config)
  variables = adapt(found.variables, found.model, model, found.channels)
  same = model.num_classes == found.model.num_classes
  return dataclasses.replace(
    found,
    model=model,
    variables=variables,
    config=config,
    labels=found.labels if same else (),
    preprocess=_resized(found, model),
  )


def adapt(
  variables: dict[str, Any], old: nn.Module, new: nn.Module, channels: int
) -> dict[str, Any]:
  """Variables of `old` for `new`: positions resized, another head anew.

  Parameters that only `new` has (those of another attention) are initialised.

  Raises:
    ValueError: a parameter has another shape in `new`, or no place there.
  """
  wanted = flax.traverse_util.flatten_dict(
    dict(base.shapes(new, channels)), sep='/'
  )
  source = flax.traverse_util.flatten_dict(dict(variables), sep='/')
  lost = [n for n in source if n not in wanted and not _goes(n, new)]
  if lost:
    raise ValueError(f'the new model has no place for {", ".join(lost[:8])}')
  out, anew = {}, []
  for name, like in wanted.items():
    if name not in source:
      anew.append(name)
    elif name.endswith('/pos_embedding'):
      # Also where the shapes are equal: 2 × 8 cells are not 4 × 4.
      out[name] = _resize_table(name, source[name], old, new)
    elif WINDOW.search(name) and _same_windows(old, new):
      out[name] = _resize_window(name, source[name], old, new)
    elif source[name].shape == like.shape:
      out[name] = source[name]
    elif name == 'params/embedding/kernel':
      size = layers.pair(new.patch_size)
      out[name] = resize_patches(source[name], size)
    elif OFFSETS.search(name):
      out[name] = _resize_offsets(source[name], like.shape, new)
    elif HEAD.match(name) or KERNEL in name:
      anew.append(name)
    else:
      raise ValueError(
        f'{name} has shape {source[name].shape} in the checkpoint and '
        f'{like.shape} in the new model, which it cannot be made to fit'
      )
  if anew:
    out |= _initial(new, channels, anew)
  return flax.traverse_util.unflatten_dict(out, sep='/')


def _goes(name: str, new: nn.Module) -> bool:
  """Whether a parameter may be left behind."""
  return KERNEL in name or (not new.num_classes and bool(HEAD.match(name)))


def _initial(
  model: nn.Module, channels: int, names: list[str]
) -> dict[str, Array]:
  """Variables of those names as a new model has them."""
  size = (*layers.pair(model.image_size), channels)

  def initial(key):
    found = model.init(key, jnp.zeros((1, *size)))
    flat = flax.traverse_util.flatten_dict(dict(found), sep='/')
    return {name: flat[name] for name in names}

  return jax.jit(initial)(jax.random.key(0))


def _resize_table(
  name: str, table: Array, old: nn.Module, new: nn.Module
) -> Array:
  """The cells of a position table, after those of tokens before the grid.

  A model with tables of several grids declares `position_strides`: the pixels
  a cell, by the name of the table.
  """
  name = name.removeprefix('params/')
  strides = [
    m.position_strides[name] if hasattr(m, 'position_strides') else m.stride
    for m in (old, new)
  ]
  sizes = [m.image_size for m in (old, new)]
  grids = list(map(layers.grid_of, sizes, strides))
  if grids[0] == grids[1]:
    return table
  learned = table.shape[1] - grids[0][0] * grids[0][1]
  cells = layers.resize_positions(
    table[:, learned:], *grids, new.position_resize
  )
  return jnp.concatenate([table[:, :learned], cells], axis=1)


def _resize_offsets(
  table: Array, shape: tuple[int, ...], new: nn.Module
) -> Array:
  """Entries [2r-1 2c-1 H], or [2r-1 D] of one axis, for another grid."""
  old = (*table.shape[:-1], 1)[:2]
  out = layers.resize_positions(
    table.reshape(1, -1, shape[-1]), old, (*shape[:-1], 1)[:2],
    new.position_resize,
  )  # fmt: skip
  return out.reshape(shape)


def _same_windows(old: nn.Module, new: nn.Module) -> bool:
  """Whether both are Swins with the published attention."""
  return (
    isinstance(old, models.SwinTransformer)
    and isinstance(new, models.SwinTransformer)
    and old.attention == new.attention == 'swin'
  )


def _resize_window(
  name: str, table: Array, old: nn.Module, new: nn.Module
) -> Array:
  """Entries [(2r-1)·(2c-1) H] for windows of another size."""
  stage = int(WINDOW.search(name)[1])
  grids = [
    tuple(2 * side - 1 for side in m.table_window(stage)) for m in (old, new)
  ]
  return layers.resize_positions(table[None], *grids, 'bicubic_torch')[0]


def resize_patches(
  kernel: Float[Array, 'y x I O'], size: tuple[int, int]
) -> Float[Array, 'v u I O']:
  """A patch embedding for patches of another size, by pseudo-inverse.

  With B the bilinear resizing of a patch to `size`, antialiased where it
  shrinks, the new kernel is (Bᵀ)⁺ w: of all that see only resized patches it
  is nearest to giving them the embeddings of the old ones, and exactly so
  where they have grown. Beyer et al. 2023 (FlexiViT), section 3.4.

  Args:
    kernel: w, [rows columns channels features].
    size: rows and columns of the new patches.
  """
  rows, columns, channels, features = kernel.shape
  basis = np.eye(rows * columns, dtype=np.float32)
  basis = basis.reshape(rows, columns, rows * columns)
  matrix = jax.image.resize(basis, (*size, rows * columns), 'bilinear')
  matrix = np.asarray(matrix, np.float64).reshape(-1, rows * columns)
  flat = np.asarray(kernel, np.float64).reshape(rows * columns, -1)
  new = np.linalg.pinv(matrix.T) @ flat
  return jnp.asarray(new.reshape(*size, channels, features), jnp.float32)


def _resized(found: base.Pretrained, model: nn.Module) -> dict[str, str]:
  """The preprocessing with its sizes scaled as the model's image size."""
  old, new = (layers.pair(m.image_size) for m in (found.model, model))
  if old == new:
    return found.preprocess
  ratios = [b / a for a, b in zip(old, new, strict=True)]
  out = []
  for spec in specs.parse(found.preprocess['transform']):
    options = dict(spec.options)
    if 'size' in options and spec.name == 'resize_short':
      # One number for both sides, which covers the longer one of the crop.
      options['size'] = round(options['size'] * max(new) / max(old))
    elif 'size' in options:
      sides = zip(layers.pair(options['size']), ratios, strict=True)
      sides = tuple(round(side * ratio) for side, ratio in sides)
      one = isinstance(options['size'], int) and sides[0] == sides[1]
      options['size'] = sides[0] if one else sides
    out.append(str(specs.Spec(spec.name, options)))
  return {**found.preprocess, 'transform': ', '.join(out)}
