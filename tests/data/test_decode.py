"""Untrusted images: converted, refused or skipped, as documented."""

import io
import logging
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from vit_jax import data
from vit_jax.data import decode


@pytest.fixture(scope='module')
def photograph():
  """A real photograph, 48×64 RGB, that comes with scikit-learn."""
  return datasets.load_sample_image('flower.jpg')[100:292:4, 200:456:4].copy()


def encode(image, file_format='PNG', mode=None, **options):
  picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
  stream = io.BytesIO()
  (picture.convert(mode) if mode else picture).save(
    stream, file_format, **options
  )
  return stream.getvalue()


def with_alpha(image, lowest):
  alpha = np.full((*image.shape[:2], 1), 255, np.uint8)
  alpha[:5] = lowest
  return np.concatenate([image, alpha], -1)


def chunk(kind, body):
  check = zlib.crc32(kind + body)
  return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', check)


def raw_png(width, height, depth, color, rows):
  """A PNG of any bit depth, or one that only claims its size."""
  header = struct.pack('>IIBBBBB', width, height, depth, color, 0, 0, 0)
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', header)
    + chunk(b'IDAT', zlib.compress(rows))
    + chunk(b'IEND', b'')
  )


def deep_png(color):
  """16 bits a channel, all values 0x1234; color is 0 (grey) or 2 (RGB)."""
  row = b'\0' + b'\x12\x34' * (8 * (3 if color else 1))
  return raw_png(8, 8, 16, color, row * 8)


def gigapixel_jpeg(photograph):
  """A small JPEG whose header claims 65,500×65,500."""
  image = bytearray(encode(photograph, 'JPEG'))
  at = image.index(b'\xff\xc0')  # start of frame: length, depth, height, width
  image[at + 5 : at + 9] = struct.pack('>HH', 65500, 65500)
  return bytes(image)


