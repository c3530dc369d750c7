"""Our own runs: a workdir of `vit_jax.main`, or a `checkpoints/STEP` folder."""

import pathlib

from vit_jax import checkpoints, models
from vit_jax.pretrained import base

LOOKS = 'a workdir of vit_jax.main, or one of its checkpoints/STEP folders'


def matches(path: pathlib.Path) -> bool:
  """Whether it is such a folder, damaged or not."""
  return path.is_dir() and (
    (path / checkpoints.FOLDER).is_dir()
    or (path / checkpoints.MANIFEST).is_file()
  )


def read(path: pathlib.Path) -> base.Pretrained:
  """Loads it; averaged parameters where the run has them.

  Raises:
    ValueError: no checkpoint there is good.
  """
  step_dir = checkpoints.find(path)
  meta = checkpoints.read_meta(step_dir)
  model = models.build(**meta['model'])
  channels = meta['channels']
  variables = checkpoints.read_weights(step_dir, base.shapes(model, channels))
  return base.Pretrained(
    model, variables, meta['preprocess'], meta['labels'], meta['model'],
    channels,
  )  # fmt: skip
