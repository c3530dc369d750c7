"""Values of somebody else's config, and of a model that is to be written.

What the families of models share; every check raises a ValueError that names
the file or format, the value and the choices.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn

from vit_jax.pretrained import base, steps, timm_checks
from vit_jax.pretrained.family import Arrays

LARGEST = 2**10  # of a window, a ratio or a number of heads
# timm's words for the classifiers that most families have, and for ours.
POOLS = {'token': 'token', 'avg': 'gap'}
POOLED = {ours: theirs for theirs, ours in POOLS.items()}
# What training drops; timm does not save it.
RATES = (
  'drop_rate', 'pos_drop_rate', 'proj_drop_rate', 'attn_drop_rate',
  'drop_path_rate',
)  # fmt: skip


def several(
  where: str, said: Mapping[str, Any], name: str, count: int | None = None,
  high: int = LARGEST,
) -> tuple[int, ...]:  # fmt: skip
  """Whole numbers of a config.json, one a stage.

  Raises:
    ValueError: anything else, or not `count` of them.
  """
  value = said[name]
  if not isinstance(value, list | tuple) or count not in (None, len(value)):
    raise ValueError(
      f'{where}: {name}={value!r} must be a list of '
      f'{"" if count is None else f"{count} "}numbers, one a stage'
    )
  return tuple(base.bounded(where, name, n, high) for n in value)


def ratios(
  where: str, said: Mapping[str, Any], name: str, count: int
) -> tuple[float, ...]:
  """Positive numbers of a config.json, one a stage; errors as `several`."""
  value = said[name]
  good = isinstance(value, list | tuple) and len(value) == count
  if not good or not all(steps.number(x) and 0 < x <= LARGEST for x in value):
    raise ValueError(
      f'{where}: {name}={value!r} must be {count} positive numbers up to '
      f'{LARGEST}, one a stage'
    )
  return tuple(value)


def rate(where: str, name: str, value: Any) -> float:
  """A rate of dropout or drop-path; a ValueError if it is none."""
  if not (steps.number(value) and 0 <= value < 1):
    raise ValueError(f'{where}: {name}={value!r} must be a number in [0, 1)')
  return float(value)


def number(where: str, name: str, value: Any) -> float:
  """Any number; a ValueError if it is none."""
  if not steps.number(value):
    raise ValueError(f'{where}: {name}={value!r} must be a number')
  return float(value)


def sides(
  where: str, name: str, value: Any, high: int = timm_checks.SIDE
) -> tuple[int, int]:
  """(height, width) of a number, or two; a ValueError if it is neither."""
  two = isinstance(value, Sequence) and not isinstance(value, str)
  if two and len(value) != 2:
    raise ValueError(f'{where}: {name}={value!r} must be one number or two')
  height, width = value if two else (value, value)
  return (
    base.bounded(where, name, height, high),
    base.bounded(where, name, width, high),
  )


def between(where: str, name: str, value: Any) -> float:
  """An ε, between 0 and 1; a ValueError if it is none."""
  if not (steps.number(value) and 0 < value < 1):
    raise ValueError(
      f'{where}: {name}={value!r} must be a number between 0 and 1'
    )
  return float(value)


def choose(
  where: str, said: Mapping[str, Any], **choices: Sequence[Any]
) -> None:
  """Raises a ValueError on a value that our model cannot follow."""
  for name, known in choices.items():
    # A list in JSON is a tuple in a configuration that is not saved yet.
    value = list(said[name]) if isinstance(said[name], tuple) else said[name]
    if not any(value == x and type(value) is type(x) for x in known):
      raise ValueError(
        f'{where}: {name}={said[name]!r} is not read; choices: '
        f'{", ".join(map(repr, known))}'
      )


def divided(where: str, name: str, count: Any, width: int) -> int:
  """A number of heads; a ValueError unless it divides the width."""
  base.bounded(where, name, count, width)
  if width % count:
    raise ValueError(
      f'{where}: {name}={count} does not divide the width {width}; model_args '
      f'can give {name}'
    )
  return count


def size_of(
  where: str, found: Arrays, name: str, rank: int = 2, axis: int = 0
) -> int:
  """One size of an array; 0 if there is none, as a classifier."""
  if name not in found:
    return 0
  return timm_checks.shape(where, found, name, rank)[axis]


def depths(
  found: Arrays, pattern: str, first: int = 0, most: int = LARGEST
) -> list[int]:
  """How many blocks each stage has.

  Args:
    found: the arrays.
    pattern: regular expression of names, whose groups are stage and block.
    first: the number of the first stage.
    most: stages beyond so many are not counted.
  """
  matches = (re.match(pattern, name) for name in found)
  places = {(int(m[1]) - first, int(m[2])) for m in matches if m}
  count = max((s for s, _ in places), default=-1) + 1
  return [
    sum(s == stage for s, _ in places) for stage in range(min(count, most))
  ]


def short(size: Sequence[int]) -> int | tuple[int, int]:
  """(height, width) as a field has it: one number if they are equal."""
  height, width = size
  return height if height == width else (height, width)


def must(model: nn.Module, form: str, **choices: Sequence[Any]) -> None:
  """Raises a ValueError on a field that a format has no place for.

  Args:
    model: ours.
    form: the format, for the error.
    **choices: of every field that counts.
  """
  for name, known in choices.items():
    value = getattr(model, name)
    if value not in known:
      raise ValueError(
        f'{form} has no place for {name}={value!r} of a '
        f'{type(model).__name__}; it would have to be '
        f'{" or ".join(map(repr, known))}'
      )


def prefix(model: nn.Module, found: Arrays | None, name: str) -> str:
  """In front of transformers' names of all but the classifier.

  Bare models have none. `found` are the arrays; None for those to be written.
  """
  if found is None:
    return f'{name}.' if model.num_classes else ''
  return found_prefix(found, name)


def found_prefix(found: Arrays, name: str) -> str:
  """As `prefix`, of arrays whose model is not known yet."""
  return f'{name}.' if any(n.startswith(f'{name}.') for n in found) else ''
