"""Our own format to hand on: any model, in config.json and model.safetensors.

config.json holds

  format      'vit_jax'
  version     1
  model       the section of a config: models.build(**model)
  preprocess  decode and transform, the specs that data.load_image takes
  labels      names of the classes, or []
  channels    of the images
  sha256      of model.safetensors, which has no checksum of its own

and model.safetensors the variables by our names: those of params without
their collection ('head/kernel'), others with it ('batch_stats/…').
"""

import hashlib
import pathlib
from typing import Any

from vit_jax.pretrained import arrays, base, checks, convert

LOOKS = "a folder with the config.json of format 'vit_jax'"
CONFIG = 'config.json'
VERSION = 1
KEYS = (
  'format', 'version', 'model', 'preprocess', 'labels', 'channels', 'sha256',
)  # fmt: skip


def matches(path: pathlib.Path) -> bool:
  """Whether it is a folder whose config.json says so.

  Raises:
    ValueError: its config.json cannot be read.
  """
  file = path / CONFIG
  if not file.is_file():
    return False
  given = arrays.read_json(file)
  return 'format' in given and given['format'] == 'vit_jax'


def read(path: pathlib.Path) -> base.Pretrained:
  """Loads it.

  Raises:
    ValueError: another version, a damaged file, or a config and arrays that
      do not fit each other.
  """
  where, given = str(path), arrays.read_json(path / CONFIG)
  if 'version' in given and given['version'] != VERSION:
    raise ValueError(
      f'{where}: version={given["version"]!r} of the format vit_jax; this '
      f'program reads {VERSION}'
    )
  checks.check_keys(f'{where}/{CONFIG}', given, KEYS)
  found = arrays.read_safetensors(path / arrays.WEIGHTS)
  if _digest(path) != given['sha256']:
    raise ValueError(
      f'{path / arrays.WEIGHTS} is damaged: its SHA-256 is not that in {CONFIG}'
    )
  told = base.parts(where, given)
  return base.fill(
    where,
    config=told['model'],
    arrays=found,
    table=[convert.Pair((n,), (n,), convert.SAME) for n in found],
    preprocess=told['preprocess'],
    labels=told['labels'],
    channels=base.bounded(where, 'channels', given['channels'], 2**10),
  )


def _digest(path: pathlib.Path) -> str:
  with (path / arrays.WEIGHTS).open('rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def write(
  path: pathlib.Path, found: base.Pretrained
) -> tuple[tuple[str, str], ...]:
  """Writes it, and returns what mapped to what.

  Raises:
    ValueError: a field of the model is no literal: a class, say.
  """
  flat = convert.flatten(found.variables)
  table = [convert.Pair((n,), (n,), convert.SAME) for n in flat]
  config: dict[str, Any] = {
    'format': 'vit_jax',
    'version': VERSION,
    'model': found.config,
    'preprocess': found.preprocess,
    'labels': found.labels,
    'channels': found.channels,
  }
  path.mkdir()
  arrays.write_safetensors(
    path / arrays.WEIGHTS,
    convert.write(flat, table, found.dtypes, str(path)),
  )
  text = base.to_json(str(path), {**config, 'sha256': _digest(path)})
  (path / CONFIG).write_text(text + '\n')
  return base.shown(table)
