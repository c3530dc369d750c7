"""Every source: its examples, its splits, and what its errors say."""

import io
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from vit_jax import data, specs
from vit_jax.data import SOURCES, decode, digits, examples

REAL = pathlib.Path(__file__).parents[3] / 'shared' / 'data'


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """A TFDS data_dir with the digits."""
  folder = tmp_path_factory.mktemp('tfds')
  digits.Digits('train', data_dir=str(folder))
  return folder


@pytest.fixture(scope='module')
def classes(tmp_path_factory):
  """`PATH/CLASS/*.png`: the first 30 images of three of the digits."""
  folder = tmp_path_factory.mktemp('folder')
  all_digits = datasets.load_digits()
  for digit in (2, 0, 1):
    (folder / str(digit)).mkdir()
    images = all_digits.images[all_digits.target == digit][:30]
    for i, image in enumerate(images):
      picture = Image.fromarray((image * 15).astype(np.uint8))
      picture.save(folder / str(digit) / f'{i}.png')
  return folder


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
  """`PATH/{train,test}.tsv`: lines of labels and texts, and pairs of them."""
  root = tmp_path_factory.mktemp('texts')
  kinds = {'text': '{}\t{}\n', 'pairs': '{}\ta\tb\t{}\tfew words\n'}
  for kind, line in kinds.items():
    (root / kind).mkdir()
    for split in ('train', 'test'):
      lines = [line.format(k % 2, f'{split} {k}' * 5) for k in range(4)]
      (root / kind / f'{split}.tsv').write_text(''.join(lines))
  return root


@pytest.fixture(scope='module')
def wordnet(classes, tmp_path_factory):
  """The same images in the folders of Tiny ImageNet."""
  root = tmp_path_factory.mktemp('tiny_imagenet')
  (root / 'val' / 'images').mkdir(parents=True)
  lines = []
  for file in sorted(classes.glob('*/?.png')):
    digit = file.parent.name
    (root / 'train' / digit / 'images').mkdir(parents=True, exist_ok=True)
    for place in (f'train/{digit}/images', 'val/images'):
      shutil.copy(file, root / place / f'{digit}_{file.stem}.JPEG')
    lines.append(f'{digit}_{file.stem}.JPEG\t{digit}\t0\n')
  (root / 'val' / 'val_annotations.txt').write_text(''.join(lines))
  return root


def build(spec, split='train'):
  return specs.build(spec, SOURCES, 'source', split=split)


def test_every_source_keeps_the_contract(prepared, classes, wordnet, texts):
  cases = {
    'digits': f'digits(data_dir={str(prepared)!r})',
    'folder': f'folder(path={str(classes)!r})',
    'listops': 'listops(size=30)',
    'pathfinder': 'pathfinder(contour_length=6, examples=30)',
    'retrieval': f'retrieval(path={str(texts / "pairs")!r})',
    'synthetic': 'synthetic(classes=4, size=30)',
    'text': f'text(path={str(texts / "text")!r})',
    'tfds': f"tfds(name='digits', data_dir={str(prepared)!r})",
    'tiny_imagenet': f'tiny_imagenet(path={str(wordnet)!r})',
  }
  assert cases.keys() == SOURCES.keys()
  for name, spec in cases.items():
    held_out = 'val' if name == 'tiny_imagenet' else 'test'
    source = build(spec)
    assert isinstance(source, examples.Source)
    assert set(source.location) <= set(specs.accepted(type(source)))
    assert len(source) > 0
    names = set()
    for index in (0, len(source) - 1):
      example = source[index]
      read = 'tokens' if hasattr(source, 'vocabulary') else 'image'
      assert example.keys() == {read, 'label', 'name'}
      assert isinstance(example['label'], int)
      assert 0 <= example['label'] < len(source.labels)
      if hasattr(source, 'label'):
        assert source.label(index) == example['label']
      if read == 'image':
        assert isinstance(example['image'], bytes | np.ndarray)
        assert decode.Decode()(example['image']).shape[2] == 3
      else:
        assert example['tokens'].dtype == np.int32
        for text in np.atleast_2d(example['tokens']):
          assert np.trim_zeros(text, 'b').min() > 0  # 0 is padding alone
        assert example['tokens'].max() < len(source.vocabulary)
        assert example['tokens'].shape[-1] <= source.length
      names.add(example['name'])
      np.testing.assert_array_equal(source[index][read], example[read])
    assert len(names) == 2
    assert build(spec).fingerprint == source.fingerprint
    assert build(spec, held_out).fingerprint != source.fingerprint
    assert build(spec, held_out).labels == source.labels


