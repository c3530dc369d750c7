"""Order, augmentation and exactness of the batches."""

import collections
import io
import itertools
import json
import multiprocessing
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vit_jax import data

AFFINE = 'affine(rotate=0.2, scale=0.1, shift=0.6), value_range'
NOISE = 'synthetic(classes=3, height=4, width=5, channels=1, size={})'


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tfds')

  def build(**options):
    options = {'train': AFFINE, 'test': 'value_range', **options}
    source = f'digits(data_dir={str(folder)!r})'
    return data.build(source, decode='decode(channels=1)', **options)

  return build


def noise(size=10, train='value_range', **options):
  return data.build(
    NOISE.format(size),
    train=train,
    test='value_range',
    decode='decode(channels=1)',
    **options,
  )


def take(batches, steps):
  with batches:
    return list(itertools.islice(batches, steps))


def assert_equal(some, others):
  assert len(some) == len(others)
  for one, other in zip(some, others, strict=True):
    assert one.keys() == other.keys()
    for key in one:
      np.testing.assert_array_equal(one[key], other[key])


def rows(batch):
  """The rows of a batch as a multiset."""
  return collections.Counter(
    (image.tobytes(), int(label))
    for image, label in zip(batch['image'], batch['label'], strict=True)
  )


def test_batches_have_the_declared_types_and_shapes(digits):
  built = digits()
  assert (built.train_size, built.test_size) == (1437, 360)
  assert built.num_classes == 10
  assert built.labels == tuple('0123456789')
  for batches in (built.train_batches(12, seed=0), built.test_batches(12)):
    (batch,) = take(batches, 1)
    for key, (shape, dtype) in built.spec.items():
      assert batch[key].shape == (12, *shape)
      assert batch[key].dtype == dtype
    assert batch['image'].min() >= -1
    assert batch['image'].max() <= 1


def test_same_seed_same_batches_and_another_seed_others(digits):
  built = digits()
  first = take(built.train_batches(64, seed=5), 3)
  assert_equal(first, take(built.train_batches(64, seed=5), 3))
  other = take(built.train_batches(64, seed=6), 3)
  assert not np.array_equal(first[0]['image'], other[0]['image'])


def test_repeats_give_an_example_in_a_row_under_other_transforms(digits):
  plain, built = digits(), digits(train='resize(size=8), flip, value_range',
                                  repeats=3)
  batches = take(built.train_batches(60, seed=5), 3)
  ordered = take(plain.train_batches(60, seed=5), 1)[0]
  labels = np.concatenate([b['label'] for b in batches])
  np.testing.assert_array_equal(labels, np.repeat(ordered['label'], 3))
  images = np.concatenate([b['image'] for b in batches]).reshape(60, 3, 8, 8)
  same = (images == images[:, :1]).all(axis=(2, 3))
  mirrored = (images == images[:, :1, :, ::-1]).all(axis=(2, 3))
  assert (same | mirrored).all()
  assert not same.all()
  rest = take(built.train_batches(60, seed=5, start_step=1), 2)
  assert_equal(batches[1:], rest)
  assert plain.identity != built.identity


def test_shots_keep_that_many_training_examples_of_each_class(digits):
  plain = {'train': 'value_range'}
  few, more = digits(shots=3, **plain), digits(shots=5, **plain)
  assert (few.train_size, more.train_size, few.test_size) == (30, 50, 360)
  seen = [
    take(d.train_batches(d.train_size, seed=0), 1)[0] for d in (few, more)
  ]
  for batch, shots in zip(seen, (3, 5), strict=True):
    np.testing.assert_array_equal(np.bincount(batch['label']), [shots] * 10)
  keys = [{x.tobytes() for x in batch['image']} for batch in seen]
  assert keys[0] < keys[1]
  other = digits(shots=3, shots_seed=1, **plain)
  assert other.identity != few.identity
  with pytest.raises(ValueError, match='has 1.. of'):
    digits(shots=1000)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'repeats': 0}, r'repeats=0 must be a whole number in \[1, 100\]'),
    ({'shots': -1}, 'shots=-1'),
    ({'shots_seed': 3}, 'shots_seed .given 3'),
  ],
)
def test_wrong_repeats_and_shots_are_errors(digits, options, message):
  with pytest.raises(ValueError, match=message):
    digits(**options)


def test_resuming_at_a_step_equals_the_uninterrupted_stream(digits):
  built = digits()
  # 25 steps of 64 pass an epoch's end, in the middle of a batch.
  whole = take(built.train_batches(64, seed=1), 25)
  for start in (1, 22, 23):
    rest = take(built.train_batches(64, seed=1, start_step=start), 25 - start)
    assert_equal(whole[start:], rest)


