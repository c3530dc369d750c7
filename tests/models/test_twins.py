"""Twins against float64 NumPy, token by token, and what it declares."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from scipy import special

from vit_jax import layers, models
from vit_jax.attention.depthwise import depthwise
from vit_jax.models.conditional import ConditionalPosition

TINY = {
  'depths': (3, 1), 'hidden_sizes': (4, 6), 'num_heads': (2, 3),
  'mlp_ratios': (2, 1), 'reductions': (2, 1), 'window_size': 3,
  'image_size': (16, 24), 'feature_layers': (0, 1), 'num_classes': 5,
}  # fmt: skip


def build(**fields):
  return models.build('twins', **{**TINY, **fields})


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


def norm(x, p, epsilon):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)
  return x * p['scale'] + p['bias']


def mlp(x, p):
  x = x @ p['Dense_0']['kernel'] + p['Dense_0']['bias']
  x = 0.5 * x * (1 + special.erf(x / np.sqrt(2)))
  return x @ p['Dense_1']['kernel'] + p['Dense_1']['bias']


def tiles(x, p, size):
  """A convolution whose kernel is its stride."""
  rows, columns = (n // size for n in x.shape[:2])
  out = np.zeros((rows, columns, p['kernel'].shape[-1]))
  for r, c in np.ndindex(rows, columns):
    tile = x[r * size : (r + 1) * size, c * size : (c + 1) * size]
    out[r, c] = np.einsum('yxc,yxcf->f', tile, p['kernel']) + p['bias']
  return out


def multihead(x, keys, p):
  """Softmax attention of tokens [N C] to others [M C]."""
  q, k, v = (
    np.einsum('nc,chd->nhd', y, p[name]['kernel']) + p[name]['bias']
    for name, y in (('query', x), ('key', keys), ('value', keys))
  )
  logits = np.einsum('nhd,mhd->hnm', q, k) / np.sqrt(q.shape[-1])
  y = np.einsum('hnm,mhd->nhd', special.softmax(logits, -1), v)
  return np.einsum('nhd,hdc->nc', y, p['out']['kernel']) + p['out']['bias']


def local(x, p, size):
  """Inside windows, on a map filled up with zeros."""
  rows, columns, width = x.shape
  full = np.pad(x, [(0, -rows % size), (0, -columns % size), (0, 0)])
  out = np.zeros_like(full)
  for r in range(0, rows, size):
    for c in range(0, columns, size):
      tokens = full[r : r + size, c : c + size].reshape(-1, width)
      out[r : r + size, c : c + size] = multihead(tokens, tokens, p).reshape(
        size, size, width
      )
  return out[:rows, :columns]


def sampled(x, p, ratio):
  """To the tokens of a map `ratio` times as coarse."""
  width, keys = x.shape[-1], x
  if ratio > 1:
    keys = norm(tiles(x, p['reduce'], ratio), p['reduce_ln'], 1e-5)
  tokens, keys = (y.reshape(-1, width) for y in (x, keys))
  return multihead(tokens, keys, p).reshape(x.shape)


def reference(p, image, plan):
  """`plan`: a stage's patches, and its blocks' attentions of (x, params)."""
  x, maps = image, []
  for s, (patch, blocks) in enumerate(plan):
    stage = p[f'stage_{s}']
    x = tiles(x, stage['embedding']['projection'], patch)
    x = norm(x, stage['embedding']['norm'], 1e-5)
    for j, attention in enumerate(blocks):
      block = stage[f'block_{j}']
      y = norm(x, block['LayerNorm_0'], 1e-6)
      x = x + attention(y, block['MultiHeadDotProductAttention_0'])
      x = x + mlp(norm(x, block['LayerNorm_1'], 1e-6), block['MlpBlock_0'])
      if j == 0:
        position = stage['position']
        around = np.pad(x, [(1, 1), (1, 1), (0, 0)])
        x = x + position['bias']
        for i, k in np.ndindex(3, 3):
          shifted = around[i : i + x.shape[0], k : k + x.shape[1]]
          x = x + shifted * position['kernel'][i, k, 0]
    maps.append(x)
  x = norm(x, p['encoder_norm'], 1e-6).mean((0, 1))
  return x @ p['head']['kernel'] + p['head']['bias'], maps


def test_logits_and_maps_equal_a_numpy_model_token_by_token():
  model = build()
  variables = random_variables(model)
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables['params'])
  image = np.random.default_rng(1).uniform(-1, 1, (16, 24, 3))

  @jax.jit
  def both(variables, images):
    return (
      model.apply(variables, images),
      model.apply(variables, images, method='features'),
    )

  logits, maps = both(variables, jnp.asarray(image[None], jnp.float32))
  lsa = functools.partial(local, size=3)
  gsa = functools.partial(sampled, ratio=2)
  plan = [(4, [lsa, gsa, lsa]), (2, [lsa])]
  expected, expected_maps = reference(p, image, plan)
  np.testing.assert_allclose(logits[0], expected, atol=2e-5)
  for found, map_ in zip(maps, expected_maps, strict=True):
    np.testing.assert_allclose(
      found[0], map_, rtol=0, atol=1e-6 * np.abs(map_).max()
    )


def test_positions_leave_the_prefix_and_see_the_border():
  layer = ConditionalPosition(prefix=2)
  x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 14, 4)))
  params = {
    'kernel': jnp.ones((3, 3, 1, 4)), 'bias': jnp.full((4,), 0.5)
  }
  out = layer.apply({'params': params}, x.astype(jnp.float32), (3, 4))
  np.testing.assert_array_equal(out[:, :2], x[:, :2].astype(jnp.float32))
  cells = np.asarray(x[0, 2:]).reshape(3, 4, 4)
  corner = cells[0, 0] + 0.5 + cells[:2, :2].sum((0, 1))
  np.testing.assert_allclose(out[0, 2], corner, atol=1e-5)
  with pytest.raises(ValueError, match=r'13 tokens .* prefix=2 .*\(3, 4\)'):
    layer.apply({'params': params}, jnp.zeros((1, 13, 4)), (3, 4))


@pytest.mark.parametrize('size', [(3, 3), (1, 3), (5, 1)])
def test_shifted_sums_equal_the_grouped_convolution(size):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((2, 4, 5, 3)), jnp.float32)
  kernel = jnp.asarray(rng.standard_normal((*size, 1, 3)), jnp.float32)
  expected = jax.lax.conv_general_dilated(
    x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=3,
  )  # fmt: skip
  around = tuple((side // 2, side // 2) for side in size)
  found = depthwise(x, kernel, (1, 1), around)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_pcpvt_has_no_local_attention_and_any_spec_takes_its_place():
  def blocks(**fields):
    params = shapes_of(build(**fields))['params']
    flat = traverse_util.flatten_dict(params, sep='/')
    return {
      word: {k.split('/Multi')[0] for k in flat if f'/{word}/' in k}
      for word in ('reduce', 'attend')
    }

  stage = 'stage_0/block_'
  assert blocks()['reduce'] == {f'{stage}1'}
  assert blocks(attention='gsa')['reduce'] == {f'{stage}{j}' for j in range(3)}
  assert blocks(attention='gsa, swin(size=2)') == {
    'reduce': {f'{stage}0', f'{stage}2'}, 'attend': {f'{stage}1'}
  }  # fmt: skip


def test_parameters_start_as_in_the_authors_code():
  model = build(
    hidden_sizes=(32, 48), depths=(2, 1), attention='lsa, gsa',
    reductions=(2, 1),
  )  # fmt: skip
  params = jax.jit(model.init)(
    jax.random.key(0), jnp.zeros((1, 16, 24, 3))
  )['params']
  he = {
    'stage_0/embedding/projection/kernel': 4 * 4 * 32,
    'stage_1/embedding/projection/kernel': 2 * 2 * 48,
    'stage_0/block_1/MultiHeadDotProductAttention_0/reduce/kernel': 2 * 2 * 32,
    'stage_0/position/kernel': 3 * 3,
    'stage_1/position/kernel': 3 * 3,
  }
  for name, x in traverse_util.flatten_dict(params, sep='/').items():
    if name in he:
      found = np.std(x) / np.sqrt(2 / he.pop(name))
      assert abs(found - 1) < 4 / np.sqrt(x.size), name
    elif name.endswith('kernel'):
      assert np.abs(x).max() < 2 * 0.02 / 0.8796, name
      assert 0.018 < np.std(x) < 0.022, name
    else:
      assert np.all(x == (0 if name.endswith('bias') else 1)), name
  assert not he


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
    ({'reductions': (2,)}, r'reductions=\(2,\) has 1 entries for 2 stages'),
    ({'window_size': 0}, 'window_size=0 must be positive'),
    ({'attention': 'lsa, gsb'}, "unknown attention 'gsb'; did you mean 'gsa'"),
    ({'num_heads': (3, 3)}, 'width 4 is not divisible by num_heads=3'),
    ({'image_size': (20, 24)}, '20×24 .* 8×8; the nearest .* 16×24'),
    ({'reductions': (9, 1)}, '4×6 tokens has no whole cell of 9×9'),
    ({'feature_layers': (-3,)}, 'no stage -3: .* 0 to 1, or -1 to -2'),
  ],
)  # fmt: skip
def test_a_wrong_field_is_an_error_with_the_constraint(fields, message):
  with pytest.raises(ValueError, match=message):
    shapes_of(build(**fields))
