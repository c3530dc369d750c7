"""What makes two runs the same run, so that one may resume the other."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

# Workers, logging, checkpoint cadence, mesh and profiling may differ.
SAME = (
  'model', 'task', 'optimizer', 'seed', 'batch_size', 'steps', 'accumulate',
  'init',
)  # fmt: skip


def describe(record: Mapping[str, Any], data: Any) -> dict[str, Any]:
  """What a checkpoint says of its run: identity, config, how to predict.

  Args:
    record: the config's sections; only those in it are compared.
    data: the built data, for its identity, preprocessing and labels.
  """
  kept = {k: record[k] for k in SAME if k in record}
  return plain({
    'identity': {**kept, 'data': data.identity},
    'config': record,
    'model': record['model'],
    'channels': data.channels,
    'preprocess': data.preprocess,
    'labels': data.labels,
    'versions': {'jax': jax.__version__},
  })  # fmt: skip


def plain(value: Any) -> Any:
  """The value as it comes back from JSON: tuples become lists."""
  return json.loads(json.dumps(value))


def differences(new: Any, old: Any, path: str = '') -> list[str]:
  """Where two JSON values differ, one line each."""
  if isinstance(new, Mapping) and isinstance(old, Mapping):
    absent = dict.fromkeys(sorted({*new, *old}), '(absent)')
    left, right = absent | dict(new), absent | dict(old)
    return [
      line
      for key in absent
      for line in differences(
        left[key], right[key], f'{path}.{key}' if path else key
      )
    ]
  return [] if new == old else [f'{path} is {new!r} here and {old!r} there']


def compare(new: Any, old: Any, where: str) -> None:
  """Raises a ValueError that lists the differences, if there are any."""
  lines = differences(plain(new), plain(old))
  if lines:
    raise ValueError(
      f'{where} belongs to another run: {"; ".join(lines)}. Use another '
      '--workdir, or the config of that run'
    )


def claim(workdir: str | os.PathLike, meta: Mapping[str, Any]) -> None:
  """Writes workdir/config.json, unless the workdir is another run's.

  Raises:
    ValueError: it is; nothing was written.
  """
  path = pathlib.Path(workdir) / 'config.json'
  if path.exists():
    try:
      old = json.loads(path.read_text())
    except json.JSONDecodeError:
      old = None  # torn by a crash in the very first write
    if old is not None:
      compare(meta['identity'], old['identity'], str(path))
  if jax.process_index() == 0:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix('.tmp')
    aside.write_text(json.dumps(meta, indent=2) + '\n')
    aside.replace(path)
