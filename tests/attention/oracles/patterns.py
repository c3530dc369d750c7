"""Softmax over fixed patterns: predicates on one pair, written pair by pair."""

import dataclasses
import math

import jax
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


def swin(kernel, a, b):
  """Liu et al. 2021, figure 4: roll by -shift, cut windows, mask the wrapped.

  The regions are those of the reference implementation: on the padded side,
  [0, -size), [-size, -shift) and [-shift, end) after the roll.
  """
  for s, t, side in zip(a.x, b.x, a.sides, strict=True):
    size = min(kernel.size, side)
    shift = 0 if kernel.size >= side else kernel.shift
    length = math.ceil(side / size) * size
    s, t = (s - shift) % length, (t - shift) % length
    region = [
      0 if u < length - size else 1 if u < length - shift else 2 for u in (s, t)
    ]
    if s // size != t // size or region[0] != region[1]:
      return False
  return True


def strided(kernel, a, b):
  """Child et al. 2019, both heads' sets, without the past's restriction."""
  far = abs(a.place - b.place)
  return far < kernel.size or far % kernel.size == 0


def fixed(kernel, a, b):
  """Child et al. 2019: own block, or the last columns of all blocks."""
  size, late = kernel.size, kernel.size - kernel.summary
  return a.place // size == b.place // size or b.place % size >= late


def criss_cross(kernel, a, b):
  """Huang et al. 2019: the same row or the same column."""
  return a.row == b.row or a.column == b.column


