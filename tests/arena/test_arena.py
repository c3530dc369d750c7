"""A whole arena, on a tiny board."""

import functools
import os
import pathlib
import signal
import subprocess
import sys
import time

import flax.linen as nn
import jax
import pytest

from configs import arena as configs
from vit_jax import arena as arenas
from vit_jax import attention
from vit_jax.arena import board as boards
from vit_jax.arena import report, results, run, training

ROOT = pathlib.Path(run.__file__).parents[2]
# What a clock or a machine says differs from run to run.
MEASURED = (
  'environment', 'compile_seconds', 'train_seconds', 'step_seconds', 'curve',
)  # fmt: skip


def config(**changes):
  found = configs.get_config().to_dict()
  found['model'] |= {
    'hidden_size': 8, 'num_layers': 1, 'num_heads': 2, 'mlp_dim': 8,
    'patch_size': 4,
  }  # fmt: skip
  return {
    **found, 'steps': 3, 'batch_size': 16, 'evaluations': 2, 'seeds': 2,
    'rates': (1e-3, 3e-2), 'choices': ('softmax', 'linear'), **changes,
  }  # fmt: skip


@pytest.fixture(scope='module')
def trainers():
  return {}


@pytest.fixture
def here(monkeypatch, trainers):
  """Choices run in this process, which compiles each of them once."""
  build = training.Trainer

  def shared(board, value, folder):
    key = (board.recipe, board.leaf, str(value))
    if key not in trainers:
      trainers[key] = build(board, value, folder)
    return trainers[key]

  monkeypatch.setattr(training, 'Trainer', shared)

  def inside(module, job, log, timeout):
    assert module == run.MODULE
    board = {**job['board'], 'rates': tuple(job['board']['rates'])}
    list(training.run(
      boards.Board(**board), job['label'], job['value'],
      pathlib.Path(job['file']),
    ))  # fmt: skip
    return run.process.End('ok', '')

  monkeypatch.setattr(run.process, 'run', inside)
  # What `report.write` makes of rows has its own tests.
  monkeypatch.setattr(report, 'write', lambda workdir, rows: None)


def told(rows):
  """The rows without what was measured, by key."""
  return {
    r['key']: {k: v for k, v in r.items() if k not in MEASURED} for r in rows
  }


def start(workdir, found):
  return arenas.compare(workdir, found, found['choices'])


@pytest.mark.usefixtures('here')
def test_a_board_has_every_cell_and_goes_on_where_it_was_stopped(
  tmp_path, monkeypatch
):
  found = config()
  whole = start(tmp_path / 'whole', found)
  assert len(whole) == 2 * (2 + 1)
  assert {r['status'] for r in whole} == {'ok'}
  for row in whole:
    assert [point[0] for point in row['curve']] == [2, 3]
    assert row['curve'][-1][3] == row['accuracy']
    assert row['shared'] == 1.0
    assert row['train_size'] + round(0.1 * 1437) == 1437
  by_seed = {(r['seed'], r['order'], r['start']) for r in whole}
  assert len(by_seed) == 2  # of each seed one order and one start

  # Stopped after its third cell, by whatever cannot be caught.
  once, count = results.append, []

  def append(file, row):
    once(file, row)
    count.append(row['key'])
    if len(count) == 3:
      raise KeyboardInterrupt

  monkeypatch.setattr(results, 'append', append)
  with pytest.raises(KeyboardInterrupt):
    start(tmp_path / 'parts', found)
  again = start(tmp_path / 'parts', found)
  assert told(again) == told(whole)
  assert len(count) == len(set(count)) == len(whole)

  # Two shards, merged by file, are the whole too.
  for shard in ('0/2', '1/2'):
    start(tmp_path / 'shards', {**found, 'shard': shard})
  assert told(results.read(tmp_path / 'shards')) == told(whole)

  with pytest.raises(ValueError, match='another recipe'):
    start(tmp_path / 'whole', {**found, 'steps': 4})


