"""Growth with N of every attention alone: FLOPs and temporary bytes.

python -m benchmarks.attention_growth [--lengths 256 1024 4096 16384] [NAME …]

Nothing is run: FLOPs are counted from the jaxpr (loop bodies times their
length) and held against the declared formula; bytes are what XLA reserves for
temporaries on this device, held against the declared bound. Width 16, 2 heads,
float32, one example, forward. With --write, into docs/attention.md.
"""

import argparse
import itertools

import jax
import numpy as np

from docs import attention_table as page


def measure(name: str, n: int) -> tuple[float, float, float, float]:
  """FLOPs counted and declared, bytes reserved and declared."""
  kernel, args, given = page.grown(name, n)
  memory = (
    jax.jit(kernel.apply).lower(*args, **given).compile().memory_analysis()
  )
  sizes = (n, page.HEADS, page.WIDTH)
  return (
    page.counted(name, n), kernel.flops(*sizes), memory.temp_size_in_bytes,
    kernel.temporary(*sizes),
  )  # fmt: skip


def slope(values, lengths) -> str:
  """Log–log slope between the last two lengths; nothing of nothing."""
  if not values[-2:].all():
    return '–'
  found = np.diff(np.log(values[-2:]))[0] / np.diff(np.log(lengths[-2:]))[0]
  return f'{found:.2f}'


def line(name: str, lengths) -> str:
  """One row of the table; asserts what was declared."""
  counted, declared, used, bound = (
    np.array(x) for x in zip(*(measure(name, n) for n in lengths), strict=True)
  )
  ratio = counted / declared
  ok = (abs(ratio - 1) < 0.15).all() and (used <= bound).all()
  cells = [
    f'`{name}`', page.ENTRIES[name].cost,
    *(f'{c / 1e6:,.1f}' for c in counted),
    f'{ratio.min():.2f}–{ratio.max():.2f}', slope(counted, lengths),
    *(f'{b / 2**20:,.1f}' for b in used),
    f'{(used / bound).max():.2f}', slope(used, lengths),
    'yes' if ok else '**no**',
  ]  # fmt: skip
  return '| ' + ' | '.join(cells) + ' |'


def main() -> None:
  """Prints the table as it grows."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('names', nargs='*')
  parser.add_argument(
    '--lengths', type=int, nargs='+', default=[256, 1024, 4096, 16384]
  )
  parser.add_argument('--write', action='store_true')
  given = parser.parse_args()
  names = given.names or sorted(page.ENTRIES)
  head = ['attention', 'cost', *(f'MFLOP at {n:,}' for n in given.lengths),
          'counted / declared', 'slope',
          *(f'MiB at {n:,}' for n in given.lengths), 'largest share of bound',
          'slope', 'as declared']  # fmt: skip
  lines = ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
  for name in names:
    lines.append(line(name, given.lengths))
    print(lines[-1], flush=True)
  if given.write:
    text = '\n'.join(itertools.chain(lines, ['']))
    page.put('growth', text)


if __name__ == '__main__':
  main()
