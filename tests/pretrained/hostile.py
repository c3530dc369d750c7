"""What the tests of readers share: good arrays, a trap, a refusal."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest

ARRAYS = {
  'a/kernel': np.arange(6, dtype=np.float32).reshape(2, 3),
  'b': np.asfortranarray(np.arange(24, dtype=np.float64).reshape(2, 3, 4)),
  'c': np.float16(1.5).reshape(()),
  'd': np.zeros((0, 5), np.float32),
  'e': np.arange(5, dtype=np.int64) - 2,
  'f': np.array([[1.5, -2.0], [np.inf, 3e38]], ml_dtypes.bfloat16),
  'g': np.array([True, False]),
}


class Trap:
  """Whoever unpickles it makes a folder."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    import os

    return os.mkdir, (str(self.path),)


def equal(found, expected):
  assert set(found) == set(expected)
  for name, x in expected.items():
    assert found[name].dtype == x.dtype, name
    assert found[name].shape == x.shape, name
    assert found[name].tobytes() == x.tobytes(), name


def refused(read, path, text='.'):
  """It says so, names the file, and takes little memory to find out."""
  tracemalloc.start()
  with pytest.raises(ValueError, match=text) as error:
    read(path)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert path.name in str(error.value)
  assert peak < 2**23 + 2 * path.stat().st_size