@pytest.mark.parametrize(
  'how',
  [
    {'threads': 0},
    {'threads': 3, 'prefetch': 1},
    {'cache': True},
    {'cache': True, 'threads': 4},
  ],
)
def test_threads_prefetch_and_cache_change_nothing(digits, how):
  plain = digits()
  built = digits(**how)
  expected = take(plain.train_batches(100, seed=1), 16)  # into epoch 2
  assert_equal(expected, take(built.train_batches(100, seed=1), 16))
  assert_equal(list(plain.test_batches(50)), list(built.test_batches(50)))
  assert plain.identity == built.identity


def test_worker_processes_change_nothing_and_stop_on_close(digits):
  plain, built = digits(), digits(workers=2)
  expected = take(plain.train_batches(100, seed=1, start_step=3), 5)
  batches = built.train_batches(100, seed=1, start_step=3)
  assert_equal(expected, list(itertools.islice(batches, 5)))
  before = multiprocessing.active_children()
  assert len(before) >= 2
  batches.close()
  assert not multiprocessing.active_children()


def test_processes_share_the_batch_of_one_process(digits):
  built = digits()
  whole = take(built.train_batches(48, seed=2, start_step=4), 3)
  for processes in (2, 4):
    parts = [
      take(built.train_batches(48, 2, 4, process, processes), 3)
      for process in range(processes)
    ]
    for step, batch in enumerate(whole):
      assert all(len(p[step]['label']) == 48 // processes for p in parts)
      assert sum((rows(p[step]) for p in parts), collections.Counter()) == (
        rows(batch)
      )


def test_an_epoch_covers_every_example_once_in_an_order_of_its_own():
  built = noise(size=12)
  batches = take(built.train_batches(4, seed=0), 6)
  epochs = [
    sum(map(rows, b), collections.Counter()) for b in (batches[:3], batches[3:])
  ]
  assert epochs[0] == epochs[1]
  assert set(epochs[0].values()) == {1}
  assert len(epochs[0]) == 12
  assert not np.array_equal(
    [b['image'] for b in batches[:3]], [b['image'] for b in batches[3:]]
  )


def test_augmentation_differs_between_epochs():
  built = noise(size=1, train='affine(shift=1.0), value_range')
  (batch,) = take(built.train_batches(3, seed=0), 1)
  assert len(rows(batch)) == 3


def test_a_batch_may_exceed_the_data():
  (batch,) = take(noise(size=3).train_batches(8, seed=0), 1)
  assert batch['image'].shape == (8, 4, 5, 1)


@pytest.mark.parametrize('processes', [1, 2, 4])
@pytest.mark.parametrize('batch_size', [4, 8, 12, 16])
def test_a_test_pass_covers_every_example_exactly_once(batch_size, processes):
  built = noise(size=11)
  passes = [
    list(built.test_batches(batch_size, process, processes))
    for process in range(processes)
  ]
  assert {len(p) for p in passes} == {-(-11 // batch_size)}
  batches = list(itertools.chain(*passes))
  assert all(len(b['label']) == batch_size // processes for b in batches)
  assert sum(b['weight'].sum() for b in batches) == 11
  seen = collections.Counter(
    image.tobytes()
    for b in batches
    for image, weight in zip(b['image'], b['weight'], strict=True)
    if weight
  )
  assert len(seen) == 11
  assert set(seen.values()) == {1}


def test_a_test_pass_is_in_order():
  built = noise(size=7)
  labels = np.concatenate([b['label'] for b in built.test_batches(4)])
  assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 0]  # the last is padding


def test_identity_tells_data_apart_but_not_how_it_is_read(tmp_path, digits):
  assert digits().identity == digits(workers=3, prefetch=9).identity
  assert json.loads(json.dumps(digits().identity)) == digits().identity
  others = [
    digits(test_split='train'),
    digits(on_bad='skip'),
    digits(train='value_range'),
    digits(test='value_range(low=0.0)'),
    noise(),
    noise(size=11),
  ]
  identities = [str(d.identity) for d in [digits(), *others]]
  assert len(set(identities)) == len(identities)
  elsewhere = data.build(
    f'digits(data_dir={str(tmp_path)!r})',
    train=AFFINE,
    test='value_range',
    decode='decode(channels=1)',
  )
  assert elsewhere.identity == digits().identity


def test_preprocess_spells_defaults_out_and_serves_load_image(digits, tmp_path):
  built = digits()
  preprocess = json.loads(json.dumps(built.preprocess))
  assert preprocess['transform'] == 'value_range(low=-1.0, high=1.0)'
  pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
  file = tmp_path / 'image.png'
  Image.fromarray(pixels).save(file)
  expected = pixels[..., None] / 127.5 - 1
  image = data.load_image(str(file), preprocess)
  np.testing.assert_allclose(image, expected, atol=1e-6)
  assert image.dtype == np.float32
  stream = io.BytesIO()
  Image.fromarray(pixels).save(stream, 'PNG')
  np.testing.assert_array_equal(
    image, data.load_image(stream.getvalue(), preprocess)
  )


def test_load_image_names_the_file_that_is_bad(tmp_path):
  file = tmp_path / 'not an image.png'
  file.write_bytes(b'hello')
  with pytest.raises(data.BadImageError, match='not an image.png'):
    data.load_image(str(file), noise().preprocess)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'source': 'digit'}, "did you mean 'digits'"),
    ({'source': 'synthetic(clases=3)'}, "did you mean 'classes'"),
    ({'source': 'synthetic(classes=0)'}, 'classes=0 must be a positive'),
    ({'train': 'flop, value_range'}, "did you mean 'flip'"),
    ({'train': 'flip(p=0.5), value_range'}, "no option 'p'"),
    ({'train': 'flip(probability=2), value_range'}, r'must be a number in \[0'),
    ({'train': 'flip'}, 'train transforms end in uint8'),
    ({'test': 'grayscale'}, 'test transforms end in uint8'),
    ({'test': ''}, 'test transforms end in uint8'),
    ({'test': 'flip, value_range'}, 'is random'),
    ({'train': 'value_range, flip, resize(size=4)'}, 'works on uint8'),
    ({'train': 'value_range, value_range'}, 'starts from uint8'),
    ({'train': 'center_crop(size=99), value_range'}, 'a larger image than'),
    ({'decode': 'decode(channels=2)'}, 'channels=2 must be 1 or 3'),
    ({'decode': 'decode(color=True)'}, "no option 'color'"),
    ({'decode': 'jpeg'}, 'unknown decoder'),
    ({'on_bad': 'ignore'}, "on_bad='ignore'"),
    ({'workers': -1}, 'workers=-1'),
  ],
)
def test_errors_surface_at_build(options, message):
  given = {
    'source': 'synthetic(size=4)',
    'train': 'value_range',
    'test': 'value_range',
  }
  with pytest.raises(ValueError, match=message):
    data.build(**{**given, **options})


