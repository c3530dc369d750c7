"""Images as sequences of their pixels (Tay et al. 2021, section 2.2.4)."""

import dataclasses
from typing import ClassVar

import numpy as np

from vit_jax.data.transforms import Example

PADDING = '<pad>'


@dataclasses.dataclass(frozen=True)
class Pixels:
  """Grey images, uint8 [H W 1] → {'tokens': int32 [H·W]}, row after row.

  A pixel of brightness g in 0…255 is token g + 1: 0 is padding, and there is
  none. Colours become grey where they are decoded, `decode(channels=1)`, by
  ITU-R 601 luma, which is what the arena takes.
  """

  vocabulary: ClassVar[tuple[str, ...]] = (PADDING, *map(str, range(256)))

  def __call__(
    self, example: Example, rng: np.random.Generator | None = None
  ) -> Example:
    """The example with tokens instead of an image.

    Raises:
      ValueError: the image is not grey, or its pixels are scaled already.
    """
    rest = {k: v for k, v in example.items() if k != 'image'}
    image = example['image']
    if image.dtype != np.uint8 or image.shape[2:] != (1,):
      raise ValueError(
        f'tokens are made of grey uint8 pixels, [H W 1], not {image.dtype} '
        f'{image.shape}: set decode="decode(channels=1)", and no transform '
        'that scales the pixels'
      )
    return {**rest, 'tokens': image.reshape(-1).astype(np.int32) + 1}
