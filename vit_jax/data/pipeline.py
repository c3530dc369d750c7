"""From a source to batches: shuffled, decoded, transformed, sliced, resumable.

The order comes first: step → indices → load → transform → batch. So a run
resumes at any step with no iterator state, and workers, threads, prefetching
and the number of processes change nothing in what a step sees.
"""

import copy
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.data import examples, views
from vit_jax.data.reading import Batches, Reading


class Data:
  """Batches of one data set; see `vit_jax.data.build`.

  Attributes:
    labels: class names.
    num_classes: how many.
    train_size: examples of the training split.
    test_size: examples of the test split.
    input: what a model reads of a batch, 'image' or 'tokens'.
    spec: `{name: (shape, dtype)}` of one transformed test example.
    preprocess: JSON-able; what prediction needs, see `load_image`.
    identity: JSON-able; a run resumes only where it is equal.
  """

  def __init__(
    self,
    train: views.Decoded,
    test: views.Decoded,
    train_chain: examples.Chain,
    test_chain: examples.Chain,
    labels: tuple[str, ...],
    reading: Reading,
    preprocess: Mapping[str, Any],
    identity: Mapping[str, Any],
    repeats: int = 1,
  ):
    self.labels = labels
    self.num_classes = len(labels)
    self.train_size = len(train)
    self.test_size = len(test)
    self.preprocess = dict(preprocess)
    self.identity = dict(identity)
    self._train, self._test = train, test
    self._train_chain, self._test_chain = train_chain, test_chain
    self._reading = reading
    self._repeats = repeats
    blank = test_chain(test[len(test)])
    self.input = 'tokens' if 'tokens' in blank else 'image'
    self._train_shape, _ = self._shape_of(train, train_chain, 'train')
    shape, dtype = self._shape_of(test, test_chain, 'test')
    if self._train_shape[2:] != shape[2:]:
      raise ValueError(
        f'training images have {self._train_shape[2]} channels and test images '
        f'{shape[2]}: the transforms must end in the same number'
      )
    self.spec = {
      self.input: (shape, dtype),
      'label': ((), np.dtype(np.int32)),
      'weight': ((), np.dtype(np.float32)),
    }

  @property
  def train_places(self) -> tuple[int, ...]:
    """Where in the split the training examples are."""
    return views.places(self._train)

  def train_labels(self) -> list[int]:
    """The class of each training example, none of which is decoded for it."""
    return [self._train.label(i) for i in range(self.train_size)]

  @property
  def channels(self) -> int | None:
    """Of images; None for sequences."""
    return self.spec['image'][0][-1] if self.input == 'image' else None

  def _shape_of(
    self, source: views.Decoded, chain: examples.Chain, which: str
  ) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type that the transforms give the blank example."""
    # Any seed will do: static shapes do not depend on it.
    x = chain(source[len(source)], np.random.default_rng(0))[self.input]
    if self.input == 'image' and x.dtype != np.float32:
      raise ValueError(
        f'the {which} transforms end in {x.dtype} pixels: end them with '
        'value_range(low=…, high=…) or normalize(mean=…, std=…)'
      )
    return x.shape, x.dtype

  def relabelled(self, labels: Sequence[str]) -> 'Data':
    """The same data with the classes of a model, some of which it may lack.

    Args:
      labels: names of the classes, in the order of the logits; see
        `views.find_classes` for which of them is which of `self.labels`.

    Raises:
      ValueError: a class of the data is not among them, or not clearly.
    """
    if tuple(labels) == self.labels:
      return self
    index = views.find_classes(self.labels, labels)
    out = copy.copy(self)
    out.labels, out.num_classes = tuple(labels), len(labels)
    out.identity = {**self.identity, 'classes': list(labels)}
    out._train = views.Renumbered(self._train, index)
    out._test = views.Renumbered(self._test, index)
    return out

  def few(self, shots: int, seed: int) -> 'Data':
    """The same data with training examples for its test split.

    Args:
      shots: how many of each class; 0 takes all training examples.
      seed: of the order, in which fewer shots are those of more, the first
        ones of each class.

    Raises:
      ValueError: a class has fewer.
    """
    order = self._order(shots, seed)
    out = copy.copy(self)
    out._test, out.test_size = views.Picked(self._train, order), len(order)
    return out

  def fewer(self, shots: int, seed: int) -> 'Data':
    """The same data with `shots` training examples of each class.

    Args and errors as in `few`.
    """
    order = self._order(shots, seed)
    out = copy.copy(self)
    out._train, out.train_size = views.Picked(self._train, order), len(order)
    out.identity = {**self.identity, 'shots': [shots, seed]}
    return out

  def held_out(self, share: float) -> tuple['Data', 'Data']:
    """The same data without a share of its training examples, and that share.

    Args:
      share: of the training examples, in (0, 1); which ones is drawn once for
        all, whatever the seed of a run. Of so many shots of each class it is
        the last of each class, so that what is left has as many of each and,
        of fewer shots, is part of what is left of more.

    Returns:
      Data that trains on the others, and data whose test split is the share,
      transformed as test examples are.

    Raises:
      ValueError: nothing would be left of one of them.
    """
    count = round(share * self.train_size)
    if not 0 < count < self.train_size:
      raise ValueError(
        f'a share of {share} of {self.train_size} training examples leaves '
        f'{self.train_size - count} to train on and holds {count} out'
      )
    order = self._order(0, 0)
    if 'shots' in self.identity:
      shots = self.identity['shots'][0]
      keep = min(round((1 - share) * shots), shots - 1)
      if not keep:
        raise ValueError(
          f'a share of {share} of {shots} shots of each class leaves none to '
          'train on'
        )
      kept = views.first_of_each(
        self._train, range(self.train_size), self.labels, keep
      )
      order = sorted(set(range(self.train_size)) - set(kept)) + kept
      count = self.train_size - len(kept)
    rest, held = copy.copy(self), copy.copy(self)
    rest._train = views.Picked(self._train, order[count:])
    rest.train_size = len(rest._train)
    rest.identity = {**self.identity, 'held_out': share}
    held._test = views.Picked(self._train, order[:count])
    held.test_size = count
    return rest, held

  def _order(self, shots: int, seed: int) -> list[int]:
    noise = np.random.RandomState(seed)  # noqa: NPY002  its streams are frozen
    order = noise.permutation(self.train_size).tolist()
    if not shots:
      return order
    return views.first_of_each(self._train, order, self.labels, shots)

  def train_batches(
    self,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process: int = 0,
    processes: int = 1,
  ) -> Batches:
    """Endless training batches from `start_step` on.

    Args:
      batch_size: of all processes together; each yields its share.
      seed: of the order and of the augmentation.
      start_step: the first batch is that of this step.
      process: index of this process.
      processes: how many share a batch.

    Returns:
      An iterator over `{'image': float32 [b H W C], 'label': int32 [b],
      'weight': float32 [b]}` with b = batch_size / processes; of sequences
      with 'tokens': int32 [b N] instead of images.
    """
    import grain

    rows = _share(batch_size, process, processes)
    for name, value in (('seed', seed), ('start_step', start_step)):
      if not 0 <= value < 2**32:
        raise ValueError(f'{name}={value} must be in [0, 2³²)')
    collate = examples.Collate(
      self._train_shape, self.num_classes, 'train', self.input
    )
    order = (
      grain.MapDataset.source(self._train).seed(seed).shuffle().repeat(None)
    )
    if self._repeats > 1:  # taken in turn, so that equal examples are adjacent
      order = grain.MapDataset.mix([order] * self._repeats).seed(seed)
    batches = (
      order.random_map(self._train_chain)[process::processes]
      .batch(rows, drop_remainder=True, batch_fn=collate)[start_step:]
    )
    real = itertools.repeat(np.ones(rows, bool))
    return Batches(self._reading.read(batches), real)

  def test_batches(
    self, batch_size: int, process: int = 0, processes: int = 1
  ) -> Batches:
    """One exact pass: every example once, in order, padded with weight 0.

    Args:
      batch_size: of all processes together.
      process: index of this process.
      processes: how many share a batch; all yield the same number of batches.

    Returns:
      An iterator as that of `train_batches`, with an end.
    """
    import grain

    rows = _share(batch_size, process, processes)
    collate = examples.Collate(
      self.spec[self.input][0], self.num_classes, 'test', self.input
    )
    steps = -(-self.test_size // batch_size)
    indices = np.arange(steps * batch_size)[process::processes]
    batches = (
      grain.MapDataset.range(steps * batch_size)
      .map(self._test.__getitem__)
      .map(self._test_chain)[process::processes]
      .batch(rows, batch_fn=collate)
    )
    real = iter((indices < self.test_size).reshape(steps, rows))
    # In this process: a run evaluates many times, and workers take seconds to
    # start, while decoding and resizing release Python's lock to threads.
    reading = dataclasses.replace(self._reading, workers=0)
    return Batches(reading.read(batches), real)


def _share(batch_size: int, process: int, processes: int) -> int:
  """Rows of a batch that one process yields."""
  if not 0 <= process < processes:
    raise ValueError(f'process={process} is not in 0…{processes - 1}')
  if batch_size < 1 or batch_size % processes:
    raise ValueError(
      f'batch_size={batch_size} must be a positive multiple of '
      f'processes={processes}'
    )
  return batch_size // processes
