"""Growth with N: declared FLOPs and bytes, measured; and the docs' table."""

import jax
import numpy as np
import pytest

from docs import attention_table as page

H, D = page.HEADS, page.WIDTH
LENGTHS = (256, 1024, 4096, 16384)
ENTRIES = page.ENTRIES
LINES = page.read('table').splitlines()


def kernel_at(name, n):
  """The entry with its growth options at n tokens, on a sequence."""
  return page.built(name, **ENTRIES[name].grown(n))


@pytest.mark.parametrize('entry', sorted(ENTRIES))
def test_counted_flops_are_the_declared(entry):
  for n in LENGTHS:
    counted = page.counted(entry, n)
    declared = kernel_at(entry, n).flops(n, H, D)
    assert abs(counted / declared - 1) < 0.15, (n, counted, declared)


@pytest.mark.parametrize('entry', sorted(ENTRIES))
def test_temporaries_stay_below_the_declared_bound(entry):
  n = 1024
  kernel, args, given = page.grown(entry, n)
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


def test_the_table_lists_every_entry_once():
  names = [line.split('`')[1] for line in LINES[2:]]
  assert sorted(names) == sorted(ENTRIES)


@pytest.mark.slow  # a map of 196 tokens through every entry
@pytest.mark.parametrize('entry', sorted(ENTRIES))
def test_the_table_is_current(entry):
  (_, _, line) = page.markdown([entry]).splitlines()
  assert line in LINES


@pytest.mark.parametrize('section', ['digits', 'growth', 'speed'])
def test_the_measured_tables_hold_every_entry(section):
  lines = page.read(section).splitlines()[2:]
  assert sorted(line.split('`')[1] for line in lines) == sorted(ENTRIES)
