"""Images as sequences of pixels: the grey values, in order."""

import numpy as np
import pytest
from PIL import Image

from vit_jax import data
from vit_jax.data import examples, pixels

DIGITS = {'source': 'digits', 'decode': 'decode(channels=1)'}
COLOURS = 'synthetic(classes=3, height=5, width=7, size=8)'


def test_tokens_are_the_grey_values_row_after_row():
  image = np.arange(0, 240, 10, np.uint8).reshape(4, 6, 1)
  found = pixels.Pixels()({'image': image, 'label': 2, 'name': 'a'})
  assert found.keys() == {'tokens', 'label', 'name'}
  assert found['tokens'].dtype == np.int32
  np.testing.assert_array_equal(found['tokens'], np.arange(0, 240, 10) + 1)
  assert len(pixels.Pixels.vocabulary) == 257
  assert pixels.Pixels.vocabulary[1:] == tuple(map(str, range(256)))


def test_digits_come_as_the_images_do():
  images = data.build(train='value_range', test='value_range', **DIGITS)
  words = data.build(train='', test='', tokens='pixels', **DIGITS)
  assert words.input == 'tokens'
  assert words.spec['tokens'] == ((64,), np.dtype(np.int32))
  assert words.channels is None
  assert words.labels == images.labels
  assert len(words.preprocess['vocabulary']) == 257
  with images.test_batches(100) as a, words.test_batches(100) as b:
    for x, y in zip(a, b, strict=True):
      np.testing.assert_array_equal(x['label'], y['label'])
      np.testing.assert_array_equal(x['weight'], y['weight'])
      real = x['weight'] > 0
      scaled = (x['image'].reshape(100, 64)[real] + 1) / 2 * 255
      np.testing.assert_allclose(y['tokens'][real] - 1, scaled, atol=1e-3)
  with images.train_batches(8, 0) as a, words.train_batches(8, 0) as b:
    np.testing.assert_array_equal(next(a)['label'], next(b)['label'])


def test_colours_become_luma():
  options = {'source': COLOURS, 'decode': 'decode(channels=1)'}
  words = data.build(train='', test='', tokens='pixels', **options)
  (batch,) = words.test_batches(8)
  source = data.SOURCES['synthetic'](
    'test', classes=3, height=5, width=7, size=8
  )
  for i in range(8):
    grey = Image.fromarray(source[i]['image']).convert('L')
    expected = np.asarray(grey).reshape(-1).astype(int) + 1
    np.testing.assert_array_equal(batch['tokens'][i], expected)


def test_transforms_of_images_come_before_the_tokens():
  words = data.build(
    train='pad_crop(padding=1), flip', test='resize(size=4)', tokens='pixels',
    **DIGITS,
  )  # fmt: skip
  assert words.spec['tokens'][0] == (16,)
  with words.train_batches(4, 0) as batches:
    assert next(batches)['tokens'].shape == (4, 64)


def test_one_image_is_read_as_the_batches_are(tmp_path):
  words = data.build(train='', test='', tokens='pixels', **DIGITS)
  image = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
  Image.fromarray(image).save(tmp_path / 'a.png')
  tokens = data.load_image(tmp_path / 'a.png', words.preprocess)
  np.testing.assert_array_equal(tokens, image.reshape(-1).astype(int) + 1)


def test_identity_says_that_there_are_tokens():
  images = data.build(train='value_range', test='value_range', **DIGITS)
  words = data.build(train='', test='', tokens='pixels', **DIGITS)
  assert 'tokens' not in images.identity
  assert words.identity['tokens'] == 'pixels'


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'decode': 'decode'}, r'decode\(channels=1\)'),
    ({'test': 'value_range'}, 'no transform that scales'),
    ({'tokens': 'pixel'}, "did you mean 'pixels'"),
    ({'source': 'listops(size=9)', 'decode': 'decode'}, 'about images'),
  ],
)
def test_what_gives_no_grey_pixels_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    data.build(
      **{'train': '', 'test': '', 'tokens': 'pixels', **DIGITS, **options}
    )


def test_a_blank_image_has_no_weight():
  source = data.SOURCES['synthetic']('test', channels=1, size=2)
  decoded = examples.Decoded(source, data.decode.Decode(1), 'refuse', False)
  assert decoded[5]['weight'] == 0
  assert (pixels.Pixels()(decoded[5])['tokens'] == 1).all()
