"""Loads a trained model, with all that using it takes."""

import dataclasses
import os
import pathlib
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from vit_jax import checkpoints, layers, models
from vit_jax.shapes import Array

# Fields that a loaded architecture may change; the rest is the checkpoint's.
OVERRIDES = (
  'num_classes', 'attention', 'image_size', 'dropout_rate',
  'attention_dropout_rate', 'drop_path_rate', 'patch_dropout_rate', 'remat',
  'dtype',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A model with its weights.

  Attributes:
    model: the module.
    variables: its variables, 'params' and any other collection.
    preprocess: the specs that turn an image into the model's input.
    labels: names of the classes.
    config: the model's section of the config: `models.build(**config)`.
  """

  model: nn.Module
  variables: dict[str, Any]
  preprocess: dict[str, str]
  labels: tuple[str, ...]
  config: dict[str, Any]

  @property
  def dtype(self) -> Any:
    """The dtype of the computation."""
    return jnp.dtype(self.model.dtype)


def load(path: str | os.PathLike, **overrides: Any) -> Pretrained:
  """Loads a run's workdir, or one of its `checkpoints/STEP` folders.

  Args:
    path: the folder. Averaged parameters are taken where the run has them.
    **overrides: fields of the model to change, of `OVERRIDES`: another
      image_size resizes the position table, another num_classes starts with
      a new head.

  Raises:
    ValueError: no good checkpoint there, or a field that may not change.
  """
  for key, value in overrides.items():
    if key not in OVERRIDES:
      raise ValueError(
        f'{key}={value!r} is given, but the architecture is that of {path}; '
        f'what may change: {", ".join(OVERRIDES)}'
      )
  if not pathlib.Path(path).exists():
    raise ValueError(f'{path} does not exist')
  step_dir = checkpoints.find(path)
  meta = checkpoints.read_meta(step_dir)
  old = models.build(**meta['model'])
  channels = meta['channels']
  shapes = _shapes(old, channels)
  variables = checkpoints.read_weights(step_dir, shapes)
  labels = meta['labels']
  if not overrides:
    return Pretrained(
      old, variables, meta['preprocess'], labels, meta['model']
    )
  config = {**meta['model'], **overrides}
  model = models.build(**config)
  variables = adapt(variables, old, model, channels)
  if model.num_classes != old.num_classes:
    labels = ()
  return Pretrained(model, variables, meta['preprocess'], labels, config)


def _shapes(model: nn.Module, channels: int) -> dict[str, Any]:
  size = (*layers.pair(model.image_size), channels)
  return jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros((1, *size)))
  )


def adapt(
  variables: dict[str, Any], old: nn.Module, new: nn.Module, channels: int
) -> dict[str, Any]:
  """Variables of `old` for `new`: positions resized, another head anew.

  Parameters that only `new` has (those of another attention) are initialised.

  Raises:
    ValueError: a parameter has another shape in `new`.
  """
  size = (*layers.pair(new.image_size), channels)
  target = flax.traverse_util.flatten_dict(
    dict(new.init(jax.random.key(0), jnp.zeros((1, *size)))), sep='/'
  )
  source = flax.traverse_util.flatten_dict(dict(variables), sep='/')
  out = {}
  for name, value in target.items():
    if name not in source:
      out[name] = value
    elif source[name].shape == value.shape:
      out[name] = source[name]
    elif name.endswith('/pos_embedding'):
      out[name] = _resize(source[name], old, new)
    elif name.startswith('params/head/'):
      out[name] = value
    else:
      raise ValueError(
        f'{name} has shape {source[name].shape} in the checkpoint and '
        f'{value.shape} in the model'
      )
  return flax.traverse_util.unflatten_dict(out, sep='/')


def _resize(table: Array, old: nn.Module, new: nn.Module) -> Array:
  grids = [layers.grid_of(m.image_size, m.patch_size) for m in (old, new)]
  learned = table.shape[1] - grids[0][0] * grids[0][1]
  cells = layers.resize_positions(table[:, learned:], *grids)
  return jnp.concatenate([table[:, :learned], cells], axis=1)
