"""The suite of kernels alone: measured, predicted, refused and resumed."""

import functools
import pathlib
import types

import jax
import jax.numpy as jnp
import killed
import numpy as np
import pytest

import vit_jax.arena
from vit_jax import attention
from vit_jax.arena import cells, clock, kernel, process, results, scaling
from vit_jax.arena.cells import Cell

SMALL = {
  'batch_size': 1, 'heads': 2, 'width': 4, 'rounds': 2, 'least_seconds': 0.0,
  'cell_seconds': 5.0, 'max_seconds': 5.0, 'memory_share': 0.8,
}  # fmt: skip
SETTING = cells.Setting(**SMALL)


class Doubled(attention.Attention):
  """A notebook's attention: in no table, without declared costs."""

  def __call__(self, q, k, v, *, train=False):
    return v * 2


class Broken(attention.Attention):
  """Raises what it is given."""

  error: type = RuntimeError

  def __call__(self, q, k, v, *, train=False):
    raise self.error('no such length\nand more')


@pytest.fixture
def written(monkeypatch):
  """What the report was given; and the machine is this process."""
  seen = []
  report = types.SimpleNamespace(write=lambda *given: seen.append(given))
  monkeypatch.setattr(vit_jax.arena, 'report', report, raising=False)
  monkeypatch.setattr(
    scaling, 'machine', lambda file: results.environment()
  )
  return seen


def run(workdir, **changes):
  return scaling.scaling(workdir, **{'lengths': (4,), **SMALL, **changes})


def course(value, rows=(), **changes):
  setting = cells.Setting(**{**SMALL, **changes})
  label = value if isinstance(value, str) else 'mine'
  return cells.Course(label, value, setting, {}, rows)


def past(length, direction='forward', status='ok', **measured):
  """A row of an earlier run of softmax."""
  error = '' if status == 'ok' else 'for a reason'
  return cells.row(
    Cell('float32', length, direction), 'softmax', SETTING, {}, status,
    error, measured,
  )  # fmt: skip


@pytest.mark.parametrize(
  ('choice', 'beside'),
  [
    ('softmax', None),
    ('linformer(rank=2)', 'softmax'),
    ('average', 'softmax layer'),
  ],
)
def test_rows_are_complete(choice, beside, tmp_path):
  one = course(choice)
  rows = list(one.run(cells.all_of(['float32'], [9, 4])))
  assert [(r['length'], r['direction']) for r in rows] == [
    (4, 'forward'), (4, 'backward'), (9, 'forward'), (9, 'backward'),
  ]  # fmt: skip
  for row in rows:
    assert (row['status'], row['error']) == ('ok', '')
    missing = {k for k in cells.MEASURED if row[k] is None}
    assert missing == (set() if beside else {'ratio', 'beside'})
    assert 0 < row['seconds_low'] <= row['seconds'] <= row['seconds_high']
    assert abs(row['flops'] / row['declared_flops'] - 1) < 0.15
    assert row['memory'] >= row['bytes'] >= 0
    results.append(tmp_path / 'results.jsonl', row)
  assert results.read(tmp_path) == rows
  assert {r['beside'] for r in rows} == {beside}


def test_bfloat16_is_measured_in_bfloat16():
  shape = kernel.Shape(1, 4, 2, 4, 'bfloat16')
  one = kernel.Kernel('linformer(rank=2)', shape)
  out = jax.eval_shape(one.forward, *one.arguments('forward'))
  assert {x.dtype for x in (out, *one.inputs)} == {jnp.dtype('bfloat16')}


def test_backward_derives_by_every_input_and_parameter():
  shape = kernel.Shape(1, 4, 2, 4, 'float32')
  one = kernel.Kernel('linformer(rank=2)', shape)
  value, (params, inputs, given) = one.call('backward')()
  assert value.shape == ()
  assert given == {}
  like = lambda tree: jax.tree.map(jnp.shape, tree)  # noqa: E731
  assert like((params, inputs)) == like((one.variables['params'], one.inputs))
  assert all(np.abs(x).max() > 0 for x in jax.tree.leaves((params, inputs)))
  out = one.call('forward')()
  noise = np.random.default_rng(1).standard_normal(out.shape, np.float32)
  np.testing.assert_allclose(value, np.vdot(noise, out), rtol=1e-4)


