"""How an array of a file lies in memory, and how our variable does."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

Arrays = tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
  """How arrays of a file become variables (`read`), and back (`write`).

  Both take as many arrays as there are names on their side of the `Pair`, and
  return as many as there are on the other. `read` raises a ValueError if the
  shapes are impossible.
  """

  read: Callable[..., Arrays]
  write: Callable[..., Arrays]


def _one(read: Callable, write: Callable) -> Layout:
  return Layout(lambda x: (read(x),), lambda x: (write(x),))


SAME = _one(lambda x: x, lambda x: x)
# PyTorch's Linear [out in] ↔ Dense [in out].
DENSE = _one(lambda x: _ranked(x, 2).T, lambda x: x.T)
# PyTorch's Conv2d [out in rows columns] ↔ Conv [rows columns in out].
CONV = _one(
  lambda x: _ranked(x, 4).transpose(2, 3, 1, 0),
  lambda x: x.transpose(3, 2, 0, 1),
)
# Its convolution of one pixel [out in 1 1] ↔ Dense [in out].
PIXEL = _one(
  lambda x: _ranked(x, 4).reshape(x.shape[:2]).T,
  lambda x: x.T[:, :, None, None],
)


def _ranked(x: np.ndarray, rank: int) -> np.ndarray:
  if x.ndim != rank:
    raise ValueError(f'{x.ndim} dimensions where {rank} are expected')
  return x


def reshaped(ours: Sequence[int], theirs: Sequence[int]) -> Layout:
  """The same numbers in another shape; sizes of either side, -1 for any."""
  return _one(
    lambda x: x.reshape(tuple(ours)), lambda x: x.reshape(tuple(theirs))
  )


def heads(count: int) -> Layout:
  """PyTorch's Linear [H·D C] ↔ a query, key or value kernel [C H D]."""
  return _one(
    lambda x: _ranked(x, 2).T.reshape(x.shape[1], count, -1),
    lambda x: x.reshape(x.shape[0], -1).T,
  )


def heads_bias(count: int) -> Layout:
  """A bias [H·D] ↔ [H D]."""
  return _one(
    lambda x: _ranked(x, 1).reshape(count, -1), lambda x: x.reshape(-1)
  )


def heads_out(count: int) -> Layout:
  """PyTorch's Linear [C H·D] ↔ the kernel [H D C] of `out`."""
  return _one(
    lambda x: _ranked(x, 2).T.reshape(count, -1, x.shape[0]),
    lambda x: x.reshape(-1, x.shape[-1]).T,
  )


def fused(layout: Layout, parts: int = 3) -> Layout:
  """One array, `parts` blocks along its first axis ↔ as many variables."""

  def read(x):
    if not x.ndim or x.shape[0] % parts:
      raise ValueError(f'its first axis is not {parts} equal blocks')
    return tuple(layout.read(p)[0] for p in np.split(x, parts))

  def write(*found):
    return (np.concatenate([layout.write(p)[0] for p in found]),)

  return Layout(read, write)


def stacked(count: int) -> Layout:
  """One array with a leading axis of `count` ↔ as many variables."""

  def read(x):
    if not x.ndim or x.shape[0] != count:
      raise ValueError(f'its first axis is not one of {count}')
    return tuple(x)

  return Layout(read, lambda *found: (np.stack(found),))
