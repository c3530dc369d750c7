"""Where numbers go: JSON lines (the truth), a progress line, TensorBoard."""

import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
  """The rows of a metrics file; a torn last line is left out.

  Raises:
    ValueError: a line other than the last is not a JSON object.
  """
  path = pathlib.Path(path)
  if not path.exists():
    return []
  lines, rows = path.read_text().splitlines(), []
  for number, line in enumerate(lines, 1):
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      if number == len(lines):
        break
      raise ValueError(f'{path}: line {number} is not JSON: {line!r}') from None
    rows.append(row)
  return rows


class Writer:
  """Writes rows of one run; only the first process writes.

  `metrics.jsonl` holds one JSON object a line, flushed at once. On a restart,
  rows past the restored step are dropped, and so is a torn last line: the
  resumed run writes them again.
  """

  def __init__(self, workdir: str | os.PathLike, step: int, steps: int):
    self.steps, self._active = steps, jax.process_index() == 0
    if not self._active:
      return
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / 'metrics.jsonl'
    rows = [r for r in read_rows(path) if r['step'] <= step]
    # Written aside and renamed: a crash here loses nothing.
    aside = path.with_suffix('.tmp')
    aside.write_text(''.join(json.dumps(r) + '\n' for r in rows))
    aside.replace(path)
    self._file = path.open('a')
    import tensorboardX  # 0.3 s that other users of this file need not pay

    self._board = tensorboardX.SummaryWriter(
      str(workdir / 'tensorboard'), purge_step=step + 1
    )

  def write(
    self, step: int, row: Mapping[str, float], eta: str | None = None
  ) -> None:
    """Writes the numbers of a step; non-finite ones become null in JSON."""
    if not self._active:
      return
    clean = {k: v if math.isfinite(v) else None for k, v in row.items()}
    self._file.write(json.dumps({'step': step, **clean}) + '\n')
    self._file.flush()
    for key, value in row.items():
      self._board.add_scalar(key, value, step)
    shown = '  '.join(
      f'{k.partition("/")[2]} {_short(v)}'
      for k, v in row.items()
      if k != 'train/skipped' or v
    )
    part = next(iter(row)).partition('/')[0]
    left = '' if eta is None else f'  eta {eta}'
    self.say(f'{step:>7}/{self.steps} {part:5}  {shown}{left}')

  def say(self, text: str) -> None:
    """Prints a line, once for all processes."""
    if self._active:
      print(text, flush=True)

  def close(self) -> None:
    """Closes the files."""
    if self._active:
      self._file.close()
      self._board.close()


def _short(value: float) -> str:
  return f'{value:.4g}' if abs(value) < 1e4 else f'{value:.0f}'


class Speed:
  """How fast a run goes, without compilation, evaluation and checkpoints."""

  def __init__(
    self, step: int, steps: int, batch_size: int, flops: float, peak: float
  ):
    """Starts the clock.

    Args:
      step: the step after which it starts: the first, since that compiles.
      steps: of the whole run.
      batch_size: images a step.
      flops: of the model, a step, forward and backward (what a recomputing
        step does on top does not count).
      peak: FLOP/s of all devices together.
    """
    self._steps, self._batch_size = steps, batch_size
    self._flops, self._peak = flops, peak
    self.start(step)

  def start(self, step: int) -> None:
    """Counts from here, after `step`."""
    self._first, self._begin = step, time.monotonic()
    self._away = self._waited = 0.0

  @contextlib.contextmanager
  def paused(self):
    """A context in which the clock stands still."""
    begin = time.monotonic()
    try:
      yield
    finally:
      self._away += time.monotonic() - begin

  @contextlib.contextmanager
  def waiting(self):
    """A context in which the step waits for its data."""
    begin = time.monotonic()
    try:
      yield
    finally:
      self._waited += time.monotonic() - begin

  def _seconds_a_step(self, step: int) -> float | None:
    done = step - self._first
    seconds = time.monotonic() - self._begin - self._away
    return seconds / done if done > 0 and seconds > 0 else None

  def rates(self, step: int) -> dict[str, float]:
    """Images/s, model FLOPs utilisation, and the share of time that waits."""
    each = self._seconds_a_step(step)
    if each is None:
      return {}
    return {
      'time/images_per_s': self._batch_size / each,
      'time/mfu': self._flops / each / self._peak,
      'time/data_wait': self._waited / (each * (step - self._first)),
    }

  def eta(self, step: int) -> str | None:
    """Time left at the speed so far, as h:mm:ss; None before there is one."""
    each = self._seconds_a_step(step)
    if each is None:
      return None
    left = round(each * (self._steps - step))
    return f'{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}'
