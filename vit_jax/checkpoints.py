"""Orbax checkpoints that verify themselves and never lose the last good one.

`DIR/checkpoints/STEP/` holds the items params, variables, optimizer, ema (those
that are not empty), `meta` (JSON: run identity, config, model, preprocessing,
labels, metrics: all that prediction needs) and `sha256.json`, a digest of every
file, written before the directory gets its name. Orbax has no checksums of its
own: without one, a flipped bit restores silently wrong.
"""

import hashlib
import json
import logging
import os
import pathlib
import shutil
import time
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

ITEMS = ('params', 'variables', 'optimizer', 'ema')
MANIFEST = 'sha256.json'
# Orbax writes these when all else is done; they hold times, nothing restored.
UNSEALED = (MANIFEST, '_CHECKPOINT_METADATA', 'commit_success.txt')
FOLDER = 'checkpoints'


def _digest(path: pathlib.Path) -> str:
  with path.open('rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def _files(step_dir: pathlib.Path) -> list[pathlib.Path]:
  found = sorted(p for p in step_dir.rglob('*') if p.is_file())
  return [p for p in found if str(p.relative_to(step_dir)) not in UNSEALED]


def _write_manifest(step_dir: pathlib.Path) -> None:
  digests = {str(p.relative_to(step_dir)): _digest(p) for p in _files(step_dir)}
  (step_dir / MANIFEST).write_text(json.dumps(digests, indent=1))


def verify(step_dir: str | os.PathLike) -> str | None:
  """What is wrong with a checkpoint's files, or None if they are all good."""
  step_dir = pathlib.Path(step_dir)
  try:
    digests = json.loads((step_dir / MANIFEST).read_text())
  except FileNotFoundError:
    return f'{MANIFEST} is missing'
  except (json.JSONDecodeError, UnicodeDecodeError):
    return f'{MANIFEST} is damaged'
  if not isinstance(digests, dict) or not digests:
    return f'{MANIFEST} is damaged'
  for name, digest in digests.items():
    path = step_dir / name
    if not path.is_file():
      return f'the file {name} is missing'
    if _digest(path) != digest:
      return f'the file {name} is damaged (SHA-256 differs)'
  return None


def steps_in(directory: str | os.PathLike) -> list[int]:
  """The steps that have a checkpoint, good or not, oldest first."""
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    return []
  return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit())


def newest_good(
  directory: str | os.PathLike,
) -> tuple[int | None, dict[int, str]]:
  """The newest step whose files verify, and the faults of newer ones."""
  faults = {}
  for step in reversed(steps_in(directory)):
    fault = verify(pathlib.Path(directory) / str(step))
    if fault is None:
      return step, faults
    faults[step] = fault
  return None, faults


