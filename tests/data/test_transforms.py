"""Every transform: shape, type, determinism, and what zero strength means."""

import numpy as np
import pytest
from sklearn import datasets

from vit_jax import specs
from vit_jax.data import TRANSFORMS, auto

# name: (spec, the same at no strength or None, size of the result or None)
CASES = {
  'resize': ('resize(size=(5, 7))', 'resize(size=(40, 60))', (5, 7)),
  'resize_short': ('resize_short(size=20)', 'resize_short(size=40)', (20, 30)),
  'center_crop': (
    'center_crop(size=31)',
    'center_crop(size=(40, 60))',
    (31, 31),
  ),
  'inception_crop': (
    'inception_crop(size=(9, 8))',
    'inception_crop(size=(40, 60), area_min=1.0, ratio_min=1.5, ratio_max=1.5)',
    (9, 8),
  ),
  'pad_crop': ('pad_crop(padding=4)', 'pad_crop(padding=0)', None),
  'flip': ('flip(probability=1)', 'flip(probability=0)', None),
  'affine': ('affine(rotate=0.2, scale=0.1, shift=0.6)', 'affine', None),
  'grayscale': ('grayscale', None, None),
  'color_jitter': (
    'color_jitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)',
    'color_jitter',
    None,
  ),
  'randaugment': ('randaugment(probability=1)', 'randaugment(layers=0)', None),
  'trivial_augment': ('trivial_augment', None, None),
  'three_augment': ('three_augment', None, None),
  'value_range': ('value_range(low=0, high=2)', None, None),
  'normalize': ('normalize(mean=0.4, std=0.2)', None, None),
}


@pytest.fixture(scope='module')
def photograph():
  """A real photograph, 40×60 RGB, that comes with scikit-learn."""
  return datasets.load_sample_image('china.jpg')[100:260:4, 200:440:4].copy()


def build(spec):
  return specs.build(spec, TRANSFORMS, 'transform')


def perform(spec, image, seed=0):
  example = {'image': image, 'label': 3}
  before = image.copy()
  result = build(spec)(example, np.random.default_rng(seed))
  np.testing.assert_array_equal(image, before)  # nothing in place
  assert result['label'] == 3
  return result['image']


def test_every_transform_has_a_case():
  assert CASES.keys() == TRANSFORMS.keys()


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('name', CASES)
def test_every_transform_keeps_its_contract(name, channels, photograph):
  spec, nothing, size = CASES[name]
  image = photograph[..., :channels]
  results = [perform(spec, image, seed) for seed in range(8)]
  numbers = name in ('value_range', 'normalize')
  for result in results:
    assert result.shape == (*(size or image.shape[:2]), channels)
    assert result.dtype == (np.float32 if numbers else np.uint8)
  again = [perform(spec, image, seed) for seed in range(8)]
  np.testing.assert_array_equal(results, again)
  varied = any(not np.array_equal(results[0], r) for r in results[1:])
  # A flip of probability 1 draws and cannot vary.
  assert varied == (build(spec).random and name != 'flip')
  if (name, channels) != ('grayscale', 1):
    assert any(
      r.shape != image.shape or not np.array_equal(r, image) for r in results
    )
  if nothing is not None:
    np.testing.assert_array_equal(perform(nothing, image), image)


@pytest.mark.parametrize('name', CASES)
def test_every_transform_takes_a_non_contiguous_image(name, photograph):
  spec = CASES[name][0]
  image = photograph[:, ::-1]
  np.testing.assert_array_equal(
    perform(spec, image), perform(spec, image.copy())
  )


def test_value_range_maps_the_ends_to_the_ends():
  image = np.array([0, 255], np.uint8).reshape(1, 2, 1)
  result = perform('value_range(low=-3, high=5)', image)
  np.testing.assert_allclose(result.ravel(), [-3, 5], atol=1e-6)


def test_normalize_equals_its_formula(photograph):
  mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
  result = perform(f'normalize(mean={mean}, std={std})', photograph)
  expected = (photograph / 255 - mean) / std
  np.testing.assert_allclose(result, expected, atol=1e-5)
  with pytest.raises(ValueError, match='an image of 1 channels'):
    perform(f'normalize(mean={mean}, std={std})', photograph[..., :1])


def test_flip_mirrors(photograph):
  np.testing.assert_array_equal(
    perform('flip(probability=1)', photograph), photograph[:, ::-1]
  )
  np.testing.assert_array_equal(
    perform('flip(probability=1, horizontal=False)', photograph),
    photograph[::-1],
  )


def test_flip_happens_as_often_as_its_probability(photograph):
  spec = 'flip(probability=0.3)'
  flipped = [
    not np.array_equal(perform(spec, photograph, seed), photograph)
    for seed in range(500)
  ]
  assert abs(np.mean(flipped) - 0.3) < 0.07  # 3.4 standard deviations


