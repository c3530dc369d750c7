"""MLP-Mixer against float64 NumPy, with the original's parameter tree."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from scipy import special

from vit_jax import models

TINY = {
  'patch_size': 4, 'hidden_size': 16, 'num_layers': 2, 'tokens_mlp_dim': 7,
  'channels_mlp_dim': 24, 'image_size': (8, 12), 'num_classes': 5,
}  # fmt: skip


def build(**fields):
  return models.build('mixer', **{**TINY, **fields})


def shapes_of(model):
  images = jnp.zeros((1, *model.image_size, 3))
  return jax.eval_shape(model.init, jax.random.key(0), images)


def random_variables(model, seed=0, scale=0.3):
  """Jittered variables, without compiling the model's initialisers."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda s: jnp.asarray(scale * rng.standard_normal(s.shape), s.dtype),
    shapes_of(model),
  )


def norm(x, p, epsilon):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)
  return x * p['scale'] + p['bias']


def mlp(x, p, form):
  x = x @ p['Dense_0']['kernel'] + p['Dense_0']['bias']
  if form == 'exact':
    x = 0.5 * x * (1 + special.erf(x / np.sqrt(2)))
  else:
    x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
  return x @ p['Dense_1']['kernel'] + p['Dense_1']['bias']


def reference(model, p, image):
  size = model.patch_size
  rows, columns = (n // size for n in image.shape[:2])
  x = np.stack([
    np.einsum(
      'yxc,yxcf->f',
      image[r * size : (r + 1) * size, c * size : (c + 1) * size],
      p['stem']['kernel'],
    )
    + p['stem']['bias']
    for r in range(rows)
    for c in range(columns)
  ])
  maps = []
  for i in range(model.num_layers):
    block = p[f'MixerBlock_{i}']
    y = norm(x, block['LayerNorm_0'], model.epsilon)
    for channel in range(x.shape[1]):  # one MLP, along the tokens
      x[:, channel] += mlp(y[:, channel], block['token_mixing'], model.gelu)
    y = norm(x, block['LayerNorm_1'], model.epsilon)
    x = np.stack([
      token + mlp(one, block['channel_mixing'], model.gelu)
      for token, one in zip(x, y, strict=True)
    ])
    maps.append(norm(x, p['pre_head_layer_norm'], model.epsilon))
  logits = maps[-1].mean(0) @ p['head']['kernel'] + p['head']['bias']
  return logits, [m.reshape(rows, columns, -1) for m in maps]


@pytest.mark.parametrize(
  'fields', [{}, {'gelu': 'exact', 'epsilon': 0.1}], ids=str
)
def test_logits_and_features_equal_a_float64_numpy_implementation(fields):
  model = build(feature_layers=(0, -1), **fields)
  variables = random_variables(model)
  images = np.random.default_rng(1).uniform(-1, 1, (2, 8, 12, 3))
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables['params'])

  @jax.jit
  def both(variables, images):
    return (
      model.apply(variables, images),
      model.apply(variables, images, method='features'),
    )

  logits, maps = both(variables, jnp.asarray(images, jnp.float32))
  for i, image in enumerate(images):
    expected, expected_maps = reference(model, p, image)
    np.testing.assert_allclose(logits[i], expected, atol=1e-5)
    for found, map_ in zip(maps, expected_maps, strict=True):
      np.testing.assert_allclose(found[i], map_, atol=1e-5)


def test_parameter_names_and_shapes_are_the_original_ones():
  model = models.build('mixer', variant='B/16', num_classes=1000)
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  tree = jax.eval_shape(model.init, jax.random.key(0), images)['params']
  found = traverse_util.flatten_dict(tree, sep='/')
  expected = {
    'stem/kernel': (16, 16, 3, 768),
    'stem/bias': (768,),
    'pre_head_layer_norm/scale': (768,),
    'pre_head_layer_norm/bias': (768,),
    'head/kernel': (768, 1000),
    'head/bias': (1000,),
  }
  for i in range(12):
    block = f'MixerBlock_{i}'
    for name, inputs, hidden in (
      ('token_mixing', 196, 384), ('channel_mixing', 768, 3072)
    ):  # fmt: skip
      expected[f'{block}/{name}/Dense_0/kernel'] = (inputs, hidden)
      expected[f'{block}/{name}/Dense_0/bias'] = (hidden,)
      expected[f'{block}/{name}/Dense_1/kernel'] = (hidden, inputs)
      expected[f'{block}/{name}/Dense_1/bias'] = (inputs,)
    for name in ('LayerNorm_0', 'LayerNorm_1'):
      expected[f'{block}/{name}/scale'] = (768,)
      expected[f'{block}/{name}/bias'] = (768,)
  assert {k: v.shape for k, v in found.items()} == expected


def test_initial_values_are_the_original_ones():
  model = build(hidden_size=64, channels_mlp_dim=128)
  params = jax.jit(model.init)(
    jax.random.key(0), jnp.zeros((1, 8, 12, 3))
  )['params']
  assert not np.any(params['head']['kernel'])
  dense = params['MixerBlock_1']['channel_mixing']
  for name, fan_in in (('Dense_0', 64), ('Dense_1', 128)):
    found = np.std(dense[name]['kernel']) * np.sqrt(fan_in)  # LeCun normal
    assert 0.95 < found < 1.05
    assert not np.any(dense[name]['bias'])


def test_drop_path_drops_both_branches_of_whole_images():
  # Of two blocks, the first has rate 0 and the second rate 0.6.
  model = build(drop_path_rate=0.6, feature_layers=(0, 1))
  variables = random_variables(model)
  image = np.random.default_rng(1).uniform(-1, 1, (1, 8, 12, 3))
  images = jnp.asarray(np.repeat(image, 1000, axis=0), jnp.float32)
  run = functools.partial(model.apply, train=True, method='features')
  first, second = jax.jit(run)(variables, images, rngs=jax.random.key(0))
  first, second = (np.asarray(m).reshape(1000, -1) for m in (first, second))
  assert np.ptp(first, axis=0).max() < 1e-5
  kept = np.mean(np.abs(first - second).max(-1) < 1e-6)
  assert abs(kept - 0.6**2) < 0.05
  # Each branch is kept or dropped by itself: four outcomes.
  assert len(np.unique(second.round(3), axis=0)) == 4


@pytest.mark.parametrize(
  ('fields', 'size', 'message'),
  [
    ({}, (12, 8), r'12×8 pixels: .*image_size=\(8, 12\) and fit no other'),
    ({'gelu': 'erf'}, (8, 12), "gelu='erf'; choices: tanh, exact"),
    ({'drop_path_rate': 1.0}, (8, 12), r'\[0, 1\); got 1.0'),
    ({'image_size': (9, 12)}, (9, 12), r'9×12 .*4×4; the nearest .* 8×12'),
  ],
)
def test_a_wrong_field_or_size_is_an_error_with_the_constraint(
  fields, size, message
):
  images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
  init = functools.partial(build(**fields).init, train=True)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(init, jax.random.key(0), images)


def test_features_refuse_a_missing_block():
  model = build(feature_layers=(2,))
  images = jax.ShapeDtypeStruct((1, 8, 12, 3), jnp.float32)
  run = functools.partial(model.apply, method='features')
  with pytest.raises(ValueError, match='no block 2.*0 to 1, or -1 to -2'):
    jax.eval_shape(run, shapes_of(model), images)
