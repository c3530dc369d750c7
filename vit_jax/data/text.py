"""Texts as sequences of bytes, for classification (Tay et al. 2021, 2.2.2).

`PATH/{train,test}/CLASS/*.txt`, as IMDb's aclImdb (Maas et al. 2011), or
`PATH/{train,test}.tsv` with lines 'label<TAB>text'.
"""

import hashlib
import os
from collections.abc import Iterator

import numpy as np

from vit_jax import specs
from vit_jax.data.transforms import Example

# A byte is its value + 1: 0 is padding.
VOCABULARY = ('<pad>', *(f'0x{byte:02x}' for byte in range(256)))
UNLABELLED = ('unsup',)  # IMDb's folder of reviews without a class


class Text:
  """One split: examples {'tokens': int32 [n], 'label': int}, n ≤ max_length.

  Texts are cut after max_length bytes. The classes are those of train: the
  names of its folders, or its labels, sorted.

  Args:
    split: the name of a folder, or of a file without '.tsv', in `path`.
    path: a folder; see above. Files 'NAME.train.tsv' are found as well.
    max_length: in bytes. The arena has 1,000 to 4,000.

  Raises:
    ValueError: nothing of that layout there, a single class, an empty text.
  """

  location = ('path',)
  vocabulary = VOCABULARY

  def __init__(self, split: str, path: str, max_length: int = 4000):
    check_length(max_length)
    path = os.path.expanduser(path)
    self.length = max_length
    found = splits(path)
    root = specs.lookup(found, split, f'split of {path!r}:')
    first = found['train' if 'train' in found else split]
    self._texts = _read(root)
    known = self._texts if first == root else _read(first)
    self.labels = tuple(sorted(set(known.classes)))
    if len(self.labels) < 2:
      raise ValueError(
        f'{first!r} has one class, {self.labels[0]!r}: classification needs '
        'at least two'
      )
    for name in set(self._texts.classes) - set(self.labels):
      raise ValueError(
        f'the class {name!r} of {root!r} is not in train; '
        f'{specs.nearest(name, self.labels)}'
      )
    said = f'{max_length} {self.labels} {self._texts.digest}'
    self.fingerprint = hashlib.sha256(said.encode()).hexdigest()

  def __len__(self) -> int:
    return len(self._texts.classes)

  def __getitem__(self, index: int) -> Example:
    text, name = self._texts.read(index, self.length)
    return {
      'tokens': encode(text), 'label': self.label(index), 'name': name
    }  # fmt: skip

  def label(self, index: int) -> int:
    """The label of an example, which is not read for it."""
    return self.labels.index(self._texts.classes[index])


def encode(text: bytes) -> np.ndarray:
  """Bytes as tokens, int32 [n]."""
  return np.frombuffer(text, np.uint8).astype(np.int32) + 1


def check_length(max_length: int) -> None:
  """Raises a ValueError unless a text may be that long."""
  if not isinstance(max_length, int) or max_length < 1:
    raise ValueError(f'max_length={max_length!r} must be a positive integer')


def splits(path: str) -> dict[str, str]:
  """The folders and files of a folder that are splits, by name.

  Raises:
    ValueError: there is none, or two for one split.
  """
  if not os.path.isdir(path):
    raise ValueError(
      f'path={path!r} is not a folder (the current one is {os.getcwd()!r})'
    )
  out = {}
  for entry in sorted(os.scandir(path), key=lambda e: e.name):
    if entry.name.startswith('.'):
      continue
    name = entry.name
    if not entry.is_dir():
      if not name.endswith('.tsv'):
        continue
      name = name.removesuffix('.tsv').rpartition('.')[-1]
    if name in out:
      raise ValueError(
        f'{out[name]!r} and {entry.path!r} are both the split {name!r}; '
        'keep one of them'
      )
    out[name] = entry.path
  if not out:
    raise ValueError(
      f'{path!r} has no splits; expected {path}/train/CLASS/*.txt, or lines '
      f"'label<TAB>text' in {path}/train.tsv"
    )
  return out


def lines(path: str) -> Iterator[tuple[int, int, list[bytes]]]:
  """Where each line of a TSV file begins, its number, and its columns."""
  with open(path, 'rb') as file:
    place = 0
    for number, line in enumerate(file, 1):
      yield place, number, line.rstrip(b'\r\n').split(b'\t')
      place += len(line)


def _read(root: str) -> '_Files | _Lines':
  return _Files(root) if os.path.isdir(root) else _Lines(root)


class _Files:
  """`ROOT/CLASS/*.txt`."""

  def __init__(self, root: str):
    self._files, self.classes = [], []
    digest = hashlib.sha256()
    folders = sorted(e.name for e in os.scandir(root) if e.is_dir())
    folders = [
      f for f in folders if f not in UNLABELLED and not f.startswith('.')
    ]
    if not folders:
      raise ValueError(
        f'{root!r} has no class folders; expected {root}/CLASS/*.txt'
      )
    for name in folders:
      folder = os.path.join(root, name)
      files = sorted(f for f in os.listdir(folder) if f.endswith('.txt'))
      if not files:
        raise ValueError(
          f'the class folder {folder!r} has no files *.txt; fill or remove it'
        )
      for file in files:
        path = os.path.join(folder, file)
        size = os.path.getsize(path)
        if not size:
          raise ValueError(f'{path!r} is empty; remove it')
        self._files.append(path)
        self.classes.append(name)
        digest.update(f'{name}/{file} {size}\n'.encode())
    self.digest = digest.hexdigest()

  def read(self, index: int, most: int) -> tuple[bytes, str]:
    """At most that many bytes, and the name."""
    with open(self._files[index], 'rb') as file:
      return file.read(most), self._files[index]


class _Lines:
  """Lines 'label<TAB>text' of a file, which stays on disk."""

  def __init__(self, path: str):
    self._path, self._places, self.classes = path, [], []
    digest = hashlib.sha256()
    for place, number, columns in lines(path):
      if len(columns) < 2 or not all(columns[:2]):
        raise ValueError(
          f"line {number} of {path!r} is not 'label<TAB>text': "
          f'{columns[0][:40]!r}'
        )
      label = columns[0].decode(errors='backslashreplace')
      self._places.append(place)
      self.classes.append(label)
      digest.update(f'{label} {sum(map(len, columns))}\n'.encode())
    if not self.classes:
      raise ValueError(f'{path!r} is empty')
    self.digest = digest.hexdigest()

  def read(self, index: int, most: int) -> tuple[bytes, str]:
    """At most that many bytes, and the name."""
    with open(self._path, 'rb') as file:
      file.seek(self._places[index])
      line = file.readline().rstrip(b'\r\n')
    text = line.partition(b'\t')[2]
    return text[:most], f'{self._path}:{index + 1}'
