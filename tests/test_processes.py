"""Two processes on loopback train, save and restore as one."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import tiny

from vit_jax import checkpoints, pretrained

pytestmark = pytest.mark.slow  # three processes that compile

# Each process has 4 fake devices, so that the two have the 8 of one test
# process: the same program on the same mesh.
SCRIPT = """
import os, sys
os.environ['JAX_NUM_CPU_DEVICES'] = '4'
workdir, port, process = sys.argv[1:]
import jax
jax.distributed.initialize(f'127.0.0.1:{port}', 2, int(process))
import tiny
from vit_jax import train

changes = eval(os.environ['CHANGES'])

class Crash(Exception):
  pass

# The first run dies in its second evaluation, after step 4.
whole, calls = train.evaluate.run, []
def fragile(*args, **kwargs):
  calls.append(1)
  if len(calls) == 2:
    raise Crash
  return whole(*args, **kwargs)
train.evaluate.run = fragile
try:
  tiny.run(workdir, **changes)
except Crash:
  print('crashed')
train.evaluate.run = whole
tiny.run(workdir, **changes)
"""
CHANGES = {
  'eval_every': 2,
  'checkpoint_every': 2,
  'sharding': {'data': 2, 'fsdp': 4},
}


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """The workdir of two processes that crashed once and went on."""
  folder = tmp_path_factory.mktemp('processes')
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  env = {
    **os.environ,
    'PYTHONPATH': str(tiny.ROOT / 'tests'),
    'CHANGES': repr(CHANGES),
  }
  running = [
    subprocess.Popen(
      [sys.executable, '-c', SCRIPT, str(folder), str(port), str(process)],
      env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    for process in range(2)
  ]  # fmt: skip
  outputs = [p.communicate(timeout=300)[0] for p in running]
  for process, output in zip(running, outputs, strict=True):
    assert process.returncode == 0, output
    assert 'crashed' in output
  assert 'resumed from step 2' in outputs[0]
  assert 'resumed' not in outputs[1]  # one process writes for all
  return folder


def test_two_processes_equal_one(workdir, tmp_path):
  tiny.run(tmp_path, **CHANGES)
  left, right = tiny.rows(workdir), tiny.rows(tmp_path)
  assert [r['step'] for r in left] == [r['step'] for r in right]
  for a, b in zip(left, right, strict=True):
    assert a == pytest.approx(b, rel=1e-4)


def test_their_checkpoint_opens_on_one_process(workdir):
  good, faults = checkpoints.newest_good(workdir / 'checkpoints')
  assert good == 6
  assert not faults
  found = pretrained.load(workdir)
  kernel = found.variables['params']['head']['kernel']
  assert kernel.shape == (16, 10)
  assert np.abs(kernel).max() > 0


def test_one_process_takes_over_their_run(workdir, capsys):
  last = tiny.run(workdir, **CHANGES)
  assert 'complete' in capsys.readouterr().out
  assert 0 <= last['test/accuracy'] <= 1
