"""python -m vit_jax.main --config=configs/X.py[:arg] --workdir=DIR.

Builds the sections of a config and hands the objects to one of `RUNS`. The
only file that knows ml_collections: everything below takes plain arguments.
"""

import ctypes
import importlib.metadata
import importlib.util
import inspect
import os
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from vit_jax import (
  benchmark,
  data,
  evaluate,
  identity,
  models,
  optimizers,
  pretrained,
  specs,
  tasks,
  train,
)
from vit_jax import sharding as shardings

RUNS: dict[str, Callable[..., Any]] = {
  'train': train.train,
  'evaluate': evaluate.evaluate,
  'benchmark': benchmark.benchmark,
}
# Built by main rather than read from the config.
BUILT = ('workdir', 'record')


def check(config: Mapping[str, Any]) -> None:
  """Raises a ValueError on a key that no run reads, or an unknown run."""
  specs.lookup(RUNS, config['run'], 'config.run')
  known = {'run', 'init', 'model'}
  known |= {k for run in RUNS.values() for k in specs.accepted(run)}
  known -= set(BUILT)
  for key in config:
    if key not in known:
      raise ValueError(
        f'config.{key} is read by nothing; {specs.nearest(key, known)}'
      )


def build(
  config: Mapping[str, Any], workdir: str | os.PathLike
) -> dict[str, Any]:
  """The arguments of a config's run: its sections built, the rest as it is.

  Raises:
    ValueError: an unknown or missing key, or a bad value.
  """
  check(config)
  config = {'init': None, 'steps': 1, **config}
  wanted = inspect.signature(RUNS[config['run']]).parameters
  out = {k: v for k, v in config.items() if k in wanted and k != 'init'}
  for key, p in wanted.items():
    if p.default is p.empty and key not in config and key not in BUILT:
      raise ValueError(
        f'config.{key} is missing; run={config["run"]!r} needs it'
      )
  found = None
  if 'init' in wanted:
    path = config['init']
    if path is None and config['run'] == 'evaluate':
      path = str(workdir)
    if path is not None:
      found = _load(path, config['model'])
      out['init'] = found.variables
  if 'data' in wanted:
    out['data'] = _data(config['data'], found)
  if found is None:
    section = {'num_classes': None, **config['model']}
    if 'data' in wanted and section['num_classes'] is None:
      section['num_classes'] = out['data'].num_classes
    model = models.build(**section)
  else:
    section, model = found.config, found.model
  if 'data' in wanted and model.num_classes != out['data'].num_classes:
    raise ValueError(
      f'the model has {model.num_classes} classes and the data '
      f'{out["data"].num_classes}: set config.model.num_classes='
      f'{out["data"].num_classes}'
    )
  if 'model' in wanted:
    out['model'] = model
  if 'task' in wanted:
    out['task'] = tasks.build(num_classes=model.num_classes, **config['task'])
  if 'optimizer' in wanted:
    specs.check_options(
      optimizers.build, config['optimizer'], 'config.optimizer'
    )
    out['optimizer'] = optimizers.build(
      config['steps'], **config['optimizer']
    )
  if 'sharding' in wanted:
    specs.check_options(shardings.build, config['sharding'], 'config.sharding')
    out['sharding'] = shardings.build(**config['sharding'])
  if 'record' in wanted:
    out['record'] = identity.plain({**config, 'model': section})
  return out


def _load(
  path: str, section: Mapping[str, Any]
) -> pretrained.Pretrained:
  """A checkpoint, with what `config.model` may change of it.

  Raises:
    ValueError: config.model asks for another architecture.
  """
  found = pretrained.load(path)
  changed = {
    k: v
    for k, v in section.items()
    if v is not None
    and (k not in found.config or identity.plain(v) != found.config[k])
  }
  return pretrained.load(path, **changed) if changed else found


def _data(
  section: Mapping[str, Any], found: pretrained.Pretrained | None
) -> Any:
  specs.check_options(data.build, section, 'config.data')
  section = {'test': '', 'decode': '', **section}
  if found is not None:
    for ours, theirs in (('test', 'transform'), ('decode', 'decode')):
      if not section[ours]:
        section[ours] = found.preprocess[theirs]
  return data.build(**section)


CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'The experiment, configs/X.py[:arg].', lock_config=True
)
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
DISTRIBUTED = flags.DEFINE_bool(
  'distributed', False,
  'One of several processes: calls jax.distributed.initialize(), which finds '
  'the others on a TPU, under SLURM and under MPI; elsewhere give the three '
  'flags below.',
)  # fmt: skip
COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'HOST:PORT of process 0, with --distributed.'
)
PROCESSES = flags.DEFINE_integer('processes', None, 'How many there are.')
PROCESS = flags.DEFINE_integer('process', None, 'Which one this is, from 0.')


def _keep_freed_memory() -> None:
  """On a CPU, has glibc keep freed memory: it is needed again next step.

  XLA's temporaries are otherwise unmapped and faulted in again every step: a
  training step of ViT-S/16 on two cores took 1.17 times as long. Has no effect
  once a device was touched. Not for hosts of accelerators, whose many decoding
  threads want an arena each.
  """
  accelerator = importlib.metadata.entry_points(group='jax_plugins')
  if accelerator or importlib.util.find_spec('libtpu'):
    return
  libc = ctypes.CDLL(None)
  if not hasattr(libc, 'mallopt'):  # not glibc
    return
  # M_ARENA_MAX=1, M_MMAP_MAX=0, M_TRIM_THRESHOLD=never, M_TOP_PAD=64 MiB
  for option, value in ((-8, 1), (-4, 0), (-1, -1), (-2, 2**26)):
    libc.mallopt(option, value)


def _set_up() -> None:
  """Joins the other processes; keeps compilations from one run to the next."""
  _keep_freed_memory()
  if DISTRIBUTED.value:
    jax.distributed.initialize(
      COORDINATOR.value, PROCESSES.value, PROCESS.value
    )
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    cache = pathlib.Path.home() / '.cache' / 'vit_jax' / 'compiled'
    jax.config.update('jax_compilation_cache_dir', str(cache))


def main(argv: list[str]) -> None:
  """Runs a config."""
  if len(argv) > 1:
    raise app.UsageError(f'unknown arguments: {argv[1:]}')
  try:
    if not flags.FLAGS['verbosity'].present:
      logging.set_verbosity(logging.WARNING)
    _set_up()
    config = CONFIG.value
    config.lock()
    arguments = build(config.to_dict(), WORKDIR.value)
    RUNS[config.run](WORKDIR.value, **arguments)
  except (ValueError, RuntimeError, train.NonFiniteLossError) as e:
    if flags.FLAGS.verbosity > 0:
      raise
    print(f'error: {e}', file=sys.stderr)
    sys.exit(1)


def _importable_configs() -> None:
  """Lets configs/X.py import its neighbours, whatever the current folder."""
  for i, argument in enumerate(sys.argv):
    name, _, value = argument.lstrip('-').partition('=')
    if name == 'config' and argument.startswith('-'):
      value = value or ''.join(sys.argv[i + 1 : i + 2])
      folder = pathlib.Path(value.partition(':')[0]).absolute().parent
      sys.path.append(str(folder.parent))


if __name__ == '__main__':
  _importable_configs()
  flags.mark_flags_as_required(['config', 'workdir'])
  app.run(main)
