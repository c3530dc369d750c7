"""Where the dashed paths of a Pathfinder image lie: grown, never touching."""

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Ours: how freely to try before starting again, which no label depends on.
CANDIDATES = 8  # turns for one paddle
TRIES = 3  # steps for one paddle, with those taken back
STARTS = 20  # of one path


class Style(NamedTuple):
  """Lengths in pixels, as published for one size of image."""

  size: int
  paddle_length: float
  gap: float
  thickness: float
  marker_radius: float
  budget: int  # paddles of all distractors


class Canvas:
  """What there is so far: points, and how far others must keep from each."""

  def __init__(self, style: Style):
    self.style = style
    self.step = style.paddle_length + style.gap
    self.clearance = 2 * style.gap
    self.end = style.marker_radius + style.gap
    self.border = style.marker_radius + 0.5  # a marker is never cut off
    count = math.ceil(2 * self.step / self.clearance)
    self.along = self.step * np.arange(1, count + 1) / count  # points of a step
    self.points = np.zeros((0, 2))
    self.far = np.zeros(0)

  def add(self, points: np.ndarray, ends: np.ndarray) -> None:
    """Adds a path's points, and ends that others keep away from."""
    self.points = np.concatenate([self.points, points, ends])
    self.far = np.concatenate([
      self.far, np.full(len(points), self.clearance),
      np.full(len(ends), self.end),
    ])  # fmt: skip

  def inside(self, points: np.ndarray) -> np.ndarray:
    """Which points [… 2] leave room for a marker at the border."""
    middle = self.style.size / 2
    return (np.abs(points - middle) <= middle - self.border).all(-1)

  def clear(
    self, points: np.ndarray, own: np.ndarray, far: float
  ) -> np.ndarray:
    """Which points [K P 2] keep apart, from `own` ones [M 2] as well."""
    y, x = (points[..., None, i] for i in (0, 1))
    apart = np.hypot(y - self.points[:, 0], x - self.points[:, 1])
    good = (apart >= np.maximum(self.far, far)).all(-1)
    if len(own):
      apart = np.hypot(y - own[:, 0], x - own[:, 1])
      good &= (apart >= max(self.clearance, far)).all(-1)
    return good

  def grow(
    self, rng: random.Random, length: int, max_turn: float, long: bool
  ) -> np.ndarray | None:
    """The corners [length + 1, 2] of a path, in its gaps; None if stuck."""
    low, high = self.border, self.style.size - self.border
    place = np.array([rng.uniform(low, high), rng.uniform(low, high)])
    far = self.end if long else self.clearance
    if not self.clear(place[None, None], np.zeros((0, 2)), far).all():
      return None
    corners, steps, rest = [place], [], []
    for _ in range(TRIES * length):
      if len(rest) == len(steps):  # a new step: in which directions?
        rest.append(self.continued(rng, corners, steps, length, max_turn, long))
      if rest[-1]:
        steps.append(rest[-1].pop())
        corners.append(steps[-1][-1])
        if len(steps) == length:
          break
      elif steps:  # none is left: go back
        rest.pop()
        steps.pop()
        corners.pop()
      else:
        return None
    else:
      return None
    ends = np.stack([place, corners[-1]])
    self.add(np.concatenate([ends[:1], *steps]), ends if long else ends[:0])
    return np.stack(corners)

  def continued(
    self, rng: random.Random, corners: Sequence[np.ndarray],
    steps: Sequence[np.ndarray], length: int, max_turn: float, long: bool,
  ) -> list[np.ndarray]:  # fmt: skip
    """Steps [P 2] that a path can go on with."""
    heading, turn = 0.0, math.pi
    if steps:
      heading, turn = math.atan2(*(corners[-1] - corners[-2])), max_turn
    angles = np.array([
      heading + rng.uniform(-turn, turn) for _ in range(CANDIDATES)
    ])  # fmt: skip
    ways = np.stack([np.sin(angles), np.cos(angles)], -1)
    points = corners[-1] + self.along[:, None] * ways[:, None]
    points = points[self.inside(points[:, -1])]
    if not len(points):
      return []
    # Its own last two steps are near because they are its own.
    own = np.concatenate([corners[0][None], *steps[:-2]])
    own = own if len(steps) > 2 else own[:0]
    good = self.clear(points, own, 0.0).all(1)
    if long and len(steps) == length - 1:
      good &= self.clear(points[:, -1:], own, self.end).all(1)
    if long and len(steps) > 2:  # its own beginning may be marked
      apart = np.hypot(*np.moveaxis(points - corners[0], -1, 0))
      good &= (apart >= self.end).all(1)
    return list(points[good])


def arrange(
  rng: random.Random, style: Style, lengths: Sequence[int], max_turn: float
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]] | None:
  """Paths, and ends (P, Q, R) of the first two with |PQ| ≈ |PR|.

  Args:
    rng: of everything that is drawn.
    style: lengths in pixels.
    lengths: paddles of each path; ends of the first two may be marked.
    max_turn: from one paddle to the next, in radians.

  Returns:
    The paddles [n 2 2] of each path, and the ends; None if this trial found no
    room, or no such ends.
  """
  canvas, paths = Canvas(style), []
  for i, length in enumerate(lengths):
    for _ in range(STARTS):
      corners = canvas.grow(rng, length, max_turn, i < 2)
      if corners is not None:
        break
    else:
      return None
    # The paddle of each step lies between two halves of a gap.
    away = np.diff(corners, axis=0) * (style.gap / 2 / canvas.step)
    paths.append(np.stack([corners[:-1] + away, corners[1:] - away], 1))
    if i == 1:
      ends = _alike(rng, paths, style)
      if ends is None:
        return None
  return tuple(paths), ends


def _alike(
  rng: random.Random, paths: Sequence[np.ndarray], style: Style
) -> tuple[np.ndarray, ...] | None:
  """P and Q of one path, R of the other, with |PQ| ≈ |PR|; discs are apart."""
  a, b = ((path[0, 0], path[-1, 1]) for path in paths)
  near, choices = 2 * style.marker_radius + style.gap, []
  for one, other in ((a, b), (b, a)):
    for p, q in (one, one[::-1]):
      for r in other:
        pq, pr = np.linalg.norm(p - q), np.linalg.norm(p - r)
        if min(pq, pr) >= near and abs(pq - pr) <= style.size / 20:
          choices.append((p, q, r))
  return rng.choice(choices) if choices else None
