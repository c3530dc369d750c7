"""The command: bad input is a clear error that loses nothing."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vit_jax import main, models, pretrained


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'stepz': 3}, ['config.stepz', "'steps'"]),
    ({'run': 'trane'}, ["'trane'", "'train'", 'benchmark']),
    ({'model__name': 'vitt'}, ["'vitt'", "'vit'"]),
    ({'model__variant': 'B/17'}, ["'B/17'", 'B/16']),
    ({'model__hiden_size': 8}, ['hiden_size', "'hidden_size'"]),
    ({'model__num_classes': 7}, ['7 classes', '10', 'num_classes=10']),
    ({'task__name': 'clasification'}, ["'classification'"]),
    ({'task__loss': 'hinge'}, ["'hinge'", 'softmax', 'sigmoid']),
    ({'task__augment': 'mixdown'}, ["'mixdown'", 'mixup']),
    ({'task__label_smoothing': 1.5}, ['1.5', '[0, 1)']),
    ({'data__source': 'digit'}, ["'digit'", "'digits'", 'folder', 'tfds']),
    ({'data__source': 'digits('}, ['digits(']),
    ({'data__train': 'afine'}, ["'afine'", "'affine'"]),
    ({'data__train': 'flip(p=1)'}, ["'p'", 'probability']),
    ({'data__test': ''}, ['value_range']),
    ({'optimizer__name': 'adam'}, ["'adam'", 'adamw']),
    ({'optimizer__schedule': 'cosin'}, ["'cosin'", "'cosine'"]),
    ({'optimizer__momentum': 0.9}, ['momentum', 'learning_rate']),
    ({'optimizer__clip': -1.0}, ['clip=-1.0']),
    ({'sharding__data': 3}, ['data=3', '8 devices']),
    ({'sharding__dat': 3}, ["'dat'", "'data'"]),
    ({'head': 'nwe'}, ["'nwe'", "'new'", 'by_name', 'by_number']),
    ({'head': 'new'}, ["head='new'", 'no config.init']),
  ],
)  # fmt: skip
def test_bad_config_names_value_and_choices(changes, words, tmp_path):
  with pytest.raises(ValueError) as error:
    main.build(tiny.config(**changes), tmp_path)
  for word in words:
    assert word in str(error.value)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'batch_size': 12}, ['batch_size=12', '8 devices', '16']),
    ({'accumulate': 4}, ['batch_size=16', '32']),
    ({'model__patch_size': 3}, ['8×8', '3×3', '9×9']),
    ({'model__attention': 'softmaks'}, ["'softmaks'", "'softmax'"]),
    ({'model__attention': 'softmax(cusal=True)'}, ["'cusal'", "'causal'"]),
    ({'model__classifier': 'avg'}, ["'avg'", 'gap', 'token']),
    ({'model__num_heads': 3}, ['16', 'num_heads=3']),
    ({'log_every': -1}, ['log_every=-1']),
  ],
)  # fmt: skip
def test_bad_run_is_refused_before_anything_is_trained(
  changes, words, tmp_path
):
  with pytest.raises(ValueError) as error:
    tiny.run(tmp_path, **changes)
  for word in words:
    assert word in str(error.value)
  assert not (tmp_path / 'checkpoints').exists()


def test_a_missing_key_is_named(tmp_path):
  config = tiny.config()
  del config['batch_size']
  with pytest.raises(ValueError, match='config.batch_size is missing'):
    main.build(config, tmp_path)


def command(*args, cwd=tiny.ROOT):
  env = {**os.environ, 'JAX_NUM_CPU_DEVICES': '1'}
  return subprocess.run(
    [sys.executable, '-m', 'vit_jax.main', *args],
    capture_output=True, text=True, env=env, cwd=cwd, check=False,
  )  # fmt: skip


def test_a_typo_on_the_command_line_says_what_was_meant(tmp_path):
  config = tiny.ROOT / 'configs' / 'digits.py'
  # From another folder: configs still find configs/common.py.
  found = command(
    f'--config={config}', f'--workdir={tmp_path}', '--config.stepz=3',
    cwd=tmp_path,
  )  # fmt: skip
  assert found.returncode != 0
  assert 'stepz' in found.stderr
  assert 'steps' in found.stderr
  assert not list(tmp_path.iterdir())


def test_an_error_is_one_line_and_exit_status_1(tmp_path):
  found = command(
    '--config=configs/digits.py', f'--workdir={tmp_path}',
    '--config.model.image_size=9',
  )  # fmt: skip
  assert found.returncode == 1
  assert found.stderr.splitlines()[-1].startswith('error: ')
  assert 'Traceback' not in found.stderr


def test_training_starts_from_another_runs_weights(tmp_path):
  common = {'steps': 1, 'eval_every': 0, 'checkpoint_every': 0}
  tiny.run(tmp_path / 'a', **common)
  fine = {**common, 'optimizer__learning_rate': 0.0}
  a = main.build(tiny.config(run='evaluate'), tmp_path / 'a')
  before = main.RUNS['evaluate'](tmp_path / 'a', **a)
  tiny.run(tmp_path / 'b', **fine, init=str(tmp_path / 'a'))
  after = main.RUNS['evaluate'](
    tmp_path / 'b',
    **main.build(tiny.config(run='evaluate'), tmp_path / 'b'),
  )
  assert after == pytest.approx(before, rel=1e-6)


def test_init_refuses_another_architecture(tmp_path):
  tiny.run(tmp_path / 'a', steps=1, eval_every=0)
  changes = {'init': str(tmp_path / 'a'), 'model__mlp_dim': 64}
  with pytest.raises(ValueError, match='mlp_dim=64.*may change: num_classes'):
    main.build(tiny.config(**changes), tmp_path / 'b')


def test_init_at_another_image_size_resizes_the_positions(tmp_path):
  tiny.run(tmp_path / 'a', steps=1, eval_every=0)
  changes = {
    'init': str(tmp_path / 'a'),
    'model__image_size': 16,
    'data__test': 'resize(size=16), value_range(low=-1.0, high=1.0)',
    'data__train': 'resize(size=16), value_range(low=-1.0, high=1.0)',
  }
  built = main.build(tiny.config(**changes), tmp_path / 'b')
  table = built['init']['params']['Transformer']['posembed_input']
  assert table['pos_embedding'].shape == (1, 17, 16)
  x = jax.numpy.zeros((1, 16, 16, 1))
  assert built['model'].apply(built['init'], x).shape == (1, 10)


@pytest.fixture
def grey(monkeypatch):
  """A checkpoint of grey digits in [0, 1], of 16×16 pixels, among letters."""
  config = {**tiny.CONFIG['model'], 'image_size': 16, 'num_classes': 12}
  model = models.build(**config)
  variables = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
  preprocess = {
    'decode': 'decode(channels=1)',
    'transform': 'resize(size=16), value_range(low=0.0)',
  }
  found = pretrained.Pretrained(
    model, variables, preprocess, ('a', *'9876543210', 'b'), config, 1
  )
  monkeypatch.setattr(pretrained, 'load', lambda path: found)
  return found


EMPTY = dict.fromkeys(tiny.CONFIG['model'])  # leaves all as the checkpoint's


def test_fine_tuning_takes_size_and_scaling_from_the_checkpoint(grey):
  config = tiny.config(
    init='runs/grey', head='new', model=EMPTY, data__decode='',
    data__test='', data__train='inception_crop, flip(probability=0.25)',
  )  # fmt: skip
  built = main.build(config, 'unused')
  train = built['data'].identity['train']
  assert train.startswith('inception_crop(size=16,')
  assert train.endswith('value_range(low=0.0, high=1.0)')
  with built['data'].train_batches(16, seed=0) as batches:
    image = next(batches)['image']
  assert image.shape == (16, 16, 16, 1)
  assert image.min() == 0
  assert 0.9 < image.max() <= 1
  assert built['model'].num_classes == built['task'].num_classes == 10
  assert built['record']['model']['num_classes'] == 10
  old = grey.variables['params']['embedding']['kernel']
  np.testing.assert_array_equal(
    built['init']['params']['embedding']['kernel'], old
  )


def test_fine_tuning_refuses_another_scaling(grey):
  config = tiny.config(
    init='runs/grey', head='new', model=EMPTY, data__test='', data__decode=''
  )
  with pytest.raises(ValueError, match='value_range.low=-1.0.*otherwise'):
    main.build(config, 'unused')


def test_fine_tuning_at_another_size_resizes_the_transforms_too(grey):
  config = tiny.config(
    init='runs/grey', head='new', model={**EMPTY, 'image_size': 8},
    data__decode='', data__test='', data__train='',
  )  # fmt: skip
  built = main.build(config, 'unused')
  assert built['data'].spec['image'][0] == (8, 8, 1)
  assert built['data'].identity['train'].startswith('resize(size=8,')


def test_a_checkpoints_architecture_can_be_benchmarked(grey):
  config = tiny.config(run='benchmark', init='runs/grey', model=EMPTY)
  record = main.build(config, 'unused')['record']
  assert models.build(**record['model']) == grey.model
  with pytest.raises(ValueError, match="variants=.'Ti/16',. are other models"):
    main.build({**config, 'variants': ('Ti/16',)}, 'unused')


@pytest.mark.parametrize('run', ['evaluate', 'fewshot', 'benchmark'])
def test_only_training_takes_another_number_of_classes(grey, run):
  config = tiny.config(
    run=run, init='runs/grey', model={**EMPTY, 'num_classes': 10},
    data__decode='', data__test='', data__train='',
  )  # fmt: skip
  with pytest.raises(ValueError, match='num_classes=10, .* 12 .*only training'):
    main.build(config, 'unused')
