"""Where a run starts: a checkpoint, made to fit the config and the data."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vit_jax import data, identity, layers, pretrained, specs
from vit_jax.pretrained import teacher

HEADS = {
  'by_name': 'the head of the checkpoint; classes are matched by name',
  'by_number': 'the head of the checkpoint; class i of the data is its class i',
  'new': 'a new one for the classes of the data; training only',
}
_SCALINGS = ('value_range', 'normalize')


def load(path: str, section: Mapping[str, Any]) -> pretrained.Pretrained:
  """A checkpoint, with what `config.model` changes of it, but for the classes.

  Args:
    path: as `pretrained.load` takes it.
    section: `config.model`; what it leaves out, or None, is the checkpoint's.

  Raises:
    ValueError: it asks for another architecture.
  """
  found = pretrained.load(path)
  changed = changes(found, section)
  return pretrained.change(
    found, **{k: v for k, v in changed.items() if k != 'num_classes'}
  )


def changes(
  found: pretrained.Pretrained, section: Mapping[str, Any]
) -> dict[str, Any]:
  """The fields of `config.model` that differ from the loaded model's.

  Raises:
    ValueError: a field that such a model does not have.
  """
  given = {k: v for k, v in section.items() if v is not None}
  name = found.config['name']
  if 'name' in given and given.pop('name') != name:
    return {'name': section['name']}  # which may not change
  if 'variant' in given:
    rows, what = type(found.model).VARIANTS, f'variant of the model {name!r}'
    given = {**specs.lookup(rows, given.pop('variant'), what), **given}
  specs.check_options(type(found.model), given, f'the model {name!r}')
  return {
    k: v
    for k, v in given.items()
    if identity.plain(v) != identity.plain(getattr(found.model, k))
  }


def transforms(
  section: Mapping[str, Any], found: pretrained.Pretrained
) -> dict[str, Any]:
  """`config.data` with what it leaves out taken from a checkpoint.

  An empty `decode`, `test` or `train` is the checkpoint's preprocessing as a
  whole; transforms without a size or a scaling of the pixels get its own, see
  `complete`. Says so.
  """
  if 'vocabulary' in found.preprocess:
    return {'train': '', 'test': '', **section}
  section = {'train': '', 'test': '', 'decode': '', **section}
  theirs = found.preprocess['transform']
  test = complete(section['test'] or theirs, theirs, found.channels)
  train = complete(section['train'] or test, test, found.channels)
  decode = section['decode'] or found.preprocess['decode']
  for key, text in (('decode', decode), ('train', train), ('test', test)):
    if specs.parse(text) != specs.parse(section[key] or ''):
      say(f'data.{key}, with what the checkpoint says: {text}')
  return {**section, 'train': train, 'test': test, 'decode': decode}


def complete(text: str, theirs: str, channels: int) -> str:
  """Transforms, with what they leave out taken from those of a checkpoint.

  A transform that wants a `size` and has none gets the last one of `theirs`;
  transforms that do not scale the pixels end with the scaling of `theirs`.

  Args:
    text: specs of `data.TRANSFORMS`.
    theirs: those that the checkpoint was trained for.
    channels: of the images.

  Raises:
    ValueError: they scale the pixels otherwise.
  """
  given, wanted = specs.parse(text), specs.parse(theirs)
  sizes = [s.options['size'] for s in wanted if 'size' in s.options]
  out = [_sized(s, sizes[-1]) if sizes else s for s in given]
  ours, scaling = (
    [s for s in chain if s.name in _SCALINGS] for chain in (given, wanted)
  )
  if not ours:
    out += scaling
  elif scaling and not np.allclose(
    *(teacher.scale(_text(chain), channels) for chain in (ours, scaling)),
    atol=1e-4,
  ):
    raise ValueError(
      f'{_text(ours)} in {text!r} scales the pixels otherwise than the '
      f'checkpoint was trained with, {_text(scaling)}: leave it out, and the '
      "checkpoint's is taken"
    )
  return _text(out)


def _text(chain: Any) -> str:
  return ', '.join(str(spec) for spec in chain)


def _sized(spec: specs.Spec, size: Any) -> specs.Spec:
  """The spec with that size, if it must have one and has none."""
  entry = specs.lookup(data.TRANSFORMS, spec.name, 'transform')
  fields = {f.name: f for f in dataclasses.fields(entry)}
  if 'size' not in fields or 'size' in spec.options:
    return spec
  if fields['size'].default is not dataclasses.MISSING:
    return spec
  rows, columns = layers.pair(size)
  if rows == columns or spec.name == 'resize_short':  # which takes one number
    size = max(rows, columns)
  return specs.Spec(spec.name, {'size': size, **spec.options})


def fit(
  found: pretrained.Pretrained,
  built: Any,
  *,
  head: str,
  num_classes: int | None,
  training: bool,
  subset: bool = False,
) -> tuple[pretrained.Pretrained, Any]:
  """A checkpoint and data with the same classes, one way or the other.

  Args:
    found: the checkpoint.
    built: the data.
    head: a key of `HEADS`.
    num_classes: what `config.model` says; in training, another number than
      the checkpoint's asks for a new head too.
    training: whether a new head would be trained.
    subset: whether to train the checkpoint's head on some of its classes: a
      teacher says what becomes of the others.

  Raises:
    ValueError: the classes do not fit.
  """
  has, wants = found.model.num_classes, built.num_classes
  if num_classes not in (None, has):
    if num_classes != wants:
      raise ValueError(
        f'config.model.num_classes={num_classes}, but the data has {wants}'
      )
    head = 'new'
  if head == 'new':
    if not training:
      raise ValueError(
        "config.head='new' is for training; evaluate with 'by_name'"
      )
    return _with_new_head(found, wants), built
  some = subset or not training
  if has != wants and (
    not some or head == 'by_number' or not found.labels
  ):
    advice = (
      "; config.head='new' starts a new head for those of the data"
      if training
      else ", and no names to match them by: config.head='by_name' needs the "
      "checkpoint's labels"
    )
    raise ValueError(
      f'the checkpoint has {has} classes and the data {wants}{advice}'
    )
  if head == 'by_number':
    return found, built
  if not found.labels:
    say('the checkpoint names no classes: class i of the data is its class i')
    return found, built
  try:
    named = built.relabelled(found.labels)
  except ValueError as e:
    advice = "config.head='by_number' takes class i of the data for its class i"
    if training:
      advice = f"config.head='new' starts a new head; {advice}"
    raise ValueError(f'{e}; {advice}' if has == wants else str(e)) from e
  if named is not built:
    say(f'{wants} classes of the data found by name among {has} of the model')
  return found, named


def check_channels(found: pretrained.Pretrained, built: Any) -> None:
  """Raises a ValueError if the data's images are not the checkpoint's."""
  channels = built.channels
  if (channels is None) != (found.channels is None):
    kinds = ('sequences', 'images') if channels is None else (
      'images', 'sequences'
    )  # fmt: skip
    raise ValueError(
      f'the data are {kinds[0]}, and the checkpoint takes {kinds[1]}: set '
      'config.data.source'
    )
  if channels != found.channels:
    raise ValueError(
      f'the images have {channels} channels, and the checkpoint takes '
      f'{found.channels}: set config.data.decode="decode(channels='
      f'{found.channels})"'
    )


def _with_new_head(
  found: pretrained.Pretrained, num_classes: int
) -> pretrained.Pretrained:
  """The checkpoint with a new head, even of the same number of classes."""
  say(f'a new head for {num_classes} classes')
  params = found.variables['params']
  params = {k: v for k, v in params.items() if k not in ('head', 'head_dist')}
  bare = dataclasses.replace(
    found, variables={**found.variables, 'params': params}
  )
  return dataclasses.replace(
    pretrained.change(bare, num_classes=num_classes), labels=()
  )


def say(text: str) -> None:
  """Prints a line, in one of the processes."""
  if jax.process_index() == 0:
    print(text, flush=True)
