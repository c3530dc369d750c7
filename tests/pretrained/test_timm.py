"""timm folders: goldens of timm's answers, and round trips."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from pretrained import jitter
from pretrained.timm_folders import (
  answer,
  config_of,
  folder,
  golden_folder,
  model,
)

from vit_jax.pretrained import arrays, timm, timm_names, timm_write

NAMES = sorted(
  path.stem.removeprefix('timm_')
  for path in jitter.GOLDENS.glob('timm_*.json')
)


def equal(a, b):
  assert set(a) == set(b)
  for name in a:
    assert a[name].dtype == b[name].dtype, name
    np.testing.assert_array_equal(
      a[name].view(np.uint8), b[name].view(np.uint8), err_msg=name
    )


def test_there_is_a_golden_of_every_kind():
  assert set(NAMES) == {
    'distilled', 'map', 'mixer', 'registers', 'registers_and_fc_norm', 'root',
    'token',
  }  # fmt: skip


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
  """name → what is read from a golden's folder, once."""

  @functools.cache
  def load(name):
    return timm.read(golden_folder(tmp_path_factory.mktemp(name) / 'a', name))

  return load


@pytest.mark.parametrize('name', NAMES)
def test_logits_and_features_are_those_of_timm(name, loaded):
  golden = jitter.golden(f'timm_{name}')
  found = loaded(name)
  images = jitter.images(*golden['images']) * np.float32(golden['scale'])
  logits, (last,), (rows, columns) = answer(
    found.model, (-1,), found.variables, images
  )
  np.testing.assert_allclose(logits, golden['logits'], rtol=0, atol=1e-5)
  first_row = last[0, -rows * columns :][:columns, :16]
  np.testing.assert_allclose(
    first_row, golden['features'], rtol=0, atol=1e-5
  )


@pytest.mark.parametrize('name', NAMES)
def test_what_is_read_is_written_bit_by_bit(name, loaded, tmp_path):
  config, layout = config_of(name)
  drawn, found = jitter.arrays(layout), loaded(name)
  mapping = timm.write(tmp_path / 'b', found)
  equal(arrays.read_safetensors(tmp_path / 'b' / 'model.safetensors'), drawn)
  assert {n for theirs, _ in mapping for n in theirs.split(', ')} == set(drawn)
  again = timm.read(tmp_path / 'b')
  for key in ('config', 'preprocess', 'labels', 'channels', 'dtypes'):
    assert getattr(again, key) == getattr(found, key), key
  written = arrays.read_json(tmp_path / 'b' / 'config.json')
  ours, theirs = written['pretrained_cfg'], config['pretrained_cfg']
  for key in (
    'input_size', 'interpolation', 'crop_mode', 'mean', 'std', 'num_classes',
    'first_conv', 'classifier',
  ):  # fmt: skip
    assert ours[key] == theirs[key], key
  for key, value in config['model_args'].items():
    if key in written['model_args'] and key != 'img_size':
      assert written['model_args'][key] == pytest.approx(value, abs=0.01), key
  assert written['label_names'] == config['label_names']


@pytest.mark.parametrize('dtype', [ml_dtypes.bfloat16, np.float16])
def test_a_file_of_half_precision_stays_one(dtype, tmp_path):
  config, layout = config_of('map')
  drawn = {k: x.astype(dtype) for k, x in jitter.arrays(layout).items()}
  found = timm.read(folder(tmp_path / 'a', config, drawn))
  timm.write(tmp_path / 'b', found)
  equal(arrays.read_safetensors(tmp_path / 'b' / 'model.safetensors'), drawn)


def test_blocks_keep_their_numbers_beyond_nine(tmp_path):
  config, layout = config_of('token')
  deep = {
    name.replace('blocks.0.', f'blocks.{i}.'): shape
    for name, shape in layout.items()
    for i in (range(12) if name.startswith('blocks.0.') else [0])
    if not name.startswith('blocks.1.')
  }
  config['model_args']['depth'] = 12
  found = timm.read(folder(tmp_path / 'a', config, jitter.arrays(deep)))
  blocks = found.variables['params']['Transformer']
  for i in (2, 10):
    name = f'blocks.{i}.norm1.weight'
    np.testing.assert_array_equal(
      blocks[f'encoderblock_{i}']['LayerNorm_0']['scale'],
      jitter.array(name, deep[name]),
    )


def test_query_key_and_value_are_thirds_of_one_array(loaded):
  qkv = jitter.array('blocks.1.attn.qkv.weight', (96, 32))
  ours = loaded('token').variables['params']['Transformer']['encoderblock_1']
  ours = ours['MultiHeadDotProductAttention_0']
  for i, part in enumerate(('query', 'key', 'value')):
    for head in range(4):
      rows = qkv[32 * i + 8 * head : 32 * i + 8 * head + 8]
      np.testing.assert_array_equal(ours[part]['kernel'][:, head], rows.T)


