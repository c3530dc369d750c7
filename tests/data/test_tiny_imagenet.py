"""Tiny ImageNet's folders: labels from names, whatever the order of files."""

import pathlib
import tarfile

import numpy as np
import pytest
from PIL import Image

from vit_jax import data, specs
from vit_jax.data import SOURCES, examples

REAL = pathlib.Path(__file__).parents[3] / 'shared' / 'data'
WNIDS = ('n00000002', 'n00000001', 'n00000003')


def picture(path, seed):
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
  Image.fromarray(pixels).save(path, 'JPEG')


@pytest.fixture
def root(tmp_path):
  for k, wnid in enumerate(WNIDS):
    folder = tmp_path / 'train' / wnid
    for i in range(2):
      picture(folder / 'images' / f'{wnid}_{i}.JPEG', 10 * k + i)
    (folder / f'{wnid}_boxes.txt').write_text('no picture')
  lines = []
  # Neither the pictures nor the lines are in the order of the classes.
  for i, wnid in enumerate(('n00000003', 'n00000001', 'n00000002', WNIDS[0])):
    picture(tmp_path / 'val' / 'images' / f'val_{i}.JPEG', 100 + i)
    lines.append(f'val_{i}.JPEG\t{wnid}\t0\t0\t3\t3\n')
  lines.insert(0, 'val_9.JPEG\tn00000009\t0\t0\t3\t3\n')  # a class not here
  (tmp_path / 'val' / 'val_annotations.txt').write_text(''.join(lines))
  (tmp_path / 'words.txt').write_text(
    'n00000003\tsea slug, nudibranch\nn00000001\tgoose\nn00000007\tfox\n'
  )
  return tmp_path


def build(root, split):
  return specs.build(
    f'tiny_imagenet(path={str(root)!r})', SOURCES, 'source', split=split
  )


def test_labels_are_the_sorted_ids_with_their_words(root):
  for split in ('train', 'val'):
    source = build(root, split)
    assert isinstance(source, examples.Source)
    assert source.labels == (
      'n00000001 goose', 'n00000002', 'n00000003 sea slug, nudibranch'
    )
  (root / 'words.txt').unlink()
  assert build(root, 'val').labels == tuple(sorted(WNIDS))


def test_every_picture_has_the_label_of_its_folder_or_line(root):
  train, val = build(root, 'train'), build(root, 'val')
  assert [train[i]['label'] for i in range(len(train))] == [0, 0, 1, 1, 2, 2]
  for i in range(len(train)):
    example = train[i]
    path = pathlib.Path(example['name'])
    assert train.labels[example['label']].startswith(path.parts[-3])
    assert example['image'] == path.read_bytes()
  assert [val[i]['label'] for i in range(len(val))] == [2, 0, 1, 1]
  names = [pathlib.Path(val[i]['name']).name for i in range(len(val))]
  assert names == [f'val_{i}.JPEG' for i in range(4)]


def test_the_fingerprint_is_that_of_names_sizes_and_labels(root):
  found = [build(root, s).fingerprint for s in ('train', 'val')]
  assert found == [build(root, s).fingerprint for s in ('train', 'val')]
  assert found[0] != found[1]
  with open(root / 'val' / 'images' / 'val_0.JPEG', 'ab') as file:
    file.write(b'\0')
  changed = build(root, 'val').fingerprint
  where = root / 'val' / 'val_annotations.txt'
  lines = where.read_text()
  where.write_text(lines.replace('0.JPEG\tn00000003', '0.JPEG\tn00000001'))
  assert len({*found, changed, build(root, 'val').fingerprint}) == 4


def test_both_splits_make_batches(root):
  built = data.build(
    f'tiny_imagenet(path={str(root)!r})', train='flip, value_range',
    test='value_range', test_split='val',
  )  # fmt: skip
  (batch,) = built.test_batches(4)
  assert batch['label'].tolist() == [2, 0, 1, 1]
  with built.train_batches(6, seed=0) as batches:
    assert sorted(next(batches)['label']) == [0, 0, 1, 1, 2, 2]


def damage(root, how):
  annotations = root / 'val' / 'val_annotations.txt'
  if how == 'no train':
    (root / 'train').rename(root / 'trian')
  elif how == 'empty class':
    for file in (root / 'train' / WNIDS[0] / 'images').iterdir():
      file.unlink()
  elif how == 'no annotations':
    annotations.unlink()
  elif how == 'no line':
    picture(root / 'val' / 'images' / 'val_7.JPEG', 7)
  elif how == 'class without folder':
    picture(root / 'val' / 'images' / 'val_9.JPEG', 9)
  elif how == 'picture missing':
    (root / 'val' / 'images' / 'val_2.JPEG').unlink()
  elif how == 'no tabs':
    annotations.write_text('val_0.JPEG n00000003\n')
  elif how == 'words without tabs':
    (root / 'words.txt').write_text('n00000001\tgoose\nn00000002 fox\n')


@pytest.mark.parametrize(
  ('how', 'split', 'message'),
  [
    ('none', 'test', "'test' of Tiny ImageNet has no labels.*test_split='val'"),
    ('none', 'vall', "'vall'; did you mean 'val'"),
    ('no train', 'val', r"train' is not a folder for .*val_annotations\.txt"),
    ('empty class', 'train', "n00000002/images' is not a folder of pictures"),
    ('no annotations', 'val', r"val_annotations\.txt' does not exist"),
    ('no line', 'val', "has no line for 'val_7.JPEG'"),
    ('class without folder', 'val', "'val_9.JPEG' is 'n00000009' in .* none"),
    ('picture missing', 'val', '1 pictures of .* are not in .*val_2.JPEG'),
    ('no tabs', 'val', 'line 1 of .* is no row of a picture'),
    ('words without tabs', 'val', r'line 2 of .*words\.txt. is no row'),
  ],
)
def test_what_is_wrong_is_named(root, how, split, message):
  damage(root, how)
  with pytest.raises(ValueError, match=message):
    build(root, split)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
  with pytest.raises(ValueError, match='nowhere/train.* is not a folder'):
    build(tmp_path / 'nowhere', 'train')


def test_the_real_file_has_20_classes_of_50_validation_pictures(tmp_path):
  archive = REAL / 'tiny_imagenet_20classes.tar'
  if not archive.exists():
    pytest.skip(f'{archive} is absent')
  with tarfile.open(archive) as tar:
    keep = [
      m
      for m in tar.getmembers()
      if not m.name.startswith('train') or m.name.endswith('_0.JPEG')
    ]
    tar.extractall(tmp_path, members=keep, filter='data')
  source = build(tmp_path, 'val')
  labels = [label for _, label in source._files]
  assert np.bincount(labels).tolist() == [50] * 20
  assert source.labels[0] == 'n01443537 goldfish, Carassius auratus'
