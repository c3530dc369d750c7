"""Texts as bytes: every byte is read, and every layout says what is wrong."""

import pathlib
import sysconfig

import numpy as np
import pytest

from vit_jax import data
from vit_jax.data import text

STDLIB = pathlib.Path(sysconfig.get_paths()['stdlib'])
CLASSES = {'neg': 'json', 'pos': 'email'}  # packages, whose files are texts


def documents(name, count=6):
  files = sorted((STDLIB / CLASSES[name]).glob('*.py'))
  found = [f.read_bytes() for f in files]
  return [x for x in found if x][:count]


@pytest.fixture
def folder(tmp_path):
  """The layout of aclImdb."""
  for i, split in enumerate(('train', 'test')):
    for name in CLASSES:
      place = tmp_path / split / name
      place.mkdir(parents=True)
      for k, content in enumerate(documents(name)[i::2]):
        (place / f'{k}_7.txt').write_bytes(content)
    (tmp_path / split / 'labeledBow.feat').write_text('9 0:9')
  (tmp_path / 'train' / 'unsup').mkdir()
  (tmp_path / 'train' / 'unsup' / '0_0.txt').write_text('of no class')
  (tmp_path / 'imdb.vocab').write_text('the')
  return tmp_path


def flat(content):
  return content.replace(b'\t', b' ').replace(b'\n', b' ').replace(b'\r', b' ')


@pytest.fixture
def table(tmp_path):
  """The same texts as lines of files, without tabs and ends of lines."""
  for i, split in enumerate(('train', 'test')):
    rows = [
      name.encode() + b'\t' + flat(content) + b'\n'
      for name in reversed(CLASSES) for content in documents(name)[i::2]
    ]  # fmt: skip
    (tmp_path / f'texts.{split}.tsv').write_bytes(b''.join(rows))
  return tmp_path


def test_bytes_come_back_from_tokens():
  every = bytes(range(256))
  tokens = text.encode(every)
  assert tokens.dtype == np.int32
  assert tokens.min() == 1
  assert tokens.max() == 256
  assert len(text.VOCABULARY) == 257
  assert bytes(int(text.VOCABULARY[t], 16) for t in tokens) == every


def test_a_folder_gives_its_texts_with_the_classes_of_train(folder):
  for i, split in enumerate(('train', 'test')):
    source = text.Text(split, str(folder), max_length=10**6)
    assert source.labels == ('neg', 'pos')  # and not unsup
    expected = [
      (content, k) for k, name in enumerate(CLASSES)
      for content in documents(name)[i::2]
    ]  # fmt: skip
    assert len(source) == len(expected) >= 4
    found = [source[n] for n in range(len(source))]
    for example, (content, label) in zip(found, expected, strict=True):
      assert bytes((example['tokens'] - 1).astype(np.uint8)) == content
      assert example['label'] == label
      assert pathlib.Path(example['name']).read_bytes() == content


def test_lines_give_the_same_texts(table):
  source = text.Text('train', str(table), max_length=10**6)
  assert source.labels == ('neg', 'pos')
  expected = [
    (flat(content), label) for name, label in (('pos', 1), ('neg', 0))
    for content in documents(name)[::2]
  ]  # fmt: skip
  found = [source[n] for n in range(len(source))]
  for example, (content, label) in zip(found, expected, strict=True):
    assert bytes((example['tokens'] - 1).astype(np.uint8)) == content
    assert example['label'] == label


def test_texts_are_cut_and_then_padded(folder):
  source = f'text(path={str(folder)!r}, max_length=200)'
  found = data.build(source=source, train='', test='')
  assert found.spec['tokens'] == ((200,), np.dtype(np.int32))
  (batch,) = found.test_batches(8)
  own = text.Text('test', str(folder), max_length=200)
  assert len(own) <= 8
  for i in range(len(own)):
    tokens = own[i]['tokens']
    assert len(tokens) <= 200
    np.testing.assert_array_equal(batch['tokens'][i, : len(tokens)], tokens)
    assert not batch['tokens'][i, len(tokens) :].any()
  assert text.Text('test', str(folder)).length == 4000  # the arena's


def test_fingerprints_follow_the_texts_and_not_the_place(folder, tmp_path):
  a = text.Text('train', str(folder))
  assert a.fingerprint == text.Text('train', str(folder)).fingerprint
  assert a.fingerprint != text.Text('train', str(folder), 99).fingerprint
  assert a.fingerprint != text.Text('test', str(folder)).fingerprint
  moved = folder.rename(tmp_path.parent / f'{tmp_path.name}_moved')
  assert a.fingerprint == text.Text('train', str(moved)).fingerprint
  (moved / 'train' / 'pos' / '0_7.txt').write_bytes(b'another')
  assert a.fingerprint != text.Text('train', str(moved)).fingerprint


def test_what_is_missing_is_named(tmp_path, folder):
  with pytest.raises(ValueError, match='is not a folder'):
    text.Text('train', str(tmp_path / 'none'))
  with pytest.raises(ValueError, match="unknown split .*'dev'.*test, train"):
    text.Text('dev', str(folder))
  with pytest.raises(ValueError, match='max_length=0 must be a positive'):
    text.Text('train', str(folder), 0)
  (folder / 'test' / 'meh').mkdir()
  with pytest.raises(ValueError, match=r"meh' has no files \*.txt"):
    text.Text('test', str(folder))
  (folder / 'test' / 'meh' / 'a.txt').write_bytes(b'x')
  with pytest.raises(ValueError, match="'meh' of .* is not in train"):
    text.Text('test', str(folder))
  (folder / 'train' / 'pos' / '0_7.txt').write_bytes(b'')
  with pytest.raises(ValueError, match='0_7.txt. is empty'):
    text.Text('train', str(folder))
  empty = tmp_path / 'empty'
  empty.mkdir()
  with pytest.raises(ValueError, match='has no splits; expected'):
    text.Text('train', str(empty))
  (empty / 'train').mkdir()
  with pytest.raises(ValueError, match='has no class folders'):
    text.Text('train', str(empty))


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'is empty'),
    (b'pos\ta\npos\tb\n', "has one class, 'pos'"),
    (b'pos\ta\nneg b\n', "line 2 of .* is not 'label<TAB>text'"),
    (b'pos\ta\nneg\t\n', 'line 2 of .* is not'),
  ],
)
def test_lines_that_are_no_texts_are_refused(tmp_path, content, message):
  (tmp_path / 'train.tsv').write_bytes(content)
  with pytest.raises(ValueError, match=message):
    text.Text('train', str(tmp_path))


def test_two_files_of_one_split_are_refused(table):
  (table / 'train.tsv').write_bytes(b'a\tb\n')
  with pytest.raises(ValueError, match="are both the split 'train'"):
    text.Text('train', str(table))
