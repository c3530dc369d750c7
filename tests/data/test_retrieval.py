"""Pairs of documents: both are read, apart, whatever their lengths."""

import pathlib
import sysconfig

import numpy as np
import pytest

from vit_jax import data
from vit_jax.data import retrieval

STDLIB = pathlib.Path(sysconfig.get_paths()['stdlib'])


def document(i):
  content = sorted((STDLIB / 'email').glob('*.py'))[i].read_bytes()
  for space in b'\t\n\r':
    content = content.replace(bytes([space]), b' ')
  return content[: 300 + 50 * i]


PAIRS = [(0, 1, 2), (1, 3, 4), (1, 4, 3), (0, 5, 1), (1, 2, 6)]


@pytest.fixture
def folder(tmp_path):
  """The arena's files: labels are floats."""
  for split, pairs in (('train', PAIRS), ('eval', PAIRS[:2]),
                       ('test', PAIRS[2:])):  # fmt: skip
    rows = [
      b'\t'.join([
        str(float(label)).encode(), b'P%d' % a, b'P%d' % b, document(a),
        document(b),
      ])
      for label, a, b in pairs
    ]  # fmt: skip
    path = tmp_path / f'new_aan_pairs.{split}.tsv'
    path.write_bytes(b'\n'.join(rows) + b'\n')
  return tmp_path


def words(row):
  return bytes((row[row > 0] - 1).astype(np.uint8))


def test_documents_come_as_they_are_and_end_in_padding(folder):
  source = retrieval.Retrieval('train', str(folder))
  assert len(source) == len(PAIRS)
  for i, (label, a, b) in enumerate(PAIRS):
    example = source[i]
    assert example['label'] == label
    assert example['tokens'].dtype == np.int32
    longest = max(len(document(a)), len(document(b)))
    assert example['tokens'].shape == (2, longest)
    for row, content in zip(example['tokens'], (document(a), document(b)),
                            strict=True):  # fmt: skip
      assert words(row) == content
      assert not row[len(content) :].any()


def test_each_document_is_cut_alone(folder):
  source = retrieval.Retrieval('train', str(folder), max_length=100)
  for i, (_, a, b) in enumerate(PAIRS):
    tokens = source[i]['tokens']
    assert words(tokens[0]) == document(a)[:100]
    assert words(tokens[1]) == document(b)[:100]


@pytest.mark.parametrize('cache', [False, True])
def test_pairs_are_padded_in_batches(folder, cache):
  source = f'retrieval(path={str(folder)!r}, max_length=900)'
  found = data.build(source=source, train='', test='', cache=cache)
  assert found.input == 'tokens'
  assert found.spec['tokens'] == ((2, 900), np.dtype(np.int32))
  for _ in range(1 + cache):
    (batch,) = found.test_batches(4)
    assert batch['weight'].tolist() == [1, 1, 1, 0]
    for row, (_, a, b) in zip(batch['tokens'], PAIRS[2:], strict=False):
      assert words(row[0]) == document(a)
      assert words(row[1]) == document(b)
    assert not batch['tokens'][3].any()
  with found.train_batches(4, 0) as batches:
    assert next(batches)['tokens'].shape == (4, 2, 900)
  identity = found.identity
  assert str(folder) not in identity['source']


def test_fingerprints_follow_the_pairs(folder):
  prints = {
    retrieval.Retrieval(split, str(folder), length).fingerprint
    for split in ('train', 'eval', 'test') for length in (100, 4000)
  }  # fmt: skip
  assert len(prints) == 6
  again = retrieval.Retrieval('train', str(folder), 100)
  assert again.fingerprint in prints


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'1\ta\tb\tx\n', "line 1 of .* has 4 columns and starts with b'1'"),
    (b'1\ta\tb\tx\ty\n2\ta\tb\tx\ty\n', "line 2 .* starts with b'2'"),
    (b'1\ta\tb\tx\t\n', 'no empty text'),
    (b'1\ta\tb\tx\ty\n1\ta\tb\tx\ty\n', '2 pairs, all of one class'),
    (b'', '0 pairs, all of one class'),
  ],
)
def test_lines_that_are_no_pairs_are_refused(tmp_path, content, message):
  (tmp_path / 'train.tsv').write_bytes(content)
  with pytest.raises(ValueError, match=message):
    retrieval.Retrieval('train', str(tmp_path))


def test_what_is_missing_is_named(folder):
  with pytest.raises(ValueError, match='choices: eval, test, train'):
    retrieval.Retrieval('validation', str(folder))
  with pytest.raises(ValueError, match='is not a folder'):
    retrieval.Retrieval('train', str(folder / 'none'))
  with pytest.raises(ValueError, match='max_length=-1 must be'):
    retrieval.Retrieval('train', str(folder), -1)
