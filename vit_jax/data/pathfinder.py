"""Pathfinder of the Long-Range Arena (Linsley et al. 2018; Kim et al. 2020).

Does a dashed path join the two discs, among other dashed paths? Images are
drawn, not read: each from its own seed, so that any of them can be made
without the others.
"""

import hashlib
import math
import random
from typing import NamedTuple

import numpy as np

from vit_jax.data.contours import Style, arrange
from vit_jax.data.transforms import Example

# Tay et al. 2021 (Long-Range Arena), section 2.2.5: 80, 10 and 10 % of 200,000.
SPLITS = {'train': 160_000, 'validation': 20_000, 'test': 20_000}
# What the arena says its images were drawn with, in its data/pathfinder.py. At
# 128 it draws gaps of 2 or 3.
STYLES = {
  32: Style(32, 2, 1, 0.5, 1.5, 20),
  64: Style(64, 5, 1, 1, 2.5, 22),
  128: Style(128, 5, 2.5, 1.5, 3, 35),
  256: Style(256, 5, 3, 2, 5, 30),
}
PADDLE, MARKER = 0.75, 1.0  # brightness; the arena's contrast of paddles at 32
SCENES = 2000  # trials before the options are said to leave no room


class Scene(NamedTuple):
  """What an image shows, before it is drawn; positions are (y, x) in pixels.

  Attributes:
    paths: of each path its paddles [n 2 2], from where to where; the first two
      are the long ones.
    markers: [2 2], centres of the discs.
    label: 1 if the markers are ends of the same path.
  """

  paths: tuple[np.ndarray, ...]
  markers: np.ndarray
  label: int


class Pathfinder:
  """Examples {'image': uint8 [size size 1], 'label': 0 or 1}, half of each.

  An image has two paths of `contour_length` paddles and `distractors` of a
  third of that. From one paddle to the next a path turns by at most max_turn;
  paths keep 2 gap away from others and from themselves, in their gaps too, and
  nothing is nearer to an end of the long ones than a marker and a gap.

  Both labels are drawn from the same scenes: there are ends P, Q of one long
  path and R of the other with |PQ| ≈ |PR| (up to a twentieth of the size); the
  label says whether P and Q or P and R are marked. So number, lengths and
  places of paths, and the markers' distance, say nothing about it. That is
  stricter than what was published, where the distance is free.

  Args:
    split: 'train', 'validation' or 'test'.
    size: of the image, a key of `STYLES`, whose lengths are taken.
    contour_length: 6, 9 or 14 in the arena, whose results are of 14.
    paddle_length: in pixels; None is the style's.
    gap: between paddles, in pixels; None is the style's.
    distractors: how many; None is the style's budget over their length.
    max_turn: in radians.
    examples: None is the published number of the split.
    seed: of all examples.

  Raises:
    ValueError: an unknown split or size, or settings that leave no room.
  """

  labels = ('apart', 'joined')
  location = ()

  def __init__(
    self, split: str = 'train', size: int = 32, contour_length: int = 14,
    paddle_length: float | None = None, gap: float | None = None,
    distractors: int | None = None, max_turn: float = 0.8,
    examples: int | None = None, seed: int = 0,
  ):  # fmt: skip
    if split not in SPLITS:
      raise ValueError(
        f'Pathfinder has no split {split!r}; choices: {", ".join(SPLITS)}'
      )
    if size not in STYLES:
      raise ValueError(
        f'size={size!r} of Pathfinder; choices: {", ".join(map(str, STYLES))}'
      )
    if not isinstance(contour_length, int) or contour_length < 3:
      raise ValueError(
        f'contour_length={contour_length!r} must be an integer of at least 3'
      )
    style = STYLES[size]
    given = {'paddle_length': paddle_length, 'gap': gap}
    for name, value in given.items():
      if value is not None and not 0 < value < size:
        raise ValueError(f'{name}={value!r} must be in (0, {size}) pixels')
    style = style._replace(**{k: v for k, v in given.items() if v is not None})
    if not 0 < max_turn <= math.pi / 2:
      raise ValueError(f'max_turn={max_turn!r} must be in (0, π/2]')
    short = contour_length // 3
    if distractors is None:
      distractors = style.budget // short
    for name, value in (('distractors', distractors), ('examples', examples)):
      if value is not None and (not isinstance(value, int) or value < 0):
        raise ValueError(f'{name}={value!r} must be an integer of at least 0')
    self.style = style
    self._size = SPLITS[split] if examples is None else examples
    self._lengths = (contour_length,) * 2 + (short,) * distractors
    self._max_turn = max_turn
    self._name = f'pathfinder/{split}/{seed}'
    said = (style, self._lengths, max_turn, self._size, self._name)
    self.fingerprint = hashlib.sha256(repr(said).encode()).hexdigest()
    self.scene(0)  # an error here, if there is no room

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> Example:
    if not 0 <= index < self._size:
      raise IndexError(f'example {index} of {self._size}')
    scene = self.scene(index)
    return {
      'image': draw(scene, self.style), 'label': scene.label,
      'name': f'{self._name}/{index}',
    }  # fmt: skip

  def label(self, index: int) -> int:
    """The label of an example, for which nothing is drawn."""
    return index % 2

  def scene(self, index: int) -> Scene:
    """What example `index` shows."""
    rng = random.Random(f'{self._name}/{index}')
    for _ in range(SCENES):
      found = arrange(rng, self.style, self._lengths, self._max_turn)
      if found is not None:
        paths, (p, q, r) = found
        label = self.label(index)
        pair = [p, q if label else r]
        rng.shuffle(pair)
        return Scene(paths, np.stack(pair), label)
    raise ValueError(
      f'{SCENES} trials found no room for paths of {self._lengths} paddles '
      f'that turn by at most {self._max_turn} in {self.style}: fewer '
      'distractors, a shorter contour_length, paddle_length or gap need less'
    )


