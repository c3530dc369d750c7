"""MViTv2 by loops over windows, queries and keys, and what it refuses."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from vit_jax import layers, models
from vit_jax.attention import Softmax
from vit_jax.models import multiscale
from vit_jax.pretrained import mvit as folders

TINY = {
  'depths': (1, 2), 'hidden_sizes': (4, 8), 'num_heads': (1, 2),
  'image_size': 16, 'num_classes': 3,
}  # fmt: skip


def build(**fields):
  return models.build('mvit', **{**TINY, **fields})


def jittered(shapes, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda s: 0.5 * rng.standard_normal(s.shape), shapes)


def params_of(model, size=(16, 16)):
  images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)['params']
  return traverse_util.flatten_dict(shapes, sep='/')


def norm(x, p):
  x = x - x.mean(-1, keepdims=True)
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p['scale'] + p[
    'bias'
  ]


def pooled(x, p, grid, stride):
  """One token before a grid: [N D] → [M D]."""
  cells, out = x[1:].reshape(*grid, -1), [x[0]]
  for y, z in itertools.product(*(range(0, n, stride) for n in grid)):
    total = 0.0
    for i, j in itertools.product(range(3), repeat=2):
      if 0 <= y + i - 1 < grid[0] and 0 <= z + j - 1 < grid[1]:
        total = total + p['kernel'][i, j, 0] * cells[y + i - 1, z + j - 1]
    out.append(total)
  return norm(np.stack(out), p['LayerNorm_0'])


def attention(x, p, grid, tables):
  """[N I] → [M C] with query stride 2, key stride 1, and one prefix token."""
  out = 0.0
  for h in range(2):
    q, k, v = (
      pooled(
        x @ p[name]['kernel'][:, h] + p[name]['bias'][h], p[f'{name}_pool'],
        grid, stride,
      )
      for name, stride in (('query', 2), ('key', 1), ('value', 1))
    )  # fmt: skip
    logits = q @ k.T / np.sqrt(q.shape[-1])
    queries, keys = (
      list(itertools.product(*(range(0, n, s) for n in grid)))
      for s in (2, 1)
    )
    for n, m in np.ndindex(len(queries), len(keys)):
      for axis, table in enumerate(tables):
        # Pixels apart, the farthest key first.
        offset = queries[n][axis] - keys[m][axis] + grid[axis] - 1
        logits[n + 1, m + 1] += q[n + 1] @ table[offset]
    weights = np.exp(logits)
    weights /= weights.sum(-1, keepdims=True)
    out = out + (weights @ v + q) @ p['out']['kernel'][h]
  return out + p['out']['bias']


def test_pooled_attention_is_its_definition_by_loops():
  grid = (4, 6)  # of which queries have 2×3
  layer = multiscale.PooledAttention(
    6, 2, Softmax, grid, (2, 2), prefix=1, stride=2
  )
  x = np.random.default_rng(1).standard_normal((2, 25, 5))
  p = jittered(jax.eval_shape(layer.init, jax.random.key(0), x))['params']
  # The tables belong to a grid of 2×2, and have three places an axis.
  tables = [
    np.stack([
      np.interp(
        (np.arange(2 * n - 1) + 0.5) * 3 / (2 * n - 1), np.arange(3) + 0.5, col
      )
      for col in p['position'][name].T
    ], axis=1)
    for n, name in zip(grid, ('row', 'column'), strict=True)
  ]  # fmt: skip
  assert p['position']['row'].shape == (3, 3)
  found = jax.jit(layer.apply)({'params': p}, jnp.asarray(x, jnp.float32))
  assert found.shape == (2, 7, 6)
  for mine, one in zip(found, x, strict=True):
    np.testing.assert_allclose(mine, attention(one, p, grid, tables), atol=1e-5)


def test_offsets_lie_in_the_middle_of_the_table_where_places_agree():
  for queries, keys in ((8, 8), (8, 2), (4, 8), (7, 2), (3, 6), (1, 1)):
    most = max(queries, keys)
    found = multiscale.offsets(queries, keys)
    for i, j in np.ndindex(queries, keys):
      far = i * most / queries - j * most / keys
      far += (keys - 1) * most / keys
      assert found[i, j] == int(far + 1e-9)
    assert found.min() == 0
    assert found.max() <= 2 * most - 2
  np.testing.assert_array_equal(
    multiscale.offsets(3, 3), 2 + np.arange(3)[:, None] - np.arange(3)
  )


def test_a_block_that_strides_adds_the_largest_of_each_window():
  grid = (3, 4)
  block = multiscale.MViTBlock(
    4, 2, 8, Softmax, grid, grid, prefix=1, stride=2
  )
  x = np.random.default_rng(2).standard_normal((1, 13, 4)).astype(np.float32)
  variables = jittered(jax.eval_shape(block.init, jax.random.key(0), x))
  # Without branches the skip is left.
  p = variables['params']
  p['MultiHeadDotProductAttention_0']['out'] = jax.tree.map(
    np.zeros_like, p['MultiHeadDotProductAttention_0']['out']
  )
  p['MlpBlock_0']['Dense_1'] = jax.tree.map(
    np.zeros_like, p['MlpBlock_0']['Dense_1']
  )
  found = jax.jit(block.apply)(variables, jnp.asarray(x))[0]
  cells = x[0, 1:].reshape(3, 4, 4)
  expected = [x[0, 0]] + [
    cells[max(y - 1, 0) : y + 2, max(z - 1, 0) : z + 2].max((0, 1))
    for y in (0, 2) for z in (0, 2)
  ]  # fmt: skip
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_maps_are_a_quarter_of_the_image_and_then_halves_rounded_up():
  model = build(depths=(1, 1), feature_layers=(-2, -1), class_token=True)
  assert (model.strides, model.channels) == ((4, 8), (4, 8))
  images = jax.ShapeDtypeStruct((2, 33, 50, 3), jnp.float32)
  run = functools.partial(model.apply, method='features')
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  maps = jax.eval_shape(run, variables, images)
  assert [m.shape for m in maps] == [(2, 9, 13, 4), (2, 5, 7, 8)]


def test_tables_belong_to_the_image_size():
  names = [
    f'stage_{s}/block_{j}/MultiHeadDotProductAttention_0/position/{axis}'
    for s, j in ((0, 0), (1, 0), (1, 1)) for axis in ('row', 'column')
  ]  # fmt: skip
  found = params_of(build(image_size=(32, 64), hidden_sizes=(2, 4)))
  # Queries have 8×16, 4×8 and 4×8 cells; keys 2×4, 4×8 and 2×4.
  assert [found[n].shape for n in names] == [
    (15, 2), (31, 2), (7, 2), (15, 2), (7, 2), (15, 2)
  ]  # fmt: skip


def test_keys_keep_the_stride_of_the_coarsest_map():
  model = build(
    depths=(1,) * 4, hidden_sizes=(4,) * 4, num_heads=(1,) * 4
  ).bind({})
  assert [stage.key_stride for stage in model.stages] == [4, 2, 1, 1]
  assert [stage.stride for stage in model.stages] == [1, 2, 2, 2]


def test_the_drop_path_rate_grows_linearly_over_all_blocks():
  model = build(depths=(1, 3), drop_path_rate=0.3).bind({})
  rates = [rate for stage in model.stages for rate in stage.rates]
  np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3])


def test_parameters_start_as_published():
  model = build(
    depths=(1, 1), hidden_sizes=(32, 64), image_size=128, class_token=True
  )

  @jax.jit
  def some(key):
    p = model.init(key, jnp.zeros((1, 16, 16, 3)))['params']
    block = p['stage_1']['block_0']
    layer = block['MultiHeadDotProductAttention_0']
    return {
      'query': layer['query']['kernel'], 'out': layer['out']['kernel'],
      'skip': block['skip']['kernel'], 'cls': p['cls'],
      'mlp': block['MlpBlock_0']['Dense_1']['kernel'],
      'rows': layer['position']['row'], 'columns': layer['position']['column'],
    }, [layer['key_pool']['kernel'], p['embedding']['kernel']]  # fmt: skip

  normal, uniform = some(jax.random.key(0))
  for name, x in normal.items():
    assert abs(x.std() - 0.02) < 0.02 * 3 / np.sqrt(2 * x.size), name
  for x, inputs in zip(uniform, (9, 147), strict=True):
    assert 0.9 < np.abs(x).max() * np.sqrt(inputs) <= 1
    assert abs(x.std() * np.sqrt(3 * inputs) - 1) < 0.1


def test_any_attention_of_fewer_keys_than_queries_is_one_word():
  images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
  start = lambda **fields: jax.eval_shape(  # noqa: E731
    build(**fields).init, jax.random.key(0), images
  )
  params = traverse_util.flatten_dict(start(attention='talking_heads'), sep='/')
  assert any('/attend/' in name for name in params)
  start(attention='sigmoid, softmax')
  with pytest.raises(ValueError, match='Linear does not honour bias=.*Softmax'):
    start(attention='linear')
  params = start(attention='linear', relative_positions=False)
  assert not any(
    '/position/' in name for name in traverse_util.flatten_dict(params, sep='/')
  )
  with pytest.raises(ValueError, match='attends within one sequence'):
    start(attention='window', relative_positions=False)
  with pytest.raises(ValueError, match="'fnet' holds a whole layer; .*chunked"):
    start(attention='fnet')


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'depths': (1,)}, r'depths=\(1,\), hidden_sizes=\(4, 8\) and .* stage'),
    ({'depths': (1, 0)}, r'depths=\(1, 0\).* at least 1'),
    ({'key_stride': 0}, 'key_stride=0 must be at least 1'),
    ({'num_heads': (1, 3)}, 'width 8 is not divisible by num_heads=3'),
    ({'position_resize': 'cubic'}, "'cubic'; choices: .*bilinear_torch"),
  ],
)
def test_a_wrong_field_is_an_error_with_the_constraint(fields, message):
  images = jax.ShapeDtypeStruct((1, 24, 16, 3), jnp.float32)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(build(**fields).init, jax.random.key(0), images)


def test_an_unknown_stage_is_an_error():
  with pytest.raises(ValueError, match=r'\(2,\): stages are 0 to 1, or -1 to'):
    build(feature_layers=(2,)).strides  # noqa: B018


@pytest.mark.parametrize(
  ('variant', 'fields', 'message'),
  [
    ('T', {'depths': (1, 2, 5, 3)}, r'no MViTv2 with .*mvitv2_tiny \(T\)'),
    ('T', {'image_size': 200}, r'\(200, 200\).* multiples of 32'),
    ('T', {'image_size': (224, 256)}, r'\(224, 256\).* squares'),
    ('B', {'mlp_ratio': 3.0}, 'mlp_ratio=3.0 .* have to be 4.0'),
    ('B', {'attention': 'sigmoid'}, "attention='sigmoid' .*'softmax'"),
    ('S-cls', {'key_stride': 2}, 'key_stride=2 .* have to be 4'),
  ],
)
def test_timm_has_a_place_for_few_of_them(variant, fields, message):
  model = models.build('mvit', variant=variant, num_classes=3, **fields)
  with pytest.raises(ValueError, match=message):
    folders.write(model)


def folder(**changes):
  """What a reader gets of a folder; None leaves an array out."""
  shapes = {
    'patch_embed.proj.weight': (4, 3, 7, 7), 'head.fc.weight': (3, 4),
    'stages.0.blocks.0.attn.norm_q.weight': (2,),
    'stages.0.blocks.0.attn.proj.weight': (4, 4),
    'stages.0.blocks.0.mlp.fc1.weight': (12, 4), **changes,
  }  # fmt: skip
  return {k: np.zeros(s) for k, s in shapes.items() if s is not None}


def test_sizes_are_read_off_the_arrays():
  config, channels = folders.read(
    'here', 'mvitv2_tiny.fb_in1k', {'num_classes': 3}, (64, 64), folder()
  )
  assert channels == 3
  assert config == {
    'name': 'mvit', 'num_classes': 3, 'depths': (1,), 'hidden_sizes': (4,),
    'num_heads': (2,), 'mlp_ratio': 3.0, 'image_size': 64,
    'class_token': False,
  }  # fmt: skip


@pytest.mark.parametrize(
  ('name', 'args', 'size', 'changes', 'message'),
  [
    ('tiny', {'patch_size': 4}, 64, {}, "patch_size=4 .* not known; .*choices"),
    ('tiny', {'num_classes': 4}, 64, {}, 'num_classes is 4, by its arrays 3'),
    ('tiny', {'global_pool': 'token'}, 64, {}, "is 'token', by .* 'avg'"),
    ('tiny', {}, 48, {}, r'image_size=\(48, 48\).* multiples of 32'),
    ('tiny', {}, 64, {'cls_token': (1, 1, 4)}, "cls_token is there; .*tiny'"),
    ('base_cls', {}, 64, {}, "cls_token is not there; .*'mvitv2_base_cls'"),
    (
      'tiny', {}, 64, {'stages.1.blocks.1.attn.proj.weight': (4, 4)},
      'stages and blocks some are missing',
    ),
    (
      'tiny', {}, 64, {'stages.0.blocks.0.attn.norm_q.weight': (3,)},
      'heads of 3 channels do not divide the width 4',
    ),
  ],
)  # fmt: skip
def test_a_folder_that_contradicts_itself_is_refused(
  name, args, size, changes, message
):
  with pytest.raises(ValueError, match=message):
    folders.read(
      'here', f'mvitv2_{name}', args, (size, size), folder(**changes)
    )


def test_linear_resizing_repeats_the_border_and_is_not_antialiased():
  for old, new in ((3, 5), (7, 3), (4, 4)):
    at = (np.arange(new) + 0.5) * old / new
    for i, column in enumerate(layers.linear_torch(new, old).T):
      point = np.eye(old)[i]
      np.testing.assert_allclose(
        column, np.interp(at, np.arange(old) + 0.5, point), atol=1e-6
      )
