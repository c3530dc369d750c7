"""Arrays that anybody can draw again from their names: no weights in git.

A golden, `goldens/NAME.json`, holds a folder's config.json, the names and
shapes of its arrays, and what the reference implementation answered when
these arrays were drawn from their names. `tests/live` draws the same, asks the
reference again, and (with --regenerate) rewrites the goldens.
"""

import json
import pathlib
import zlib

import numpy as np

GOLDENS = pathlib.Path(__file__).parent / 'goldens'


def array(name: str, shape, dtype='float32') -> np.ndarray:
  """Jitter around what an array of that name usually holds."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  x = rng.standard_normal(tuple(shape))
  if name.endswith('running_var'):
    return np.asarray(1.0 + 0.2 * np.abs(x), dtype)
  if len(shape) < 2 and name.endswith(('weight', 'scale', 'gamma')):
    return np.asarray(1.0 + 0.2 * x, dtype)
  return np.asarray(0.2 * x, dtype)


def arrays(layout) -> dict[str, np.ndarray]:
  """name → array for a layout name → shape."""
  return {name: array(name, shape) for name, shape in layout.items()}


def images(*shape, seed=0) -> np.ndarray:
  """Pixels [B H W C] as a model takes them, about N(0, 1)."""
  rng = np.random.default_rng(seed)
  return rng.standard_normal(shape).astype(np.float32)


def golden(name: str) -> dict:
  """A committed golden."""
  return json.loads((GOLDENS / f'{name}.json').read_text())


def write_golden(name: str, found: dict) -> None:
  """Writes one; numbers with the digits that float32 has."""
  text = json.dumps(found, indent=1)
  (GOLDENS / f'{name}.json').write_text(text + '\n')
