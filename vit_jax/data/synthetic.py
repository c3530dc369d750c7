"""Random images of a declared shape, for benchmarks and tests."""

import hashlib
import zlib

import numpy as np


class Synthetic:
  """Uniform noise, a function of split and index only; balanced labels.

  Attributes:
    labels: `('0', '1', …)`.
    fingerprint: of everything that decides the examples.
  """

  location = ()

  def __init__(
    self,
    split: str,
    classes: int = 10,
    height: int = 32,
    width: int = 32,
    channels: int = 3,
    size: int = 512,
  ):
    sizes = (classes, height, width, size)
    names = ('classes', 'height', 'width', 'size')
    for name, value in zip(names, sizes, strict=True):
      if not isinstance(value, int) or value < 1:
        raise ValueError(f'{name}={value!r} must be a positive integer')
    if channels not in (1, 3):
      raise ValueError(f'channels={channels!r} must be 1 or 3')
    self.labels = tuple(str(k) for k in range(classes))
    self._seed = zlib.crc32(split.encode())
    self._shape = (height, width, channels)
    self._size = size
    what = f'synthetic {split} {classes} {self._shape} {size}'
    self.fingerprint = hashlib.sha256(what.encode()).hexdigest()

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> dict:
    # RandomState's streams are frozen; Generator's may change with numpy.
    noise = np.random.RandomState((self._seed + index) % 2**32)  # noqa: NPY002
    image = np.frombuffer(noise.bytes(int(np.prod(self._shape))), np.uint8)
    return {
      'image': image.reshape(self._shape),
      'label': index % len(self.labels),
      'name': f'synthetic/{index}',
    }
