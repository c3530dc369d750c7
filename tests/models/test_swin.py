"""Swin against float64 NumPy, token by token, and what it declares."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from scipy import special

from vit_jax import layers, models

TINY = {
  'depths': (2, 1), 'hidden_sizes': (4, 8), 'num_heads': (2, 2),
  'mlp_ratio': 2.0, 'window_size': 3, 'image_size': (16, 29),
  'feature_layers': (0, 1), 'num_classes': 5,
}  # fmt: skip


def build(**fields):
  return models.build('swin', **{**TINY, **fields})


def shapes_of(model, **fields):
  images = jnp.zeros((1, *layers.pair(model.image_size), 3))
  init = functools.partial(model.init, **fields)
  return jax.eval_shape(init, jax.random.key(0), images)


def random_variables(model, scale=0.5):
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda s: jnp.asarray(scale * rng.standard_normal(s.shape), s.dtype),
    shapes_of(model),
  )


def norm(x, p):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
  return x * p['scale'] + p['bias']


def mlp(x, p):
  x = x @ p['Dense_0']['kernel'] + p['Dense_0']['bias']
  x = 0.5 * x * (1 + special.erf(x / np.sqrt(2)))
  return x @ p['Dense_1']['kernel'] + p['Dense_1']['bias']


def slots(n, window, shift, convention):
  """(token or None, window, whether it was carried to the end) of each place.

  The original fills n tokens up and then rolls them, timm the other way round.
  """
  full = -(-n // window) * window
  if convention == 'original':
    tokens = [(i + shift) % full for i in range(full)]
    return [
      (t if t < n else None, i // window, t < shift)
      for i, t in enumerate(tokens)
    ]
  return [
    ((i + shift) % n if i < n else None, i // window, i >= full - shift)
    for i in range(full)
  ]


def attend(x, p, grid, window, shift, convention):
  """Window attention of normed tokens [rows columns C], pair by pair."""
  p = p['MultiHeadDotProductAttention_0']
  table, heads = p['attend']['relative_bias'], p['query']['bias'].shape[0]
  side = round(np.sqrt(len(table)))  # 2·3 - 1
  places = list(itertools.product(*(
    enumerate(slots(n, w, s, convention))
    for n, w, s in zip(grid, window, shift, strict=True)
  )))  # fmt: skip
  project = lambda name, x: (  # noqa: E731
    np.einsum('c,chd->hd', x, p[name]['kernel']) + p[name]['bias']
  )

  def token(row, column):
    there = row[0] is not None and column[0] is not None
    return x[row[0], column[0]] if there else np.zeros(x.shape[-1])

  out = np.zeros_like(x)
  for (i, row), (j, column) in places:
    if row[0] is None or column[0] is None:
      continue
    q = project('query', token(row, column))
    logits, values = [], []
    for (k, other), (m, across) in places:
      if (other[1], across[1]) != (row[1], column[1]):
        continue
      key = project('key', token(other, across))
      entry = (i - k + side // 2) * side + j - m + side // 2
      apart = (other[2], across[2]) != (row[2], column[2])
      logits.append(
        (q * key).sum(-1) / np.sqrt(q.shape[-1]) + table[entry] - 100 * apart
      )
      values.append(project('value', token(other, across)))
    weights = special.softmax(np.array(logits), axis=0)
    mixed = np.einsum('kh,khd->hd', weights, np.array(values))
    assert mixed.shape[0] == heads
    out[row[0], column[0]] = (
      np.einsum('hd,hdc->c', mixed, p['out']['kernel']) + p['out']['bias']
    )
  return out


def reference(p, image, plan):
  """Maps; `plan` is (window, shift) of each block of each stage."""
  x = np.pad(image, [(0, -n % 4) for n in image.shape[:2]] + [(0, 0)])
  rows, columns = (n // 4 for n in x.shape[:2])
  first = p['stage_0']['embedding']
  x = norm(np.array([
    [
      np.einsum('yxc,yxcf->f', x[4 * r : 4 * r + 4, 4 * c : 4 * c + 4],
                first['projection']['kernel'])
      + first['projection']['bias']
      for c in range(columns)
    ]
    for r in range(rows)
  ]), first['norm'])  # fmt: skip
  maps = []
  for s, blocks in enumerate(plan['blocks']):
    stage = p[f'stage_{s}']
    if s:
      x = np.pad(x, [(0, n % 2) for n in x.shape[:2]] + [(0, 0)])
      four = [x[r::2, c::2] for r, c in ((0, 0), (1, 0), (0, 1), (1, 1))]
      x = norm(np.concatenate(four, -1), stage['embedding']['norm'])
      x = x @ stage['embedding']['reduction']['kernel']
    for j, (window, shift) in enumerate(blocks):
      block = stage[f'block_{j}']
      y = norm(x, block['LayerNorm_0'])
      x = x + attend(
        y, block, x.shape[:2], window, shift, plan['convention']
      )
      x = x + mlp(norm(x, block['LayerNorm_1']), block['MlpBlock_0'])
    maps.append(x)
  x = norm(x, p['encoder_norm']).mean((0, 1))
  return x @ p['head']['kernel'] + p['head']['bias'], maps


@pytest.mark.parametrize('convention', ['original', 'timm'])
def test_logits_and_maps_equal_a_numpy_model_token_by_token(convention):
  model = build(convention=convention)
  variables = random_variables(model)
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables['params'])
  image = np.random.default_rng(1).uniform(-1, 1, (16, 29, 3))

  @jax.jit
  def both(variables, images):
    return (
      model.apply(variables, images),
      model.apply(variables, images, method='features'),
    )

  logits, maps = both(variables, jnp.asarray(image[None], jnp.float32))
  # Maps of 4×8 tokens, filled up to 6×9; then of 2×4, and windows are no larger
  # than the map along each axis.
  plan = {
    'convention': convention,
    'blocks': [[((3, 3), (0, 0)), ((3, 3), (1, 1))], [((2, 3), (0, 0))]],
  }
  if convention == 'timm':  # whose table is then of that window
    table = p['stage_1']['block_0']['MultiHeadDotProductAttention_0']['attend']
    assert table['relative_bias'].shape == (3 * 5, 2)
    whole = np.zeros((5, 5, 2))
    whole[1:4] = table['relative_bias'].reshape(3, 5, 2)
    table['relative_bias'] = whole.reshape(25, 2)
  expected, expected_maps = reference(p, image, plan)
  np.testing.assert_allclose(logits[0], expected, atol=1e-5)
  for found, map_ in zip(maps, expected_maps, strict=True):
    np.testing.assert_allclose(found[0], map_, atol=2e-5)


def test_one_window_without_bias_equals_softmax_over_the_map():
  one = {
    'window_size': 8, 'depths': (2,), 'hidden_sizes': (4,), 'num_heads': (2,),
    'feature_layers': (0,),
  }
  variables = random_variables(build(**one))
  flat = traverse_util.flatten_dict(variables, sep='/')
  own = {k for k in flat if k.endswith('/attend/relative_bias')}
  assert len(own) == 2
  images = jax.random.normal(jax.random.key(0), (2, 16, 29, 3))
  logits = [
    jax.jit(build(**one, attention=attention).apply)(
      traverse_util.unflatten_dict(flat, sep='/'), images
    )
    for attention, flat in (
      ('swin', {k: 0 * x if k in own else x for k, x in flat.items()}),
      ('softmax', {k: x for k, x in flat.items() if k not in own}),
    )
  ]
  np.testing.assert_allclose(*logits, atol=1e-5)


def test_specs_take_turns_within_a_stage():
  model = build(attention='linear, swin', depths=(3, 1))
  found = traverse_util.flatten_dict(shapes_of(model)['params'], sep='/')
  assert {k.split('/Multi')[0] for k in found if 'relative_bias' in k} == {
    'stage_0/block_1'
  }


def test_parameters_start_as_truncated_normal_with_zero_biases():
  model = build(hidden_sizes=(32, 64), depths=(1, 1))
  params = jax.jit(model.init)(
    jax.random.key(0), jnp.zeros((1, 16, 29, 3))
  )['params']
  for name, x in traverse_util.flatten_dict(params, sep='/').items():
    if name.endswith(('kernel', 'relative_bias')):
      assert np.abs(x).max() < 2 * 0.02 / 0.8796
      if x.size > 1000:
        assert 0.019 < np.std(x) < 0.021, name
    elif name.endswith('bias'):
      assert not np.any(x), name
    else:
      assert np.all(x == 1), name


def test_drop_path_grows_linearly_over_all_blocks():
  rates = []

  def watch(next_fun, args, kwargs, context):
    if isinstance(context.module, layers.DropPath):
      rates.append((*context.module.path[:2], context.module.rate))
    return next_fun(*args, **kwargs)

  with nn.intercept_methods(watch):
    shapes_of(build(depths=(2, 3), drop_path_rate=0.4), train=False)
  places = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
  assert rates == [
    (f'stage_{s}', f'block_{j}', pytest.approx(0.1 * i))
    for i, (s, j) in enumerate(places)
    for _ in range(2)  # attention and MLP
  ]


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'num_heads': (2,)}, r'num_heads=\(2,\) has 1 entries for 2 stages'),
    ({'window_size': (3, 3, 3)}, r'window_sizes=.* 3 entries for 2 stages'),
    ({'window_size': 0}, 'window_size=0 must be positive'),
    ({'num_heads': (3, 2)}, 'width 4 is not divisible by num_heads=3'),
    ({'convention': 'tim'}, "unknown convention 'tim'; did you mean 'timm'"),
    ({'attention': 'swim'}, "unknown attention 'swim'; did you mean 'swin'"),
    ({'attention': 'swin, linear, swin'}, r'3 specs for .*depths=\(2, 1\)'),
    ({'attention': ''}, 'holds 0 specs'),
    ({'feature_layers': (2,)}, 'no stage 2: .* 0 to 1, or -1 to -2'),
    ({'gelu': 'erf'}, "gelu='erf'; choices: tanh, exact"),
  ],
)  # fmt: skip
def test_a_wrong_field_is_an_error_with_the_constraint(fields, message):
  with pytest.raises(ValueError, match=message):
    shapes_of(build(**fields))