def bad_files(photograph):
  jpeg = encode(photograph, 'JPEG')
  png = encode(photograph, 'PNG')
  half = len(jpeg) // 2
  corrupt = jpeg[:half] + b'\xff\xd9' + jpeg[half:]  # ends in the middle
  return {
    'truncated.jpg': (jpeg[:half], 'truncated or damaged JPEG'),
    'header_only.jpg': (jpeg[:50], 'truncated or damaged'),
    'corrupt.jpg': (corrupt, 'damaged JPEG'),
    'truncated.png': (png[: len(png) // 2], 'truncated or damaged'),
    'truncated.webp': (
      encode(photograph, 'WEBP')[:300],
      'truncated or damaged',
    ),
    'empty.png': (b'', 'truncated or damaged'),
    'text.jpg': (b'not an image', 'truncated or damaged'),
    'tiff.png': (encode(photograph, 'TIFF'), 'none of JPEG, PNG'),
    'cmyk.jpg': (
      encode(photograph, 'JPEG', 'CMYK', quality=95),
      r'CMYK \(64×48\)',
    ),
    'rgba.png': (encode(with_alpha(photograph, 7)), r'RGBA.*\(64×48\)'),
    'rgba.webp': (
      encode(with_alpha(photograph, 7), 'WEBP', lossless=True),
      'RGBA, with real transparency',
    ),
    'deep_grey.png': (deep_png(0), r'16 bits a channel \(8×8\)'),
    'deep_rgb.png': (deep_png(2), r'16 bits a channel \(8×8\)'),
    'giga.png': (raw_png(40000, 40000, 8, 0, b''), 'over max_pixels'),
    'giga.jpg': (gigapixel_jpeg(photograph), '65500×65500 = 4290250000 pixels'),
  }


CONVERTIBLE = {
  'cmyk.jpg',
  'rgba.png',
  'rgba.webp',
  'deep_grey.png',
  'deep_rgb.png',
}


def test_bad_images_are_refused_with_the_reason(photograph):
  for name, (content, message) in bad_files(photograph).items():
    with pytest.raises(decode.BadImageError, match=message):
      decode.Decode()(content)
    if name not in CONVERTIBLE:
      with pytest.raises(decode.BadImageError, match=message):
        decode.Decode(convert=True)(content)


def test_convert_accepts_what_can_be_converted(photograph):
  files = bad_files(photograph)
  convert = decode.Decode(convert=True)
  cmyk = convert(files['cmyk.jpg'][0])
  assert np.abs(cmyk.astype(int) - photograph).mean() < 4  # JPEG is lossy
  for name in ('rgba.png', 'rgba.webp'):
    laid = convert(files[name][0])
    np.testing.assert_array_equal(laid[5:], photograph[5:])
    white = 255 - (255 - photograph[:5].astype(float)) * 7 / 255
    np.testing.assert_allclose(laid[:5], white, atol=1)
  for name in ('deep_grey.png', 'deep_rgb.png'):
    image = convert(files[name][0])
    np.testing.assert_array_equal(image, np.full((8, 8, 3), 0x12))


def test_a_gigapixel_header_allocates_nothing(photograph):
  files = bad_files(photograph)
  tracemalloc.start()
  for name in ('giga.png', 'giga.jpg'):
    with pytest.raises(decode.BadImageError):
      decode.Decode()(files[name][0])
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 2_000_000


def test_lossless_conversions_equal_the_original(photograph):
  grey = np.asarray(Image.fromarray(photograph).convert('L'))
  few = photograph // 64 * 85
  rgb, one = decode.Decode(), decode.Decode(channels=1)
  for content in (
    encode(photograph),
    encode(photograph, 'WEBP', lossless=True),
    encode(photograph, 'BMP'),
    encode(with_alpha(photograph, 255)),
  ):
    np.testing.assert_array_equal(rgb(content), photograph)
    np.testing.assert_array_equal(one(content), grey[..., None])
  palette = Image.fromarray(few).convert('P', palette=Image.Palette.ADAPTIVE)
  colors = np.asarray(palette.convert('RGB'))
  np.testing.assert_array_equal(rgb(encode(palette)), colors)
  for content in (encode(grey), encode(Image.fromarray(grey).convert('LA'))):
    np.testing.assert_array_equal(one(content), grey[..., None])
    np.testing.assert_array_equal(rgb(content), np.stack([grey] * 3, -1))
  bits = Image.fromarray(grey).convert('1')
  np.testing.assert_array_equal(
    one(encode(bits))[..., 0], np.asarray(bits) * np.uint8(255)
  )


def test_jpeg_equals_pillow_up_to_the_inverse_transform(photograph):
  for mode in ('RGB', 'L'):
    content = encode(photograph, 'JPEG', mode, quality=95)
    for channels, wanted in ((3, 'RGB'), (1, 'L')):
      ours = decode.Decode(channels=channels)(content)
      theirs = Image.open(io.BytesIO(content))
      theirs.draft(wanted, theirs.size)  # grey: the luma that is stored
      theirs = np.asarray(theirs.convert(wanted))
      difference = ours.reshape(theirs.shape).astype(int) - theirs
      assert np.abs(difference).max() <= 2
      assert ours.shape == (48, 64, channels)


def test_an_animation_gives_its_first_frame(photograph):
  frames = [Image.new('L', (4, 4), v) for v in (10, 200)]
  content = encode(frames[0], 'GIF', save_all=True, append_images=frames[1:])
  np.testing.assert_array_equal(
    decode.Decode(channels=1)(content), np.full((4, 4, 1), 10)
  )


def test_exif_orientation_is_ignored(photograph):
  exif = Image.Exif()
  exif[0x0112] = 6  # a quarter turn
  content = encode(photograph, 'JPEG', exif=exif)
  assert decode.Decode()(content).shape == (48, 64, 3)


def test_min_side_shrinks_jpeg_but_not_below(photograph):
  content = encode(photograph, 'JPEG')
  assert decode.Decode(min_side=20)(content).shape == (24, 32, 3)
  assert decode.Decode(min_side=24)(content).shape == (24, 32, 3)
  assert decode.Decode(min_side=25)(content).shape == (48, 64, 3)
  assert decode.Decode(min_side=1)(content).shape == (6, 8, 3)


def test_arrays_are_converted_between_grey_and_color(photograph):
  one, rgb = decode.Decode(channels=1), decode.Decode()
  assert rgb(photograph) is photograph
  assert one(photograph).shape == (48, 64, 1)
  assert rgb(one(photograph)).shape == (48, 64, 3)
  with pytest.raises(decode.BadImageError, match='uint8'):
    rgb(photograph / 255)


def make_folder(path, photograph, bad):
  for split, good in (('train', 3), ('test', 2)):
    for name in ('a', 'b'):
      folder = path / split / name
      folder.mkdir(parents=True)
      for i in range(good):
        image = np.roll(photograph, 7 * i, 1)
        (folder / f'{i}.png').write_bytes(encode(image))
  for name, (content, _) in bad.items():
    for split in ('train', 'test'):
      (path / split / 'b' / name).write_bytes(content)


def build(path, **options):
  return data.build(
    f'folder(path={str(path)!r})',
    train='resize(size=8), value_range',
    test='resize(size=8), value_range',
    **options,
  )


@pytest.mark.parametrize('workers', [0, 1])
def test_refusing_names_the_file_and_what_to_do(tmp_path, photograph, workers):
  bad = bad_files(photograph)
  make_folder(tmp_path, photograph, {'cmyk.jpg': bad['cmyk.jpg']})
  built = build(tmp_path, workers=workers)
  with pytest.raises(
    data.BadImageError, match=r"cmyk\.jpg: CMYK .*convert=True.*on_bad='skip'"
  ):
    list(built.test_batches(4))


def test_skipped_images_have_weight_zero_and_are_counted(
  tmp_path, photograph, caplog
):
  bad = bad_files(photograph)
  make_folder(tmp_path, photograph, bad)
  built = build(tmp_path, on_bad='skip', threads=1)
  assert built.test_size == 4 + len(bad)
  with caplog.at_level(logging.WARNING):
    batches = built.test_batches(6)
    found = list(batches)
  assert sum(b['weight'].sum() for b in found) == 4
  assert batches.skipped == len(bad)
  assert not any(b['image'][b['weight'] == 0].std() for b in found)
  for name in bad:
    assert sum(name in record.message for record in caplog.records) == 1
  # One epoch of training sees each of them once, too.
  assert built.train_size == 6 + len(bad) == 21
  with built.train_batches(7, seed=0) as batches:
    weights = [next(batches)['weight'].sum() for _ in range(3)]
  assert sum(weights) == 6
  assert batches.skipped == len(bad)


def test_skipping_everything_is_an_error(tmp_path, photograph):
  for name in ('a', 'b'):
    for split in ('train', 'test'):
      folder = tmp_path / split / name
      folder.mkdir(parents=True)
      (folder / 'x.png').write_bytes(b'')
  with pytest.raises(ValueError, match='skipped all of the first 2 images'):
    build(tmp_path, on_bad='skip')
  with pytest.raises(data.BadImageError, match=r'x\.png'):
    build(tmp_path)
