"""The boards of configs/arena.py: each is built from its recipe, and trains."""

import functools
import importlib
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from absl import flags
from ml_collections import config_flags
from PIL import Image

from configs import arena, common
from vit_jax import identity, models, pretrained
from vit_jax.arena import board as boards
from vit_jax.arena import results, trainer, training, wrong


POSITIONS = 'Transformer/posembed_input/pos_embedding'


def board_of(config):
  config = identity.plain(config)
  return boards.Board(
    config['board'], config, config['leaf'], tuple(config['rates']),
    config['seeds'], config['validation'], config['evaluations'],
  )  # fmt: skip


def flat(params):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): x
    for path, x in jax.tree_util.tree_leaves_with_path(params)
  }


def shapes_of(config, folder, choice='linear'):
  """The parts of a cell, and the shapes of its parameters by name."""
  parts = trainer.build(board_of(config).config(choice), folder)
  shape, dtype = parts['data'].spec[parts['data'].input]
  start = functools.partial(parts['model'].init, train=False)
  found = jax.eval_shape(
    start, jax.random.key(0), jax.ShapeDtypeStruct((2, *shape), dtype)
  )
  return parts, {k: v.shape for k, v in flat(found['params']).items()}


def fill(folder, name, count=3):
  """A few pictures a class, in the layout that the recipe reads."""
  side, channels, classes = {
    'mnist': (28, 1, 10), 'cifar10': (32, 3, 10), 'flowers': (80, 3, 5)
  }[name]  # fmt: skip
  rng = np.random.default_rng(0)
  for split in ('train', 'test') if classes == 10 else ('',):
    for label in range(classes):
      place = folder / split / f'class {label}'
      place.mkdir(parents=True)
      for i in range(count):
        pixels = rng.integers(0, 256, (side, side, channels), np.uint8)
        Image.fromarray(pixels.squeeze()).save(place / f'{i}.png')
  return folder


