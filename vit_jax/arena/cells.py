"""The cells of one attention alone: length by length, admitted or refused.

`python -m vit_jax.arena.cells` takes a job on its standard input.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from vit_jax.arena import admission, clock, memory, process, results
from vit_jax.arena.kernel import DIRECTIONS, Kernel, Shape, baseline

# Of every row; None where it could not be measured.
MEASURED = (
  'seconds', 'seconds_low', 'seconds_high', 'samples', 'ratio', 'beside',
  'flops', 'declared_flops', 'bytes', 'declared_bytes', 'memory',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Setting:
  """How cells are measured; see `scaling`."""

  batch_size: int
  heads: int
  width: int
  rounds: int
  least_seconds: float
  cell_seconds: float
  max_seconds: float
  memory_share: float

  def __post_init__(self):
    for name in ('batch_size', 'heads', 'width', 'rounds'):
      value = getattr(self, name)
      if not isinstance(value, int) or value < 1:
        raise ValueError(f'{name}={value!r} must be a number of at least 1')
    for name in ('least_seconds', 'cell_seconds'):
      if not getattr(self, name) >= 0:
        raise ValueError(
          f'{name}={getattr(self, name)!r} must be at least 0 seconds'
        )
    if not self.max_seconds > 0:
      raise ValueError(f'max_seconds={self.max_seconds!r} must be above 0')
    if not 0 < self.memory_share <= 1:
      raise ValueError(
        f'memory_share={self.memory_share!r} must be a share in (0, 1]'
      )


class Cell(NamedTuple):
  """One row: a direction at a length, in a dtype."""

  dtype: str
  length: int
  direction: str

  def key(self, label: str, setting: Setting) -> str:
    """Unique in a file; the sizes belong to it, the patience does not."""
    sizes = f'{setting.batch_size}x{setting.heads}x{setting.width}'
    return (
      f'scaling/{label}/{self.dtype}/{sizes}/{self.length}/{self.direction}'
    )


def all_of(dtypes: Iterable[str], lengths: Iterable[int]) -> list[Cell]:
  """In the order in which they are measured: short ones first."""
  return [
    Cell(dtype, n, direction)
    for dtype in dtypes
    for n in sorted(lengths)
    for direction in DIRECTIONS
  ]


def row(
  cell: Cell, label: str, setting: Setting, environment: Mapping[str, Any],
  status: str, error: str, measured: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
  """A row of results; all rows have the same fields."""
  return {
    'key': cell.key(label, setting), 'suite': 'scaling', 'choice': label,
    'status': status, 'error': error, 'environment': dict(environment),
    **cell._asdict(), 'batch_size': setting.batch_size,
    'heads': setting.heads, 'width': setting.width,
    **dict.fromkeys(MEASURED), **(measured or {}),
  }  # fmt: skip


class Course:
  """One choice through its cells, and exact attention beside it.

  Attributes:
    rows: of this choice so far, those of an earlier run too: what is longer
      is predicted from them.
    exact: the same of exact attention, as far as it is known here.
  """

  def __init__(
    self, label: str, value: str | Callable[..., nn.Module],
    setting: Setting, environment: Mapping[str, Any],
    rows: Iterable[Mapping[str, Any]] = (),
  ):  # fmt: skip
    self.label, self.value, self.setting = label, value, setting
    self.environment = environment
    self.rows = [dict(row) for row in rows if row['choice'] == label]
    self.exact = [
      {**row, 'seconds': row['seconds'] * row['ratio'], 'bytes': None}
      for row in self.rows
      if row['ratio'] is not None
    ]
    self._kernels: dict[str, Kernel] = {}
    self._shape: Shape | None = None

  def run(self, cells: Iterable[Cell]) -> Iterator[dict[str, Any]]:
    """Each cell's row, as soon as it is measured or refused.

    A ValueError is the attention's own refusal of a length; another error is
    a failure. What is not caught here ends the process, and `scaling` says so.
    """
    for cell in cells:
      measured, status, error = {}, 'ok', ''
      try:
        self._measure(cell, measured)
      except admission.NotAdmittedError as e:
        status, error = e.status, str(e)
      except ValueError as e:
        status, error = 'refused', line(e)
      except (RuntimeError, MemoryError, TypeError, AssertionError) as e:
        error = line(e)
        memory_ = process.out_of_memory(error)
        status = 'out_of_memory' if memory_ else 'failed'
      found = row(
        cell, self.label, self.setting, self.environment, status, error,
        measured,
      )  # fmt: skip
      self.rows.append(found)
      yield found

  def _measure(self, cell: Cell, out: dict[str, Any]) -> None:
    setting = self.setting
    kernel = self._kernel('own', self.value, cell)
    out['declared_flops'] = kernel.declared_flops()
    out['declared_bytes'] = kernel.declared_bytes()
    self._admit(kernel, cell, self.rows, out)
    out['flops'] = kernel.flops
    calls = [kernel.call(cell.direction)]
    clock.once(calls[0])
    beside = {}
    if self.value != 'softmax':
      calls += self._beside(kernel.layer, cell, beside)
    own, *exact = clock.in_turns(
      calls, setting.rounds, setting.least_seconds, setting.cell_seconds
    )
    low, median, high = np.quantile(own, (0.25, 0.5, 0.75)).tolist()
    out.update(
      seconds=median, seconds_low=low, seconds_high=high, samples=len(own)
    )
    if exact:
      beside['seconds'] = float(np.median(exact[0]))
      self.exact.append({**cell._asdict(), 'status': 'ok', **beside})
      ratios = np.array(exact[0]) / np.array(own)
      out['ratio'] = float(np.median(ratios))
      out['beside'] = 'softmax layer' if kernel.layer else 'softmax'

  def _beside(self, layer: bool, cell: Cell, out: dict[str, Any]) -> list:
    """Exact attention's call, after a first one; [] if it is not admitted."""
    try:
      kernel = self._kernel('exact', baseline(layer), cell)
      out['declared_bytes'] = kernel.declared_bytes()
      self._admit(kernel, cell, self.exact, out)
      call = kernel.call(cell.direction)
      clock.once(call)
    except (admission.NotAdmittedError, RuntimeError, MemoryError):
      return []
    return [call]

  def _kernel(
    self, role: str, value: str | Callable[..., nn.Module], cell: Cell
  ) -> Kernel:
    """At the cell's length, both directions; shorter ones are let go first."""
    s = self.setting
    shape = Shape(s.batch_size, cell.length, s.heads, s.width, cell.dtype)
    if shape != self._shape:
      self._kernels.clear()
      self._shape = shape
    if role not in self._kernels:
      self._kernels[role] = Kernel(value, shape)
    return self._kernels[role]

  def _admit(
    self, kernel: Kernel, cell: Cell, rows: Sequence[Mapping[str, Any]],
    out: dict[str, Any],
  ) -> None:  # fmt: skip
    """Compiles what may be run; puts what XLA plans into `out`.

    Raises:
      admission.NotAdmittedError: it would need too much memory or time.
    """
    free = memory.free_bytes()
    declared = out['declared_bytes']
    share = self.setting.memory_share
    admission.check_growth(cell, rows, declared, free, share)
    admission.check_ends(cell, rows)
    admission.check_seconds(cell, rows, self.setting.max_seconds)
    out['bytes'] = memory.temporaries(kernel.compiled(cell.direction))
    out['memory'] = kernel.needed(cell.direction)
    free = memory.free_bytes() + kernel.held()
    admission.check_memory(out['memory'], free, share, 'as XLA plans it')


def line(error: BaseException) -> str:
  """An error in one line."""
  return f'{type(error).__name__}: {error}'.strip().splitlines()[0]


def main() -> None:
  """Does a job: says what the machine is, or measures cells."""
  job = process.receive()
  memory.keep_freed()
  if 'ask' in job:
    pathlib.Path(job['ask']).write_text(json.dumps(results.environment()))
    return
  # Softmax is the same program in every process; its compilation is kept.
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    jax.config.update('jax_compilation_cache_dir', job['cache'])
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  file = pathlib.Path(job['file'])
  course = Course(
    job['label'], job['value'], Setting(**job['setting']),
    results.environment(), job['rows'],
  )  # fmt: skip
  for found in course.run(Cell(*cell) for cell in job['cells']):
    results.append(file, found)


if __name__ == '__main__':
  main()
