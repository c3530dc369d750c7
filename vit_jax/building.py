"""From a config's sections to the objects that a run takes."""

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

from vit_jax import (
  data,
  identity,
  models,
  optimizers,
  pretrained,
  specs,
  start,
  tasks,
)
from vit_jax import sharding as shardings

Runs = Mapping[str, Callable[..., Any]]
# They look at a trained model: without config.init, the workdir's own.
OF_TRAINED = ('evaluate', 'fewshot')
# They train: a head may be a new one.
TRAIN = ('train', 'arena', 'data_size')
# Built by main rather than read from the config.
SECTIONS = ('model', 'task', 'data', 'optimizer', 'sharding')
BUILT = ('workdir', 'record')


def check(config: Mapping[str, Any], runs: Runs) -> None:
  """Raises a ValueError on a key that no run reads, or an unknown run."""
  specs.lookup(runs, config['run'], 'config.run')
  known = {'run', 'init', 'head', 'model'}
  known |= {k for run in runs.values() for k in specs.accepted(run)}
  known -= set(BUILT)
  for key in config:
    if key not in known:
      raise ValueError(
        f'config.{key} is read by nothing; {specs.nearest(key, known)}'
      )


def build(
  config: Mapping[str, Any], workdir: str | os.PathLike, runs: Runs
) -> dict[str, Any]:
  """The arguments of a config's run: its sections built, the rest as it is.

  Args:
    config: plain, as `config.to_dict()`.
    workdir: of the run; without config.init, a run that looks at a trained
      model takes the workdir's.
    runs: name → function; the parameters' names say what it is given.

  Raises:
    ValueError: an unknown or missing key, or a bad value.
  """
  check(config, runs)
  wanted = inspect.signature(runs[config['run']]).parameters
  own = 'record' not in wanted and 'model' not in wanted
  if not own:  # else it builds for itself what it needs
    config = {
      'init': None, 'head': 'by_name', 'steps': 1, **config,
      'model': {'num_classes': None, **config['model']},
    }  # fmt: skip
  for key, p in wanted.items():
    if p.default is p.empty and key not in config and key not in BUILT:
      raise ValueError(
        f'config.{key} is missing; run={config["run"]!r} needs it'
      )
  if own:
    return {k: v for k, v in config.items() if k in wanted}
  run = config['run']
  if not wanted.keys() & set(SECTIONS):
    # It builds the sections many times itself: a typo must not wait for that.
    parts = dict.fromkeys([*wanted, *SECTIONS])
    found = _built(config, workdir, run, parts)
    return {k: v for k, v in found.items() if k in wanted}
  return _built(config, workdir, run, wanted)


def _built(
  config: Mapping[str, Any], workdir: str | os.PathLike, run: str,
  wanted: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
  out = {k: v for k, v in config.items() if k in wanted and k != 'init'}
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
        found, built, head=config['head'], training=run in TRAIN,
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
    if _starts_differ(config):
      section = config['model']
    out['record'] = identity.plain({**config, 'model': section})
  return out


def _starts_differ(config: Mapping[str, Any]) -> bool:
  """Whether checkpoints are compared: one's sections are not the others'."""
  if 'leaf' in config:
    return config['leaf'] == 'init'
  return config['run'] == 'data_size' and config['init'] is not None


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
  if config['run'] not in TRAIN and classes not in (
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
      channels=data.channels,
      transforms={
        'config.data.test': data.preprocess['transform'],
        'config.data.train': data.identity['train'],
      },
    )
  return {**section, 'teacher': teacher}