@pytest.mark.parametrize(
  ('arg', 'side', 'patch'),
  [
    ('mnist', 28, 4), ('mnist,7', 28, 7), ('cifar10', 32, 4),
    ('cifar10,8', 32, 8), ('flowers', 64, 8), ('flowers,16', 64, 16),
  ],
)  # fmt: skip
def test_a_board_of_images_has_the_tokens_of_its_name(
  arg, side, patch, tmp_path
):
  config = arena.get_config(arg).to_dict()
  name = arg.partition(',')[0]
  config['data'] |= {
    'source': f'folder(path={str(fill(tmp_path, name))!r})', 'workers': 0
  }  # fmt: skip
  tokens = (side // patch) ** 2
  assert config['board'] == f'{name} {tokens} tokens'
  recipe = importlib.import_module(f'configs.{name}').get_config().to_dict()
  # Its model but for the patches, and its data but for their place.
  assert config['model'] == {**recipe['model'], 'patch_size': patch}
  assert config['task'] == recipe['task']
  assert config['data']['train'] == recipe['data']['train']
  parts, shapes = shapes_of(config, tmp_path)
  assert shapes[POSITIONS][1] == tokens
  assert parts['steps'] == config['steps'] < recipe['steps']
  rest, held = parts['data'].held_out(config['validation'])
  assert rest.train_size > held.test_size > 0


def test_patches_of_another_size_change_the_stem_and_positions_alone(tmp_path):
  fill(tmp_path, 'mnist')
  found = []
  for arg in ('mnist,4', 'mnist,7'):
    config = arena.get_config(arg).to_dict()
    config['data']['source'] = f'folder(path={str(tmp_path)!r})'
    found.append(shapes_of(config, tmp_path, 'softmax')[1])
  assert found[0].keys() == found[1].keys()
  apart = {k for k in found[0] if found[0][k] != found[1][k]}
  assert apart == {'embedding/kernel', POSITIONS}


def test_fewer_steps_keep_the_shares_of_warm_up_and_averaging():
  whole = importlib.import_module('configs.cifar10').get_config()
  steps, warmup = whole.steps, whole.optimizer.warmup
  kept = whole.optimizer.ema**steps  # of the first weights in the average
  short = common.shortened(whole, 5000)
  assert short.steps == 5000
  assert short.optimizer.warmup / 5000 == warmup / steps
  # (1 - a/n)^n is e^-a but for terms of order a²/n.
  ratio = math.log(short.optimizer.ema**5000) / math.log(kept)
  assert abs(ratio - 1) < 0.01
  assert short.is_locked
  assert short.optimizer.is_locked


def test_rates_lie_around_that_of_the_recipe():
  for name in ('mnist', 'cifar10', 'flowers', 'listops'):
    rate = importlib.import_module(f'configs.{name}').get_config()
    rate = rate.optimizer.learning_rate
    rates = arena.get_config(name).rates
    assert len(rates) == 3
    assert rates[1] == rate
    np.testing.assert_allclose(rates[2] / rate, 3, rtol=0.02)
    np.testing.assert_allclose(rates[0] / rate, 1 / 3, rtol=0.02)
  assert arena.get_config('digits').rates == (1e-3, 3e-3, 1e-2)


def listops():
  config = arena.get_config('listops').to_dict()
  config['data']['source'] = 'listops(min_length=3, max_length=64, size=40)'
  config['model'] |= {'hidden_size': 8, 'num_layers': 1, 'mlp_dim': 8}
  return config


def test_known_faults_are_all_compared_with_the_right_kernels():
  config = arena.get_config('wrong')
  options = {'window': 'size=8', 'reformer': 'chunk=16', 'linformer': 'rank=16'}
  assert sorted(config.choices) == sorted(wrong.pairs(options))


def test_listops_is_the_short_task_with_any_attention(tmp_path):
  config = listops()
  assert config['board'] == 'listops short'
  recipe = importlib.import_module('configs.listops').get_config('short')
  chosen = arena.get_config('listops')
  for section in ('model', 'task', 'data', 'optimizer'):
    assert chosen[section].to_dict() == recipe[section].to_dict()
  for spec in ('softmax', 'linformer(rank=4)', 'performer'):
    parts, shapes = shapes_of(config, tmp_path, spec)
    assert shapes['head/kernel'] == (8, 10)
    assert parts['data'].spec['tokens'][0] == (64,)


def test_a_kernel_that_takes_no_padding_is_a_row_that_says_so(tmp_path):
  board = board_of(listops())
  rows = list(training.run(board, 'fnet', 'fnet', tmp_path / 'results.jsonl'))
  assert [r['status'] for r in rows] == ['refused']
  assert rows[0]['error'].startswith('Fourier does not honour key_mask')
  assert results.read(tmp_path) == rows


@pytest.mark.parametrize('size', [(), ('short',)])
@pytest.mark.parametrize('task', common.TASKS)
def test_a_task_of_the_long_range_arena_is_wrapped_as_it_is(task, size):
  config = arena.get_config(','.join(('lra', task, *size)))
  recipe = importlib.import_module('configs.lra').get_config(
    ','.join((task, *size))
  )
  assert config.board == ' '.join(('lra', task, *size))
  assert (config.run, config.leaf) == ('arena', 'model.attention')
  for section in ('model', 'task', 'data', 'optimizer'):
    assert config[section].to_dict() == recipe[section].to_dict()
  assert (config.steps, config.batch_size) == (recipe.steps, recipe.batch_size)


@pytest.mark.parametrize(
  ('task', 'source', 'tokens'),
  [
    ('image', 'digits', 64),
    ('pathfinder', 'pathfinder(contour_length=6, examples=40)', 1024),
    ('listops', 'listops(min_length=3, max_length=64, size=40)', 64),
  ],
)
def test_a_board_of_the_long_range_arena_is_built(
  task, source, tokens, tmp_path
):
  config = arena.get_config(f'lra,{task},short').to_dict()
  config['data'] |= {'source': source, 'workers': 0}
  parts, shapes = shapes_of(config, tmp_path)
  assert parts['data'].spec[parts['data'].input][0] == (tokens,)
  assert shapes['head/kernel'][1] == parts['data'].num_classes


@pytest.mark.parametrize(
  ('arg', 'match'),
  [
    ('minst', "no suite 'minst'; choices: digits, mnist"),
    ('mnist,5', 'must divide the 28 pixels of a side; choices: 1, 2, 4, 7, 14'),
    ('mnist,0', 'mnist,0: patches must divide'),
    ('mnist,x', 'mnist,x: patches must divide'),
    ('mnist,4,2', '2 words after the name; choices: 0, 1'),
    ('lra,sums', 'it takes a task, pathfinder, image, text'),
    ('lra,text,long', "after a comma 'short' or nothing"),
    ('swap,a', '1 words after the name; choices: 2'),
    ('probe,a', "'probe,CHECKPOINT,DATA'"),
  ],
)
def test_a_suite_that_is_none_is_refused(arg, match):
  with pytest.raises(ValueError, match=match):
    arena.get_config(arg)


def test_the_command_line_sets_leaf_choices_and_shard(monkeypatch):
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=values)
  words = [
    'main', f'--config={tiny.ROOT}/configs/arena.py:mnist,14',
    '--config.leaf=model.num_heads', '--config.choices=(1, 2)',
    '--config.shard=3/16', '--config.data.source=digits',
  ]  # fmt: skip
  monkeypatch.setattr(sys, 'argv', words)
  values(words)
  config = values['config'].value
  assert (config.leaf, config.choices, config.shard) == (
    'model.num_heads', (1, 2), '3/16'
  )  # fmt: skip
  assert config.board == 'mnist 4 tokens'
  assert config.data.source == 'digits'


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  """A small model of digits, as if it were trained."""
  section = tiny.config()['model']
  model = models.build(**section)
  rng = np.random.default_rng(5)
  variables = jax.tree.map(
    lambda s: jnp.asarray(0.3 * rng.standard_normal(s.shape), s.dtype),
    pretrained.base.shapes(model, 1),
  )
  path = tmp_path_factory.mktemp('swap') / 'trained'
  pretrained.save(path, pretrained.Pretrained(
    model, variables,
    {'decode': 'decode(channels=1)', 'transform': 'value_range'}, (), section,
    channels=1,
  ))  # fmt: skip
  return str(path), variables['params']


