"""What a model costs to run: batch-1 latency, and the largest training batch.

`python -m vit_jax.arena.latency` takes a job on its standard input.
"""

import functools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import benchmark, building, flops, identity, models, specs, train
from vit_jax import sharding as shardings
from vit_jax import state as states
from vit_jax.arena import board as boards
from vit_jax.arena import clock, memory, process, results, suite
from vit_jax.arena.largest import largest

MODULE = 'vit_jax.arena.latency'
WARM = 10  # calls of each model that are not counted
# Of the record, what a training step is made of.
STEP = ('task', 'optimizer', 'sharding', 'steps')


def latency(
  workdir: str | os.PathLike,
  *,
  record: Mapping[str, Any],
  task: Any,
  optimizer: Any,
  choices: Mapping[str, Any],
  image_sizes: Sequence[int] = (32, 64, 128),
  channels: int = 3,
  calls: int = 1000,
  cell_seconds: float = 60.0,
  memory_share: float = 0.8,
  precision: float = 0.05,
  shard: str = '0/1',
  timeout: float = 3600.0,
) -> list[dict[str, Any]]:
  """Forward latency of one image, and the largest training batch that fits.

  At each image size the models run in one process, a call of each in turn.
  Killed and started again it goes on with the sizes and models that are
  missing. Nothing of the size of the largest batch is ever made: XLA plans it.

  Args:
    workdir: gets results.jsonl, the report and logs.
    record: the config, whose task, optimiser and mesh make a training step.
    task: of the record, built, as is the next; here they were only checked:
      each process builds its own.
    optimizer: of the record.
    choices: label → `model` section; `image_size` is set where it has one.
    image_sizes: in pixels.
    channels: of the images.
    calls: counted calls of each model, after 10 that are not; of 1000 the p99
      is the tenth slowest.
    cell_seconds: for all models at one size, after which no further round of
      calls begins.
    memory_share: of the free memory that a training step may need.
    precision: the next batch that is known not to fit is at most by this share
      larger; 0 finds the largest exactly, with more compilations.
    shard: 'i/n' does every n-th image size.
    timeout: seconds for one image size.

  Returns:
    All rows of the workdir; those of suite 'latency' are described in `row`.

  Raises:
    ValueError: a bad argument.
  """
  del task, optimizer
  sections = {k: identity.plain(v) for k, v in choices.items()}
  for section in sections.values():
    models.build(**{'num_classes': 1, **section})  # a typo must not wait
  check(image_sizes, calls, memory_share, precision)
  workdir = pathlib.Path(workdir)
  file = workdir / boards.file_name(shard)
  job = {
    'record': {k: identity.plain(record[k]) for k in STEP},
    'channels': channels, 'calls': calls, 'cell_seconds': cell_seconds,
    'memory_share': memory_share, 'precision': precision,
    'file': str(file.absolute()),
    'cache': str((workdir / 'compiled').absolute()),
  }  # fmt: skip
  names = {f'{size} pixels': size for size in image_sizes}
  return suite.run(
    workdir, boards.share_of(names, shard),
    lambda name: _run(names[name], sections, job, file, timeout),
  )  # fmt: skip


def check(
  image_sizes: Sequence[int], calls: int, memory_share: float, precision: float
) -> None:
  """Raises a ValueError on what cannot be measured."""
  good = all(isinstance(n, int) and n > 0 for n in image_sizes)
  if not good or not image_sizes or len(set(image_sizes)) != len(image_sizes):
    raise ValueError(
      f'image_sizes={tuple(image_sizes)} must be one or more positive numbers '
      'of pixels, all different'
    )
  if not isinstance(calls, int) or calls < 1:
    raise ValueError(f'calls={calls!r} must be a number of at least 1')
  if not 0 < memory_share <= 1:
    raise ValueError(f'memory_share={memory_share!r} must be in (0, 1]')
  if not 0 <= precision < 1:
    raise ValueError(f'precision={precision!r} must be in [0, 1)')


def _run(
  size: int, sections: Mapping[str, Any], job: Mapping[str, Any],
  file: pathlib.Path, timeout: float,
) -> str:  # fmt: skip
  """Measures what is missing of one image size; one line on it."""
  there = results.keys(results.read(file))
  left = {k: v for k, v in sections.items() if key(k, size) not in there}
  if left:
    log = file.parent / 'logs' / f'latency-{size}.log'
    job = {**job, 'size': size, 'sections': left}
    end = process.run(MODULE, job, log, timeout)
    there = results.keys(results.read(file))
    lost = [k for k in left if key(k, size) not in there]
    if end.status == 'ok' and lost:
      end = process.End('failed', f'the process ended early; see {log}')
    if lost:
      where = suite.machine(file)
      for label in lost:
        results.append(file, row(label, size, where, *end))
  rows = {r['key']: r for r in results.read(file)}
  return '; '.join(_said(rows[key(label, size)]) for label in sections)


def _said(found: Mapping[str, Any]) -> str:
  if found['status'] != 'ok':
    return f'{found["choice"]} {found["status"]}: {found["error"]}'
  return f'{found["choice"]} {1e3 * found["p50"]:.3g} ms'


def key(label: str, size: int) -> str:
  """The name of a cell."""
  return f'latency/{label}/{size}'


