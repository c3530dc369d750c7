"""The same examples under other labels, or some of them only."""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from vit_jax.data import examples
from vit_jax.data.transforms import Example

_WORDNET = re.compile(r'n\d{8}(?!\S)')
_SHOWN = 8  # names in an error


def find_classes(
  names: Sequence[str], among: Sequence[str]
) -> tuple[int, ...]:
  """The index in `among` of each of `names`.

  Names are of one class if they are equal, or if they begin with the same
  WordNet id: 'n01443537' is 'n01443537 goldfish, Carassius auratus'.

  Raises:
    ValueError: a name without a class, with several, or two with the same.
  """
  if tuple(names) == tuple(among):  # which may have equal names: two cranes
    return tuple(range(len(names)))
  exact, ids = _places(among), _places([_wordnet(n) for n in among])
  found = [
    exact[n] if n in exact else ids[w] if (w := _wordnet(n)) in ids else []
    for n in names
  ]
  strange = [n for n, at in zip(names, found, strict=True) if not at]
  if strange:
    raise ValueError(
      f'{len(strange)} of the {len(names)} classes of the data are not among '
      f'the {len(among)} of the model: '
      + _shown(strange, lambda n: f'{n!r}{_nearest(n, among)}')
    )
  for name, at in zip(names, found, strict=True):
    if len(at) > 1:
      raise ValueError(
        f'the class {name!r} of the data may be any of '
        + _shown(at, lambda i: f'{among[i]!r} (class {i})')
      )
  index = tuple(i for (i,) in found)
  for i, places in _places(index).items():
    if len(places) > 1:
      raise ValueError(
        _shown(places, lambda p: repr(names[p]))
        + f' of the data are one class of the model, {among[i]!r}'
      )
  return index


def _places(keys: Iterable[Any]) -> dict[Any, list[int]]:
  """Where each key is; None is none."""
  out = {}
  for i, key in enumerate(keys):
    if key is not None:
      out.setdefault(key, []).append(i)
  return out


def _wordnet(name: str) -> str | None:
  start = _WORDNET.match(name)
  return start and start.group()


def _nearest(name: str, names: Sequence[str]) -> str:
  close = difflib.get_close_matches(name, names, n=1)
  return f' (nearest: {close[0]!r})' if close else ''


def _shown(found: Sequence[Any], say: Callable[[Any], str]) -> str:
  more = f', and {len(found) - _SHOWN} more' * (len(found) > _SHOWN)
  return ', '.join(say(x) for x in found[:_SHOWN]) + more


class Renumbered:
  """Examples whose label k is `index[k]` instead."""

  def __init__(self, source: 'Decoded', index: tuple[int, ...]):
    self._source, self._index = source, index

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Example:
    example = self._source[index]
    return {**example, 'label': self._index[example['label']]}

  def label(self, index: int) -> int:
    """The label of an example, which is not decoded for it."""
    return self._index[self._source.label(index)]

  def places(self) -> tuple[int, ...]:
    """Where the examples are in what lies below all picking."""
    return places(self._source)


class Picked:
  """The examples at these places, and the padding after them."""

  def __init__(self, source: 'Decoded', places: Sequence[int]):
    self._source, self._places = source, tuple(places)

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, index: int) -> Example:
    if index >= len(self):
      return self._source[len(self._source)]
    return self._source[self._places[index]]

  def label(self, index: int) -> int:
    """The label of an example, which is not decoded for it."""
    return self._source.label(self._places[index])

  def places(self) -> tuple[int, ...]:
    """Where the examples are in what lies below all picking."""
    below = places(self._source)
    return tuple(below[i] for i in self._places)


Decoded = examples.Decoded | examples.Padded | Renumbered | Picked


def places(source: Decoded) -> tuple[int, ...]:
  """Where in its split each example of a view is."""
  if isinstance(source, Renumbered | Picked):
    return source.places()
  return tuple(range(len(source)))


def first_of_each(
  source: Decoded, order: Sequence[int], labels: Sequence[str], shots: int
) -> list[int]:
  """The first `shots` places of `order` with an example of each class.

  Raises:
    ValueError: a class has fewer.
  """
  counts, out = [0] * len(labels), []
  for place in order:
    if len(out) == shots * len(labels):
      break
    label = source.label(place)
    if counts[label] < shots:
      counts[label] += 1
      out.append(place)
  for count, name in zip(counts, labels, strict=True):
    if count < shots:
      raise ValueError(
        f'{shots} examples of each class are wanted, and the training split '
        f'has {count} of {name!r}'
      )
  return out
