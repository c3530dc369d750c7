"""Every file in configs/ goes through main's path, under eval_shape."""

import functools
import importlib

import jax
import jax.numpy as jnp
import pytest
import tiny

from vit_jax import main, models, state, train

NAMES = sorted(
  p.stem for p in (tiny.ROOT / 'configs').glob('*.py') if p.stem != 'common'
)


def load(name):
  """The config as a dict, its source replaced by one of the declared spec."""
  config = importlib.import_module(f'configs.{name}').get_config().to_dict()
  if 'data' in config:
    size = config['model']['image_size']
    classes = config['model'].setdefault('num_classes', None) or 10
    channels = 1 if 'channels=1' in config['data']['decode'] else 3
    side = size if size < 64 else size + 32
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
  assert config['run'] == 'train'
  data, model = arguments['data'], arguments['model']
  (shape, dtype), batch_size = data.spec['image'], 8
  build = functools.partial(
    state.init_state, model=model, optimizer=arguments['optimizer']
  )
  key = jax.random.key(0)
  shapes = jax.eval_shape(build, key, jnp.zeros((1, *shape), dtype))
  with_batch = {
    'image': jax.ShapeDtypeStruct((batch_size, *shape), dtype),
    'label': jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    'weight': jax.ShapeDtypeStruct((batch_size,), jnp.float32),
  }
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
