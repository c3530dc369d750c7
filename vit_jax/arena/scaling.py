"""Attentions alone: time, memory and FLOPs from short to long sequences."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn

from vit_jax import specs
from vit_jax.arena import board as boards
from vit_jax.arena import cells, kernel, process, results, suite
from vit_jax.arena.cells import Cell, Setting
from vit_jax.arena.suite import machine

MODULE = 'vit_jax.arena.cells'
LENGTHS = (64, 256, 1024, 4096, 16384, 65536)
DTYPES = ('float32', 'bfloat16', 'float16')


def scaling(
  workdir: str | os.PathLike,
  *,
  choices: str | Sequence[Any] | Mapping[str, Any] = (),
  lengths: Sequence[int] = LENGTHS,
  dtypes: Sequence[str] = (),
  batch_size: int = 1,
  heads: int = 4,
  width: int = 64,
  rounds: int = 7,
  least_seconds: float = 0.02,
  cell_seconds: float = 20.0,
  max_seconds: float = 20.0,
  memory_share: float = 0.8,
  timeout: float = 3600.0,
  shard: str = '0/1',
) -> list[dict[str, Any]]:
  """Measures every attention forward, and forward and backward, at each N.

  No training: normal noise on a sequence without padding, `train=False`;
  backward is ⟨random direction, output⟩ with its gradients by all inputs and
  parameters. Exact attention is measured in turns with each of them: `softmax`
  beside an attention of q, k, v, and the layer with softmax beside a layer
  with projections of its own. Every attention runs in a process of its own;
  killed and started again, the run goes on with the missing cells. A choice
  that is a class or a function, not words, runs in this process.

  A cell is not run but is a row that says why, where
  - the declared growth since the last length, or the plan of XLA once it is
    compiled, needs more memory than there is: 'out_of_memory';
  - the last two lengths predict a call beyond max_seconds: 'refused';
  - the attention itself refuses the length: 'refused'.

  Args:
    workdir: gets results.jsonl, the report and logs.
    choices: specs, or label → spec or builder; () or '' is every attention. A
      bare name has the options with which its growth is stated.
    lengths: N.
    dtypes: of the computation; () is float32, and bfloat16 too on a GPU.
    batch_size: B, all of which count in time, FLOPs and bytes.
    heads: H.
    width: D; a layer has C = H·D channels.
    rounds: samples of each cell.
    least_seconds: of repeated calls that make a sample.
    cell_seconds: after which a cell begins no further round.
    max_seconds: of one call.
    memory_share: of the available memory that a call may need.
    timeout: seconds for one process.
    shard: 'i/n' does every n-th choice from the i-th on and writes
      results-iofn.jsonl.

  Returns:
    All rows of the workdir.

  Raises:
    ValueError: a bad argument.
  """
  setting = Setting(
    batch_size, heads, width, rounds, least_seconds, cell_seconds,
    max_seconds, memory_share,
  )  # fmt: skip
  check(lengths, dtypes)
  found = boards.choices_of(choices, 'model.attention', 'softmax')
  for value in found.values():
    if not callable(value):
      kernel.lookup(value)  # a typo must not wait for its row
  labels = boards.share_of(found, shard)
  workdir = pathlib.Path(workdir)
  file = workdir / boards.file_name(shard)
  environment = machine(file)
  dtypes = dtypes or (
    ('float32', 'bfloat16') if environment['platform'] == 'gpu'
    else ('float32',)
  )  # fmt: skip
  wanted = cells.all_of(dtypes, lengths)
  return suite.run(
    workdir, labels,
    lambda label: summary(_run(
      label, found[label], setting, wanted, file, environment, timeout
    )),
  )  # fmt: skip


def check(lengths: Sequence[int], dtypes: Sequence[str]) -> None:
  """Raises a ValueError on lengths or dtypes that cannot be measured."""
  good = all(isinstance(n, int) and n > 0 for n in lengths)
  if not good or not lengths or len(set(lengths)) != len(lengths):
    raise ValueError(
      f'lengths={tuple(lengths)} must be one or more positive numbers, all '
      'different'
    )
  for dtype in dtypes:
    if dtype not in DTYPES:
      raise ValueError(f'dtype {dtype!r}; {specs.nearest(dtype, DTYPES)}')


def _run(
  label: str, value: str | Callable[..., nn.Module], setting: Setting,
  wanted: Sequence[Cell], file: pathlib.Path,
  environment: Mapping[str, Any], timeout: float,
) -> list[dict[str, Any]]:  # fmt: skip
  """The rows of one choice; those that are there are not measured again."""
  keys = {cell: cell.key(label, setting) for cell in wanted}

  def there():
    rows = {row['key']: row for row in results.read(file.parent)}
    return [rows[key] for key in keys.values() if key in rows]

  def missing():
    found = results.keys(there())
    return [cell for cell, key in keys.items() if key not in found]

  name = re.sub(r'[^\w=.-]+', '_', label)[:100]
  log = file.parent / 'logs' / f'scaling-{name}.log'
  while left := missing():
    if callable(value):
      course = cells.Course(label, value, setting, environment, there())
      for found in course.run(left):
        results.append(file, found)
      continue
    end = process.run(
      MODULE,
      {
        'label': label, 'value': value, 'file': str(file.absolute()),
        'setting': dataclasses.asdict(setting), 'cells': left,
        'rows': there(), 'cache': str((file.parent / 'compiled').absolute()),
      },
      log, timeout,
    )  # fmt: skip
    left = missing()
    if end.status == 'ok' and left:
      end = process.End('failed', f'the process ended early; see {log}')
    if left:  # it died of the first one; the others get a new process
      lost = cells.row(left[0], label, setting, environment, *end)
      results.append(file, lost)
  return there()


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
  """One line on a choice's rows."""
  good = [row for row in rows if row['status'] == 'ok']
  text = f'{len(good)} of {len(rows)} cells'
  if good:
    longest = max(good, key=lambda row: (row['length'], row['seconds']))
    text += f', {longest["seconds"]:.3g} s at N={longest["length"]}'
  bad = [row for row in rows if row['status'] != 'ok']
  return text + (
    f'; {bad[0]["status"]} from N={bad[0]["length"]}: {bad[0]["error"]}'
    if bad else ''
  )  # fmt: skip
