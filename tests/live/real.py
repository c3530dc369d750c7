"""Real pictures and a real checkpoint of ../shared/data, where it is there."""

import pathlib
import tarfile

import pytest

DATA = pathlib.Path(__file__).parents[2] / '../shared/data'


def found(name):
  """The path of a file or folder; the test is skipped if it is absent."""
  path = DATA / name
  if not path.exists():
    pytest.skip(f'{path} is not there')
  return path


def pictures(archive, names, count):
  """name → encoded image, evenly spread over those with `names` in theirs."""
  with tarfile.open(found(archive)) as tar:
    chosen = sorted(m.name for m in tar if names in m.name)
    chosen = chosen[:: len(chosen) // count][:count]
    return {name: tar.extractfile(name).read() for name in chosen}
