"""Pairs of documents as bytes: are they related? (Tay et al. 2021, 2.2.3).

`PATH/{train,eval,test}.tsv`, or `PATH/NAME.train.tsv` and so on, with lines
'label<TAB>id1<TAB>id2<TAB>text1<TAB>text2', as the arena's pairs of the ACL
Anthology Network (Radev et al. 2013).
"""

import hashlib
import os

import numpy as np

from vit_jax import specs
from vit_jax.data import text
from vit_jax.data.transforms import Example

COLUMNS = ('label', 'id1', 'id2', 'text1', 'text2')
LABELS = {b'0': 0, b'0.0': 0, b'1': 1, b'1.0': 1}  # the arena's are floats


class Retrieval:
  """One split: examples {'tokens': int32 [2 n], 'label': 0 or 1}.

  Documents are cut after max_length bytes; n ≤ max_length is the length of the
  longer one, and the other is padded with zeros.

  Args:
    split: the name of a file of `path`, without what is said above.
    path: a folder.
    max_length: of each document, in bytes; 4,000 in the arena.

  Raises:
    ValueError: no such file, or a line that is not a pair; no pair of one
      class.
  """

  labels = ('unrelated', 'related')
  location = ('path',)
  vocabulary = text.VOCABULARY

  def __init__(self, split: str, path: str, max_length: int = 4000):
    text.check_length(max_length)
    path = os.path.expanduser(path)
    self.length = max_length
    found = {k: v for k, v in text.splits(path).items() if v.endswith('.tsv')}
    self._path = specs.lookup(found, split, f'split of {path!r}:')
    self._places, self._labels = [], []
    digest = hashlib.sha256(f'{max_length}\n'.encode())
    for place, number, columns in text.lines(self._path):
      if (
        len(columns) != len(COLUMNS) or columns[0] not in LABELS
        or not all(columns[-2:])
      ):  # fmt: skip
        raise ValueError(
          f'line {number} of {self._path!r} has {len(columns)} columns and '
          f'starts with {columns[0][:20]!r}; expected '
          f'{"<TAB>".join(COLUMNS)} with a label 0 or 1 and no empty text'
        )
      self._places.append(place)
      self._labels.append(LABELS[columns[0]])
      digest.update(b'\t'.join(columns[:3]))
      digest.update(f' {len(columns[3])} {len(columns[4])}\n'.encode())
    if len(set(self._labels)) < 2:
      raise ValueError(
        f'{self._path!r} has {len(self._labels)} pairs, all of one class: '
        'expected labels 0 and 1'
      )
    self.fingerprint = digest.hexdigest()

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, index: int) -> Example:
    with open(self._path, 'rb') as file:
      file.seek(self._places[index])
      columns = file.readline().rstrip(b'\r\n').split(b'\t')
    pair = [text.encode(column[: self.length]) for column in columns[-2:]]
    tokens = np.zeros((2, max(map(len, pair))), np.int32)
    for row, document in zip(tokens, pair, strict=True):
      row[: len(document)] = document
    name = f'{self._path}:{index + 1}'
    return {'tokens': tokens, 'label': self.label(index), 'name': name}

  def label(self, index: int) -> int:
    """The label of an example, which is not read for it."""
    return self._labels[index]
