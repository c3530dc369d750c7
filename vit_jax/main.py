"""python -m vit_jax.main --config=configs/X.py[:arg] --workdir=DIR.

Builds the sections of a config and hands the objects to one of `RUNS`. The
only file that knows ml_collections: everything below takes plain arguments.
"""

import os
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from vit_jax import arena, benchmark, building, evaluate, fewshot, train
from vit_jax.arena import dataset_size, latency, memory, scaling

RUNS: dict[str, Callable[..., Any]] = {
  'train': train.train,
  'evaluate': evaluate.evaluate,
  'fewshot': fewshot.fewshot,
  'benchmark': benchmark.benchmark,
  'arena': arena.arena,
  'scaling': scaling.scaling,
  'probe': arena.probe,
  'data_size': dataset_size.data_size,
  'latency': latency.latency,
}


def check(config: Mapping[str, Any]) -> None:
  """Raises a ValueError on a key that no run reads, or an unknown run."""
  building.check(config, RUNS)


def build(
  config: Mapping[str, Any], workdir: str | os.PathLike
) -> dict[str, Any]:
  """The arguments of a config's run; see `building.build`."""
  return building.build(config, workdir, RUNS)


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


def _set_up() -> None:
  """Joins the other processes; keeps compilations from one run to the next."""
  memory.keep_freed()
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
