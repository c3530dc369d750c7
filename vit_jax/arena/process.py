"""A process for each choice: what kills one of them ends one row only."""

import ctypes
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

PR_SET_PDEATHSIG = 1  # linux/prctl.h


class End(NamedTuple):
  """How a process ended: a status of `results.STATUSES`, and why."""

  status: str
  error: str


def run(
  module: str, job: Mapping[str, Any], log: str | os.PathLike,
  timeout: float | None = None,
) -> End:  # fmt: skip
  """Runs `python -m module` with a job, JSON on its standard input.

  Args:
    module: has `if __name__ == '__main__'`, and begins with `receive()`.
    job: what it is to do; it writes its rows itself.
    log: file for what it prints.
    timeout: seconds after which it is killed.

  Returns:
    ('ok', '') or what it died of.
  """
  log = pathlib.Path(log)
  log.parent.mkdir(parents=True, exist_ok=True)
  with log.open('wb') as out:
    child = subprocess.Popen(
      [sys.executable, '-m', module],
      stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
      child.communicate(json.dumps(job).encode(), timeout)
    except subprocess.TimeoutExpired:
      child.kill()
      child.wait()
      return End('timeout', f'not ready after {timeout:.0f} s')
    finally:
      child.kill()
  if child.returncode == 0:
    return End('ok', '')
  said = log.read_text(errors='replace').strip().splitlines()
  last = said[-1] if said else ''
  text = '\n'.join(said[-30:])
  if child.returncode == -signal.SIGKILL or out_of_memory(text):
    why = last if child.returncode > 0 else 'killed: the host had no memory'
    return End('out_of_memory', why)
  if child.returncode < 0:
    name = signal.Signals(-child.returncode).name
    return End('failed', f'died of {name}: {last}')
  return End('failed', last or f'exit status {child.returncode}')


def out_of_memory(text: str) -> bool:
  """Whether an error speaks of memory: XLA's, NumPy's or Python's."""
  words = ('RESOURCE_EXHAUSTED', 'Out of memory', 'MemoryError', 'bad_alloc')
  return any(word in text for word in words)


def receive() -> Any:
  """The job of this process; it dies with the one that started it."""
  if sys.platform == 'linux':
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
  return json.load(sys.stdin)


def available_bytes() -> int:
  """Memory that a computation may take on the default device."""
  device = jax.local_devices()[0]
  found = device.memory_stats() if device.platform != 'cpu' else None
  if found and 'bytes_limit' in found:
    return found['bytes_limit'] - found['bytes_in_use']
  memory = pathlib.Path('/proc/meminfo')
  if memory.exists():
    for line in memory.read_text().splitlines():
      name, _, value = line.partition(':')
      if name == 'MemAvailable':
        return int(value.split()[0]) * 1024
  return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
