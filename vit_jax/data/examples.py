"""Examples on their way from a source to a batch."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from vit_jax.data import decode, transforms

Example = transforms.Example
Batch = dict[str, np.ndarray]


@runtime_checkable
class Source(Protocol):
  """Random access to the examples of one split.

  An example is `{'image': bytes or uint8 [H W C], 'label': int, 'name': str}`,
  or of a sequence `{'tokens': int32 [n], …}`, with n up to the source's
  `length`, numbers of its `vocabulary` from 1 on: 0 is padding. Several texts
  are int32 [texts n], the shorter ones padded. A source that knows labels
  without making the examples has a method `label(index)` as well.
  """

  location: tuple[str, ...]  # options that say where the data is, not which
  labels: tuple[str, ...]
  fingerprint: str  # hex; another one if names, sizes or labels change

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...


class Decoded:
  """A source with its images decoded; bad ones refused, or blank with weight 0.

  Indices from `len(source)` on are blank too: the padding of the last batch.
  """

  def __init__(
    self,
    source: Source,
    decoder: decode.Decode,
    on_bad: str,
    cache: bool,
  ):
    self._source = source
    self._decode = decoder
    self._on_bad = on_bad
    self._size = len(source)
    self._cache = {} if cache else None
    self._said = set()
    self._blank = np.zeros_like(self._first_good())

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> Example:
    if index >= self._size:
      return _example(self._blank, 0, 0.0, 'an image as large as the first')
    if self._cache is not None and index in self._cache:
      return self._cache[index]
    raw = self._source[index]
    image = self._load(raw)
    good = image is not None
    image = image if good else self._blank
    example = _example(image, raw['label'], float(good), raw['name'])
    if self._cache is not None:
      image.flags.writeable = False  # it is shared from here on
      self._cache[index] = example
    return example

  def label(self, index: int) -> int:
    """The label of an example, which is not decoded for it."""
    if hasattr(self._source, 'label'):
      return self._source.label(index)
    return int(self._source[index]['label'])

  def __getstate__(self) -> dict[str, Any]:
    # A worker process fills a cache of its own.
    cache = None if self._cache is None else {}
    return {**self.__dict__, '_cache': cache}

  def _load(self, raw: Example) -> np.ndarray | None:
    """The decoded image, or None for a bad one that may be skipped."""
    try:
      return self._decode(raw['image'])
    except decode.BadImageError as e:
      if self._on_bad == 'refuse':
        raise decode.BadImageError(
          f"cannot use {raw['name']}: {e}; on_bad='skip' leaves such images out"
        ) from None
      if raw['name'] not in self._said:  # once, not in every epoch
        self._said.add(raw['name'])
        logging.warning('skipped %s: %s', raw['name'], e)
      return None

  def _first_good(self, tries: int = 100) -> np.ndarray:
    """The first image that decodes."""
    for index in range(min(self._size, tries)):
      image = self._load(self._source[index])
      if image is not None:
        return image
    raise ValueError(
      f"on_bad='skip' skipped all of the first {index + 1} images; the log "
      'says why'
    )


class Padded:
  """A source of sequences, each filled with zeros up to the longest.

  Indices from `len(source)` on are all padding: that of the last batch.
  """

  def __init__(self, source: Source, cache: bool):
    self._source = source
    self._cache = {} if cache else None
    self._texts = source[0]['tokens'].shape[:-1]

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Example:
    if index >= len(self._source):
      blank = np.zeros((*self._texts, self._source.length), np.int32)
      return {'tokens': blank, 'label': 0, 'weight': 0.0, 'name': 'padding'}
    if self._cache is not None and index in self._cache:
      return self._cache[index]
    raw = self._source[index]
    missing = self._source.length - raw['tokens'].shape[-1]
    if missing < 0:
      raise ValueError(
        f'{raw["name"]} has {raw["tokens"].shape[-1]} tokens, more than the '
        f'{self._source.length} that its source declares'
      )
    before = [(0, 0)] * len(self._texts)
    tokens = np.pad(raw['tokens'], [*before, (0, missing)])
    example = {**raw, 'tokens': tokens, 'weight': 1.0}
    if self._cache is not None:
      tokens.flags.writeable = False  # it is shared from here on
      self._cache[index] = example
    return example

  def label(self, index: int) -> int:
    """The label of an example."""
    if hasattr(self._source, 'label'):
      return self._source.label(index)
    return int(self[index]['label'])

  def __getstate__(self) -> dict[str, Any]:
    # A worker process fills a cache of its own.
    cache = None if self._cache is None else {}
    return {**self.__dict__, '_cache': cache}


def _example(
  image: np.ndarray, label: int, weight: float, name: str
) -> Example:
  return {'image': image, 'label': label, 'weight': weight, 'name': name}


@dataclasses.dataclass(frozen=True)
class Chain:
  """Transforms, one after the other."""

  transforms: tuple[Callable, ...]

  def __call__(
    self, example: Example, rng: np.random.Generator | None = None
  ) -> Example:
    """Applies all; a ValueError names the example."""
    try:
      for transform in self.transforms:
        example = transform(example, rng)
    except ValueError as e:
      raise ValueError(f'{example["name"]}: {e}') from e
    return example


@dataclasses.dataclass(frozen=True)
class Collate:
  """Examples → a batch, all of one shape."""

  shape: tuple[int, ...]
  num_classes: int
  which: str  # 'train' or 'test', for the messages
  input: str = 'image'  # or 'tokens': what a model reads

  def __call__(self, examples: list[Example]) -> Batch:
    """Stacks what belongs into a batch, which names do not."""
    dtype = examples[0][self.input].dtype
    inputs = np.empty((len(examples), *self.shape), dtype)
    for i, example in enumerate(examples):
      if example[self.input].shape != self.shape:
        raise ValueError(
          f'{example["name"]} comes out as {example[self.input].shape}, others '
          f'as {self.shape}: batches have one shape; end the geometry of the '
          f'{self.which} transforms with one of resize(size=…), '
          'inception_crop(size=…), center_crop(size=…)'
        )
      if not 0 <= example['label'] < self.num_classes:
        raise ValueError(
          f'{example["name"]} has the label {example["label"]}, not one of the '
          f'{self.num_classes} classes 0…{self.num_classes - 1}'
        )
      inputs[i] = example[self.input]
    return {
      self.input: inputs,
      'label': np.array([e['label'] for e in examples], np.int32),
      'weight': np.array([e['weight'] for e in examples], np.float32),
    }
