"""Refuses what somebody else's config asks for, before anything is built."""

import collections.abc
import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vit_jax import models, specs

# No model of anybody's has more.
LAYERS = 2**10
SIZE = 2**20  # of any other whole number
POSITIVE = (
  'patch_size', 'image_size', 'hidden_size', 'num_heads', 'mlp_dim',
  'tokens_mlp_dim', 'channels_mlp_dim', 'hidden_sizes', 'inner_size',
  'inner_heads', 'word_stride',
)  # fmt: skip
COUNTS = ('num_layers', 'num_class_layers', 'resnet', 'depths')  # of blocks
SPECS = (
  'attention', 'class_attention', 'inner_attention', 'position', 'stem',
)  # fmt: skip
TEXT = 4000  # letters of specs
DTYPES = ('float32', 'bfloat16', 'float16')  # to compute in


def bounded(where: str, name: str, value: Any, high: int, low: int = 1) -> int:
  """An integer of a file that somebody else wrote.

  Raises:
    ValueError: it is no integer in [low, high].
  """
  whole = isinstance(value, int) and not isinstance(value, bool)
  if not (whole and low <= value <= high):
    raise ValueError(
      f'{where}: {name}={value!r} must be a whole number in [{low}, {high}]'
    )
  return value


def check_sizes(where: str, config: Mapping[str, Any], variables: int) -> None:
  """Raises a ValueError on a number that cannot be, in specs too.

  Args:
    where: the file, for errors.
    config: the model's section.
    variables: how many the file has; a layer has one at least.
  """
  for name, value in config.items():
    numbers = list(_numbers(where, name, value))
    if name in COUNTS:
      bounded(where, name, sum(numbers), min(LAYERS, variables), low=0)
    for number in numbers:
      low = 1 if name in POSITIVE else -SIZE
      bounded(where, name, number, SIZE, low)


def _numbers(where: str, name: str, value: Any) -> Iterator[int]:
  if isinstance(value, tuple | list):
    for item in value:
      yield from _numbers(where, name, item)
  elif isinstance(value, str) and name in SPECS:
    for spec in parse(where, name, value):
      for option in spec.options.values():
        yield from _numbers(where, name, option)
  elif isinstance(value, int) and not isinstance(value, bool):
    yield value


def check_types(where: str, config: Mapping[str, Any]) -> None:
  """Raises a ValueError on a field that is not of the type it declares."""
  if 'name' not in config or config['name'] not in list(models.MODELS):
    raise ValueError(
      f'{where}: no name of a model in {config}; choices: '
      f'{", ".join(models.MODELS)}'
    )
  for field in dataclasses.fields(models.MODELS[config['name']]):
    if field.name == 'name' or field.name not in config:
      continue
    value, kind = config[field.name], field.type
    if field.name == 'dtype' and value not in DTYPES:
      choices = ', '.join(DTYPES)
      raise ValueError(f'{where}: dtype={value!r}; choices: {choices}')
    if not _is(value, kind):
      kind = kind.__name__ if isinstance(kind, type) else kind
      raise ValueError(
        f'{where}: {field.name}={value!r} must be of type {kind}'
      )


def _is(value: Any, kind: Any) -> bool:
  """Whether a literal is of the type of an annotation; an int is a float."""
  if isinstance(kind, types.UnionType):
    return any(_is(value, one) for one in typing.get_args(kind))
  if typing.get_origin(kind) is tuple:
    kinds = typing.get_args(kind)
    if not isinstance(value, tuple | list):
      return False
    if kinds[1:] == (...,):
      kinds = kinds[:1] * len(value)
    return len(value) == len(kinds) and all(map(_is, value, kinds))
  if typing.get_origin(kind) is collections.abc.Callable:
    return callable(value)
  if kind in (int, float) and isinstance(value, bool):
    return False
  if kind is float:
    return isinstance(value, int | float)
  return kind is Any or isinstance(value, kind)


def parse(where: str, name: str, text: Any) -> tuple[specs.Spec, ...]:
  """The specs in a file that somebody else wrote.

  Raises:
    ValueError: no specs, or too many or too deep.
  """
  if not isinstance(text, str) or len(text) > TEXT:
    raise ValueError(
      f'{where}: {name} must be specs, at most {TEXT} letters; it is '
      f'{str(text)[:80]!r}'
    )
  try:
    return specs.parse(text)
  except (ValueError, RecursionError, MemoryError) as e:
    raise ValueError(f'{where}, {name}: {e}') from e


def check_keys(
  where: str, given: Mapping[str, Any], keys: Sequence[str]
) -> None:
  """Raises a ValueError unless it has just these keys."""
  if set(given) != set(keys):
    raise ValueError(
      f'{where} has the keys {", ".join(given)}, not {", ".join(keys)}'
    )
