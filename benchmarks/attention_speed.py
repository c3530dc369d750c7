"""From which length is each attention faster than exact softmax attention?

python -m benchmarks.attention_speed [--lengths 64 256 1024 4096] [NAME …]

Kernels alone, forward, jitted, on q, k, v of 4 heads of 64 channels, one
example: float32 on a CPU, bfloat16 (and so cuDNN's flash attention for softmax)
on a GPU. Every figure is a ratio to softmax, measured in turns in one process:
softmax's time over the kernel's, median of the rounds. First of all comes
softmax itself beside `flax.linen.dot_product_attention`. Options are those of
the growth table (`grown`). With --write, into docs/attention.md.
"""

import argparse
import functools
import math
import statistics

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from configs import digits
from docs import attention_table as page
from vit_jax import attention, main, state, train
from vit_jax.arena import clock
from vit_jax.arena.statistics import crossover

HEADS, WIDTH = 4, 64
LEAST = 0.1  # seconds of repeated calls that make a sample


def inputs(name: str, n: int, dtype):
  """Random q, k, v (or x), and x where it is taken."""
  rng = np.random.default_rng(n)
  draw = lambda *s: jnp.asarray(rng.standard_normal(s), dtype)  # noqa: E731
  if name in attention.MIXERS:
    return (draw(1, n, HEADS * WIDTH),), {}
  given = {}
  if attention.base.honours(page.ENTRIES[name], 'x'):
    given['x'] = draw(1, n, HEADS * WIDTH)
  return tuple(draw(1, n, HEADS, WIDTH) for _ in range(3)), given


def ready(name: str, n: int, dtype):
  """A compiled call of the entry at n tokens, run once."""
  options = page.ENTRIES[name].grown(n)
  if name in attention.MIXERS:
    options = {'num_heads': HEADS, 'dtype': dtype, **options}
  kernel = page.ENTRIES[name](**options)
  args, given = inputs(name, n, dtype)
  variables = jax.jit(kernel.init)(jax.random.key(0), *args, **given)
  run = jax.jit(functools.partial(kernel.apply, **given))
  call = lambda: run(variables, *args).block_until_ready()  # noqa: E731
  call()
  return call


def linen(n: int, dtype):
  """flax.linen's dot_product_attention on the same arrays."""
  args, _ = inputs('softmax', n, dtype)
  run = jax.jit(nn.dot_product_attention)
  call = lambda: run(*args).block_until_ready()  # noqa: E731
  call()
  return call


def digits_step(name: str):
  """A compiled training step of configs/digits.py, run once."""
  config = digits.get_config().to_dict()
  config['model']['attention'] = name
  parts = main.build(config, 'unused')
  model, optimizer = parts['model'], parts['optimizer']
  with parts['data'].train_batches(config['batch_size'], 0) as batches:
    batch = jax.tree.map(jnp.asarray, next(batches))
  key = jax.random.key(0)
  start = functools.partial(state.init_state, model=model, optimizer=optimizer)
  step = jax.jit(
    functools.partial(train.train_step, model=model, optimizer=optimizer)
  )
  at_first = jax.jit(start)(key, batch['image'][:1])
  call = lambda: jax.block_until_ready(  # noqa: E731
    step(at_first, parts['task'], batch, key)
  )
  call()
  return call


def ratio(exact, other, rounds: int) -> list[float]:
  """Times of `exact` over those of `other`, measured in turns."""
  a, b = clock.in_turns((exact, other), rounds, LEAST, math.inf)
  return [x / y for x, y in zip(a, b, strict=True)]


def run() -> None:
  """Prints the table as it grows."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('names', nargs='*')
  parser.add_argument('--lengths', type=int, nargs='+',
                      default=[64, 256, 1024, 4096])  # fmt: skip
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--write', action='store_true')
  given = parser.parse_args()
  dtype = jnp.bfloat16 if jax.default_backend() == 'gpu' else jnp.float32
  exact = {n: ready('softmax', n, dtype) for n in given.lengths}
  cells = []
  for n in given.lengths:
    found = ratio(linen(n, dtype), exact[n], given.rounds)
    cells.append(
      f'{statistics.median(found):.2f} ({min(found):.2f}–{max(found):.2f})'
    )
  lines = [
    '| attention | ' + ' | '.join(f'N = {n:,}' for n in given.lengths)
    + ' | crossover | digits step, ms |',
    '|---' * (len(given.lengths) + 3) + '|',
    '| `softmax`, beside linen’s | ' + ' | '.join(cells) + ' | | |',
  ]  # fmt: skip
  print('\n'.join(lines), flush=True)
  exact_step = digits_step('softmax')
  for name in given.names or sorted(set(page.ENTRIES) - {'softmax'}):
    medians = [
      statistics.median(ratio(exact[n], ready(name, n, dtype), given.rounds))
      for n in given.lengths
    ]
    call = digits_step(name)
    exact_s, step_s = clock.in_turns(
      (exact_step, call), given.rounds, LEAST, math.inf
    )
    step = 1e3 * statistics.median(step_s)
    beside = statistics.median(
      a / b for a, b in zip(exact_s, step_s, strict=True)
    )
    lines.append(
      f'| `{name}` | ' + ' | '.join(f'{m:.2f}' for m in medians)
      + f' | {crossover(given.lengths, medians)} | {step:.1f} ({beside:.2f}) |'
    )  # fmt: skip
    print(lines[-1], flush=True)
  if given.write:
    page.put('speed', '\n'.join([*lines, '']))


if __name__ == '__main__':
  run()