def bigbird(kernel, a, b):
  """Zaheer et al. 2020: ends, neighbours, and enough random for all blocks.

  Which blocks are random is the kernel's choice, so with some but not all of
  them the oracle takes the kernel's draw.
  """
  last = (a.sides[-1] if len(a.sides) == 1 else math.prod(a.sides)) - 1
  u, v, last = (x // kernel.block for x in (a.place, b.place, last))
  if {u, v} & {0, last} or abs(u - v) <= 1:
    return True
  from vit_jax.attention import patterns

  if not kernel.random:
    return False
  picks = patterns.Random(kernel.block, kernel.random, kernel.seed)
  return v in picks._picks((last + 1) * kernel.block)[u]


def count_of(kernel):
  """Global tokens after the prefix."""
  if kernel.count is not None:
    return kernel.count
  return 0 if kernel.prefix else 1


def longformer(kernel, a, b):
  """Beltagy et al. 2020: window or global."""
  g = count_of(kernel)
  return a.place < g or b.place < g or sliding(kernel, a, b)


def longformer_oracle(kernel, variables, q, k, v, *, x, **arrays):
  """Global rows with their own projections, where they have."""
  plain = oracle_of(longformer)
  out = plain(kernel, variables, q, k, v, **arrays)
  if variables:
    q, k, v = (
      np.einsum('nc,chd->nhd', x, p['kernel']) + p['bias']
      for p in (
        variables['params'][f'{name}_global']
        for name in ('query', 'key', 'value')
      )
    )
    g = kernel.prefix + count_of(kernel)
    out[:g] = plain(kernel, variables, q, k, v, **arrays)[:g]
  return out


def etc(kernel, a, b):
  """Ainslie et al. 2020: within the radius, or global."""
  g = count_of(kernel)
  return a.place < g or b.place < g or abs(a.place - b.place) <= kernel.radius


def etc_bias(kernel, variables, q, planar):
  """One label for each clipped offset, and for each kind of global pair."""
  n, heads = q.shape[:2]
  table = variables['params']['relative_bias']
  g, clip = kernel.prefix + count_of(kernel), kernel.clip
  out = np.zeros((heads, n, n))
  for i in range(n):
    for j in range(n):
      at = min(max(i - j, -clip), clip) + clip
      if i < g or j < g:
        at = 2 * clip + {(0, 1): 1, (1, 0): 2, (1, 1): 3}[i < g, j < g]
      out[:, i, j] = table[at]
  return out


def axial(kernel, variables, q, k, v, *, key_mask=True, segments=None):
  """Ho et al. 2019: along the rows, then along the columns."""
  for keep in (
    lambda kernel, a, b: a.row == b.row,
    lambda kernel, a, b: a.column == b.column,
  ):
    v = oracle_of(keep, True)(
      kernel, variables, q, k, v, key_mask=key_mask, segments=segments
    )
  return v


def focal(kernel, variables, q, k, v, *, key_mask=True):
  """Yang et al. 2021: tokens and pooled cells around the query's window."""
  n, p, size = len(q), kernel.prefix, kernel.size
  some = spots(n, kernel.grid, p, planar=True)
  rows, columns = some[0].sides
  key_mask = np.broadcast_to(key_mask, (n,))
  keys, values = list(k), list(v)
  keep = np.ones((n, n), bool)

  def near(side, reach, x, cell):
    first = x // size * size
    inside = [u // side for u in range(first, first + size)]
    return min(inside) - reach <= cell <= max(inside) + reach

  for a in some:
    for b in some:
      keep[p + a.place, p + b.place] = near(
        1, kernel.reach, a.row, b.row
      ) and near(1, kernel.reach, a.column, b.column)
  keep = keep & key_mask
  for side in kernel.pool:
    weights = variables['params'][f'pool{side}']
    for i in range(math.ceil(rows / side)):
      for j in range(math.ceil(columns / side)):
        inside = [
          b for b in some
          if (b.row // side, b.column // side) == (i, j)
          and key_mask[p + b.place]
        ]  # fmt: skip
        if not inside:
          continue
        share = len(inside) / side**2
        pooled = [
          sum(weights[b.row % side, b.column % side] * x[p + b.place]
              for b in inside) / share
          for x in (k, v)
        ]  # fmt: skip
        keys.append(pooled[0])
        values.append(pooled[1])
        column = np.zeros((n, 1), bool)
        for a in some:
          column[p + a.place] = near(
            side, kernel.around, a.row, i
          ) and near(side, kernel.around, a.column, j)
        keep = np.concatenate([keep, column], axis=1)
  return softmax(q, np.stack(keys), np.stack(values), keep)


def any_pattern(kernel, a, b):
  """The expressions of the cases, in Python."""
  return {
    'sliding(size=3) & ~column | row': (
      all(abs(s - t) <= 1 for s, t in zip(a.x, b.x, strict=True))
      and a.column != b.column
    )
    or a.row == b.row
  }[kernel.keep]


def per_head(kernel, variables, q, k, v, *, bias=0.0, mask=True, **arrays):
  """Head 0 has windows of 2, head 1 the column."""
  bias = np.broadcast_to(bias, (2, len(q), len(q)))
  mask = np.broadcast_to(mask, (2, len(q), len(q)))
  first = lambda kernel, a, b: all(  # noqa: E731
    s // 2 == t // 2 for s, t in zip(a.x, b.x, strict=True)
  )
  second = lambda kernel, a, b: a.column == b.column  # noqa: E731
  outs = [
    oracle_of(keep)(
      kernel, variables, q[:, [h]], k[:, [h]], v[:, [h]], bias=bias[[h]],
      mask=mask[[h]], **arrays,
    )
    for h, keep in enumerate((first, second))
  ]  # fmt: skip
  return np.concatenate(outs, axis=1)


def pattern_oracle(kernel, variables, q, k, v, **arrays):
  """One expression, or one a head."""
  oracle = oracle_of(any_pattern) if isinstance(kernel.keep, str) else per_head
  return oracle(kernel, variables, q, k, v, **arrays)


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
  'swin': Facts(
    oracle_of(swin, planar=True, bias_of=by_offset),
    cases=(
      f'swin(size=2, shift=1, {BLOCKS})', "swin(size=3, engine='dense')",
    ),
    causal=f'swin(size=2, causal=True, {BLOCKS})',
    limits=(
      Limit(
        f'swin(size=4, shift=2, relative_bias=False, {BLOCKS})',
        'a window that covers the grid is not shifted: softmax',
      ),
    ),
    depends_on_length=True,  # a sequence's rows get longer with N
  ),
  'strided': Facts(
    oracle_of(strided),
    cases=specs_of('strided', 'size=3', 'size=4'),
    causal=f'strided(size=3, causal=True, {BLOCKS})',
    limits=(
      Limit(f'strided(size=1, {BLOCKS})', 'size 1: softmax'),
      Limit(f'strided(size=12, {BLOCKS})', 'size ≥ N: softmax'),
    ),
  ),
  'fixed': Facts(
    oracle_of(fixed),
    cases=specs_of('fixed', 'size=4, summary=1', 'size=3, summary=2'),
    causal=f'fixed(size=3, causal=True, {BLOCKS})',
    limits=(
      Limit(f'fixed(size=3, summary=3, {BLOCKS})', 'summary = size: softmax'),
    ),
  ),
  'axial': Facts(
    axial,
    cases=(f'axial({BLOCKS})', "axial(engine='dense')"),
    causal=f'axial(causal=True, {BLOCKS})',
    limits=(
      Limit(f'axial({BLOCKS})', 'one row: softmax', grid=(1, 12), prefix=0,
            equals=lambda q, k, v: softmax(q, k, v)),
    ),
    depends_on_length=True,  # a sequence's rows get longer with N
  ),
  'criss_cross': Facts(
    oracle_of(criss_cross, planar=True),
    cases=(f'criss_cross({BLOCKS})', "criss_cross(engine='dense')"),
    causal=f'criss_cross(causal=True, {BLOCKS})',
    limits=(
      Limit(f'criss_cross({BLOCKS})', 'one row: softmax', grid=(1, 12)),
    ),
    depends_on_length=True,  # a sequence's rows get longer with N
  ),
  'longformer': Facts(
    longformer_oracle,
    cases=(
      f'longformer(size=3, count=1, {BLOCKS})',
      'longformer(size=3, count=2, global_projections=True)',
    ),
    causal=f'longformer(size=3, causal=True, {BLOCKS})',
    limits=(
      Limit(f'longformer(size=7, {BLOCKS})', 'size ≥ 2·sides - 1: softmax'),
    ),
    row_sum=None,  # rows of global tokens are no function of v if projected
  ),
  'etc': Facts(
    oracle_of(etc, bias_of=etc_bias),
    cases=specs_of('etc', 'radius=2, clip=1, count=1', 'radius=3, clip=5'),
    causal=f'etc(radius=2, clip=3, causal=True, {BLOCKS})',
    limits=(
      Limit(
        f'etc(radius=12, {BLOCKS})', 'radius ≥ N and no bias: softmax',
        variables=lambda tree: jax.tree.map(lambda x: 0 * x, tree),
      ),
    ),
  ),
  'bigbird': Facts(
    oracle_of(bigbird),
    cases=(
      "bigbird(block=1, random=2, engine='blocks')",
      "bigbird(block=2, random=0, engine='dense')",
    ),
    causal="bigbird(block=2, random=1, causal=True, engine='blocks')",
    limits=(
      Limit(
        "bigbird(block=2, random=6, engine='blocks')", 'all blocks: softmax'
      ),
    ),
    depends_on_length=True,  # the last block and the random ones
  ),
  'focal': Facts(
    focal,
    cases=(
      f'focal(size=2, reach=0, pool=(2,), around=0, {BLOCKS})',
      "focal(size=1, reach=1, pool=(2, 3), around=1, engine='dense')",
    ),
    limits=(
      Limit(
        f'focal(size=4, pool=(), {BLOCKS})',
        'a window that covers the grid, no coarser level: softmax',
      ),
    ),
    row_sum=None,  # the weights of the pooling are learned
    depends_on_length=True,  # a sequence's rows get longer with N
  ),
  'pattern': Facts(
    pattern_oracle,
    cases=(
      f"pattern(keep='sliding(size=3) & ~column | row', {BLOCKS})",
      f"pattern(keep=('window(size=2)', 'column'), {BLOCKS})",
    ),
    causal=f"pattern(keep=('window(size=2)', 'column'), causal=True, {BLOCKS})",
    limits=(Limit("pattern(keep='full')", 'every pair: softmax'),),
    depends_on_length=True,  # a sequence's rows get longer with N
  ),
}
