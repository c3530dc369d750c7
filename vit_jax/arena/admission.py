"""Whether a cell may run: what it will need, told from shorter ones."""

from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.arena import clock, memory


# Times the memory that may be used, from which on a prediction is believed: a
# wrong one would be a wrong row, and to compile in vain takes seconds.
SURE = 2.0


class NotAdmittedError(RuntimeError):
  """A cell that is not run: its status, and why."""

  def __init__(self, status: str, why: str):
    super().__init__(why)
    self.status = status


def check_memory(needed: float, free: int, share: float, why: str) -> None:
  """Raises a NotAdmittedError if more is needed than a share of the free."""
  if needed > share * free:
    raise NotAdmittedError(
      'out_of_memory',
      f'needs {needed / memory.GIB:.2f} GiB, {why}; {share:.0%} of the '
      f'{free / memory.GIB:.2f} GiB that are available may be used',
    )


def check_growth(
  cell: Any, rows: Sequence[Mapping[str, Any]], declared: float | None,
  free: int, share: float,
) -> None:  # fmt: skip
  """Raises before anything is compiled that surely does not fit.

  A declared bound alone is up to four times what XLA plans forward, too little
  backward, and has nothing to do with cuDNN's fused kernel. So only its growth
  counts: the temporaries planned at the last length, times what the bound has
  grown since. The first length is always compiled, which takes no memory, and
  so is what is predicted to need little more than there is.
  """
  known = [r for r in shorter(cell, rows) if r['bytes'] is not None]
  if declared is None or not known or not known[-1]['declared_bytes']:
    return
  last = known[-1]
  needed = last['bytes'] * declared / last['declared_bytes']
  if needed < SURE * share * free:
    return
  check_memory(
    needed, free, share,
    f'predicted from {last["bytes"] / memory.GIB:.3g} GiB at '
    f'N={last["length"]} and the declared growth, before compiling',
  )  # fmt: skip


def check_ends(cell: Any, rows: Sequence[Mapping[str, Any]]) -> None:
  """Raises if less than this already ended the process, or was too large.

  Less is a shorter length of the same direction, or forward where this is
  backward.
  """
  for row in rows:
    less = row['dtype'] == cell.dtype and (
      (row['direction'] == cell.direction and row['length'] < cell.length)
      or (row['direction'] == 'forward' and row['length'] <= cell.length
          and cell.direction == 'backward')
    )  # fmt: skip
    if less and row['status'] in ('out_of_memory', 'timeout'):
      raise NotAdmittedError(
        row['status'],
        f'so ended {row["direction"]} at N={row["length"]} already: '
        f'{row["error"]}',
      )


def check_seconds(
  cell: Any, rows: Sequence[Mapping[str, Any]], limit: float
) -> None:
  """Raises if the last two lengths say that a call would take too long."""
  known = [r for r in shorter(cell, rows) if r['status'] == 'ok']
  lengths = [r['length'] for r in known]
  seconds = clock.predicted(
    lengths, [r['seconds'] for r in known], cell.length
  )
  if seconds is not None and seconds > limit:
    before = ' and '.join(
      f'{r["seconds"]:.3g} s at N={r["length"]}' for r in known[-2:]
    )
    raise NotAdmittedError(
      'refused',
      f'a call would take about {seconds:.3g} s, predicted from {before}; '
      f'the limit is max_seconds={limit:g}',
    )


def shorter(
  cell: Any, rows: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
  """Rows of the same dtype and direction at shorter lengths, ascending."""
  found = [
    r for r in rows
    if (r['dtype'], r['direction']) == (cell.dtype, cell.direction)
    and r['length'] < cell.length
  ]  # fmt: skip
  return sorted(found, key=lambda r: r['length'])