# Digits.


def contents(source):
  one = decode.Decode(channels=1)
  return sorted(
    (one(e['image']).tobytes(), e['label'])
    for e in (source[i] for i in range(len(source)))
  )


def test_the_digits_are_those_of_scikit_learn(prepared):
  spec = f'digits(data_dir={str(prepared)!r})'
  train, test = build(spec), build(spec, 'test')
  assert (len(train), len(test)) == (1437, 360)
  original = datasets.load_digits()
  pixels = np.rint(original.images * 255 / 16).astype(np.uint8)
  assert sorted(contents(train) + contents(test)) == sorted(
    (p.tobytes(), int(y)) for p, y in zip(pixels, original.target, strict=True)
  )
  counts = np.bincount([test[i]['label'] for i in range(360)])
  assert counts.min() >= 35  # stratified


def test_digits_prepared_twice_and_at_once_are_the_same(tmp_path, prepared):
  code = (
    'import sys; from vit_jax.data import digits; '
    'd = digits.Digits("test", data_dir=sys.argv[1]); '
    'print(len(d), d[7]["label"], "tensorflow" in sys.modules)'
  )
  runs = [
    subprocess.Popen(
      [sys.executable, '-c', code, str(tmp_path)],
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
    )
    for _ in range(3)
  ]
  out = [run.communicate()[0].splitlines()[-1] for run in runs]
  assert len(set(out)) == 1
  assert out[0].startswith('360 ')
  assert out[0].endswith('False')
  assert not list((tmp_path / 'digits').glob('incomplete*'))
  ours = digits.Digits('test', data_dir=str(tmp_path))
  assert contents(ours) == contents(
    digits.Digits('test', data_dir=str(prepared))
  )


def test_an_interrupted_preparation_is_done_again(tmp_path):
  folder = tmp_path / 'digits' / '1.0.0'
  (tmp_path / 'digits' / 'incomplete.ABC_1.0.0').mkdir(parents=True)
  folder.mkdir()
  (folder / 'digits-train.array_record-00000-of-00001').write_bytes(b'torn')
  assert len(digits.Digits('test', data_dir=str(tmp_path))) == 360


def test_prepared_digits_are_read_from_a_folder_without_writing(
  prepared, tmp_path
):
  copy = tmp_path / 'copy'
  shutil.copytree(prepared, copy)
  (copy / 'digits.lock').unlink()
  digits.Digits('test', data_dir=str(copy))
  assert not (copy / 'digits.lock').exists()


# TFDS.


def test_tfds_splits_can_be_parts(prepared):
  spec = f"tfds(name='digits', data_dir={str(prepared)!r})"
  assert len(build(spec, 'train[:90%]')) == 1293
  assert len(build(spec, 'train[90%:]')) == 144
  whole, part = build(spec), build(spec, 'train[100:200]')
  assert part[3]['image'] == whole[103]['image']
  assert whole.fingerprint != part.fingerprint


@pytest.mark.parametrize(
  ('options', 'split', 'message'),
  [
    ("name='digits'", 'trian', "did you mean 'train'"),
    ("name='digits'", 'train[:x]', 'no split'),
    ("name='digits', label='lable'", 'train', "did you mean 'label'"),
    ("name='digits', label='image'", 'train', 'not a ClassLabel'),
    ("name='mnits'", 'train', "did you mean 'mnist'"),
    ("name='cifar10'", 'train', r'vit_jax\[tf\](.|\n)*array_record'),
  ],
)
def test_tfds_errors_say_what_to_do(prepared, options, split, message):
  with pytest.raises(ValueError, match=message):
    build(f'tfds({options}, data_dir={str(prepared)!r})', split)


