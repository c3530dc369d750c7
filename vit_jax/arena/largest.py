"""The largest batch that fits, by plans of a few sizes."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

MOST = 2**16  # looked for up to here
FAR = 8  # the second size; of one or two images XLA plans differently


class Fit(NamedTuple):
  """The largest size that fits.

  Attributes:
    batch: it; 0 if not even the smallest does.
    needed: bytes of it; of the smallest, if that does not fit.
    too_large: the smallest size known not to fit; None if all up to `most` do.
    plans: how many were asked for.
  """

  batch: int
  needed: int
  too_large: int | None
  plans: int


def largest(
  plan: Callable[[int], int], limit: float, unit: int = 1,
  precision: float = 0.0, most: int = MOST,
) -> Fit:  # fmt: skip
  """The largest multiple b of `unit` with plan(b) ≤ limit.

  A plan is close to a + c·b: the next size to be tried is where the line
  through the two nearest known ones meets the limit, and every third one, once
  there is an upper end, the middle of what is open, so that it ends for any
  plan that does not fall.

  Args:
    plan: bytes of a batch; does not fall as it grows.
    limit: bytes.
    unit: what batches are multiples of.
    precision: stops when the open range is at most this share of b; 0 stops
      when b + unit is known not to fit.
    most: multiples of `unit` that are looked at.
  """
  known = {}

  def fits(count):
    known[count] = plan(count * unit)
    return known[count] <= limit

  if not fits(1):
    return Fit(0, known[1], unit, 1)
  low, high, guess = 1, None, min(FAR, most)
  while low < most:
    if fits(guess):
      low = guess
    else:
      high = guess
    step = max(1, math.floor(precision * low))
    if high is not None and high - low <= step:
      break
    guess = _next(known, low, high, limit, step, most)
  top = None if high is None else high * unit
  return Fit(low * unit, known[low], top, len(known))


def _next(
  known: Mapping[int, int], low: int, high: int | None, limit: float,
  step: int, most: int,
) -> int:  # fmt: skip
  """The size to be tried next, above low and below high."""
  if high is None:
    a, b = max(c for c in known if c < low), low
  else:
    a, b = low, high
  rise = known[b] - known[a]
  met = 2 * low
  if rise > 0:
    met = math.floor(a + (limit - known[a]) * (b - a) / rise)
  if high is None:
    return min(max(met, low + step), most)
  if len(known) % 3 == 0:
    met = (low + high) // 2
  return min(max(met, low + step), high - 1)