def row(
  label: str, size: int, environment: Mapping[str, Any], status: str = 'ok',
  error: str = '', measured: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
  """A row of suite 'latency'.

  `p50`, `p99`: seconds of a forward call of one image, of `samples` calls;
  `memory`: bytes planned for it; `flops`, `parameters`; `batch`: the largest
  training batch, over all devices, whose step is planned in `limit` bytes a
  device, `needed` of them; `too_large`: one that is not; `plans`: compilations.
  """
  return {
    'key': key(label, size), 'suite': 'latency', 'choice': label,
    'image_size': size, 'status': status, 'error': error,
    'environment': dict(environment), **(measured or {}),
  }  # fmt: skip


class Subject:
  """A model at an image size, compiled for one image."""

  def __init__(
    self, section: Mapping[str, Any], size: int, channels: int,
    record: Mapping[str, Any],
  ):  # fmt: skip
    section = dict(section)
    accepted = specs.accepted(specs.lookup(
      models.MODELS, section['name'], 'model'
    ))  # fmt: skip
    if 'image_size' in accepted:
      section['image_size'] = size
    built = building.build(
      {**record, 'model': section, 'run': 'step'}, '', {'step': wanted}
    )
    self.model, self.task = built['model'], built['task']
    self.optimizer, self.sharding = built['optimizer'], built['sharding']
    self.shape = (size, size, channels)
    image = jax.ShapeDtypeStruct((1, *self.shape), jnp.float32)
    self._key = jax.eval_shape(lambda: jax.random.key(0))
    start = functools.partial(
      states.init_state, model=self.model, optimizer=self.optimizer
    )
    self.shapes = jax.eval_shape(start, self._key, image)
    forward = functools.partial(self.model.apply, train=False)
    compiled = jax.jit(forward).lower(self.shapes.served, image).compile()
    variables = jax.jit(lambda key, x: start(key, x).served)(
      jax.random.key(0), jnp.zeros(image.shape)
    )
    x = jax.random.normal(jax.random.key(1), image.shape)
    self.call = lambda: compiled(variables, x)
    self.fixed = {
      'memory': benchmark.planned(compiled),
      'flops': flops.count(forward, self.shapes.served, image),
      'parameters': sum(
        x.size for x in jax.tree.leaves(self.shapes.params)
      ),
      'dtype': jnp.dtype(self.model.dtype).name,
    }  # fmt: skip

  def plan(self, batch_size: int) -> int:
    """Bytes a device that XLA plans for a training step; none is made."""
    batch = {
      'image': jax.ShapeDtypeStruct((batch_size, *self.shape), jnp.float32),
      'label': jax.ShapeDtypeStruct((batch_size,), jnp.int32),
      'weight': jax.ShapeDtypeStruct((batch_size,), jnp.float32),
    }
    placed = states.place(self.shapes, self.sharding)
    same = self.sharding.replicated
    step = jax.jit(
      functools.partial(
        train.train_step, model=self.model, optimizer=self.optimizer
      ),
      in_shardings=(placed, same, self.sharding.batch, same),
      out_shardings=(placed, same), donate_argnums=0,
    )  # fmt: skip
    lowered = step.lower(self.shapes, self.task, batch, self._key)
    return benchmark.planned(lowered.compile())


def wanted(
  *, model: nn.Module, task: Any, optimizer: Any,
  sharding: shardings.Sharding, steps: int,
) -> None:  # fmt: skip
  """Its parameters' names say what a training step is made of."""


def measure(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
  """The rows of one image size; latencies of all models first, in turns.

  Args:
    job: `size`, `sections`, `record`, and `latency`'s arguments.
  """
  size, where = job['size'], results.environment()
  subjects = {}
  for label, section in job['sections'].items():
    try:
      subjects[label] = Subject(section, size, job['channels'], job['record'])
    except ValueError as e:  # the model refuses the size
      yield row(label, size, where, 'refused', _line(e))
    except (RuntimeError, MemoryError) as e:
      yield row(label, size, where, *_failed(e))
  calls = [subject.call for subject in subjects.values()]
  for call in calls * WARM:
    clock.once(call)
  spent = clock.in_turns(calls, job['calls'], 0.0, job['cell_seconds'])
  limit = job['memory_share'] * memory.free_bytes()
  for (label, subject), samples in zip(subjects.items(), spent, strict=True):
    p50, p99 = np.quantile(samples, (0.5, 0.99)).tolist()
    found = {**subject.fixed, 'p50': p50, 'p99': p99, 'samples': len(samples)}
    try:
      fit = largest(
        subject.plan, limit, subject.sharding.batch_devices, job['precision']
      )
    except (RuntimeError, MemoryError) as e:
      yield row(label, size, where, *_failed(e))
      continue
    found |= {'limit': limit, **fit._asdict()}
    yield row(label, size, where, measured=found)


def _failed(error: Exception) -> tuple[str, str]:
  found = isinstance(error, MemoryError) or process.out_of_memory(str(error))
  return 'out_of_memory' if found else 'failed', _line(error)


def _line(error: Exception) -> str:
  return (f'{error}'.strip() or repr(error)).splitlines()[0]


def main() -> None:
  """Does the job that `latency` sent."""
  job = process.receive()
  memory.keep_freed()
  jax.config.update('jax_compilation_cache_dir', job['cache'])
  for found in measure(job):
    results.append(job['file'], found)


if __name__ == '__main__':
  main()
