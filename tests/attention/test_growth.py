"""Growth of every kernel alone with N: declared FLOPs and bytes, measured."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import attention, flops

H, D = 2, 16
LENGTHS = (256, 1024, 4096, 16384)
ENTRIES = attention.ATTENTIONS | attention.MIXERS


def kernel_at(name, n):
  """The entry with its growth options at n tokens, on a sequence."""
  options = ENTRIES[name].grown(n)
  if name in attention.MIXERS:
    options = {'num_heads': H, **options}
  return ENTRIES[name](**options)


def abstract(name, n):
  """Shapes of the inputs, the variables, and the call of them."""
  kernel = kernel_at(name, n)
  shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)  # noqa: E731
  inputs = (shape(1, n, H, D),) * 3
  given = {}
  if name in attention.MIXERS:
    inputs = (shape(1, n, H * D),)
  elif attention.base.honours(kernel, 'x'):
    given['x'] = shape(1, n, H * D)
  init = functools.partial(kernel.init, jax.random.key(0))
  variables = jax.eval_shape(init, *inputs, **given)
  return kernel, (variables, *inputs), given


@pytest.mark.parametrize('entry', sorted(ENTRIES))
def test_counted_flops_are_the_declared(entry):
  for n in LENGTHS:
    kernel, args, given = abstract(entry, n)
    counted = flops.count(kernel.apply, *args, **given)
    declared = kernel.flops(n, H, D)
    assert abs(counted / declared - 1) < 0.15, (n, counted, declared)


@pytest.mark.parametrize('entry', sorted(ENTRIES))
def test_temporaries_stay_below_the_declared_bound(entry):
  n = 1024
  kernel, args, given = abstract(entry, n)
  compiled = jax.jit(kernel.apply).lower(*args, **given).compile()
  used = compiled.memory_analysis().temp_size_in_bytes
  assert used <= kernel.temporary(n, H, D), (used, kernel.temporary(n, H, D))


@pytest.mark.parametrize('entry', sorted(ENTRIES))
def test_the_declared_growth_is_the_cost_that_is_printed(entry):
  """A bound that grows as N² belongs to an entry that says N²."""
  n = LENGTHS[2:]
  bound = [kernel_at(entry, m).temporary(m, H, D) for m in n]
  slope = np.log(bound[1] / bound[0]) / np.log(n[1] / n[0])
  quadratic = 'N²' in ENTRIES[entry].cost or 'N·N' in ENTRIES[entry].cost
  assert quadratic or slope < 1.75, slope
