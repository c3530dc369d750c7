"""Benchmark: every combination is a row, and a failing one says why."""

import json

import jax
import pytest

from configs import benchmark as configs_benchmark
from vit_jax import benchmark, main

TINY = {
  'name': 'vit', 'patch_size': 4, 'hidden_size': 16, 'num_layers': 1,
  'num_heads': 2, 'mlp_dim': 32, 'image_size': 8, 'num_classes': 3,
}  # fmt: skip


def config(**changes):
  section = configs_benchmark.get_config().to_dict()
  return section | {'variants': (), 'model': TINY, 'repeats': 2} | changes


def run(workdir, **changes):
  return main.RUNS['benchmark'](
    workdir, **main.build(config(**changes), workdir)
  )


def test_every_combination_is_a_row_with_every_number(tmp_path):
  rows = run(
    tmp_path, image_sizes=(8, (8, 12)), batch_sizes=(8,),
    dtypes=('float32', 'bfloat16'),
  )  # fmt: skip
  assert [(r['pixels'], r['dtype']) for r in rows] == [
    ('8×8', 'float32'), ('8×8', 'bfloat16'),
    ('8×12', 'float32'), ('8×12', 'bfloat16'),
  ]  # fmt: skip
  wanted = {key for key, _, _ in benchmark.COLUMNS} - {'error'}
  for row in rows:
    assert wanted <= set(row), row
    numbers = [v for v in row.values() if not isinstance(v, str)]
    assert min(numbers) > 0
  # The patches and the class token; 12 more parameters' positions a patch.
  assert rows[0]['gflop_per_image'] < rows[2]['gflop_per_image']
  assert rows[2]['parameters'] - rows[0]['parameters'] == 2 * 16
  found = json.loads((tmp_path / 'benchmark.json').read_text())
  assert found['rows'] == rows
  assert found['versions']['jax'] == jax.__version__
  assert found['device']['count'] == jax.device_count()
  text = (tmp_path / 'benchmark.md').read_text()
  lines = [line for line in text.splitlines() if line.startswith('|')]
  assert len(lines) == 2 + len(rows)
  assert len({len(line) for line in lines}) == 1


def test_sizes_that_cannot_run_are_rows_that_say_so(tmp_path):
  rows = run(tmp_path, image_sizes=(9, 8), batch_sizes=(3, 8, 8 * 10**11))
  assert 'not divisible into patches' in rows[1]['error']
  assert 'batch_size=3 is not divisible by 8' in rows[3]['error']
  assert 'error' not in rows[4]
  assert 'GiB' in rows[5]['error']
  assert rows[5]['parameters'] == rows[4]['parameters']
  text = (tmp_path / 'benchmark.md').read_text()
  assert 'not divisible into patches' in text


def test_variants_replace_the_models_own(tmp_path):
  rows = run(
    tmp_path, variants=('Ti/32', 'S/32'), batch_sizes=(8,), repeats=1,
    model={
      'name': 'vit', 'variant': 'B/16', 'num_classes': 3, 'image_size': 32,
      'num_layers': 1,
    },
  )  # fmt: skip
  assert [r['model'] for r in rows] == ['vit Ti/32', 'vit S/32']
  assert rows[0]['parameters'] < rows[1]['parameters']


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'variants': ('S/17',)}, 'S/17'),
    ({'batch_sizes': ()}, 'batch'),
    ({'repeats': 0}, 'repeats'),
    ({'batchsizes': (1,)}, 'config.batchsizes is read by nothing'),
    ({'model': {**TINY, 'widht': 3}}, 'widht'),
  ],
)
def test_typos_stop_before_anything_is_measured(tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    run(tmp_path, **changes)
  assert not (tmp_path / 'benchmark.json').exists()


def test_compile_times_do_not_come_from_the_cache(tmp_path):
  old = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'cache'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  try:
    benchmark._compile(jax.jit(lambda x: x + 2), 1.0)
    assert not list((tmp_path).rglob('*'))
    assert jax.config.jax_enable_compilation_cache
  finally:
    jax.config.update('jax_compilation_cache_dir', old)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 1)
