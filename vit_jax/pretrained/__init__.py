"""Trained models, from any format: `load`, and `save` in another.

python -m vit_jax.pretrained SRC DST --format=FORMAT converts.

Adding a format: a module with `LOOKS`, `matches` and `read`, and `write` if it
can be written, and one line in `FORMATS`.
"""

import os
import pathlib
import shutil
import tempfile
from typing import Any

from vit_jax import specs
from vit_jax.pretrained import (
  folder,
  huggingface,
  numpy_archive,
  remote,
  timm,
  workdir,
)
from vit_jax.pretrained.adapt import OVERRIDES, adapt, change, check_overrides
from vit_jax.pretrained.base import Pretrained
from vit_jax.pretrained.convert import ConversionError
from vit_jax.pretrained.swap import layer_errors
from vit_jax.pretrained.teacher import check_teacher

# Asked in this order whether a path is theirs.
FORMATS: dict[str, Any] = {
  'workdir': workdir,  # a run of vit_jax.main; not written here
  'vit_jax': folder,  # ours to hand on: config.json and model.safetensors
  'huggingface': huggingface,  # config.json with model_type
  'timm': timm,  # config.json with architecture
  'npz': numpy_archive,  # the original's and big_vision's .npz
}


def load(path: str | os.PathLike, **overrides: Any) -> Pretrained:
  """Loads a model with its weights, preprocessing and labels.

  Args:
    path: a workdir of ours (averaged parameters are taken where it has them)
      or one of its `checkpoints/STEP`; a folder with `model.safetensors` and
      the `config.json` of vit_jax, Hugging Face or timm; an .npz of the
      original codebase or big_vision; or where one of them lies: `gs://…`,
      `hf-hub:OWNER/NAME`, `https://…`.
    **overrides: fields of the model to change, as in `change`.

  Raises:
    ValueError: none of these, a damaged or hostile file, a file and a model
      that do not match (`ConversionError`), or a field that may not change.
  """
  check_overrides(overrides, str(path))
  local = remote.local(path)
  return change(_format(local).read(local), **overrides)


def _format(path: pathlib.Path) -> Any:
  for module in FORMATS.values():
    if module.matches(path):
      return module
  if not path.exists():
    raise ValueError(f'{path} does not exist')
  looks = '; '.join(module.LOOKS for module in FORMATS.values())
  raise ValueError(f'{path} is no checkpoint that is known: {looks}')


def save(
  path: str | os.PathLike, found: Pretrained, format: str = 'vit_jax'
) -> tuple[tuple[str, str], ...]:
  """Writes a model in a format, all or nothing.

  Args:
    path: a new folder or, for 'npz', a new file.
    found: what `load` returned, or a `Pretrained` of your own.
    format: a key of `FORMATS` that can be written.

  Returns:
    What mapped to what: (arrays of the file, variables).

  Raises:
    ValueError: an unknown format, one that has no place for this model, or a
      path that exists.
  """
  path = pathlib.Path(path).absolute()
  writable = {k: m for k, m in FORMATS.items() if hasattr(m, 'write')}
  module = specs.lookup(writable, format, 'format')
  if path.exists():
    raise ValueError(f'{path} exists; give a new name')
  path.parent.mkdir(parents=True, exist_ok=True)
  aside = pathlib.Path(tempfile.mkdtemp(dir=path.parent, prefix='.writing-'))
  try:
    # The name counts: an .npz is written under its own.
    mapping = module.write(aside / path.name, found)
    (aside / path.name).rename(path)
  finally:
    shutil.rmtree(aside, ignore_errors=True)
  return mapping


__all__ = [
  'FORMATS', 'OVERRIDES', 'ConversionError', 'Pretrained', 'adapt', 'change',
  'check_teacher', 'layer_errors', 'load', 'save',
]  # fmt: skip
