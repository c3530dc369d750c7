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


@pytest.fixture(scope='module')
def measured(tmp_path_factory):
  """Two sizes of images, three of batches: only one combination can run."""
  workdir = tmp_path_factory.mktemp('benchmark')
  rows = run(
    workdir, image_sizes=(8, 9), batch_sizes=(3, 8, 8 * 10**11),
    dtypes=('bfloat16',),
  )  # fmt: skip
  return workdir, rows


def test_row_has_every_number(measured):
  row = measured[1][1]
  assert set(row) >= {key for key, _, _ in benchmark.COLUMNS} - {'error'}
  assert row['dtype'] == 'bfloat16'
  assert min(v for v in row.values() if not isinstance(v, str)) > 0
  assert row['train/memory_mib'] > row['forward/memory_mib']
  assert 'error' not in row


def test_combinations_that_cannot_run_are_rows_that_say_so(measured):
  rows = measured[1]
  assert 'batch_size=3 is not divisible by 8' in rows[0]['error']
  assert 'GiB' in rows[2]['error']
  assert rows[2]['parameters'] == rows[1]['parameters']
  assert 'not divisible into patches' in rows[4]['error']


def test_files_hold_the_rows_the_versions_and_the_device(measured):
  workdir, rows = measured
  found = json.loads((workdir / 'benchmark.json').read_text())
  assert found['rows'] == rows
  assert found['versions']['jax'] == jax.__version__
  assert found['device']['count'] == jax.device_count()
  text = (workdir / 'benchmark.md').read_text()
  lines = [line for line in text.splitlines() if line.startswith('|')]
  assert len(lines) == 2 + len(rows)
  assert len({len(line) for line in lines}) == 1
  assert 'not divisible into patches' in text


def test_sweep_is_the_product_and_replaces_the_models_own(
  tmp_path, monkeypatch
):
  seen = []
  monkeypatch.setattr(
    benchmark, 'measure', lambda row, model, *args: seen.append(model)
  )
  section = {
    'name': 'vit', 'variant': 'B/16', 'num_classes': 3, 'image_size': 32,
    'num_layers': 1,
  }  # fmt: skip
  rows = run(
    tmp_path, model=section, variants=('Ti/16', 'S/16'), batch_sizes=(8, 16),
    image_sizes=(32, (32, 48)), dtypes=('float32', 'bfloat16'),
  )  # fmt: skip
  keys = ('model', 'pixels', 'dtype', 'batch_size')
  found = [tuple(row[k] for k in keys) for row in rows]
  assert len(set(found)) == len(found) == 16
  assert found[:3] == [
    ('vit Ti/16', '32×32', 'float32', 8),
    ('vit Ti/16', '32×32', 'float32', 16),
    ('vit Ti/16', '32×32', 'bfloat16', 8),
  ]
  assert {m.hidden_size for m in seen} == {192, 384}
  assert {m.num_layers for m in seen} == {1}
  assert {m.image_size for m in seen} == {(32, 32), (32, 48)}
  seen.clear()
  (row,) = run(tmp_path, model=section, batch_sizes=(8,))
  assert (row['model'], row['pixels']) == ('vit B/16', '32×32')
  assert [m.hidden_size for m in seen] == [768]


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
