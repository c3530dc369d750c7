"""A run that was interrupted ends bit-identical to one that was not."""

import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny

from vit_jax import checkpoints, data, train

SCRIPT = """
import sys, tiny
tiny.run(sys.argv[1], **eval(sys.argv[2]))
"""
STEPS = 40
CHANGES = {
  'steps': STEPS,
  'eval_every': 7,
  'checkpoint_every': 7,
  'model__dropout_rate': 0.1,
  'task__augment': 'mixup(alpha=0.2)',
}


def start(workdir, **changes):
  """The run in a process of its own, so that it can be killed."""
  env = {**os.environ, 'PYTHONPATH': os.path.dirname(__file__)}
  env['JAX_NUM_CPU_DEVICES'] = '1'
  return subprocess.Popen(
    [sys.executable, '-c', SCRIPT, str(workdir), repr(CHANGES | changes)],
    env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
  )  # fmt: skip


def finish(process):
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 0, output
  return output


def wait_for(workdir, step, process):
  path = workdir / 'metrics.jsonl'
  while process.poll() is None:
    if path.exists() and f'"step": {step},' in path.read_text():
      return
    time.sleep(0.005)
  raise AssertionError(process.communicate()[0])


def leaves(workdir):
  """Everything saved at the last step: parameters, optimiser, averages."""
  step_dir = checkpoints.find(workdir)
  assert step_dir.name == str(STEPS)
  with ocp.StandardCheckpointer() as checkpointer:
    return {
      jax.tree_util.keystr(path): np.asarray(leaf)
      for item in ('params', 'optimizer', 'ema')
      for path, leaf in jax.tree_util.tree_leaves_with_path(
        {item: checkpointer.restore(step_dir / item)}
      )
    }


def assert_same_run(left, right):
  assert tiny.rows(left) == tiny.rows(right)
  a, b = leaves(left), leaves(right)
  assert a.keys() == b.keys()
  assert all(np.array_equal(a[k], b[k]) for k in a)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The run that nothing interrupted."""
  workdir = tmp_path_factory.mktemp('whole')
  finish(start(workdir))
  return workdir


def test_kill_9_at_a_random_step_changes_no_bit(whole, tmp_path):
  step = random.SystemRandom().randrange(2, STEPS - 2)
  process = start(tmp_path)
  wait_for(tmp_path, step, process)
  process.kill()
  process.wait()
  # A torn line, as a crash in the middle of a write leaves it.
  with (tmp_path / 'metrics.jsonl').open('a') as f:
    f.write('{"step": 39, "train/lo')
  finish(start(tmp_path))
  assert_same_run(whole, tmp_path)


@pytest.mark.slow  # two processes that compile
def test_sigterm_saves_and_exits_0_and_changes_no_bit(whole, tmp_path):
  process = start(tmp_path)
  wait_for(tmp_path, 9, process)
  process.send_signal(signal.SIGTERM)
  output = finish(process)
  assert 'SIGTERM' in output
  good, _ = checkpoints.newest_good(tmp_path / 'checkpoints')
  assert 9 <= good < STEPS
  assert good % CHANGES['checkpoint_every']
  # Other workers, threads, logging and cadence: what may differ.
  output = finish(start(
    tmp_path, data__workers=2, data__threads=2, data__cache=True,
    log_every=1, checkpoint_every=11,
  ))  # fmt: skip
  assert f'resumed from step {good}' in output
  assert_same_run(whole, tmp_path)


def test_a_complete_run_is_left_as_it_is(whole, capsys):
  before = tiny.rows(whole)
  last = tiny.run(whole, **CHANGES)
  assert 'complete' in capsys.readouterr().out
  assert tiny.rows(whole) == before
  assert last['test/accuracy'] == before[-1]['test/accuracy']


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model__mlp_dim': 64}, 'model.mlp_dim is 64 here and 32 there'),
    ({'optimizer__learning_rate': 1.0}, 'optimizer.learning_rate'),
    ({'seed': 1}, 'seed is 1 here and 0 there'),
    ({'steps': 50}, 'steps is 50'),
    ({'batch_size': 32}, 'batch_size'),
    ({'task__label_smoothing': 0.1}, 'task.label_smoothing'),
    ({'data__train': 'value_range(low=-1.0, high=1.0)'}, 'data.train'),
  ],
)
def test_another_runs_workdir_is_refused_and_kept(whole, changes, message):
  before = sorted(p.stat().st_mtime_ns for p in whole.rglob('*'))
  with pytest.raises(ValueError, match='another run') as error:
    tiny.run(whole, **(CHANGES | changes))
  assert message in str(error.value)
  assert sorted(p.stat().st_mtime_ns for p in whole.rglob('*')) == before


def test_a_non_finite_loss_stops_and_names_step_and_checkpoint(tmp_path):
  changes = {'steps': 30, 'checkpoint_every': 1, 'eval_every': 0}
  with pytest.raises(train.NonFiniteLossError) as error:
    tiny.run(
      tmp_path, **changes, optimizer__name='sgd', optimizer__warmup=7,
      optimizer__learning_rate=1e12, sharding__data=8,
    )  # fmt: skip
  good, faults = checkpoints.newest_good(tmp_path / 'checkpoints')
  assert not faults
  assert f'last good checkpoint is step {good}' in str(error.value)
  assert f'at step {good + 1};' in str(error.value)
  step_dir = checkpoints.find(tmp_path)
  with ocp.StandardCheckpointer() as checkpointer:
    params = checkpointer.restore(step_dir / 'params')
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))


@pytest.mark.parametrize('processes', [2, 4])
def test_on_more_processes_each_step_sees_the_same_examples(processes):
  section = tiny.config()['data']
  built = data.build(**section)
  first = 5

  def seen(process, count):
    batches = built.train_batches(16, 0, first, process, count)
    found = [next(batches) for _ in range(3)]
    batches.close()
    return found

  one = seen(0, 1)
  parts = [seen(p, processes) for p in range(processes)]
  for step in range(3):
    whole = {x.tobytes() for x in one[step]['image']}
    union = [x.tobytes() for part in parts for x in part[step]['image']]
    assert len(union) == 16
    assert set(union) == whole
