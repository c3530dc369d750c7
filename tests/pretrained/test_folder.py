"""Our own folder: any model goes in and comes out as it was."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models, pretrained
from vit_jax.pretrained import arrays, base, convert

VIT = {
  'name': 'vit', 'patch_size': 4, 'hidden_size': 16, 'num_layers': 2,
  'num_heads': 2, 'mlp_dim': 24, 'image_size': 16, 'num_classes': 3,
}  # fmt: skip
PREPROCESS = {
  'decode': 'decode(channels=3)',
  'transform': 'resize(size=(16, 16)), normalize(mean=0.5, std=(0.1, 1, 0.3))',
}


def drawn(config, channels=3, labels=('a', 'b', 'ç'), **more):
  """A loaded model of random variables."""
  model, rng = models.build(**config), np.random.default_rng(0)

  def draw(like):
    if jnp.issubdtype(like.dtype, jnp.floating):
      return jnp.asarray(rng.standard_normal(like.shape), like.dtype)
    return jnp.asarray(rng.integers(0, 2, like.shape), like.dtype)

  variables = jax.tree.map(draw, base.shapes(model, channels))
  return pretrained.Pretrained(
    model, variables, PREPROCESS, labels, config, channels, **more
  )


def equal(found, expected):
  assert found.model == expected.model
  assert found.config == expected.config
  assert found.preprocess == expected.preprocess
  assert found.labels == expected.labels
  assert found.channels == expected.channels
  assert found.dtypes == expected.dtypes
  theirs, ours = (
    convert.flatten(f.variables) for f in (found, expected)
  )
  assert set(theirs) == set(ours)
  for name, x in ours.items():
    assert theirs[name].dtype == x.dtype
    np.testing.assert_array_equal(theirs[name], x)


@pytest.mark.parametrize(
  'found',
  [
    drawn(VIT),
    drawn(
      {**VIT, 'image_size': (8, 16), 'num_registers': 2, 'layer_scale': 1e-5,
       'qk_norm': True, 'position': 'learned, rotary', 'gelu': 'exact',
       'attention': 'softmax, linformer(rank=3)', 'feature_layers': (0, -1)},
      channels=1, labels=(),
    ),
    drawn({**VIT, 'name': 'deit', 'distilled': True}),
    drawn({**VIT, 'patch_size': 1, 'resnet': (1,), 'resnet_width': 32}),
    drawn({**VIT, 'attention': 'routing'}),  # centroids, outside of params
    drawn(
      {'name': 'mixer', 'patch_size': 4, 'hidden_size': 16, 'num_layers': 1,
       'tokens_mlp_dim': 6, 'channels_mlp_dim': 24, 'image_size': 16,
       'num_classes': 3}
    ),
  ],
  ids=lambda f: f.config['name'],
)  # fmt: skip
def test_any_model_comes_back_as_it_was(found, tmp_path):
  mapping = pretrained.save(tmp_path / 'x', found)
  equal(pretrained.load(tmp_path / 'x'), found)
  assert set(mapping) == {(n, n) for n in convert.flatten(found.variables)}
  back = pretrained.load(tmp_path / 'x')
  pretrained.save(tmp_path / 'y', back, 'vit_jax')
  for name in ('config.json', 'model.safetensors'):
    assert (tmp_path / 'x' / name).read_bytes() == (
      tmp_path / 'y' / name
    ).read_bytes()


def test_variables_outside_of_params_are_there():
  assert set(drawn({**VIT, 'attention': 'routing'}).variables) != {'params'}


def test_dtypes_of_the_file_are_kept_while_the_numbers_fit(tmp_path):
  found = drawn(VIT)
  rounded = jax.tree.map(
    lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), found.variables
  )
  names = set(convert.flatten(rounded)) - {'cls'}
  found = dataclasses.replace(
    found, variables=rounded, dtypes=dict.fromkeys(names, 'bfloat16')
  )
  pretrained.save(tmp_path / 'x', found)
  written = arrays.read_safetensors(tmp_path / 'x/model.safetensors')
  assert {x.dtype.name for n, x in written.items() if n != 'cls'} == {
    'bfloat16'
  }
  assert written['cls'].dtype == np.float32
  equal(pretrained.load(tmp_path / 'x'), found)
  # Trained on, it no longer fits two bytes, and loses no digit.
  trained = drawn(VIT, dtypes=found.dtypes)
  pretrained.save(tmp_path / 'y', trained)
  equal(
    pretrained.load(tmp_path / 'y'), dataclasses.replace(trained, dtypes={})
  )


@pytest.fixture(scope='module')
def good(tmp_path_factory):
  folder = tmp_path_factory.mktemp('good') / 'x'
  pretrained.save(folder, drawn(VIT))
  return folder


def altered(good, folder, **fields):
  """A folder with the good weights and another config.json."""
  folder.mkdir()
  (folder / arrays.WEIGHTS).write_bytes((good / arrays.WEIGHTS).read_bytes())
  config = json.loads((good / 'config.json').read_text())
  for name, value in fields.items():
    if name in config:
      config[name] = value
    else:
      config['model'][name] = value
  (folder / 'config.json').write_text(json.dumps(config))
  return folder


@pytest.mark.parametrize(
  ('fields', 'text'),
  [
    # 40 arrays have no more than 40 layers.
    ({'num_layers': 10**9}, r'num_layers=1000000000 must be .*0, 40\]'),
    ({'num_layers': True}, 'num_layers=True must be of type int'),
    ({'hidden_size': 2**40}, 'hidden_size=1099511627776 must be'),
    ({'image_size': 4000000}, 'image_size=4000000 must be'),
    ({'image_size': 1000000}, 'number of patches=62500000000 must be'),
    ({'image_size': [4, 4096000]}, 'image_size=4096000 must be'),
    ({'resnet': [1] * 2000}, 'resnet=2000 must be'),
    ({'attention': 'linformer(rank=10000000)'}, 'attention=10000000 must be'),
    ({'attention': 'softmax, ' * 1000}, 'must be specs, at most 4000'),
    ({'attention': 'a(b=' + '-' * 3900 + '1)'}, 'attention'),
    ({'attention': 'os.system("ls")'}, "is neither 'name' nor"),
    ({'attention': 'a(b=__import__("os"))'}, 'is not a literal'),
    ({'hidden_size': 'wide'}, "hidden_size='wide' must be of type int"),
    ({'image_size': [1, 2, 3]}, r'image_size=\(1, 2, 3\) must be of type'),
    ({'qkv_bias': 'yes'}, "qkv_bias='yes' must be of type bool"),
    ({'layer_scale': True}, 'layer_scale=True must be of type float | None'),
    ({'dtype': None}, 'dtype=None; choices: float32'),
    ({'patch_size': 0}, r'patch_size=0 must be a whole number in \[1, '),
    ({'num_heads': -3}, r'num_heads=-3 must be a whole number in \[1, '),
    ({'num_heads': 3}, 'no such model can be built: .*num_heads=3'),
    ({'colour': 'red'}, "no option 'colour'"),
    ({'model': {'patch_size': 4}}, 'no name of a model in .*: vit, deit'),
    ({'model': {'name': 'vit'}}, 'no such model can be built: .*missing'),
    ({'model': ['vit']}, r"model=\['vit'\] must be an object"),
    ({'mlp_dim': 25}, r'Dense_0/bias \(24,\).*the model has \(25,\)'),
    ({'num_layers': 3}, 'nothing fills: .*encoderblock_2/'),
    ({'num_layers': 1}, 'the model has not: .*encoderblock_1/'),
    ({'labels': ['a', 'b']}, 'names 2 labels for 3 classes'),
    ({'labels': [1, 2, 3]}, 'labels must be'),
    ({'labels': 'abc'}, 'labels must be'),
    ({'channels': 4}, r'embedding/kernel \(4, 4, 3, 16\)'),
    ({'channels': 10**9}, 'channels=1000000000 must be'),
    ({'preprocess': {'decode': 'decode'}}, 'decode, not decode, transform'),
    ({'preprocess': {'decode': 'd', 'transform': 'a('}}, 'cannot read the sp'),
    ({'preprocess': {'decode': 'd', 'transform': 5}}, 'must be specs'),
    ({'preprocess': 'resize'}, 'must be an object'),
    ({'version': 2}, 'version=2 .* reads 1'),
    ({'sha256': '0' * 64}, 'damaged: its SHA-256'),
  ],
  ids=lambda x: str(x)[:40],
)
def test_a_config_that_is_absurd_or_another_models_is_refused(
  fields, text, good, tmp_path
):
  folder = altered(good, tmp_path / 'bad', **fields)
  with pytest.raises(ValueError, match=text) as error:
    pretrained.load(folder)
  assert '/bad' in str(error.value)


def test_other_keys_are_refused(good, tmp_path):
  folder = altered(good, tmp_path / 'x')
  config = json.loads((folder / 'config.json').read_text())
  for change in ({'more': 1}, {}):
    bad = {**config, **change}
    if not change:
      del bad['labels']
    (folder / 'config.json').write_text(json.dumps(bad))
    with pytest.raises(ValueError, match='not format, version'):
      pretrained.load(folder)


def test_a_flipped_bit_in_the_weights_is_found(good, tmp_path):
  folder = altered(good, tmp_path / 'x')
  data = bytearray((folder / arrays.WEIGHTS).read_bytes())
  data[-40] ^= 1
  (folder / arrays.WEIGHTS).write_bytes(data)
  with pytest.raises(ValueError, match='model.safetensors is damaged'):
    pretrained.load(folder)
  (folder / arrays.WEIGHTS).unlink()
  with pytest.raises(ValueError, match='model.safetensors is no file'):
    pretrained.load(folder)


@pytest.mark.parametrize('value', [float('inf'), models.VisionTransformer])
def test_what_is_no_literal_cannot_be_written(value, tmp_path):
  found = drawn(VIT)
  found = dataclasses.replace(found, config={**VIT, 'head_bias': value})
  with pytest.raises(ValueError, match='cannot be written'):
    pretrained.save(tmp_path / 'x', found)
  assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(good):
  with pytest.raises(ValueError, match='exists; give a new name'):
    pretrained.save(good, drawn(VIT))
