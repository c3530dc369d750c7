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
  fewshot,
  identity,
  models,
  optimizers,
  pretrained,
  specs,
  start,
  tasks,
  train,
)
from vit_jax import sharding as shardings

RUNS: dict[str, Callable[..., Any]] = {
  'train': train.train,
  'evaluate': evaluate.evaluate,
  'fewshot': fewshot.fewshot,
  'benchmark': benchmark.benchmark,
}
# They look at a trained model: without config.init, the workdir's own.
OF_TRAINED = ('evaluate', 'fewshot')
# Built by main rather than read from the config.
BUILT = ('workdir', 'record')


def check(config: Mapping[str, Any]) -> None:
  """Raises a ValueError on a key that no run reads, or an unknown run."""
  specs.lookup(RUNS, config['run'], 'config.run')
  known = {'run', 'init', 'head', 'model'}
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
  config = {
    'init': None, 'head': 'by_name', 'steps': 1, **config,
    'model': {'num_classes': None, **config['model']},
  }  # fmt: skip
  run = config['run']
  wanted = inspect.signature(RUNS[run]).parameters
  out = {k: v for k, v in config.items() if k in wanted and k != 'init'}
  for key, p in wanted.items():
    if p.default is p.empty and key not in config and key not in BUILT:
      raise ValueError(f'config.{key} is missing; run={run!r} needs it')
  found, built = _start(config, workdir), None
  if 'data' in wanted:
    built = _data(config['data'], found)
  if found is None:
    section = dict(config['model'])
    if built is not None and section['num_classes'] is None:
      section['num_classes'] = built.num_classes
    model = models.build(**section)
    if built is not None and model.num_classes != built.num_classes:
      raise ValueError(
        f'the model has {model.num_classes} classes and the data '
        f'{built.num_classes}: set config.model.num_classes='
        f'{built.num_classes}'
      )
  else:
    if built is not None and 'task' in wanted:
      found, built = start.fit(
        found, built, head=config['head'], training=run == 'train',
        num_classes=config['model']['num_classes'],
        subset='teacher' in config['task'],
      )  # fmt: skip
    section, model = found.config, found.model
    if 'init' in wanted:
      out['init'] = found.variables
  if built is not None:
    out['data'] = built
  if 'model' in wanted:
    out['model'] = model
  if 'task' in wanted:
    task = _task(config['task'], built)
    out['task'] = tasks.build(num_classes=model.num_classes, **task)
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


def _start(
  config: Mapping[str, Any], workdir: str | os.PathLike
) -> pretrained.Pretrained | None:
  """The checkpoint that a run starts from or looks at, if there is one."""
  specs.lookup(start.HEADS, config['head'], 'config.head')
  path = config['init']
  if path is None and config['run'] in OF_TRAINED:
    path = str(workdir)
  if path is None:
    if config['head'] != 'by_name':
      raise ValueError(
        f'config.head={config["head"]!r} is about the head of a checkpoint, '
        'and there is no config.init'
      )
    return None
  if 'variants' in config and config['variants']:
    raise ValueError(
      f'config.variants={config["variants"]} are other models than that of '
      f'config.init={path!r}: set config.variants="()"'
    )
  found = start.load(path, config['model'])
  classes = config['model']['num_classes']
  if config['run'] != 'train' and classes not in (
    None, found.model.num_classes
  ):  # fmt: skip
    raise ValueError(
      f'config.model.num_classes={classes}, but the checkpoint has '
      f'{found.model.num_classes} classes; another number means a new head, '
      'which only training has a use for'
    )
  return found


def _data(
  section: Mapping[str, Any], found: pretrained.Pretrained | None
) -> Any:
  specs.check_options(data.build, section, 'config.data')
  if found is None:
    return data.build(**{'train': '', 'test': '', **section})
  built = data.build(**start.transforms(section, found))
  start.check_channels(found, built)
  return built


def _task(section: Mapping[str, Any], data: Any) -> Mapping[str, Any]:
  """The task's section; its teacher, a path there, loaded."""
  if 'teacher' not in section or section['teacher'] is None:
    return section
  path = section['teacher']
  teacher = pretrained.load(path)
  if data is not None:
    pretrained.check_teacher(
      teacher,
      path,
      labels=data.labels,
      channels=data.spec['image'][0][-1],
      transforms={
        'config.data.test': data.preprocess['transform'],
        'config.data.train': data.identity['train'],
      },
    )
  return {**section, 'teacher': teacher}


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
