"""Softmax over fixed patterns: predicates on one pair, written pair by pair."""

import dataclasses
import math

import numpy as np

from attention.oracles.facts import Facts, Limit, softmax


@dataclasses.dataclass
class Spot:
  """One token: its place after the prefix, its coordinates, the sides.

  `x` are the coordinates along which neighbours are counted: (row, column) on
  a grid, (place,) in a sequence.
  """

  place: int
  row: int
  column: int
  x: tuple
  sides: tuple


def spots(n, grid, prefix, planar=False):
  """The tokens after the prefix."""
  length = n - prefix
  columns = grid[1] if grid else max(1, math.ceil(math.sqrt(length)))
  rows = math.ceil(length / columns)
  flat = grid is None and not planar
  return [
    Spot(
      p, p // columns, p % columns,
      (p,) if flat else (p // columns, p % columns),
      (length,) if flat else (rows, columns),
    )
    for p in range(length)
  ]  # fmt: skip


def kept(keep, kernel, n, planar=False):
  """Bool[N N]: prefix pairs, and the pairs of spots that `keep` names."""
  p = kernel.prefix
  found = np.ones((n, n), bool)
  some = spots(n, kernel.grid, p, planar)
  for i, a in enumerate(some):
    for j, b in enumerate(some):
      found[p + i, p + j] = keep(kernel, a, b)
  return found & np.tri(n, dtype=bool) if kernel.causal else found


def alike(segments):
  """Pairs of one segment."""
  return segments[:, None] == segments[None]


def oracle_of(keep, planar=False, bias_of=None):
  """The dense masked softmax of a predicate keep(kernel, query, key)."""

  def oracle(
    kernel, variables, q, k, v, *, key_mask=True, mask=True, bias=0.0,
    segments=None,
  ):  # fmt: skip
    found = kept(keep, kernel, len(q), planar) & key_mask & mask
    if segments is not None:
      found = found & alike(segments)
    if bias_of is not None:
      bias = bias + bias_of(kernel, variables, q, planar)
    return softmax(q, k, v, found, bias)

  return oracle


def by_offset(kernel, variables, q, planar):
  """[H N N]: a learned bias by query - key, where there is one."""
  n, heads = q.shape[:2]
  out = np.zeros((heads, n, n))
  some = spots(n, kernel.grid, kernel.prefix, planar)
  size = kernel.size
  for a in some:
    for b in some:
      offset = [s - t for s, t in zip(a.x, b.x, strict=True)]
      if max(map(abs, offset)) < size:
        at = 0
        for o in offset:
          at = at * (2 * size - 1) + o + size - 1
        i, j = kernel.prefix + a.place, kernel.prefix + b.place
        out[:, i, j] = variables['params']['relative_bias'][at]
  return out


def neighborhood_bias(kernel, variables, q, planar):
  """As `by_offset`, if it has one."""
  return by_offset(kernel, variables, q, planar) if variables else 0.0


def window(kernel, a, b):
  """Liu et al. 2021: the same window."""
  size = kernel.size
  return all(s // size == t // size for s, t in zip(a.x, b.x, strict=True))


def sliding(kernel, a, b):
  """Within half the size, rounded down, to both sides."""
  half = kernel.size // 2
  return all(-half <= s - t <= half for s, t in zip(a.x, b.x, strict=True))


def neighborhood(kernel, a, b):
  """Hassani et al. 2023: the window of `size` nearest to the query."""
  for s, t, side in zip(a.x, b.x, a.sides, strict=True):
    starts = range(max(side - kernel.size, 0) + 1)
    best = min(starts, key=lambda u: abs(u + kernel.size // 2 - s))
    if side > kernel.size and not best <= t < best + kernel.size:
      return False
  return True


def dilated(kernel, a, b):
  """`size // 2` steps of `dilation` to both sides."""
  half = kernel.size // 2
  steps = [kernel.dilation * m for m in range(-half, half + 1)]
  return all(t - s in steps for s, t in zip(a.x, b.x, strict=True))


def image1d(kernel, a, b):
  """Parmar et al. 2018: the query's block and the memory before it."""
  first = a.place - a.place % kernel.size
  return b.place in range(first - kernel.memory, first + kernel.size)


def image2d(kernel, a, b):
  """Parmar et al. 2018: the query's block extended to three sides."""
  top, left = a.row - a.row % kernel.size, a.column - a.column % kernel.size
  return b.row in range(top - kernel.memory, top + kernel.size) and (
    b.column in range(left - kernel.memory, left + kernel.size + kernel.memory)
  )


BLOCKS = "engine='blocks', block=4"


def specs_of(name, first, second):
  """By blocks, then by the dense engine."""
  return f'{name}({first}, {BLOCKS})', f"{name}({second}, engine='dense')"


FACTS = {
  'window': Facts(
    oracle_of(window),
    cases=specs_of('window', 'size=2', 'size=3'),
    causal=f'window(size=3, causal=True, {BLOCKS})',
    limits=(
      Limit(f'window(size=4, {BLOCKS})', 'window ≥ both sides: softmax'),
    ),
  ),
  'sliding': Facts(
    oracle_of(sliding),
    cases=specs_of('sliding', 'size=3', 'size=4'),
    causal=f'sliding(size=5, causal=True, {BLOCKS})',
    limits=(
      Limit(f'sliding(size=7, {BLOCKS})', 'size ≥ 2·sides - 1: softmax'),
    ),
  ),
  'neighborhood': Facts(
    oracle_of(neighborhood, bias_of=neighborhood_bias),
    cases=specs_of('neighborhood', 'size=3, relative_bias=True', 'size=1'),
    causal=f'neighborhood(size=3, causal=True, {BLOCKS})',
    limits=(
      Limit(f'neighborhood(size=5, {BLOCKS})', 'size ≥ both sides: softmax'),
      Limit(
        f'neighborhood(size=3, {BLOCKS})', 'size = H = W, odd: softmax',
        grid=(3, 3),
      ),
    ),
    depends_on_length=True,  # the last window ends at N
  ),
  'dilated': Facts(
    oracle_of(dilated),
    cases=specs_of('dilated', 'size=3, dilation=2', 'size=5, dilation=1'),
    causal=f'dilated(size=3, dilation=3, causal=True, {BLOCKS})',
    limits=(
      Limit(
        f'dilated(size=7, dilation=1, {BLOCKS})',
        'dilation 1, size ≥ 2·sides - 1: softmax',
      ),
    ),
  ),
  'image1d': Facts(
    oracle_of(image1d),
    cases=specs_of('image1d', 'size=3, memory=2', 'size=4, memory=0'),
    causal=f'image1d(size=3, memory=4, causal=True, {BLOCKS})',
    limits=(Limit(f'image1d(size=12, {BLOCKS})', 'size ≥ N: softmax'),),
  ),
  'image2d': Facts(
    oracle_of(image2d, planar=True),
    cases=specs_of('image2d', 'size=2, memory=1', 'size=1, memory=2'),
    causal=f'image2d(size=2, memory=1, causal=True, {BLOCKS})',
    limits=(Limit(f'image2d(size=4, {BLOCKS})', 'size ≥ both sides: softmax'),),
    depends_on_length=True,  # a sequence's rows get longer with N
  ),
}
