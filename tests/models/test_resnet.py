"""The ResNet of hybrids against float64 NumPy, and hybrids around it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from vit_jax import models
from vit_jax.models import resnet

CONVENTIONS = tuple(resnet.CONVENTIONS)


def random_images(*shape, seed=1, scale=1.0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)


def random_variables(module, *args, seed=0, scale=0.3):
  """Jittered variables, without compiling the module's initialisers."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda s: jnp.asarray(scale * rng.standard_normal(s.shape), s.dtype),
    jax.eval_shape(module.init, jax.random.key(0), *args),
  )


def wide(tree):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


# The same once more, in float64, one output pixel at a time.


def standardized(w, convention):
  w = np.stack([
    w[..., o] - w[..., o].mean() for o in range(w.shape[-1])
  ], axis=-1)  # fmt: skip
  variance = np.stack([(w[..., o] ** 2).mean() for o in range(w.shape[-1])])
  if convention == 'original':
    return w / (np.sqrt(variance) + 1e-5)
  return w / np.sqrt(variance + 1e-8)


def padded(x, size, stride, value=0.0):
  """SAME as TensorFlow defines it: the odd pixel goes to the end."""
  pads = []
  for n in x.shape[1:3]:
    total = max((-(-n // stride) - 1) * stride + size - n, 0)
    pads.append((total // 2, total - total // 2))
  return np.pad(x, [(0, 0), *pads, (0, 0)], constant_values=value)


def windows(x, size, stride, value=0.0):
  """(row, column, window) of every output pixel."""
  rows, columns = (-(-n // stride) for n in x.shape[1:3])
  x = padded(x, size, stride, value)
  for r in range(rows):
    for c in range(columns):
      y, u = r * stride, c * stride
      yield r, c, x[:, y : y + size, u : u + size]


def gather(found):
  found = {(r, c): value for r, c, value in found}
  rows, columns = (1 + max(at[i] for at in found) for i in (0, 1))
  return np.stack([
    np.stack([found[r, c] for c in range(columns)], axis=1)
    for r in range(rows)
  ], axis=1)  # fmt: skip


def conv(x, p, stride, convention):
  w = standardized(p['kernel'], convention)
  return gather(
    (r, c, np.einsum('byxi,yxio->bo', part, w))
    for r, c, part in windows(x, w.shape[0], stride)
  )


def norm(x, p, convention):
  epsilon = 1e-6 if convention == 'original' else 1e-5
  b, y, u, c = x.shape
  x = x.reshape(b, y, u, 32, c // 32)
  x = x - x.mean((1, 2, 4), keepdims=True)
  x = x / np.sqrt((x**2).mean((1, 2, 4), keepdims=True) + epsilon)
  return x.reshape(b, y, u, c) * p['scale'] + p['bias']


def relu(x):
  return np.maximum(x, 0)


def unit(x, p, stride, convention):
  y = relu(norm(conv(x, p['conv1'], 1, convention), p['gn1'], convention))
  y = conv(y, p['conv2'], stride, convention)
  y = relu(norm(y, p['gn2'], convention))
  y = norm(conv(y, p['conv3'], 1, convention), p['gn3'], convention)
  if 'conv_proj' in p:
    x = conv(x, p['conv_proj'], stride, convention)
    x = norm(x, p['gn_proj'], convention)
  return relu(x + y)


def whole(x, p, depths, convention):
  x = conv(x, p['conv_root'], 2, convention)
  x = relu(norm(x, p['gn_root'], convention))
  x = gather(
    (r, c, part.max((1, 2))) for r, c, part in windows(x, 3, 2, -np.inf)
  )
  for i, depth in enumerate(depths):
    for j in range(depth):
      stride = 2 if i and not j else 1
      x = unit(x, p[f'block{i + 1}'][f'unit{j + 1}'], stride, convention)
  return x


@pytest.mark.parametrize('convention', CONVENTIONS)
def test_kernels_are_standardised_by_the_convention(convention):
  x = random_images(2, 5, 6, 3)
  layer = resnet.StdConv(4, 3, 2, convention)
  # Small enough for the two ε, 1e-5 and 1e-8, to matter.
  variables = random_variables(layer, x, scale=1e-4)
  found = layer.apply(variables, x)
  p, x = wide(variables['params']), wide(x)
  np.testing.assert_allclose(
    found, conv(x, p, 2, convention), rtol=1e-4, atol=1e-4
  )
  (other,) = set(CONVENTIONS) - {convention}
  assert np.abs(found - conv(x, p, 2, other)).max() > 0.01


@pytest.mark.parametrize('stride', [1, 2])
def test_a_residual_unit_equals_its_definition(stride):
  # Odd and even sizes; with a stride or another width x is projected.
  x = random_images(2, 5, 6, 32 if stride == 2 else 128)
  layer = resnet.ResidualUnit(32, stride)
  variables = random_variables(layer, x)
  assert ('conv_proj' in variables['params']) == (stride == 2)
  found = jax.jit(layer.apply)(variables, x)
  expected = unit(wide(x), wide(variables['params']), stride, 'original')
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize('convention', CONVENTIONS)
def test_the_resnet_equals_its_definition(convention):
  # Dark images: the root's outputs are small, and its norm's ε counts.
  x = random_images(1, 16, 24, 3, scale=1e-4)
  layer = resnet.ResNet((1, 2), 32, convention)
  variables = random_variables(layer, x)
  found = jax.jit(layer.apply)(variables, x)
  assert found.shape == (1, 2, 3, 256)
  params = wide(variables['params'])
  expected = whole(wide(x), params, (1, 2), convention)
  np.testing.assert_allclose(found, expected, atol=2e-5)
  (other,) = set(CONVENTIONS) - {convention}
  other = whole(wide(x), params, (1, 2), other)
  assert np.abs(expected - other).max() > 0.01


TINY = {
  'patch_size': 1, 'hidden_size': 16, 'num_layers': 1, 'num_heads': 2,
  'mlp_dim': 24, 'image_size': (16, 24), 'num_classes': 5,
  'resnet': (1, 1), 'resnet_width': 32,
}  # fmt: skip


def build(**fields):
  return models.build('vit', **{**TINY, **fields})


def test_a_hybrid_is_a_vit_on_the_map_of_a_resnet():
  model, images = build(), random_images(2, 16, 24, 3)
  variables = random_variables(model, images)
  params = dict(variables['params'])
  parts = {
    k: params.pop(k) for k in ('conv_root', 'gn_root', 'block1', 'block2')
  }
  stem = resnet.ResNet((1, 1), 32)
  rest = build(
    resnet=None, resnet_width=64, image_size=(2, 3), feature_layers=(0,)
  )

  @jax.jit
  def composed(parts, params):
    cells = stem.apply({'params': parts}, images)
    return (
      rest.apply({'params': params}, cells),
      rest.apply({'params': params}, cells, method='features')[0],
    )

  @jax.jit
  def at_once(variables):
    return (
      model.apply(variables, images),
      model.apply(variables, images, method='features')[0],
    )

  assert model.stride == 8
  for found, expected in zip(
    at_once(variables), composed(parts, params), strict=True
  ):
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_names_shapes_and_strides_are_the_originals():
  model = models.build('vit', variant='R50+B/16', num_classes=3)
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  # One layer of twelve: the ResNet is what is looked at.
  tree = jax.eval_shape(
    model.clone(num_layers=1).init, jax.random.key(0), images
  )['params']
  tree.pop('Transformer')
  found = traverse_util.flatten_dict(tree, sep='/')
  expected = {
    'cls': (1, 1, 768),
    'conv_root/kernel': (7, 7, 3, 64),
    'gn_root/scale': (64,),
    'gn_root/bias': (64,),
    'embedding/kernel': (1, 1, 1024, 768),
    'embedding/bias': (768,),
    'head/kernel': (768, 3),
    'head/bias': (3,),
  }
  inputs = 64
  for i, depth in enumerate((3, 4, 9)):
    width = 64 * 2**i
    for j in range(depth):
      convs = {
        '1': (1, 1, inputs, width), '2': (3, 3, width, width),
        '3': (1, 1, width, 4 * width),
      }  # fmt: skip
      if j == 0:
        convs['_proj'] = (1, 1, inputs, 4 * width)
      for name, shape in convs.items():
        path = f'block{i + 1}/unit{j + 1}'
        expected[f'{path}/conv{name}/kernel'] = shape
        expected[f'{path}/gn{name}/scale'] = shape[-1:]
        expected[f'{path}/gn{name}/bias'] = shape[-1:]
      inputs = 4 * width
  assert {k: v.shape for k, v in found.items()} == expected
  strides = {
    name: models.build('vit', variant=name, num_classes=3).stride
    for name in ('R+Ti/16', 'R26+S/32', 'R50+B/16', 'R50+L/32', 'B/16')
  }
  assert strides == {
    'R+Ti/16': 32, 'R26+S/32': 32, 'R50+B/16': 16, 'R50+L/32': 32, 'B/16': 16
  }  # fmt: skip


def test_a_unit_starts_as_its_shortcut():
  layer, x = resnet.ResidualUnit(32), random_images(1, 3, 4, 128)
  found, variables = jax.jit(layer.init_with_output)(jax.random.key(0), x)
  assert not np.any(variables['params']['gn3']['scale'])
  assert np.all(variables['params']['gn2']['scale'] == 1)
  np.testing.assert_array_equal(found, np.maximum(x, 0))


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'resnet_width': 48}, 'resnet_width=48 must be a multiple of 32'),
    ({'resnet_width': 0}, 'resnet_width=0 must be a multiple of 32'),
    ({'resnet': (2, 0)}, r'resnet=\(2, 0\) must hold .* at least 1'),
    (
      {'resnet_convention': 'tim'},
      "resnet_convention 'tim'; did you mean 'timm'? choices: original, timm",
    ),
    ({'resnet': None}, "resnet_width=32, resnet_convention='original' need"),
    ({'image_size': 12}, r'12×12 .*patches of 8×8; the nearest .* 16×16'),
  ],
)
def test_a_wrong_field_is_an_error_with_the_constraint(fields, message):
  images = jax.ShapeDtypeStruct((1, 16, 24, 3), jnp.float32)
  with pytest.raises(ValueError, match=message.replace('? ', r'\? ')):
    jax.eval_shape(
      functools.partial(build(**fields).init), jax.random.key(0), images
    )
