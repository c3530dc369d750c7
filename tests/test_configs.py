"""Every file in configs/ goes through main's path, under eval_shape."""

import functools
import importlib

import jax
import jax.numpy as jnp
import pytest
import tiny

from vit_jax import (
  building,
  evaluate,
  main,
  models,
  optimizers,
  pretrained,
  state,
  train,
)
from vit_jax.arena import board as arena
from vit_jax.arena import dataset_size

NAMES = sorted(
  p.stem for p in (tiny.ROOT / 'configs').glob('*.py') if p.stem != 'common'
)


@pytest.fixture(autouse=True)
def checkpoints(monkeypatch):
  """Whatever path a config starts from, a small ViT of ten classes is there."""
  config = {
    'name': 'vit', 'patch_size': 8, 'hidden_size': 8, 'num_layers': 2,
    'num_heads': 2, 'mlp_dim': 8, 'image_size': 16, 'num_classes': 10,
  }  # fmt: skip
  model = models.build(**config)
  variables = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype),
    jax.eval_shape(
      model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3))
    ),
  )
  found = pretrained.Pretrained(
    model, variables,
    {
      'decode': 'decode(channels=3)',
      'transform': 'resize(size=16), value_range',
    },
    tuple(str(k) for k in range(10)), config,
  )  # fmt: skip
  monkeypatch.setattr(pretrained, 'load', lambda path: found)


def load(name, *arg):
  """The config as a dict, its source replaced by one of the declared spec."""
  module = importlib.import_module(f'configs.{name}')
  config = module.get_config(*arg).to_dict()
  if 'vocabulary_size' in config['model']:  # of the declared length
    config['data']['source'] = (
      f'listops(min_length=3, max_length={config["model"]["length"]}, size=32)'
    )
  elif 'data' in config:
    size = config['model']['image_size'] or 16
    classes = config['model'].setdefault('num_classes', None) or 10
    channels = 1 if 'channels=1' in config['data']['decode'] else 3
    side = size if size < 64 else size + 32
    if 'name' in config['model']:  # a few blocks are enough
      row = dict(config['model'])
      if 'variant' in row:
        row |= models.MODELS[row['name']].VARIANTS[row['variant']]
      for key in {'depths', 'num_layers'} & set(row):
        few = 2 if key == 'num_layers' else (1,) * len(row[key])
        config['model'][key] = few
    config['data']['source'] = (
      f'synthetic(classes={classes}, height={side}, width={side}, '
      f'channels={channels}, size=32)'
    )
    config['data'] |= {
      'train_split': 'train', 'test_split': 'test', 'workers': 0
    }  # fmt: skip
  return config


