"""The clock: seconds of calls that are measured in turns, and what is next."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax


def once(call: Callable[[], Any]) -> float:
  """Seconds until the result of one call is there."""
  begin = time.perf_counter()
  jax.block_until_ready(call())
  return time.perf_counter() - begin


def each(call: Callable[[], Any], least: float) -> float:
  """Seconds a call, of calls one after the other for `least` seconds."""
  begin, count = time.perf_counter(), 0
  while True:
    jax.block_until_ready(call())
    count += 1
    spent = time.perf_counter() - begin
    if spent >= least:
      return spent / count


def in_turns(
  calls: Sequence[Callable[[], Any]], rounds: int, least: float, budget: float
) -> list[list[float]]:
  """Samples of each call, one a round: what slows one slows the others.

  Args:
    calls: have run before, so that nothing is compiled or loaded any more.
    rounds: samples of each.
    least: seconds of repeated calls that make a sample.
    budget: seconds after which no further round begins; one always does.

  Returns:
    Seconds a call, [calls][rounds].
  """
  begin, out = time.perf_counter(), [[] for _ in calls]
  for _ in range(rounds):
    for call, samples in zip(calls, out, strict=True):
      samples.append(each(call, least))
    if time.perf_counter() - begin > budget:
      break
  return out


def predicted(
  lengths: Sequence[int], seconds: Sequence[float], n: int
) -> float | None:
  """Seconds at n tokens, on the line in log–log through the last two lengths.

  None with fewer than two lengths. The lengths ascend and n is beyond them.
  """
  if len(lengths) < 2:
    return None
  (a, b), (s, t) = lengths[-2:], seconds[-2:]
  slope = math.log(t / s) / math.log(b / a)
  return t * (n / b) ** slope