def draw(scene: Scene, style: Style) -> np.ndarray:
  """The image, uint8 [size size 1]: discs over dashes on black, antialiased."""
  canvas = np.zeros((style.size, style.size))
  # A paddle's length is that with its round ends: gaps are dark.
  cap = min(style.thickness / 2 / style.paddle_length, 0.5)
  for a, b in np.concatenate(scene.paths):
    inset = cap * (b - a)
    _stroke(canvas, a + inset, b - inset, style.thickness / 2, PADDLE)
  for centre in scene.markers:
    _stroke(canvas, centre, centre, style.marker_radius, MARKER)
  return np.rint(255 * canvas).astype(np.uint8)[..., None]


def trace(scene: Scene, style: Style, scale: int = 4) -> np.ndarray:
  """The paths without their gaps, bool [scale·size scale·size]: no dashes.

  Args:
    scene: what to trace.
    style: with which it was made.
    scale: how much larger than the image.
  """
  canvas = np.zeros((style.size * scale,) * 2)
  for path in scene.paths:
    line = path.reshape(-1, 2) * scale
    for a, b in zip(line[:-1], line[1:], strict=True):
      _stroke(canvas, a, b, 1.0, 1.0)
  return canvas > 0


def _stroke(
  canvas: np.ndarray, a: np.ndarray, b: np.ndarray, radius: float, light: float
) -> None:
  """Draws a line with round ends; a pixel fades over one pixel at its edge.

  Positions are of edges: the centre of the first pixel is at (0.5, 0.5).
  """
  reach = radius + 0.5
  low = np.floor(np.minimum(a, b) - reach).astype(int).clip(0)
  high = np.ceil(np.maximum(a, b) + reach).astype(int) + 1
  part = canvas[low[0] : high[0], low[1] : high[1]]
  y, x = np.ogrid[: part.shape[0], : part.shape[1]]
  y, x = y + (low[0] + 0.5 - a[0]), x + (low[1] + 0.5 - a[1])
  dy, dx = b - a
  length = dy * dy + dx * dx
  t = ((y * dy + x * dx) / length).clip(0, 1) if length else 0.0
  distance = np.hypot(y - t * dy, x - t * dx)
  np.maximum(part, light * (reach - distance).clip(0, 1), out=part)