def test_there_are_configs():
  assert {'digits', 'mnist', 'cifar10', 'flowers', 'benchmark'} <= set(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_config_drives_its_run(name, tmp_path):
  config = load(name)
  arguments = main.build(config, tmp_path)
  if config['run'] == 'benchmark':
    model = models.build(**arguments['record']['model'])
    size = model.image_size
    image = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    start = functools.partial(model.init, train=False)
    assert jax.eval_shape(start, jax.random.key(0), image)['params']
    return
  if config['run'] == 'arena':  # whose cells are training runs
    board = arena.Board(
      config['board'], arguments['record'], config['leaf'], config['rates'],
      config['seeds'], config['validation'], config['evaluations'],
    )  # fmt: skip
    config = board.config('linear')
    arguments = building.build(
      {**config, 'run': 'train'}, tmp_path, main.RUNS
    )
    config['run'] = 'train'
  if config['run'] == 'data_size':  # of other models, and on a share
    record = {
      k: v for k, v in arguments['record'].items() if k not in dataset_size.OWN
    }
    board = arena.Board(
      config['board'], record, 'model', config['rates'],
      config['seeds'], 0.1, 1,
    )  # fmt: skip
    config = board.config(config['choices']['hybrid'])
    arguments = building.build(
      {**config, 'run': 'train'}, tmp_path, main.RUNS
    )
    config['run'] = 'train'
  data, model = arguments['data'], arguments['model']
  (shape, dtype), batch_size = data.spec[data.input], 8
  with_batch = {
    data.input: jax.ShapeDtypeStruct((batch_size, *shape), dtype),
    'label': jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    'weight': jax.ShapeDtypeStruct((batch_size,), jnp.float32),
  }
  if config['run'] == 'evaluate':
    step = functools.partial(evaluate.eval_step, model=model)
    found = jax.eval_shape(
      step, arguments['init'], arguments['task'], with_batch
    )
    assert {'loss', 'accuracy'} <= set(found)
    return
  assert config['run'] == 'train'
  build = functools.partial(
    state.init_state, model=model, optimizer=arguments['optimizer']
  )
  key = jax.random.key(0)
  shapes = jax.eval_shape(build, key, jnp.zeros((1, *shape), dtype))
  step = functools.partial(
    train.train_step, model=model, optimizer=arguments['optimizer']
  )
  after, found = jax.eval_shape(
    step, shapes, arguments['task'], with_batch, key
  )
  assert jax.tree.structure(after) == jax.tree.structure(shapes)
  assert {'loss', 'grad_norm'} <= set(found)
  assert arguments['sharding'].parameters(shapes.params)
  assert config['batch_size'] % config['accumulate'] == 0


@pytest.mark.parametrize('arg', ['scaling', 'probe,runs/a,data/b'])
def test_suites_without_training_are_given_what_they_read(arg, tmp_path):
  config = importlib.import_module('configs.arena').get_config(arg).to_dict()
  arguments = main.build(config, tmp_path)
  assert arguments == {k: v for k, v in config.items() if k != 'run'}
  with pytest.raises(ValueError, match='lerning_rate'):
    main.build({**config, 'lerning_rate': 1.0}, tmp_path)


@pytest.mark.parametrize('name', NAMES)
def test_a_key_that_nothing_reads_is_an_error(name, tmp_path):
  for section in (None, 'model', 'task', 'data', 'optimizer', 'sharding'):
    config = load(name)
    if section is not None and section not in config:
      continue
    target = config if section is None else config[section]
    if not isinstance(target, dict):
      continue
    target['lerning_rate'] = 1.0
    with pytest.raises(ValueError, match='lerning_rate'):
      main.build(config, tmp_path)


@pytest.mark.parametrize('name', NAMES)
def test_a_config_is_short_and_says_its_command(name):
  text = (tiny.ROOT / 'configs' / f'{name}.py').read_text()
  assert len(text.splitlines()) <= 40
  assert f'python -m vit_jax.main --config=configs/{name}.py' in text


@pytest.mark.parametrize('name', NAMES)
def test_a_config_is_locked_at_every_level(name):
  config = importlib.import_module(f'configs.{name}').get_config()
  sections = [config, *(v for v in config.values() if hasattr(v, 'lock'))]
  assert all(section.is_locked for section in sections)


def test_recipes_of_fine_tuning_differ_in_what_moves(tmp_path):
  sections = {
    r: load('finetune', f'a,b,{r}')['optimizer']
    for r in ('sgd', 'adamw', 'probe')
  }
  params = main.build(load('finetune'), tmp_path)['init']['params']
  frozen = optimizers.matching(sections['probe']['freeze'], params)
  for path, hit in jax.tree_util.tree_leaves_with_path(frozen):
    assert hit != optimizers.path_of(path).startswith('head/')
  assert [s['layer_decay'] for s in sections.values()] == [1, 0.75, 1]
  assert [s['freeze'] for s in sections.values()][:2] == ['', '']
  # What the original fine-tunes with.
  assert sections['sgd'] == {
    'name': 'sgd', 'learning_rate': 0.03, 'warmup': 500, 'clip': 1.0,
    'schedule': 'cosine', 'weight_decay': 0.0, 'layer_decay': 1.0,
    'freeze': '', 'ema': 0.0,
  }  # fmt: skip
  with pytest.raises(ValueError, match="'sdg'; choices: sgd, adamw, probe"):
    load('finetune', 'a,b,sdg')


@pytest.mark.parametrize(
  ('arg', 'init', 'source'),
  [
    ('a/b,c/d', 'a/b', "folder(path='c/d')"),
    ('a, tfds:cifar10', 'a', "tfds(name='cifar10')"),
    ("gs://a/b.npz,folder(path='c', seed=1)", 'gs://a/b.npz',
     "folder(path='c', seed=1)"),
  ],
)  # fmt: skip
def test_a_data_set_is_a_folder_a_name_or_a_source(arg, init, source):
  for name in ('finetune', 'evaluate'):
    module = importlib.import_module(f'configs.{name}')
    config = module.get_config(arg)
    assert (config.init, config.data.source) == (init, source)