def test_inputs_and_parameters_are_arguments_and_no_constants():
  shape = kernel.Shape(1, 4, 2, 4, 'float32')
  one = kernel.Kernel('linformer(rank=2)', shape)
  one.make()
  plan = one.compiled('forward').memory_analysis()
  assert plan.argument_size_in_bytes >= one.held() > 3 * 4 * 32


def test_a_bare_name_grows_and_a_spec_is_as_it_is_written():
  shape = kernel.Shape(1, 64, 2, 4, 'float32')
  assert kernel.build('routing', shape)[0].clusters == 8
  assert kernel.build('routing(clusters=3)', shape)[0].clusters == 3


def test_a_layer_is_measured_beside_the_layer_with_softmax():
  mine = functools.partial(
    attention.MultiHeadDotProductAttention, attend=Doubled
  )
  (row,) = course(mine).run([Cell('float32', 4, 'forward')])
  assert (row['status'], row['beside']) == ('ok', 'softmax layer')


@pytest.mark.parametrize(
  ('error', 'status'),
  [
    (ValueError, 'refused'),
    (RuntimeError, 'failed'),
    (MemoryError, 'out_of_memory'),
  ],
)
def test_an_error_is_a_row_and_the_next_cell_runs(error, status):
  one = course(functools.partial(Broken, error=error))
  rows = list(one.run(cells.all_of(['float32'], [4])))
  assert [r['status'] for r in rows] == [status] * 2
  assert rows[0]['error'] == f'{error.__name__}: no such length'


def test_what_xla_plans_must_fit(monkeypatch):
  monkeypatch.setattr(process, 'available_bytes', lambda: 2**9)
  monkeypatch.setattr(kernel.Kernel, 'make', lambda self: pytest.fail('made'))
  rows = list(course('softmax').run(cells.all_of(['float32'], [16])))
  assert [r['status'] for r in rows] == ['out_of_memory'] * 2
  assert 'GiB, as XLA plans it; 80% of the 0.00 GiB' in rows[0]['error']
  assert rows[0]['memory'] > 0.8 * 2**9
  assert rows[0]['seconds'] is None


def test_what_grew_beyond_the_memory_is_not_even_compiled(monkeypatch):
  monkeypatch.setattr(process, 'available_bytes', lambda: 2**32)
  monkeypatch.setattr(
    kernel.Kernel, 'compiled', lambda *_: pytest.fail('compiled')
  )
  declared = attention.Softmax().temporary(1024, 2, 4)
  before = past(1024, seconds=1.0, bytes=2**30, declared_bytes=declared)
  (row,) = course('softmax', [before]).run([Cell('float32', 4096, 'forward')])
  assert row['status'] == 'out_of_memory'
  assert row['error'].startswith('needs 15.')
  assert 'from 1 GiB at N=1024' in row['error']
  assert 'of the 4.00 GiB' in row['error']


def test_what_would_take_too_long_is_not_even_compiled(monkeypatch):
  monkeypatch.setattr(
    kernel.Kernel, 'compiled', lambda *_: pytest.fail('compiled')
  )
  before = [past(4, seconds=0.1), past(16, seconds=1.6)]
  (row,) = course('softmax', before).run([Cell('float32', 64, 'forward')])
  assert row['status'] == 'refused'
  assert row['error'] == (
    'a call would take about 25.6 s, predicted from 0.1 s at N=4 and 1.6 s '
    'at N=16; the limit is max_seconds=5'
  )


@pytest.mark.parametrize('status', ['out_of_memory', 'timeout'])
def test_what_ended_a_process_is_not_tried_at_greater_lengths(status):
  rows = list(
    course('softmax', [past(4, status=status)]).run(
      [Cell('float32', 4, 'backward'), Cell('float32', 8, 'forward')]
    )
  )
  assert [r['status'] for r in rows] == [status] * 2
  assert 'forward at N=4 already: for a reason' in rows[0]['error']


def test_where_softmax_is_not_admitted_there_is_no_ratio():
  one = course('relu')
  one.exact = [past(1, seconds=1.0), past(2, seconds=8.0)]
  (row,) = one.run([Cell('float32', 4, 'forward')])
  assert row['seconds'] > 0
  assert (row['ratio'], row['beside']) == (None, None)


def test_the_line_through_two_lengths_is_exact_on_a_power():
  lengths = (64, 256, 1024)
  seconds = [1e-9 * n**1.5 for n in lengths]
  assert clock.predicted(lengths, seconds, 4096) == pytest.approx(
    1e-9 * 4096**1.5
  )
  assert clock.predicted(lengths[:1], seconds[:1], 4096) is None


