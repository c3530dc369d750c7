"""JSON lines are the truth: no row twice, none torn, clocks under time/*."""

import json
import time

import pytest
import tiny

from vit_jax import plots, writers


def lines(path):
  return [json.loads(x) for x in path.read_text().splitlines()]


def test_a_restart_drops_rows_past_the_restored_step(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  for first in (0, 2):
    writer = writers.Writer(tmp_path, first, 9)
    for step in range(first + 1, 6):
      writer.write(step, {'train/loss': float(first)})
    writer.close()
  assert [(r['step'], r['train/loss']) for r in lines(path)] == [
    (1, 0.0), (2, 0.0), (3, 2.0), (4, 2.0), (5, 2.0),
  ]  # fmt: skip


def test_a_torn_last_line_is_dropped_and_other_damage_is_said(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1}\n{"step": 2, "tra')
  assert writers.read_rows(path) == [{'step': 1}]
  path.write_text('{"step": 1\n{"step": 2}\n')
  with pytest.raises(ValueError, match='line 1 is not JSON'):
    writers.read_rows(path)


def test_non_finite_numbers_are_null(tmp_path):
  writer = writers.Writer(tmp_path, 0, 1)
  writer.write(1, {'train/loss': float('nan')})
  writer.close()
  assert lines(tmp_path / 'metrics.jsonl') == [{'step': 1, 'train/loss': None}]


def test_speed_leaves_pauses_out(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(time, 'monotonic', lambda: now[0])
  speed = writers.Speed(4, 24, batch_size=10, flops=50.0, peak=1000.0)
  assert speed.eta(4) is None
  assert speed.rates(4) == {}
  now[0] += 1.5
  with speed.paused():
    now[0] += 1000.0
  with speed.waiting():
    now[0] += 0.5
  # 4 steps in 2 seconds, a quarter of them waiting; 16 steps to go.
  assert speed.eta(8) == '0:00:08'
  assert speed.rates(8) == {
    'time/images_per_s': 20.0, 'time/mfu': 0.1, 'time/data_wait': 0.25,
  }  # fmt: skip


def test_a_run_writes_all_its_files_and_rows(tmp_path):
  tiny.run(tmp_path)
  rows = lines(tmp_path / 'metrics.jsonl')
  train = [r for r in rows if 'train/loss' in r]
  test = [r for r in rows if 'test/loss' in r]
  assert [r['step'] for r in train] == [1, 2, 3, 4, 5, 6]
  assert [r['step'] for r in test] == [3, 6]
  assert {'test/accuracy', 'test/accuracy_top5'} <= set(test[0])
  timed = {k for r in rows for k in r if k.startswith('time/')}
  assert timed == {'time/images_per_s', 'time/mfu', 'time/data_wait'}
  config = json.loads((tmp_path / 'config.json').read_text())
  assert config['config']['optimizer']['learning_rate'] == 1e-2
  assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')
  assert list((tmp_path / 'tensorboard').iterdir())


def test_curves_of_an_empty_run_draw_nothing(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('')
  plots.curves(tmp_path / 'metrics.jsonl', tmp_path / 'curves.png')
  assert not (tmp_path / 'curves.png').exists()


def test_curves_draw_a_panel_a_metric_and_no_empty_one(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  row = {'step': 1, 'train/loss': 1.0, 'test/loss': 2.0, 'train/skipped': 0.0}
  row |= {f'train/m{i}': 1.0 for i in range(3)} | {'time/mfu': 0.5}
  path.write_text(json.dumps(row) + '\n')
  figure = plots.curves(path, tmp_path / 'curves.png')
  shown = [a for a in figure.axes if a.get_visible()]
  assert [a.get_title() for a in shown] == ['loss', 'm0', 'm1', 'm2']
  assert [len(a.lines) for a in shown] == [2, 1, 1, 1]


def test_chosen_steps_are_profiled(tmp_path):
  tiny.run(
    tmp_path, profile=(2, 3), steps=4, eval_every=0, checkpoint_every=0
  )  # fmt: skip
  assert list((tmp_path / 'profile').rglob('*.xplane.pb'))