def test_tfds_prepared_as_tfrecord_says_how_to_prepare_again(
  prepared, tmp_path
):
  shutil.copytree(prepared, tmp_path / 'copy')
  info = tmp_path / 'copy' / 'digits' / '1.0.0' / 'dataset_info.json'
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  with pytest.raises(ValueError, match='as tfrecord, which is not read'):
    build(f"tfds(name='digits', data_dir={str(tmp_path / 'copy')!r})")


# Folder.


def names(source):
  return [source[i]['name'] for i in range(len(source))]


def test_a_folder_without_splits_is_split_by_class(classes):
  spec = f'folder(path={str(classes)!r}, test_fraction=0.2)'
  train, test = build(spec), build(spec, 'test')
  assert train.labels == ('0', '1', '2')
  assert [test[i]['label'] for i in range(18)] == [0] * 6 + [1] * 6 + [2] * 6
  assert len(train) == 72
  found = set(names(train)) | set(names(test))
  assert found == {str(f) for f in classes.glob('*/*.png')}
  other = f'folder(path={str(classes)!r}, test_fraction=0.2, seed=1)'
  assert names(build(other, 'test')) != names(test)


def test_the_split_depends_on_names_only(classes, tmp_path):
  shutil.copytree(classes, tmp_path / 'elsewhere')
  here = build(f'folder(path={str(classes)!r})', 'test')
  there = build(f'folder(path={str(tmp_path / "elsewhere")!r})', 'test')
  assert here.fingerprint == there.fingerprint
  assert [os.path.basename(n) for n in names(here)] == [
    os.path.basename(n) for n in names(there)
  ]


def test_a_changed_file_changes_the_fingerprint(classes, tmp_path):
  shutil.copytree(classes, tmp_path / 'copy')
  spec = f'folder(path={str(tmp_path / "copy")!r})'
  before = build(spec)
  with open(names(before)[0], 'ab') as file:
    file.write(b'\0')
  assert build(spec).fingerprint != before.fingerprint


@pytest.fixture
def split(classes, tmp_path):
  for name in ('train', 'val'):
    shutil.copytree(classes, tmp_path / name)
  return tmp_path


def test_a_folder_with_splits_takes_labels_from_train(split):
  shutil.rmtree(split / 'val' / '1')
  spec = f'folder(path={str(split)!r})'
  assert len(build(spec)) == 90
  held_out = build(spec, 'val')
  assert len(held_out) == 60
  assert held_out.labels == ('0', '1', '2')
  assert {held_out[i]['label'] for i in range(60)} == {0, 2}
  with pytest.raises(ValueError, match="'test'; .*choices: train, val"):
    build(spec, 'test')


def test_images_are_found_at_any_depth_and_in_capitals(split):
  nested = split / 'train' / '1' / 'images'
  nested.mkdir()
  shutil.copy(split / 'train' / '1' / '0.png', nested / 'X.PNG')
  (split / 'train' / '1' / 'notes.txt').write_text('ignored')
  (split / 'train' / '1' / '._0.png').write_text('ignored')
  assert len(build(f'folder(path={str(split)!r})')) == 91


def test_folder_errors_name_the_place(split, classes):
  spec = f'folder(path={str(split)!r})'
  (split / 'val' / '7').mkdir()
  with pytest.raises(ValueError, match="val/7' has no images .* 0 other files"):
    build(spec, 'val')
  (split / 'val' / '7' / 'a.txt').write_text('')
  with pytest.raises(ValueError, match="val/7' has no images .* 1 other files"):
    build(spec, 'val')
  shutil.copy(split / 'val' / '0' / '0.png', split / 'val' / '7')
  with pytest.raises(ValueError, match="class '7' of .*val' is not in train"):
    build(spec, 'val')
  with pytest.raises(ValueError, match="path='/nowhere' is not a folder"):
    build("folder(path='/nowhere')")
  with pytest.raises(ValueError, match='has no class folders'):
    build(f'folder(path={str(split / "val" / "0")!r})')
  with pytest.raises(ValueError, match="'val'; .*choices: test, train"):
    build(f'folder(path={str(classes)!r})', 'val')
  with pytest.raises(ValueError, match='test_fraction=1'):
    build(f'folder(path={str(classes)!r}, test_fraction=1.5)')
  (split / 'solo' / 'one').mkdir(parents=True)
  shutil.copy(split / 'val' / '0' / '0.png', split / 'solo' / 'one')
  with pytest.raises(ValueError, match="'one' has 1 image, too few"):
    build(f'folder(path={str(split / "solo")!r})')


