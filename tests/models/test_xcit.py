"""XCiT by loops over patches and channels, and what it refuses."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from scipy import special

from vit_jax import attention, layers, models
from vit_jax.models import xcit_blocks
from vit_jax.pretrained import xcit as folders

TINY = {
  'patch_size': 4, 'hidden_size': 8, 'num_layers': 2, 'num_heads': 2,
  'mlp_dim': 12, 'num_class_layers': 1, 'image_size': 16, 'num_classes': 3,
}  # fmt: skip


def build(**fields):
  return models.build('xcit', **{**TINY, **fields})


def jittered(shapes, seed=0):
  rng = np.random.default_rng(seed)

  def draw(path, s):
    x = 0.5 * rng.standard_normal(s.shape)
    return np.abs(x) + 0.5 if path[-1].key == 'var' else x

  return jax.tree_util.tree_map_with_path(draw, shapes)


def start(block, x):
  x = jax.ShapeDtypeStruct(x.shape, jnp.float32)
  return jittered(jax.eval_shape(block.init, jax.random.key(0), x))


def norm(x, p):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
  return x * p['scale'] + p['bias']


def mlp(x, p):
  x = x @ p['Dense_0']['kernel'] + p['Dense_0']['bias']
  return gelu(x) @ p['Dense_1']['kernel'] + p['Dense_1']['bias']


def gelu(x):
  return 0.5 * x * (1 + special.erf(x / np.sqrt(2)))


def heads_of(x, p):
  """q, k, v of each head, [N D], and the kernel back."""
  for h in range(2):
    q, k, v = (
      x @ p[n]['kernel'][:, h] + p[n]['bias'][h]
      for n in ('query', 'key', 'value')
    )
    yield h, q, k, v, p['out']['kernel'][h]


def softmax(x):
  x = np.exp(x - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


def cross_covariance(x, p):
  out = p['out']['bias']
  for h, q, k, v, back in heads_of(x, p):
    q, k = (z / np.linalg.norm(z, axis=0) for z in (q, k))
    weights = softmax(p['attend']['temperature'][h] * q.T @ k)
    out = out + v @ weights.T @ back
  return out


def convolve(x, p):
  out = np.zeros_like(x) + p['bias']
  for y, z, i, j in np.ndindex(*x.shape[:2], 3, 3):
    if 0 <= y + i - 1 < x.shape[0] and 0 <= z + j - 1 < x.shape[1]:
      out[y, z] += p['kernel'][i, j, 0] * x[y + i - 1, z + j - 1]
  return out


def block_by_loops(x, p, mean, var):
  """One image [N C], with the averages of BatchNorm given."""
  scale = [p[f'LayerScale_{i}']['scale'] for i in range(3)]
  y = norm(x, p['LayerNorm_0'])
  x = x + scale[0] * cross_covariance(y, p['MultiHeadDotProductAttention_0'])
  y = norm(x, p['LayerNorm_1']).reshape(2, 3, -1)
  y = gelu(convolve(y, p['Depthwise_0']))
  y = (y - mean) / np.sqrt(var + 1e-5)
  y = y * p['BatchNorm_0']['scale'] + p['BatchNorm_0']['bias']
  x = x + scale[1] * convolve(y, p['Depthwise_1']).reshape(x.shape)
  return x + scale[2] * mlp(norm(x, p['LayerNorm_2']), p['MlpBlock_0'])


def test_a_block_is_its_definition_by_loops():
  block = xcit_blocks.XCiTBlock(12, 2, attention.layer('xca'), (2, 3))
  x = np.random.default_rng(1).standard_normal((2, 6, 8))
  variables = start(block, x)
  stats = variables['batch_stats']['BatchNorm_0']
  found = jax.jit(block.apply)(variables, jnp.asarray(x, jnp.float32))
  for mine, one in zip(found, x, strict=True):
    np.testing.assert_allclose(
      mine, block_by_loops(one, variables['params'], **stats), atol=2e-5
    )


@pytest.mark.parametrize('norm_tokens', [False, True])
def test_a_class_block_is_its_definition_by_loops(norm_tokens):
  block = xcit_blocks.ClassBlock(12, 2, norm_tokens=norm_tokens)
  x = np.random.default_rng(2).standard_normal((1, 5, 8))
  variables = start(block, x)
  p, z = variables['params'], x[0]
  y = norm(z, p['LayerNorm_0'])
  attend = p['MultiHeadDotProductAttention_0']
  cls = attend['out']['bias']
  for _, q, k, v, back in heads_of(y, attend):
    cls = cls + softmax(q[0] @ k.T / 2) @ v @ back
  z = z + p['LayerScale_0']['scale'] * np.concatenate([cls[None], y[1:]])
  normed = norm(z, p['LayerNorm_1'])
  z = normed if norm_tokens else np.concatenate([normed[:1], z[1:]])
  cls = z[0] + p['LayerScale_1']['scale'] * mlp(z[0], p['MlpBlock_0'])
  found = jax.jit(block.apply)(variables, jnp.asarray(x, jnp.float32))[0]
  np.testing.assert_allclose(found[0], cls, atol=1e-5)
  np.testing.assert_allclose(found[1:], 2 * z[1:], atol=1e-5)


def test_positions_are_sines_and_cosines_in_units_of_the_image():
  table = xcit_blocks.fourier((3, 5)).reshape(3, 5, 64)
  for y, x, c in np.ndindex(3, 5, 64):
    at = (y + 1) / 3 if c < 32 else (x + 1) / 5
    angle = 2 * np.pi * at / 10000 ** (c % 32 // 2 * 2 / 32)
    wave = np.cos(angle) if c % 2 else np.sin(angle)
    assert abs(table[y, x, c] - wave) < 1e-5


def test_images_of_any_size_become_patches_rounded_up():
  model = build(feature_layers=(0, -1), patch_size=8)
  images = jax.ShapeDtypeStruct((2, 17, 32, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  maps = jax.eval_shape(
    functools.partial(model.apply, method='features'), variables, images
  )
  assert [m.shape for m in maps] == [(2, 3, 4, 8)] * 2
  stem = variables['params']['embedding']
  widths = [stem[f'conv_{i}']['kernel'].shape[-2:] for i in range(3)]
  assert widths == [(3, 2), (2, 4), (4, 8)]


def test_drop_path_is_uniform_and_spares_the_class_token():
  model = build(drop_path_rate=0.25, num_layers=3)
  rates = []

  def spy(run, args, kwargs, context):
    if isinstance(context.module, layers.DropPath):
      rates.append((context.module.path[-2], context.module.rate))
    return run(*args, **kwargs)

  with nn.intercept_methods(spy):
    shapes_of(model)
  assert rates == [
    (f'encoderblock_{i}', 0.25) for i in range(3) for _ in range(3)
  ]


def test_parameters_start_as_published():
  model = build(hidden_size=64, mlp_dim=128, layer_scale=1e-5)

  @jax.jit
  def some(key):
    variables = model.init(key, jnp.zeros((1, 16, 16, 3)))
    p = variables['params']
    block, last = p['Transformer']['encoderblock_1'], p['class_block_2']
    layer = 'MultiHeadDotProductAttention_0'
    return (
      {
        'query': block[layer]['query']['kernel'], 'cls': p['cls'],
        'mlp': block['MlpBlock_0']['Dense_0']['kernel'],
        'class': last[layer]['out']['kernel'],
      },
      [
        p['embedding']['conv_1']['kernel'], block['Depthwise_0']['kernel'],
        p['position_projection']['kernel'],
      ],
      [block[f'LayerScale_{i}']['scale'] for i in range(3)]
      + [last[f'LayerScale_{i}']['scale'] for i in range(2)],
      block[layer]['attend']['temperature'],
    )  # fmt: skip

  normal, uniform, scales, temperature = some(jax.random.key(0))
  for name, x in normal.items():
    assert abs(x.std() - 0.02) < 0.02 * 3 / np.sqrt(2 * x.size), name
  for x, inputs in zip(uniform, (288, 9, 64), strict=True):
    assert 0.9 < np.abs(x).max() * np.sqrt(inputs) <= 1
    assert abs(x.std() * np.sqrt(3 * inputs) - 1) < 0.1
  for x in scales:
    np.testing.assert_array_equal(x, np.full(64, 1e-5, np.float32))
  np.testing.assert_array_equal(temperature, 1.0)


def shapes_of(model):
  images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
  found = jax.eval_shape(model.init, jax.random.key(0), images)['params']
  return traverse_util.flatten_dict(found, sep='/')


def test_any_attention_is_one_word_in_the_blocks_of_patches():
  names = set(shapes_of(build()))
  own = {n for n in names if '/attend/' in n}
  assert own == {
    f'Transformer/encoderblock_{i}/MultiHeadDotProductAttention_0/attend/'
    'temperature' for i in range(2)
  }  # fmt: skip
  assert set(shapes_of(build(attention='softmax'))) == names - own
  assert set(shapes_of(build(attention='softmax, xca'))) == names - {min(own)}
  shapes_of(build(attention='spatial_reduction'))


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'patch_size': 6}, 'patch_size=6 must be 2, 4, 8, 16'),
    ({'patch_size': 1}, 'patch_size=1 must be 2, 4, 8, 16'),
    ({'patch_size': 32}, 'hidden_size=8 must be divisible by 16 .*=32'),
    ({'classifier': 'map'}, "classifier='map'; choices: token, gap"),
    ({'num_heads': 3}, 'width 8 is not divisible by num_heads=3'),
    ({'attention': 'xcas'}, "'xcas'; did you mean 'xca'"),
  ],
)
def test_a_wrong_field_is_an_error_with_the_constraint(fields, message):
  with pytest.raises(ValueError, match=message):
    shapes_of(build(**fields))


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({}, 'patch_size=4 of XCiT; it would have to be 8 or 16'),
    ({'patch_size': 8, 'attention': 'softmax'}, "attention='softmax' .*'xca'"),
    ({'patch_size': 8, 'gelu': 'tanh'}, "gelu='tanh' .* 'exact'"),
  ],
)
def test_timm_has_no_place_for_some_fields(fields, message):
  with pytest.raises(ValueError, match=message):
    folders.write(build(**fields))


def folder(**changes):
  """What a reader gets of a folder."""
  shapes = {
    'patch_embed.proj.0.0.weight': (4, 3, 3, 3), 'cls_token': (1, 1, 16),
    'patch_embed.proj.2.0.weight': (8, 4, 3, 3), 'head.weight': (3, 16),
    'patch_embed.proj.4.0.weight': (16, 8, 3, 3),
    'pos_embed.token_projection.weight': (16, 64, 1, 1),
    'blocks.0.attn.qkv.bias': (48,), 'blocks.0.attn.temperature': (4, 1, 1),
    'blocks.0.mlp.fc1.weight': (64, 16), 'cls_attn_blocks.0.gamma1': (16,),
    'cls_attn_blocks.1.gamma1': (16,), **changes,
  }  # fmt: skip
  return {k: np.zeros(s) for k, s in shapes.items()}


@pytest.mark.parametrize(
  ('name', 'args', 'changes', 'message'),
  [
    ('nano_12_p16_224', {}, {}, 'patch_size is 16, by its arrays 8'),
    ('nano_12_p8_224', {}, {}, 'embed_dim is 128, by its arrays 16'),
    ('nano_12_p8_224', {'embed_dim': 16}, {}, 'depth is 12, by its arrays 1'),
    ('', {'num_heads': 2}, {}, 'num_heads is 2, by its arrays 4'),
    (
      '', {'num_heads': 3}, {'blocks.0.attn.temperature': (3, 1, 1)},
      'num_heads=3 does not divide 16',
    ),
    ('', {'mlp_ratio': 3}, {}, 'mlp_ratio=3 of a width of 16'),
    ('', {'eta': None}, {}, 'eta=None must be a number'),
    ('', {'tokens_norm': 1.5}, {}, 'tokens_norm=1.5 .* may be False, True'),
    ('', {'act_layer': 'relu'}, {}, "act_layer='relu' .* may be None"),
    ('', {'global_pool': ''}, {}, "global_pool='' .* may be 'token', 'avg'"),
    ('', {'in_chan': 3}, {}, "in_chan=3 .* did you mean 'in_chans'"),
  ],
)
def test_a_folder_that_contradicts_itself_is_refused(
  name, args, changes, message
):
  if not name:
    name, args = 'nano_12_p8_224', {'embed_dim': 16, 'depth': 1, **args}
  with pytest.raises(ValueError, match=message):
    folders.read('here', f'xcit_{name}', args, (32, 32), folder(**changes))
