"""Layers that every vision Transformer shares, against their definitions."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, special

from vit_jax import layers

RNG = np.random.default_rng(0)


def normal(*shape):
  return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_patch_embedding_equals_a_strided_convolution(dtype):
  images = normal(2, 8, 12, 3)
  ours = layers.PatchEmbedding(5, 4, dtype)
  conv = nn.Conv(5, (4, 4), strides=(4, 4), padding='VALID', dtype=dtype)
  shapes = jax.eval_shape(conv.init, jax.random.key(0), images)
  params = jax.tree.map(lambda s: normal(*s.shape), shapes)
  assert jax.tree.map(
    lambda s: s.shape, jax.eval_shape(ours.init, jax.random.key(0), images)
  ) == jax.tree.map(lambda s: s.shape, shapes)
  found = ours.apply(params, images)
  assert found.dtype == dtype
  np.testing.assert_allclose(
    found.astype(jnp.float32),
    conv.apply(params, images).astype(jnp.float32).reshape(2, 6, 5),
    atol=1e-5 if dtype == jnp.float32 else 0.1,  # 8 bits of sums up to 20
  )


def test_the_initial_patch_embedding_is_the_convolutions():
  images, key = jnp.zeros((1, 8, 8, 3)), jax.random.key(1)
  ours = layers.PatchEmbedding(64, 4).init(key, images)['params']
  conv = nn.Conv(64, (4, 4)).init(key, images)['params']
  np.testing.assert_array_equal(ours['kernel'], conv['kernel'])
  np.testing.assert_array_equal(ours['bias'], conv['bias'])


@pytest.mark.parametrize(
  ('size', 'patch', 'expected'),
  [
    (8, 4, (2, 2)),
    ((8, 12), 4, (2, 3)),
    ((8, 12), (4, 3), (2, 4)),
    (224, 14, (16, 16)),
  ],
)
def test_the_grid_counts_rows_and_columns(size, patch, expected):
  assert layers.grid_of(size, patch) == expected


@pytest.mark.parametrize(
  ('size', 'patch', 'near'),
  [
    ((225, 224), 16, '224×224'),
    ((250, 224), 16, '256×224'),
    ((3, 8), 8, '8×8'),
    ((8, 0), 8, '8×8'),
    ((9, 10), (4, 3), '8×9'),
  ],
)
def test_an_image_that_patches_do_not_cover_names_the_nearest(
  size, patch, near
):
  height, width = size
  with pytest.raises(
    ValueError, match=f'{height}×{width} pixels .*nearest size that is: {near}$'
  ):
    layers.grid_of(size, patch)


@pytest.mark.parametrize(
  ('old', 'new'),
  [
    ((3, 5), (3, 5)), ((3, 5), (6, 9)), ((6, 9), (3, 5)), ((4, 4), (2, 7)),
    ((1, 4), (3, 4)), ((14, 14), (24, 24)), ((5, 5), (1, 3)),
  ],
)  # fmt: skip
def test_positions_resize_as_scipys_zoom_does(old, new):
  table = RNG.standard_normal((*old, 6)).astype(np.float32)
  expected = ndimage.zoom(
    table.astype(np.float64), (new[0] / old[0], new[1] / old[1], 1), order=1
  )
  found = layers.resize_positions(
    jnp.asarray(table).reshape(1, -1, 6), old, new
  )
  np.testing.assert_allclose(
    found[0].reshape(*new, 6), expected, atol=1e-6
  )


@pytest.mark.parametrize('method', ['bilinear', 'bicubic'])
def test_other_methods_resize_as_jax_image_does(method):
  table = normal(1, 12, 4)
  found = layers.resize_positions(table, (3, 4), (5, 7), method)
  expected = jax.image.resize(table.reshape(3, 4, 4), (5, 7, 4), method)
  np.testing.assert_allclose(found[0], expected.reshape(35, 4), atol=1e-6)
  aligned = layers.resize_positions(table, (3, 4), (5, 7))
  assert np.abs(found - aligned).max() > 0.1


def cubic(d, a=-0.75):
  """Keys 1981, eq. 15: the kernel of cubic convolution at a distance."""
  d = abs(d)
  if d <= 1:
    return (a + 2) * d**3 - (a + 3) * d**2 + 1
  if d < 2:
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
  return 0.0


@pytest.mark.parametrize(
  ('old', 'new'),
  [
    ((3, 5), (6, 9)), ((6, 9), (3, 5)), ((1, 4), (3, 4)), ((2, 2), (1, 7)),
    ((14, 14), (24, 20)),
  ],
)  # fmt: skip
def test_bicubic_torch_weighs_every_point_by_its_distance(old, new):
  table = RNG.standard_normal((*old, 3))
  expected = np.zeros((*new, 3))
  for y, x in np.ndindex(*new):
    row = (y + 0.5) * old[0] / new[0] - 0.5
    column = (x + 0.5) * old[1] / new[1] - 0.5
    for r in range(int(row) - 3, int(row) + 5):
      for c in range(int(column) - 3, int(column) + 5):
        inside = (min(max(r, 0), old[0] - 1), min(max(c, 0), old[1] - 1))
        expected[y, x] += cubic(r - row) * cubic(c - column) * table[inside]
  found = layers.resize_positions(
    jnp.asarray(table.reshape(1, -1, 3), jnp.float32), old, new,
    'bicubic_torch',
  )  # fmt: skip
  np.testing.assert_allclose(
    found[0].reshape(*new, 3), expected, atol=3e-6
  )


def test_the_two_bicubics_differ_as_their_definitions_do():
  table = normal(1, 16, 4)
  for new in ((7, 7), (2, 3)):  # by a, and where it shrinks by antialiasing
    ours, timms = (
      layers.resize_positions(table, (4, 4), new, method)
      for method in ('bicubic_torch', 'bicubic')
    )
    assert np.abs(ours - timms).max() > 0.02


@pytest.mark.parametrize('method', layers.RESIZES)
def test_every_way_to_resize_keeps_a_constant_table(method):
  table = jnp.ones((1, 12, 2))
  for new in ((5, 9), (2, 2)):
    found = layers.resize_positions(table, (3, 4), new, method)
    assert found.shape == (1, new[0] * new[1], 2)
    np.testing.assert_allclose(found, 1, atol=1e-6)


def test_an_unknown_way_to_resize_is_an_error_even_where_sizes_agree():
  with pytest.raises(ValueError, match="'cubic'; choices: align_corners, bic"):
    layers.resize_positions(normal(1, 4, 4), (2, 2), (2, 2), 'cubic')


def test_registers_get_no_position_and_prefix_tokens_keep_theirs():
  layer = layers.AddPositionEmbs((2, 2), learned_prefix=1)
  table = normal(1, 5, 4)
  x = normal(2, 1 + 2 + 12, 4)
  found = layer.apply({'params': {'pos_embedding': table}}, x, (3, 4), 3)
  added = np.asarray(found - x)
  np.testing.assert_allclose(added[0], added[1], atol=1e-6)
  np.testing.assert_allclose(added[0, 0], table[0, 0], atol=1e-6)
  np.testing.assert_array_equal(added[:, 1:3], 0)
  np.testing.assert_allclose(
    added[:1, 3:],
    layers.resize_positions(table[:, 1:], (2, 2), (3, 4)),
    atol=1e-6,
  )


def test_positions_resize_by_the_layers_method():
  table, x = normal(1, 4, 3), jnp.zeros((1, 12, 3))
  for method in ('align_corners', 'bicubic_torch', 'bicubic'):
    layer = layers.AddPositionEmbs((2, 2), method=method)
    np.testing.assert_array_equal(
      layer.apply({'params': {'pos_embedding': table}}, x, (3, 4)),
      layers.resize_positions(table, (2, 2), (3, 4), method),
    )


def test_sincos2d_encodes_columns_then_rows():
  table = layers.sincos2d((3, 5), 16)[0].reshape(3, 5, 4, 4)
  rate = 1e4 ** (-np.arange(4) / 3)
  for row in range(3):
    for column in range(5):
      sin_x, cos_x, sin_y, cos_y = table[row, column]
      for found, f, at in (
        (sin_x, np.sin, column), (cos_x, np.cos, column),
        (sin_y, np.sin, row), (cos_y, np.cos, row),
      ):  # fmt: skip
        np.testing.assert_allclose(found, f(at * rate), atol=1e-6)


@pytest.mark.parametrize('width', [4, 10, 15])
def test_sincos2d_refuses_widths_it_cannot_split(width):
  with pytest.raises(ValueError, match=f'8, 12, 16, …; got {width}'):
    layers.sincos2d((2, 2), width)


def test_both_gelus_are_what_they_say():
  x = np.linspace(-5, 5, 101)
  exact = 0.5 * x * (1 + special.erf(x / np.sqrt(2)))
  tanh = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
  x = jnp.asarray(x, jnp.float32)
  np.testing.assert_allclose(layers.gelu('exact')(x), exact, atol=1e-6)
  np.testing.assert_allclose(layers.gelu('tanh')(x), tanh, atol=1e-6)
  assert np.abs(exact - tanh).max() > 1e-4
  with pytest.raises(ValueError, match="gelu='relu'; choices: tanh, exact"):
    layers.gelu('relu')


def test_drop_path_keeps_or_drops_whole_examples_without_bias():
  layer, x = layers.DropPath(0.3), normal(1, 3, 4)
  batch = jnp.broadcast_to(x, (20_000, 3, 4))
  out = np.asarray(
    layer.apply({}, batch, True, rngs={'dropout': jax.random.key(0)})
  )
  dropped = ~out.any((1, 2))
  assert abs(dropped.mean() - 0.3) < 0.015
  np.testing.assert_allclose(
    out[~dropped],
    np.broadcast_to(x / 0.7, out[~dropped].shape),
    rtol=1e-6,
  )
  np.testing.assert_array_equal(layer.apply({}, batch), batch)


@pytest.mark.parametrize('rate', [-0.1, 1.0])
def test_a_drop_path_rate_out_of_range_is_an_error(rate):
  with pytest.raises(ValueError, match=rf'\[0, 1\); got {rate}'):
    layers.DropPath(rate).apply({}, normal(2, 3))


def test_layer_scale_starts_at_its_initial_value_and_scales_channels():
  layer, x = layers.LayerScale(1e-4), normal(2, 3, 4)
  params = layer.init(jax.random.key(0), x)
  np.testing.assert_array_equal(
    params['params']['scale'], np.full(4, 1e-4, np.float32)
  )
  scale = np.arange(4.0, dtype=np.float32)
  found = layer.apply({'params': {'scale': jnp.asarray(scale)}}, x)
  np.testing.assert_array_equal(found, np.asarray(x) * scale)


def test_the_mlp_drops_hidden_units_and_outputs():
  # With dropout ½ on each of two layers of ones, a hidden sum of 2·Bernoulli
  # values passes a second coin: half of the outputs are 0.
  layer = layers.MlpBlock(8, dropout_rate=0.5, gelu='exact')
  x = jnp.ones((500, 4))
  shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
  params = jax.tree.map(lambda s: jnp.ones(s.shape), shapes)
  run = functools.partial(layer.apply, params, x)
  exact = run()
  out = np.asarray(run(True, rngs={'dropout': jax.random.key(0)}))
  assert abs((out == 0).mean() - 0.5) < 0.05
  assert len(np.unique(out.round(3))) > 5  # hidden units were dropped too
  assert out.mean() == pytest.approx(float(exact.mean()), rel=0.1)
  np.testing.assert_array_equal(exact, run(False))