def swap(checkpoint):
  config = arena.get_config(f'swap,{checkpoint[0]},data/digits').to_dict()
  assert config['data']['source'] == "folder(path='data/digits')"
  config['data'] |= {'source': 'digits', 'train': ''}
  return config | {'steps': 1, 'batch_size': 16, 'evaluations': 1}


@pytest.mark.slow  # four short trainings
def test_a_swapped_attention_starts_from_the_trained_weights(
  checkpoint, tmp_path
):
  board = board_of(swap(checkpoint))
  assert board.name == 'swap trained'
  there = flat(checkpoint[1])
  exact = trainer.Trainer(board, 'softmax', tmp_path)
  other = trainer.Trainer(board, 'linformer(rank=2)', tmp_path)
  for one in (exact, other):
    shape, dtype = one.data.spec[one.data.input]
    state = one._start(jax.random.key(1), jnp.zeros((1, *shape), dtype))
    mine = flat(state.params)
    for name, value in there.items():
      np.testing.assert_array_equal(mine[name], value)
    assert (mine.keys() == there.keys()) == (one is exact)
  rows = [one.cell(1e-12, seed) for one in (exact, other) for seed in (0, 1)]
  assert len({row['start'] for row in rows}) == 1
  assert [row['shared'] == 1 for row in rows] == [True, True, False, False]
  # Without a step worth the name it answers as its teacher does.
  assert rows[0]['train_loss'] < 1e-6 < rows[2]['train_loss']
  assert rows[0]['accuracy'] == rows[1]['accuracy']


def test_where_it_starts_is_part_of_the_recipe(checkpoint):
  config = swap(checkpoint)
  here = board_of(config).recipe
  assert board_of({**config, 'init': 'elsewhere'}).recipe != here
  assert board_of({**config, 'head': 'by_number'}).recipe != here
  none = arena.get_config('digits').to_dict()
  assert none['init'] is None
  assert 'init' not in board_of(none).recipe_sections()


def test_an_attention_without_a_place_for_the_weights_is_refused(
  checkpoint, tmp_path
):
  board = board_of(swap(checkpoint))
  file = tmp_path / 'results.jsonl'
  rows = list(training.run(board, 'fnet', 'fnet', file))
  assert [r['status'] for r in rows] == ['refused']
  assert 'has no place for' in rows[0]['error']
