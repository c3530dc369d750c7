"""What the arena measured: one JSON object a line, one line a cell."""

import datetime
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any

FILE = 'results.jsonl'
# How a cell may end. Whatever is not ok has an `error`, and is a row too.
STATUSES = ('ok', 'failed', 'refused', 'out_of_memory', 'timeout')


def append(file: str | os.PathLike, row: Mapping[str, Any]) -> None:
  """Adds a row, on disk when this returns; a torn line before it is cut off.

  Raises:
    ValueError: no key, an unknown status, or a failure without its error.
  """
  if 'key' not in row or row['status'] not in STATUSES:
    raise ValueError(
      f'a row needs a key and a status of {", ".join(STATUSES)}: {dict(row)}'
    )
  if row['status'] != 'ok' and not row['error']:
    raise ValueError(f'row {row["key"]!r} failed and does not say why')
  file = pathlib.Path(file)
  file.parent.mkdir(parents=True, exist_ok=True)
  with file.open('a+b') as f:
    whole = _whole(f)
    if whole != f.tell():
      f.truncate(whole)
    f.write(json.dumps(row, allow_nan=False).encode() + b'\n')
    f.flush()
    os.fsync(f.fileno())


def _whole(f: Any) -> int:
  """Bytes up to the end of the last whole line; leaves `f` at its end."""
  end = f.seek(0, os.SEEK_END)
  f.seek(0)
  kept = f.read().rfind(b'\n') + 1
  f.seek(end)
  return kept


def read(*places: str | os.PathLike) -> list[dict[str, Any]]:
  """The rows of files or workdirs, merged: shards' parts make one whole.

  Of one key the last row of the last file counts: a failure that was tried
  again is replaced. A torn last line, of a writer that was killed, is skipped.

  Raises:
    ValueError: a line in the middle is not a row.
  """
  rows = {}
  for place in places:
    for file in _files(place):
      lines = file.read_bytes().split(b'\n')
      for number, line in enumerate(lines, 1):
        if not line or number == len(lines):
          continue
        try:
          row = json.loads(line)
          rows[row['key']] = row
        except (ValueError, TypeError, KeyError) as e:
          raise ValueError(
            f'{file}, line {number}, is not a row of results ({e!r}): '
            f'{line[:80]!r}'
          ) from None
  return list(rows.values())


def _files(place: str | os.PathLike) -> list[pathlib.Path]:
  place = pathlib.Path(place)
  if place.is_file():
    return [place]
  return sorted(place.glob('results*.jsonl'))


def keys(rows: Iterable[Mapping[str, Any]]) -> set[str]:
  """The cells that need not be run again."""
  return {row['key'] for row in rows}


def environment() -> dict[str, Any]:
  """When, where and with what something was measured."""
  import flax
  import jax
  import jaxlib

  device = jax.local_devices()[0]
  now = datetime.datetime.now(datetime.UTC)
  return {
    'time': now.isoformat(timespec='seconds'),
    'device': device.device_kind,
    'platform': device.platform,
    'devices': jax.device_count(),
    'host': platform.machine(),
    'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity')
             else os.cpu_count(),
    'python': platform.python_version(),
    'jax': jax.__version__,
    'jaxlib': jaxlib.__version__,
    'flax': flax.__version__,
    'commit': commit(),
  }  # fmt: skip


def commit() -> str:
  """The commit of this code, with '+' if files differ from it; '' outside."""
  folder = pathlib.Path(__file__).parent

  def git(*words):
    return subprocess.run(
      ['git', '-C', str(folder), *words],
      capture_output=True, text=True, check=False,
    )  # fmt: skip

  try:
    found = git('rev-parse', '--short=12', 'HEAD')
  except OSError:
    return ''
  if found.returncode:
    return ''
  changed = git('status', '--porcelain', '--untracked-files=no').stdout
  return found.stdout.strip() + '+' * bool(changed.strip())