def test_affine_moves_the_centre_of_mass_by_at_most_the_shift():
  image = np.zeros((16, 16, 1), np.uint8)
  image[7:9, 7:9] = 200
  rows, columns = np.mgrid[:16, :16]
  shifts = []
  for seed in range(50):
    result = perform('affine(shift=1.5)', image, seed)[..., 0].astype(float)
    shifts.append(
      [(result * grid).sum() / result.sum() - 7.5 for grid in (rows, columns)]
    )
  assert np.abs(shifts).max() <= 1.52  # 8-bit rounding moves it by 0.02
  assert np.abs(shifts).max() > 1.2
  assert np.std(shifts) > 0.5  # and by fractions: 3/√12 = 0.87 if uniform


def test_affine_rotates_about_the_centre():
  image = np.zeros((9, 9, 1), np.uint8)
  image[4, 4] = 255
  result = perform('affine(rotate=3.0)', image)
  assert result[4, 4] == 255


def test_pad_crop_is_a_shifted_image_in_zeros(photograph):
  image = np.maximum(photograph, 1)
  padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
  crops = [
    padded[top : top + 40, left : left + 60]
    for top in range(5)
    for left in range(5)
  ]
  for seed in range(5):
    result = perform('pad_crop(padding=2)', image, seed)
    assert any(np.array_equal(result, crop) for crop in crops)


def test_inception_crop_keeps_area_and_ratio_within_bounds():
  crop = build('inception_crop(size=8, area_min=0.2, area_max=0.5)')
  rng = np.random.default_rng(0)
  for _ in range(200):
    top, left, height, width = crop._draw(300, 400, rng)
    assert 0 <= top <= 300 - height
    assert 0 <= left <= 400 - width
    assert 0.19 < height * width / 120_000 < 0.51  # sides are rounded
    assert 0.74 < width / height < 1.35


def test_inception_crop_takes_the_centre_where_no_draw_fits():
  crop = build('inception_crop(size=8, area_min=0.9)')
  rng = np.random.default_rng(0)
  assert crop._draw(10, 1000, rng) == (0, 493, 10, 13)


def test_resize_of_a_constant_is_that_constant_for_every_filter():
  from vit_jax.data import geometry

  image = np.full((13, 17, 3), 77, np.uint8)
  for resample in geometry.RESAMPLE:
    result = perform(f'resize(size=5, resample={resample!r})', image)
    np.testing.assert_array_equal(result, np.full((5, 5, 3), 77))


def test_resize_antialiases():
  stripes = np.zeros((64, 64, 1), np.uint8)
  stripes[:, ::2] = 255
  result = perform('resize(size=8)', stripes)
  assert 110 < result.min() <= result.max() < 145  # nearest would give 0 or 255


def test_grayscale_equalises_channels(photograph):
  result = perform('grayscale', photograph)
  assert (result == result[..., :1]).all()


def test_hue_of_a_third_turn_permutes_the_primaries():
  from PIL import Image

  from vit_jax.data import color

  red = Image.new('RGB', (2, 2), (255, 0, 0))
  green = np.asarray(color._turn_hue(red, 1 / 3))[0, 0]
  np.testing.assert_allclose(green, (0, 255, 0), atol=2)  # 8-bit hue


@pytest.mark.parametrize('table', [auto.RANDAUGMENT, auto.TRIVIAL])
def test_every_operation_changes_a_photograph_at_full_strength(
  table, photograph
):
  from PIL import Image

  picture = Image.fromarray(photograph)
  for operation, (full, _) in table.items():
    full = full(picture.width) if callable(full) else full
    for mode in ('RGB', 'L'):
      given = picture.convert(mode)
      result = operation(given, full, 128)
      assert (result.mode, result.size) == (mode, given.size)
      same = np.array_equal(np.asarray(result), np.asarray(given))
      unchanged = (
        operation is auto.identity
        or (mode == 'L' and operation is auto.saturation)
        or (operation is auto.autocontrast)
      )  # already of full contrast
      assert same <= unchanged, operation.__name__
      if full:
        zero = np.asarray(operation(given, 0, 128))
        np.testing.assert_array_equal(zero, np.asarray(given))


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('resize(size=0)', 'size=0 must be a positive'),
    ('resize(size=(1, 2, 3))', 'size='),
    ("resize(size=4, resample='cubic')", "did you mean 'bicubic'"),
    ('resize', 'cannot build'),
    ('inception_crop(size=4, area_min=0.5, area_max=0.2)', 'area_max=0.2'),
    ('affine(rotate=-1)', 'rotate=-1'),
    ('affine(scale=1)', 'scale=1'),
    ('color_jitter(hue=0.6)', 'hue=0.6'),
    ('randaugment(magnitude=30)', 'magnitude=30'),
    ('value_range(low=1, high=1)', 'must be below'),
    ('normalize(mean=0.5, std=0)', 'std=0'),
    ('normalize(mean=127.5, std=127.5)', 'mean=127.5'),
    ('pad_crop(padding=-1)', 'padding=-1'),
  ],
)
def test_options_out_of_range_are_errors(spec, message):
  with pytest.raises(ValueError, match=message):
    build(spec)


def test_a_crop_larger_than_the_image_says_so(photograph):
  with pytest.raises(ValueError, match=r'larger image than 40×60'):
    perform('center_crop(size=50)', photograph)
  with pytest.raises(ValueError, match=r'larger image than 40×60'):
    perform('pad_crop(padding=1, size=50)', photograph)
