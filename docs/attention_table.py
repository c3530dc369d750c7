"""Makes the table of docs/attention.md from the code.

python -m docs.attention_table            # rewrites the table
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import attention, flops
from vit_jax.attention import base, probe

PAGE = pathlib.Path(__file__).with_name('attention.md')
HEADS, WIDTH = 2, 16
GRID = (14, 14)
TOKENS = GRID[0] * GRID[1]
ENTRIES = attention.ATTENTIONS | attention.MIXERS
FAMILIES = (
  'exact', 'fixed pattern', 'combined pattern', 'learned pattern',
  'optimal transport', 'memory', 'low rank', 'kernel', 'recurrence',
)  # fmt: skip
COLUMNS = (
  'name', 'family', 'published cost', 'cost here', 'measured slope',
  'sequential steps', 'path length', 'causal', 'cross', 'key mask', 'mask',
  'bias', 'parameters', 'source',
)  # fmt: skip


def built(name: str, **options):
  """The entry with these options; mixers with HEADS heads."""
  if name in attention.MIXERS:
    options['num_heads'] = HEADS
  return ENTRIES[name](**options)


def inputs_of(name: str, n: int):
  """Shapes of the entry's inputs at n tokens, and of `x` where it takes it."""
  shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)  # noqa: E731
  if name in attention.MIXERS:
    return (shape(1, n, HEADS * WIDTH),), {}
  given = {}
  if base.honours(ENTRIES[name], 'x'):
    given['x'] = shape(1, n, HEADS * WIDTH)
  return (shape(1, n, HEADS, WIDTH),) * 3, given


def shapes_of(kernel, name: str, n: int):
  """The entry's variables at n tokens, abstract."""
  inputs, given = inputs_of(name, n)
  init = functools.partial(kernel.init, jax.random.key(0))
  return jax.eval_shape(init, *inputs, **given)


def grown(name: str, n: int):
  """The entry with its growth options at n tokens, its arguments, abstract."""
  kernel = built(name, **ENTRIES[name].grown(n))
  inputs, given = inputs_of(name, n)
  return kernel, (shapes_of(kernel, name, n), *inputs), given


@functools.cache
def counted(name: str, n: int) -> float:
  """FLOPs that the entry alone does at n tokens, with its growth options."""
  kernel, args, given = grown(name, n)
  return flops.count(kernel.apply, *args, **given)


def slope(name: str, lengths=(4096, 16384)) -> float:
  """D log FLOPs / d log N as counted, with the entry's growth options."""
  found = [counted(name, n) for n in lengths]
  return float(np.diff(np.log(found))[0] / np.diff(np.log(lengths))[0])


def parameters(name: str) -> int:
  """The entry's own parameters at TOKENS; a mixer's beyond q, k, v and out."""
  kernel = built(name, grid=GRID)
  shapes = {'params': {}, **shapes_of(kernel, name, TOKENS)}['params']
  count = sum(int(np.prod(s.shape)) for s in jax.tree.leaves(shapes))
  width = HEADS * WIDTH
  if name in attention.MIXERS:
    count -= 4 * width * (width + 1)
  return count


def path_length(name: str) -> float:
  """Layers until every token of a 14×14 grid has met every other."""
  kernel = built(name, grid=GRID)
  return probe.path_length(probe.support(kernel, TOKENS))


def row(name: str) -> dict[str, str]:
  """One line of the table."""
  cls = ENTRIES[name]
  yes = lambda flag: 'yes' if flag else '–'  # noqa: E731
  layers = path_length(name)
  mixer = name in attention.MIXERS
  return dict(
    zip(
      COLUMNS,
      (
        f'`{name}`' + (' (layer)' if mixer else ''), cls.family, cls.published,
        cls.cost, f'{slope(name):.2f}', cls.sequential,
        '∞' if layers == float('inf') else f'{layers:.0f}',
        yes('causal' in cls.__dataclass_fields__), yes(cls.cross),
        yes(base.honours(cls, 'key_mask')), yes(base.honours(cls, 'mask')),
        yes(base.honours(cls, 'bias')), f'{parameters(name):,}', cls.source,
      ),
      strict=True,
    )
  )  # fmt: skip


def markdown(names=None) -> str:
  """The whole table, by family and name."""
  names = names or sorted(
    ENTRIES, key=lambda n: (FAMILIES.index(ENTRIES[n].family), n)
  )
  lines = [
    '| ' + ' | '.join(COLUMNS) + ' |', '|' + '---|' * len(COLUMNS),
  ]  # fmt: skip
  lines += ['| ' + ' | '.join(row(name).values()) + ' |' for name in names]
  return '\n'.join(lines) + '\n'


def read(section: str) -> str:
  """The generated text that the page holds in a section."""
  begin, end = marks(section)
  return PAGE.read_text().partition(begin)[2].partition(end)[0]


def put(section: str, text: str) -> None:
  """Rewrites a generated section of the page.

  Raises:
    ValueError: the page has no such section.
  """
  begin, end = marks(section)
  head, found, rest = PAGE.read_text().partition(begin)
  _, closed, tail = rest.partition(end)
  if not (found and closed):
    raise ValueError(f'{PAGE} has no section {section!r}')
  PAGE.write_text(head + begin + text + end + tail)


def marks(section: str) -> tuple[str, str]:
  """The lines around a generated section."""
  return f'<!-- {section}: begin -->\n', f'<!-- {section}: end -->\n'


if __name__ == '__main__':
  put('table', markdown())
