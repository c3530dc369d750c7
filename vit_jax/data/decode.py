"""Decoding of untrusted images into uint8 `[H W C]`, within declared limits.

The size is read from the header before anything is allocated. What converts
without a change of meaning is converted: palette, 1-bit and grey images, opaque
alpha, grey ↔ RGB. What does not is *bad*: truncated or corrupt files, CMYK,
real transparency, 16 bits, more than `max_pixels`. The pipeline refuses or
skips a bad image, as `on_bad` says. Animations give their first frame. The EXIF
orientation is ignored, as in TFDS and in most published training sets.
"""

import dataclasses
import io
import struct

import numpy as np
import simplejpeg
from PIL import Image

from vit_jax.data import transforms

FORMATS = ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP')  # all else is not opened

# What Pillow's readers raise on damaged files (UnidentifiedImageError is an
# OSError; the PNG reader raises SyntaxError on a broken chunk).
_DAMAGED = (
  OSError,
  SyntaxError,
  ValueError,
  EOFError,
  IndexError,
  struct.error,
)


class BadImageError(ValueError):
  """An image that cannot be used: what it is, the limit, what can be done."""


@dataclasses.dataclass(frozen=True)
class Decode:
  """Encoded bytes, or a uint8 array, → uint8 `[H W channels]`.

  Attributes:
    channels: 1 (grey, ITU-R 601 luma) or 3 (RGB).
    max_pixels: refuse larger images, by their header.
    min_side: decode JPEG at the smallest of the scales 1/8, 2/8, 3/8, 4/8 that
      leaves both sides at least this long (in full if none does): faster on
      photographs that are resized anyway. Other formats are not affected.
    convert: also accept CMYK, transparency (laid on white) and 16 bits (the
      high byte is kept).
  """

  channels: int = 3
  max_pixels: int = 50_000_000  # 150 MB decoded
  min_side: int | None = None
  convert: bool = False

  def __post_init__(self):
    if self.channels not in (1, 3):
      raise ValueError(f'channels={self.channels!r} must be 1 or 3')
    transforms.check_number('max_pixels', self.max_pixels, 1)
    if self.min_side is not None:
      transforms.check_number('min_side', self.min_side, 1)
    if not isinstance(self.convert, bool):
      raise ValueError(f'convert={self.convert!r} must be True or False')

  def __call__(self, image: bytes | np.ndarray) -> np.ndarray:
    """Decodes one image.

    Raises:
      BadImageError: it is damaged, too large or of a refused kind.
    """
    if isinstance(image, np.ndarray):
      return self._array(image)
    if image[:2] == b'\xff\xd8':
      return self._jpeg(image)
    return self._pillow(image)

  def _array(self, image: np.ndarray) -> np.ndarray:
    kind = image.ndim == 3 and image.shape[2] in (1, 3)
    if not kind or image.dtype != np.uint8:
      raise BadImageError(
        f'an array of shape {image.shape} and dtype {image.dtype} is not an '
        'image: uint8 [H W 1] or [H W 3] is'
      )
    self._check_size(*image.shape[:2])
    if image.shape[2] == self.channels:
      return image
    picture = transforms.to_pillow(image)
    return transforms.to_array(picture.convert(self._mode))

  def _jpeg(self, data: bytes) -> np.ndarray:
    try:
      height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
      return self._pillow(data)  # rare kinds; Pillow has the last word
    self._check_size(height, width)
    if space in ('CMYK', 'YCCK'):
      return self._pillow(data)
    # Scales between 1/2 and 1 take longer than decoding in full.
    side = self.min_side or 0
    if min(height, width) < 2 * side:
      side = 0
    try:
      return simplejpeg.decode_jpeg(
        data,
        'GRAY' if self.channels == 1 else 'RGB',
        min_height=side,
        min_width=side,
      )
    except ValueError as e:
      # Stray bytes between segments harm nothing, and ImageNet has some; Pillow
      # overlooks them but still finds a truncation.
      if 'extraneous' in str(e):
        return self._pillow(data)
      raise BadImageError(
        f'a truncated or damaged JPEG ({width}×{height}): {e}'
      ) from None

  def _pillow(self, data: bytes) -> np.ndarray:
    try:
      picture = Image.open(io.BytesIO(data), formats=FORMATS)
      self._check_size(picture.height, picture.width)
      self._check_kind(picture, data)
      picture.load()
    except BadImageError:
      raise
    except Image.DecompressionBombError as e:  # from open, before our check
      raise BadImageError(f'over max_pixels={self.max_pixels}: {e}') from None
    except _DAMAGED as e:
      raise BadImageError(
        f'a truncated or damaged file, or none of {", ".join(FORMATS)}: {e}'
      ) from None
    if picture.has_transparency_data:
      picture = self._flatten(picture)
    if picture.mode.startswith('I'):
      picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode != self._mode:
      picture = picture.convert(self._mode)
    return transforms.to_array(picture)

  @property
  def _mode(self) -> str:
    return 'L' if self.channels == 1 else 'RGB'

  def _check_size(self, height: int, width: int) -> None:
    if height * width > self.max_pixels:
      raise BadImageError(
        f'{width}×{height} = {height * width} pixels, over '
        f'max_pixels={self.max_pixels}; raise it in decode(max_pixels=…)'
      )

  def _check_kind(self, picture: Image.Image, data: bytes) -> None:
    # Pillow reads 16-bit RGB as RGB and says nothing: ask the PNG header.
    deep = picture.format == 'PNG' and data[24] == 16
    if deep or picture.mode.startswith('I'):
      kind = '16 bits a channel'
    elif picture.mode == 'CMYK':
      kind = 'CMYK'
    else:
      return
    if not self.convert:
      raise BadImageError(
        f'{kind} ({picture.width}×{picture.height}); decode(convert=True) '
        'accepts it'
      )

  def _flatten(self, picture: Image.Image) -> Image.Image:
    picture = picture.convert('RGBA')
    if picture.getchannel('A').getextrema() == (255, 255):
      return picture.convert('RGB')
    if not self.convert:
      raise BadImageError(
        f'RGBA, with real transparency ({picture.width}×{picture.height}); '
        'decode(convert=True) lays it on white'
      )
    white = Image.new('RGBA', picture.size, 'white')
    return Image.alpha_composite(white, picture).convert('RGB')