def test_an_unknown_class_of_another_split_is_an_error_at_build(split):
  shutil.copytree(split / 'val' / '0', split / 'val' / '3')
  with pytest.raises(ValueError, match="'3' of .*val' is not in train"):
    data.build(
      f'folder(path={str(split)!r})',
      train='value_range',
      test='value_range',
      test_split='val',
    )


def test_images_of_differing_sizes_ask_for_a_resize(split):
  Image.new('L', (9, 8)).save(split / 'train' / '1' / 'wide.png')
  options = {
    'source': f'folder(path={str(split)!r})',
    'test': 'value_range',
    'test_split': 'val',
  }
  built = data.build(train='value_range', **options)
  with (
    pytest.raises(ValueError, match=r'wide\.png comes out as .*resize'),
    built.train_batches(91, seed=0) as batches,
  ):
    next(batches)
  built = data.build(train='resize(size=8), value_range', **options)
  with built.train_batches(91, seed=0) as batches:
    assert next(batches)['image'].shape == (91, 8, 8, 3)


def test_a_label_outside_the_classes_is_an_error():
  collate = examples.Collate((1, 1, 1), 3, 'test')
  example = {
    'image': np.zeros((1, 1, 1), np.float32),
    'label': -1,
    'weight': 1.0,
    'name': 'cat.png',
  }
  with pytest.raises(ValueError, match=r'cat\.png has the label -1'):
    collate([example])


def test_real_flowers_build_with_cropping(tmp_path):
  archive = REAL / 'flowers5.tar'
  if not archive.exists():
    pytest.skip(f'{archive} is absent')
  with tarfile.open(archive) as tar:
    members = tar.getmembers()[:4000:40]
    keep = [m for m in members if m.name.endswith('.jpg')]
    tar.extractall(tmp_path, members=keep, filter='data')
  built = data.build(
    f'folder(path={str(tmp_path / "flowers")!r})',
    train='inception_crop(size=64), flip, randaugment, '
    'normalize(mean=(0.5, 0.5, 0.5), std=0.5)',
    test='resize_short(size=72), center_crop(size=64), '
    'normalize(mean=(0.5, 0.5, 0.5), std=0.5)',
  )
  assert set(built.labels) <= {
    'daisy',
    'dandelion',
    'rose',
    'sunflower',
    'tulip',
  }
  assert built.train_size + built.test_size == len(keep)
  with built.train_batches(16, seed=0) as batches:
    image = next(batches)['image']
  assert image.shape == (16, 64, 64, 3)
  assert 0.2 < image.std() < 1.0
  tested = np.concatenate([b['weight'] for b in built.test_batches(16)])
  assert tested.sum() == built.test_size


# Synthetic.


def test_synthetic_images_depend_on_split_and_index_only():
  train, test = build('synthetic(size=9)'), build('synthetic(size=9)', 'test')
  larger = build('synthetic(size=20)')
  images = [s[i]['image'].tobytes() for s in (train, test) for i in range(9)]
  assert len(set(images)) == 18
  np.testing.assert_array_equal(train[8]['image'], larger[8]['image'])
  noise = np.stack([train[i]['image'] for i in range(9)])
  assert abs(noise.mean() - 127.5) < 2


def test_encoded_and_array_images_give_the_same_batches(classes):
  """A source may yield either; only the bytes pass through a codec."""
  stream = io.BytesIO()
  image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
  Image.fromarray(image).save(stream, 'PNG')
  np.testing.assert_array_equal(
    decode.Decode()(stream.getvalue()), decode.Decode()(image)
  )
