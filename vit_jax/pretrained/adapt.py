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
  'num_classes', 'attention', 'image_size', 'patch_size', 'position_resize',
  'dropout_rate', 'attention_dropout_rate', 'drop_path_rate',
  'patch_dropout_rate', 'remat', 'dtype',
)  # fmt: skip

HEAD = re.compile(r'params/head(_dist)?/')
KERNEL = '/attend/'  # an attention's own; they depend on its options and N


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
      drops the labels; another image_size resizes the position table, by the
      rule `position_resize`, and the sizes in the preprocessing; another
      patch_size resizes the patch embedding by pseudo-inverse; the parameters
      of another attention are initialised.

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
      out[name] = _resize_table(source[name], old, new)
    elif source[name].shape == like.shape:
      out[name] = source[name]
    elif name == 'params/embedding/kernel':
      size = layers.pair(new.patch_size)
      out[name] = resize_patches(source[name], size)
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


def _resize_table(table: Array, old: nn.Module, new: nn.Module) -> Array:
  grids = [layers.grid_of(m.image_size, m.stride) for m in (old, new)]
  if grids[0] == grids[1]:
    return table
  learned = table.shape[1] - grids[0][0] * grids[0][1]
  cells = layers.resize_positions(
    table[:, learned:], *grids, new.position_resize
  )
  return jnp.concatenate([table[:, :learned], cells], axis=1)


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
