"""Batches on their way out of a pipeline: by whom they are read, and when."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from vit_jax.data import examples


class Batches:
  """An iterator over batches; `close()` it, or use it in `with`.

  Attributes:
    skipped: how many bad images were left out so far.
  """

  def __init__(self, iterator: Any, steps: Iterator[np.ndarray]):
    self._iterator = iterator
    self._real = steps  # for every batch, which of its rows are not padding
    self._ended = False
    self.skipped = 0

  def __iter__(self) -> 'Batches':
    return self

  def __next__(self) -> examples.Batch:
    if self._ended:
      raise StopIteration
    try:
      batch = next(self._iterator)
    except StopIteration:
      self._ended = True
      self.close()
      raise
    real = next(self._real)
    self.skipped += int(np.sum(real & (batch['weight'] == 0)))
    return batch

  def close(self) -> None:
    """Stops worker processes and threads."""
    self._iterator.close()

  def __enter__(self) -> 'Batches':
    return self

  def __exit__(self, *error) -> None:
    self.close()


@dataclasses.dataclass(frozen=True)
class Reading:
  """How examples are read, which changes no batch.

  Attributes:
    workers: processes that decode and transform; 0 is this process. They start
      afresh: a script that uses them needs `if __name__ == '__main__'`.
    threads: per process; 0 reads only when asked for a batch.
    prefetch: batches held ready, per process.
  """

  workers: int
  threads: int
  prefetch: int

  def __post_init__(self):
    for name in ('workers', 'threads', 'prefetch'):
      value = getattr(self, name)
      if not isinstance(value, int) or value < 0:
        raise ValueError(f'{name}={value!r} must be an integer of at least 0')

  def read(self, batches: Any) -> Any:
    """An iterator over a Grain `MapDataset` of batches."""
    import grain

    options = grain.ReadOptions(
      num_threads=self.threads,
      prefetch_buffer_size=max(self.prefetch, self.threads),
    )
    batches = batches.to_iter_dataset(options)
    if self.workers:
      from absl import flags

      if not flags.FLAGS.is_parsed():  # in a notebook; Grain reads its flags
        flags.FLAGS.mark_as_parsed()
      batches = batches.mp_prefetch(
        grain.MultiprocessingOptions(
          num_workers=self.workers, per_worker_buffer_size=2
        )
      )
    return iter(batches)
