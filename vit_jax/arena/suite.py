"""What the suites share: one choice after another, and then the report."""

import json
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from vit_jax.arena import process, results

ASKED = 'vit_jax.arena.cells'  # its process says what the machine is


def run(
  workdir: str | os.PathLike, labels: Sequence[str],
  each: Callable[[str], str],
) -> list[dict[str, Any]]:  # fmt: skip
  """Has `each` run a choice and say a line on it; reports all of the workdir.

  Args:
    workdir: gets the report of its rows, those of other shards too.
    labels: of the choices.
    each: runs what is missing of one.

  Returns:
    All rows of the workdir.
  """
  begin = time.perf_counter()
  for number, label in enumerate(labels, 1):
    said = each(label)
    print(
      f'{number}/{len(labels)} {label}: {said}; '
      f'{time.perf_counter() - begin:.0f} s',
      flush=True,
    )
  rows = results.read(workdir)
  from vit_jax.arena import report

  report.write(workdir, rows)
  return rows


def machine(file: pathlib.Path) -> dict[str, Any]:
  """`results.environment()`, asked in a process: this one takes no device.

  On a GPU the process that touches it first takes most of its memory.

  Raises:
    RuntimeError: JAX finds no device there.
  """
  log = file.parent / 'logs' / f'{file.stem}-machine.log'
  answer = log.with_suffix('.json')
  end = process.run(ASKED, {'ask': str(answer.absolute())}, log)
  if end.status != 'ok':
    raise RuntimeError(f'cannot start a process to measure in: {end.error}')
  return json.loads(answer.read_text())
