"""What a loaded model is, and how a format's arrays fill it."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import layers, models
from vit_jax.pretrained import checks, convert
from vit_jax.pretrained.checks import bounded

TOKENS = 2**16  # more patches nobody has
TABLE = 2**26  # numbers in a fixed table of positions


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A model with its weights.

  Attributes:
    model: the module.
    variables: its variables, 'params' and any other collection.
    preprocess: the specs that turn an image into the model's input: 'decode'
      and 'transform', as `data.load_image` takes them.
    labels: names of the classes, () if they are unknown.
    config: the model's section of a config: `models.build(**config)`.
    channels: of the images; None for a model of sequences.
    dtypes: the dtype that a variable has in the file it came from, by name,
      where it is not float32; `save` writes it back so.
    mapping: (arrays of the file, variables) of the conversion, to be shown.
  """

  model: nn.Module
  variables: dict[str, Any]
  preprocess: dict[str, str]
  labels: tuple[str, ...]
  config: dict[str, Any]
  channels: int | None = 3
  dtypes: Mapping[str, str] = dataclasses.field(default_factory=dict)
  mapping: Sequence[tuple[str, str]] = ()

  @property
  def dtype(self) -> Any:
    """The dtype of the computation."""
    return jnp.dtype(self.model.dtype)


def shapes(model: nn.Module, channels: int | None) -> dict[str, Any]:
  """The variables of a model, abstract: at its own image size, or length."""
  if channels is None:
    example = jax.ShapeDtypeStruct((1, *model.input_shape), jnp.int32)
  else:
    size = (*layers.pair(model.image_size), channels)
    example = jax.ShapeDtypeStruct((1, *size), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), example)


def fill(
  where: str,
  *,
  config: Mapping[str, Any],
  arrays: Mapping[str, np.ndarray],
  table: Sequence[convert.Pair],
  preprocess: Mapping[str, str],
  labels: Sequence[str] = (),
  channels: int = 3,
  dropped: Sequence[str] = (),
) -> Pretrained:
  """Builds the model of `config` and fills it, strictly, from `arrays`.

  Args:
    where: the file or folder, for errors.
    config: `models.build(**config)`.
    arrays: the file's.
    table: which arrays become which variables.
    preprocess: see `Pretrained`.
    labels: names of the classes.
    channels: of the images.
    dropped: regular expressions of arrays that nobody needs.

  Raises:
    ConversionError: arrays and model do not match.
    ValueError: a bad config, one of absurd size, bad preprocessing, or a
      number of labels that is not the model's.
  """
  config = dict(config)
  check_fields(where, config, sum(len(pair.ours) for pair in table))
  checks.check_keys(f'{where}, preprocess', preprocess, ('decode', 'transform'))
  for name, text in preprocess.items():
    checks.parse(where, name, text)
  with _named(where):
    model = models.build(**config)
    height, width = layers.pair(model.image_size)
    rows, columns = -(-height // model.stride), -(-width // model.stride)
  bounded(where, 'number of patches', rows * columns, TOKENS)
  table_size = rows * columns * model.hidden_size
  bounded(where, 'patches times hidden_size', table_size, TABLE)
  with _named(where):
    wanted = shapes(model, channels)
  if labels and len(labels) != model.num_classes:
    raise ValueError(
      f'{where} names {len(labels)} labels for {model.num_classes} classes'
    )
  flat, dtypes = convert.read(
    arrays, table, convert.flatten(wanted), where, dropped
  )
  variables = convert.unflatten(
    {name: jnp.asarray(x) for name, x in flat.items()},
    set(wanted) - {'params'},
  )
  return Pretrained(
    model, variables, dict(preprocess), tuple(labels), config, channels,
    dtypes, shown(table),
  )  # fmt: skip


def check_fields(
  where: str, config: Mapping[str, Any], variables: int
) -> None:
  """Raises a ValueError on fields of a type or a size that cannot be.

  Args:
    where: the file or folder, for errors.
    config: `models.build(**config)`.
    variables: how many the file has; a layer has one at least.
  """
  checks.check_types(where, config)
  checks.check_sizes(where, config, variables)


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
  """Says which file has the fields of which no model can be built."""
  try:
    yield
  except (
    ValueError, TypeError, AttributeError, ArithmeticError, RecursionError,
    MemoryError,
  ) as e:  # fmt: skip
    raise ValueError(f'{where}: no such model can be built: {e}') from e


def shown(table: Sequence[convert.Pair]) -> tuple[tuple[str, str], ...]:
  """The pairs of a table as text."""
  return tuple((', '.join(p.theirs), ', '.join(p.ours)) for p in table)


def parts(where: str, given: Mapping[str, Any]) -> dict[str, Any]:
  """The parts model, preprocess and labels of JSON that we once wrote.

  Lists are tuples, as configs and module fields have them.

  Raises:
    ValueError: they are no fields by name, specs by name, and strings.
  """
  for name in ('model', 'preprocess'):
    if not isinstance(given[name], dict):
      raise ValueError(f'{where}: {name}={given[name]!r} must be an object')
  labels = given['labels']
  strings = isinstance(labels, list) and all(
    isinstance(label, str) for label in labels
  )
  if not strings:
    raise ValueError(f'{where}: labels must be a list of strings')
  return {
    'model': _tuples(given['model']),
    'preprocess': given['preprocess'],
    'labels': tuple(labels),
  }


def _tuples(value: Any) -> Any:
  if isinstance(value, dict):
    return {k: _tuples(v) for k, v in value.items()}
  if isinstance(value, list):
    return tuple(_tuples(v) for v in value)
  return value


def to_json(where: str, value: Mapping[str, Any]) -> str:
  """JSON text; raises a ValueError on what is no literal."""
  try:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
  except (TypeError, ValueError) as e:
    raise ValueError(f'{where}: {value} cannot be written: {e}') from e


__all__ = [
  'Pretrained', 'bounded', 'check_fields', 'fill', 'parts', 'shapes', 'shown',
  'to_json',
]  # fmt: skip