def test_rounds_end_with_the_budget_but_one_is_always_measured():
  calls = [lambda: jnp.zeros(()), lambda: jnp.ones(())]
  assert [len(s) for s in clock.in_turns(calls, 3, 0.0, 60.0)] == [3, 3]
  assert [len(s) for s in clock.in_turns(calls, 3, 0.0, 0.0)] == [1, 1]


def test_what_is_there_is_not_measured_again(tmp_path, written, monkeypatch):
  choices = {'mine': Doubled}
  first = run(tmp_path, choices=choices)
  assert len(first) == 2
  assert written == [(tmp_path, first)]
  file = tmp_path / 'results.jsonl'
  before = file.read_bytes()
  # Killed while the second row was being written.
  file.write_bytes(before[:-20])
  again = run(tmp_path, choices=choices)
  assert [r['key'] for r in again] == [r['key'] for r in first]
  assert again[0] == first[0]
  whole = file.read_bytes()
  with monkeypatch.context() as patch:
    patch.setattr(cells.Course, 'run', lambda *_: pytest.fail('measured'))
    run(tmp_path, choices=choices)
  assert file.read_bytes() == whole
  longer = run(tmp_path, choices=choices, lengths=(4, 5))
  assert longer[:2] == again
  assert [r['length'] for r in longer[2:]] == [5, 5]
  wider = run(tmp_path, choices=choices, width=8)
  assert len(wider) == 6


def test_shards_are_disjoint_and_make_the_whole(tmp_path, written):
  choices = {'a': Doubled, 'b': Doubled, 'c': Doubled}
  run(tmp_path / 'parts', choices=choices, shard='1/2')
  merged = run(tmp_path / 'parts', choices=choices, shard='0/2')
  names = sorted(f.name for f in (tmp_path / 'parts').glob('*.jsonl'))
  assert names == ['results-0of2.jsonl', 'results-1of2.jsonl']
  parts = [
    {r['choice'] for r in results.read(tmp_path / 'parts' / n)} for n in names
  ]
  assert parts == [{'a', 'c'}, {'b'}]
  whole = run(tmp_path / 'whole', choices=choices)
  assert results.keys(merged) == results.keys(whole)
  assert len(merged) == len(whole) == 6


def test_no_choices_are_all_attentions(tmp_path, written, monkeypatch):
  seen = []
  monkeypatch.setattr(
    scaling, '_run', lambda label, *_: seen.append(label) or []
  )
  run(tmp_path, choices='')
  assert seen[0] == 'softmax'
  assert set(seen) == {*attention.ATTENTIONS, *attention.MIXERS}


@pytest.mark.slow  # processes that compile
def test_a_killed_kernel_is_a_row_and_the_others_go_on(
  tmp_path, written, monkeypatch
):
  monkeypatch.setitem(attention.ATTENTIONS, 'killed', killed.Killed)
  monkeypatch.setattr(scaling, 'MODULE', 'killed')
  monkeypatch.setenv('PYTHONPATH', str(pathlib.Path(__file__).parent))
  rows = run(tmp_path, choices='killed, relu', lengths=(4, 8))
  found = [(r['choice'], r['length'], r['status']) for r in rows]
  assert found == [
    ('killed', 4, 'ok'), ('killed', 4, 'ok'),
    ('killed', 8, 'out_of_memory'), ('killed', 8, 'out_of_memory'),
    *[('relu', n, 'ok') for n in (4, 4, 8, 8)],
  ]  # fmt: skip
  assert 'killed' in rows[2]['error']
  assert 'so ended forward at N=8 already' in rows[3]['error']


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'lengths': (4, 4)}, 'lengths='),
    ({'lengths': (0,)}, 'positive'),
    ({'dtypes': ('float31',)}, "did you mean 'float32'"),
    ({'choices': 'softmacks'}, "did you mean 'softmax'"),
    ({'choices': 'linformer(rang=2)'}, 'rank'),
    ({'shard': '2/2'}, '0 ≤ i < n'),
    ({'rounds': 0}, 'rounds=0'),
    ({'memory_share': 1.5}, 'memory_share=1.5'),
  ],
)
def test_a_bad_argument_is_refused_before_anything_runs(
  change, words, tmp_path
):
  with pytest.raises(ValueError, match=words):
    run(tmp_path, **change)
  assert not list(tmp_path.iterdir())