def test_old_files_have_everything_in_one_object(loaded, tmp_path):
  config, layout = config_of('token')
  flat = {
    **config['pretrained_cfg'],
    'architecture': config['architecture'],
    'model_args': config['model_args'],
    'num_classes': 3,
    'labels': config['label_names'],
  }
  found = timm.read(folder(tmp_path / 'a', flat, jitter.arrays(layout)))
  assert found.config == loaded('token').config
  assert found.labels == loaded('token').labels
  assert found.preprocess == loaded('token').preprocess


@pytest.mark.parametrize(
  ('names', 'about', 'labels'),
  [
    (['x', 'y', 'z'], None, ('x', 'y', 'z')),
    ({'2': 'z', '0': 'x', '1': 'y'}, None, ('x', 'y', 'z')),
    (
      ['n1', 'n2', 'n3'], {'n1': 'a cat', 'n2': 'a dog', 'n3': 'an ox: old'},
      ('n1: a cat', 'n2: a dog', 'n3: an ox: old'),
    ),
    (['n1', 'n2', 'n3'], {'n2': 'a dog'}, ('n1', 'n2: a dog', 'n3')),
  ],
)  # fmt: skip
def test_labels_are_names_and_descriptions(names, about, labels, tmp_path):
  described = {} if about is None else {'label_descriptions': about}
  path = golden_folder(tmp_path / 'a', 'token', label_names=names, **described)
  found = timm.read(path)
  assert found.labels == labels
  timm.write(tmp_path / 'b', found)
  assert timm.read(tmp_path / 'b').labels == labels
  written = arrays.read_json(tmp_path / 'b' / 'config.json')
  if about and len(about) == 3:
    assert written['label_names'] == names
    assert written['label_descriptions'] == about


@pytest.mark.parametrize(
  ('fields', 'architecture'),
  [
    ({}, 'vit_tiny_patch16_224'),
    ({'name': 'deit', 'distilled': True}, 'deit_tiny_distilled_patch16_224'),
    (
      {'name': 'deit', 'prefix_positions': 0, 'layer_scale': 0.0},
      'deit3_small_patch16_224',
    ),
    ({'classifier': 'gap', 'norm_after_pooling': True}, 'vit_tiny_patch16_224'),
    (
      {'classifier': 'map', 'num_registers': 2, 'prefix_positions': 2},
      'vit_tiny_patch16_224',
    ),
    (
      {'classifier': 'map', 'class_token': True, 'pool_prefix': False},
      'vit_tiny_patch16_224',
    ),
    (
      {'classifier': 'gap', 'class_token': True, 'pool_prefix': True},
      'vit_tiny_patch16_224',
    ),
    ({'classifier': 'token_unpooled', 'gelu': 'tanh'}, 'vit_tiny_patch16_224'),
    (
      {
        'position': 'none', 'qk_norm': True, 'qk_norm_bias': True,
        'classifier': 'gap', 'class_token': True, 'num_classes': 0,
      },
      'vit_tiny_patch16_224',
    ),
    (
      {
        'mlp_dim': 55, 'hidden_size': 22, 'position_resize': 'bicubic',
        'image_size': (16, 24), 'size': (16, 24), 'qkv_bias': False,
      },
      'vit_tiny_patch16_224',
    ),
  ],
)  # fmt: skip
def test_every_model_that_timm_has_is_written(fields, architecture, tmp_path):
  found = model(**fields)
  timm.write(tmp_path / 'a', found)
  written = arrays.read_json(tmp_path / 'a' / 'config.json')
  assert written['architecture'] == architecture
  again = timm.read(tmp_path / 'a')
  kept = set(timm_write.WRITTEN) - {
    'position_resize', 'class_token', 'prefix_positions', 'layer_scale'
  }
  kept &= {f.name for f in dataclasses.fields(found.model)}
  for key in kept | {'has_class_token', 'prefix', 'learned_prefix'}:
    assert getattr(again.model, key) == getattr(found.model, key), key
  assert jax.tree.map(jnp.shape, again.variables) == jax.tree.map(
    jnp.shape, found.variables
  )


def test_the_nearest_name_is_that_of_the_width_then_of_the_patches():
  nearest = timm_names.nearest
  assert nearest('vit', 384, 16, False) == 'vit_small_patch16_224'
  assert nearest('vit', 800, 4, False) == 'vit_base_patch8_224'
  assert nearest('vit', 5000, 16, False) == 'vit_gigantic_patch14_224'
  assert nearest('deit', 5000, 16, True) == 'deit_base_distilled_patch16_224'
  assert nearest('deit3', 512, 16, False) == 'deit3_medium_patch16_224'
  assert timm_names.hybrid(600, (2, 2, 2, 2)) == 'vit_base_r26_s32_224'
  assert timm_names.hybrid(8, (3, 4, 6, 3)) == 'vit_large_r50_s32_224'
  assert timm_names.mixer(1024, 24, 32) == 'mixer_l32_224'


@pytest.mark.parametrize(
  ('width', 'hidden'), [(192, 768), (1152, 4304), (67, 58), (7, 61), (22, 1)]
)
def test_the_ratio_gives_back_the_hidden_width(width, hidden):
  # 58 / 67 * 67 is less than 58.
  assert int(timm_write.ratio(width, hidden) * width) == hidden