def _barrier(name: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


class Checkpoints:
  """The checkpoints of one run: the newest two and the best one are kept."""

  def __init__(
    self,
    workdir: str | os.PathLike,
    metric: str = 'test/accuracy',
    keep: int = 2,
  ):
    """Opens `workdir/checkpoints`, setting damaged newer checkpoints aside.

    Args:
      workdir: the run's folder.
      metric: of the evaluation; the checkpoint where it is highest is kept.
      keep: how many of the newest are kept.

    Raises:
      ValueError: there are checkpoints, but not one of them is good.
    """
    self.directory = pathlib.Path(workdir).absolute() / FOLDER
    self.good, self.faults = newest_good(self.directory)
    if self.good is None and self.faults:
      raise ValueError(
        f'no checkpoint in {self.directory} is good: '
        + '; '.join(f'step {s}: {f}' for s, f in self.faults.items())
        + '; start in another workdir, or remove that folder to start over'
      )
    _barrier('verified')  # nobody moves what another process still reads
    if jax.process_index() == 0:
      for step in self.faults:
        self._set_aside(step)
    _barrier('set_aside')
    self._saving = None
    policies = ocp.checkpoint_managers

    def best(metrics):
      return metrics[metric] if metric in metrics else float('-inf')

    self._manager = ocp.CheckpointManager(
      self.directory,
      options=ocp.CheckpointManagerOptions(
        # Both the policy and best_fn are needed: best_fn alone deletes the
        # newest checkpoint when it is not among the best.
        preservation_policy=policies.AnyPreservationPolicy([
          policies.LatestN(keep),
          policies.BestN(
            get_metric_fn=best, n=1, keep_checkpoints_without_metrics=False
          ),
        ]),
        best_fn=best,
        best_mode='max',
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
      ),
      item_names=(*ITEMS, 'meta'),
    )

  def _set_aside(self, step: int) -> None:
    aside = self.directory.parent / 'damaged'
    aside.mkdir(exist_ok=True)
    target = aside / f'{step}-{time.time_ns()}'
    shutil.move(self.directory / str(step), target)

  def _seal(self) -> None:
    """Orbax calls it when all files are written, before the final name."""
    if jax.process_index() == 0:
      pattern = f'{self._saving}.*'
      for path in self.directory.glob(pattern):
        _write_manifest(path)

  def save(
    self,
    step: int,
    state: Mapping[str, Any],
    meta: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
  ) -> None:
    """Saves in the background; `state` maps items to trees.

    Raises:
      RuntimeError: this or the previous save failed; names the last good step.
    """
    self.wait()
    self._saving = step
    items = {
      k: ocp.args.StandardSave(v)
      for k, v in state.items()
      if jax.tree.leaves(v)  # Orbax refuses empty trees
    }
    try:
      self._manager.save(
        step,
        args=ocp.args.Composite(**items, meta=ocp.args.JsonSave(dict(meta))),
        metrics=dict(metrics or {}),
        force=True,
      )
    except Exception as e:
      self._fail(e)

  def wait(self) -> None:
    """Waits for the save under way; raises a RuntimeError if it failed."""
    try:
      self._manager.wait_until_finished()
    except Exception as e:
      self._fail(e)
    if self._saving is not None:
      self.good, self._saving = self._saving, None

  def _fail(self, error: Exception) -> None:
    step, self._saving = self._saving, None
    raise RuntimeError(
      f'cannot save the checkpoint of step {step}: {error}; the last good '
      f'checkpoint is {self.describe()}'
    ) from error

  def describe(self) -> str:
    """Names the last good checkpoint."""
    if self.good is None:
      return 'none'
    return f'step {self.good} in {self.directory / str(self.good)}'

  def meta(self, step: int) -> dict[str, Any]:
    """The JSON part of a checkpoint."""
    return read_meta(self.directory / str(step))

  def restore(self, step: int, like: Mapping[str, Any]) -> dict[str, Any]:
    """Restores trees of the shapes, dtypes and shardings of `like`."""
    path = self.directory / str(step)
    with ocp.StandardCheckpointer() as checkpointer:
      return {
        item: checkpointer.restore(path / item, tree)
        if jax.tree.leaves(tree)
        else tree
        for item, tree in like.items()
      }

  def close(self) -> None:
    """Waits for the save under way, then closes: never leave without."""
    try:
      self.wait()
    finally:
      self._manager.close()


def find(path: str | os.PathLike) -> pathlib.Path:
  """The step directory of a workdir (its newest good one), or `path` itself.

  Raises:
    ValueError: there is no good checkpoint.
  """
  path = pathlib.Path(path).absolute()
  if (path / MANIFEST).is_file():
    fault = verify(path)
    if fault:
      raise ValueError(f'the checkpoint {path} cannot be used: {fault}')
    return path
  directory = path / FOLDER
  step, faults = newest_good(directory)
  for bad, fault in faults.items():
    logging.warning('checkpoint of step %d is skipped: %s', bad, fault)
  if step is None:
    why = '; '.join(f'step {s}: {f}' for s, f in faults.items())
    raise ValueError(
      f'{path} holds no good checkpoint ({why or "none at all"}); give a '
      'workdir of a run, or one of its checkpoints/STEP folders'
    )
  return directory / str(step)


def read_meta(step_dir: str | os.PathLike) -> dict[str, Any]:
  """The JSON part of a step directory."""
  path = pathlib.Path(step_dir) / 'meta' / 'metadata'
  return _tuples(json.loads(path.read_text()))


def read_weights(
  step_dir: str | os.PathLike, like: Mapping[str, Any]
) -> dict[str, Any]:
  """Model variables of a step directory: averaged parameters if it has them.

  Args:
    step_dir: `workdir/checkpoints/STEP`.
    like: the model's variables as arrays or ShapeDtypeStructs.

  Raises:
    ValueError: the checkpoint's tree is not the model's.
  """
  step_dir = pathlib.Path(step_dir)
  # Said explicitly: the run that saved may have had other devices.
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), like
  )
  params = 'ema' if (step_dir / 'ema').is_dir() else 'params'
  rest = {k: v for k, v in like.items() if k != 'params'}
  with ocp.StandardCheckpointer() as checkpointer:
    try:
      found = {
        'params': checkpointer.restore(step_dir / params, like['params'])
      }
      if rest:
        found |= checkpointer.restore(step_dir / 'variables', rest)
    except (ValueError, KeyError, FileNotFoundError) as e:
      raise ValueError(
        f'the weights in {step_dir} do not fit the model: {e}'
      ) from e
  return found


def _tuples(value: Any) -> Any:
  """JSON with its lists as tuples, as configs and module fields have them."""
  if isinstance(value, dict):
    return {k: _tuples(v) for k, v in value.items()}
  if isinstance(value, list):
    return tuple(_tuples(v) for v in value)
  return value