@pytest.mark.usefixtures('here')
def test_what_fails_is_a_row_and_the_others_go_on(tmp_path):
  found = config(
    choices=('softmax', 'nothing', 'window(sise=2)'), seeds=1,
    rates=(1e-3,),
  )  # fmt: skip
  rows = {r['choice']: r for r in start(tmp_path, found)}
  assert rows['softmax']['status'] == 'ok'
  assert rows['nothing']['status'] == 'refused'
  assert 'choices: ' in rows['nothing']['error']
  assert "did you mean 'size'" in rows['window(sise=2)']['error']


@pytest.mark.usefixtures('here')
def test_a_loss_that_is_no_number_ends_its_cell_only(tmp_path):
  found = config(choices=('softmax',), rates=(1e-3, 1e30), seeds=2)
  found['optimizer']['clip'] = 0.0
  good, bad, other = start(tmp_path, found)
  assert (good['status'], bad['status']) == ('ok', 'failed')
  assert 'by step' in bad['error'] or 'not finite' in bad['error']
  assert (other['learning_rate'], other['status']) == (1e-3, 'ok')


class Upside(attention.Attention):
  """Softmax attention to the keys that match least."""

  def __call__(self, q, k, v, *, train=False):
    scores = jax.numpy.einsum('bnhd,bmhd->bhnm', q, k)
    weights = nn.softmax(-scores)
    return jax.numpy.einsum('bhnm,bmhd->bnhd', weights, v)


@pytest.mark.usefixtures('here')
def test_a_notebooks_class_is_compared_without_registration(tmp_path):
  own = functools.partial(
    attention.MultiHeadDotProductAttention, attend=Upside
  )
  found = config(seeds=1, rates=(1e-3,))
  rows = arenas.compare(tmp_path, found, {'softmax': 'softmax', 'mine': own})
  softmax, mine = rows
  assert (mine['choice'], mine['status']) == ('mine', 'ok')
  assert mine['shared'] == 1.0
  assert mine['start'] == softmax['start']
  assert mine['loss'] != softmax['loss']


@pytest.mark.usefixtures('here')
def test_any_leaf_can_be_compared(tmp_path):
  found = config(leaf='model.num_heads', seeds=1, rates=(1e-3,))
  rows = arenas.compare(tmp_path, found, (1, 2))
  assert [r['choice'] for r in rows] == ['1', '2']
  assert [r['shared'] for r in rows] == [pytest.approx(rows[0]['shared']), 1.0]
  assert rows[0]['shared'] < 1  # projections [C H D] have another shape


@pytest.mark.slow  # processes that compile
def test_killed_in_the_middle_the_same_command_ends_with_the_same_rows(
  tmp_path,
):
  words = [
    f'--config.{name}={value}'
    for name, value in {
      'steps': 3, 'batch_size': 16, 'evaluations': 2, 'seeds': 2,
      'model.num_layers': 1, 'model.hidden_size': 8, 'model.mlp_dim': 8,
      'choices': "('softmax', 'linear', 'fnet')", 'rates': (1e-3, 3e-2),
    }.items()
  ]  # fmt: skip

  def command(workdir):
    return [
      sys.executable, '-m', 'vit_jax.main', '--config=configs/arena.py',
      f'--workdir={workdir}', *words,
    ]  # fmt: skip

  subprocess.run(command(tmp_path / 'whole'), cwd=ROOT, check=True)
  begun = subprocess.Popen(command(tmp_path / 'parts'), cwd=ROOT)
  while len(results.read(tmp_path / 'parts')) < 2:
    assert begun.poll() is None
    time.sleep(0.05)
  os.kill(begun.pid, signal.SIGKILL)
  begun.wait()
  time.sleep(1.0)  # its child dies with it
  before = results.read(tmp_path / 'parts')
  assert len(before) < 9
  time.sleep(2.0)
  assert results.read(tmp_path / 'parts') == before  # nobody writes any more
  subprocess.run(command(tmp_path / 'parts'), cwd=ROOT, check=True)
  rows = [results.read(tmp_path / name) for name in ('whole', 'parts')]
  assert told(rows[0]) == told(rows[1])
  assert (tmp_path / 'parts' / 'report.html').exists()