def test_sizes_and_processes_that_do_not_fit_are_errors():
  built = noise()
  with pytest.raises(ValueError, match='batch_size=9 must be a positive mult'):
    built.train_batches(9, seed=0, processes=2)
  with pytest.raises(ValueError, match='batch_size=0'):
    built.test_batches(0)
  with pytest.raises(ValueError, match='process=2 is not in'):
    built.test_batches(4, process=2, processes=2)
  with pytest.raises(ValueError, match='seed=-1'):
    built.train_batches(4, seed=-1)


def test_training_images_may_have_another_size_but_not_other_channels():
  built = noise(train='resize(size=(2, 3)), value_range')
  (batch,) = take(built.train_batches(2, seed=0), 1)
  assert batch['image'].shape == (2, 2, 3, 1)
  assert built.spec['image'][0] == (4, 5, 1)


def test_importing_data_imports_neither_jax_nor_tensorflow_nor_grain():
  code = (
    'import sys, vit_jax.data as d; '
    "d.build('synthetic', train='value_range', test='value_range'); "
    "heavy = {'jax', 'tensorflow', 'grain', 'tensorflow_datasets', 'sklearn'}; "
    'print(sorted(heavy & set(sys.modules)))'
  )
  out = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert out.stdout.strip() == '[]'


def test_workers_start_where_absl_flags_were_never_parsed(tmp_path):
  script = tmp_path / 'run.py'
  script.write_text(
    'from vit_jax import data\n'
    "if __name__ == '__main__':\n"
    "  built = data.build('synthetic(size=8)', train='value_range', "
    "test='value_range', workers=1)\n"
    '  print(sum(b["weight"].sum() for b in built.test_batches(4)))\n'
  )
  out = subprocess.run(
    [sys.executable, str(script)], capture_output=True, text=True, check=True
  )
  assert out.stdout.strip() == '8.0'
