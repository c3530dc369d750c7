"""Positions inside attention: what they add to logits, and where they fit."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import attention
from vit_jax.attention import position_bias, positions

GRID, PREFIX, H, D = (3, 4), 2, 3, 8
N = PREFIX + 12
GRIDDED = {'grid': GRID, 'prefix': PREFIX}


def arrays(n=N, heads=H, width=D, seed=0):
  rng = np.random.default_rng(seed)
  return tuple(
    jnp.asarray(rng.standard_normal((2, n, heads, width)), jnp.float32)
    for _ in range(2)
  )


def build(spec, heads=H, **layout):
  return positions.layer(spec)(num_heads=heads, **layout)


def jittered(module, *args):
  shapes = jax.eval_shape(module.init, jax.random.key(0), *args)
  rng = np.random.default_rng(5)
  return jax.tree.map(
    lambda s: jnp.asarray(rng.standard_normal(s.shape), s.dtype), shapes
  )


def offsets(grid=GRID):
  """(row, column) of every patch."""
  return [divmod(i, grid[1]) for i in range(grid[0] * grid[1])]


def turned(x, angle):
  """The pairs of channels of [N H D] as complex numbers, times e^(i angle)."""
  z = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)
  return np.stack([z.real, z.imag], -1).reshape(x.shape)


def test_rotary_on_a_sequence_is_the_papers_rotation():
  q, k = arrays(7)
  found = build('rotary').apply({}, q, k)
  for x, y in zip((q, k), found[:2], strict=True):
    speed = np.array([10000 ** (-2 * i / D) for i in range(D // 2)])
    angle = np.arange(7)[:, None, None] * speed
    np.testing.assert_allclose(y[0], turned(np.asarray(x[0]), angle), atol=1e-5)
  assert found[2] is None


def test_rotary_on_a_grid_turns_by_column_then_row_and_leaves_the_prefix():
  q, k = arrays()
  found, _, _ = build('rotary', **GRIDDED).apply({}, q, k)
  speed = np.array([100 ** (-4 * i / D) for i in range(D // 4)])
  angle = np.array([[*(c * speed), *(r * speed)] for r, c in offsets()])
  expected = turned(np.asarray(q[0, PREFIX:]), angle[:, None])
  np.testing.assert_allclose(found[0, PREFIX:], expected, atol=1e-5)
  np.testing.assert_array_equal(found[:, :PREFIX], q[:, :PREFIX])


def test_mixed_frequencies_turn_by_row_and_column_at_once():
  q, k = arrays()
  module = build('rotary_mixed', **GRIDDED)
  params = jittered(module, q, k)
  x, y = np.asarray(params['params']['frequencies'])
  found, _, _ = module.apply(params, q, k)
  angle = np.array([c * x + r * y for r, c in offsets()])
  expected = turned(np.asarray(q[0, PREFIX:]), angle)
  np.testing.assert_allclose(found[0, PREFIX:], expected, atol=1e-4)
  np.testing.assert_array_equal(found[:, :PREFIX], q[:, :PREFIX])


def test_mixed_frequencies_start_in_two_orthogonal_directions_a_head():
  q, k = arrays()
  module = build('rotary_mixed', **GRIDDED)
  params = module.init(jax.random.key(0), q, k)
  x, y = np.asarray(params['params']['frequencies'])
  speed = np.array([10 ** (-4 * i / D) for i in range(D // 4)])
  np.testing.assert_allclose(
    np.hypot(x, y), np.tile(speed, (H, 2)), rtol=1e-5
  )
  first, second = slice(None, D // 4), slice(D // 4, None)
  np.testing.assert_allclose(
    x[:, first] * x[:, second] + y[:, first] * y[:, second], 0, atol=1e-6
  )
  assert np.std(np.arctan2(y, x)[:, 0]) > 0.1  # random by head


@pytest.mark.parametrize(
  ('spec', 'layout'),
  [
    ('rotary', {}), ('rotary', {'grid': (4, 4)}),
    ('rotary_mixed', {'grid': (4, 4)}), ('rotary(base=30)', {}),
  ],
)  # fmt: skip
def test_rotated_logits_depend_on_offsets_only_and_norms_are_kept(spec, layout):
  q, k = (jnp.broadcast_to(x[:, :1], (2, 16, H, D)) for x in arrays(16))
  module = build(spec, **layout)
  a, b, _ = module.apply(jittered(module, q, k), q, k)
  for x, y in ((q, a), (k, b)):
    np.testing.assert_allclose(
      np.linalg.norm(x, axis=-1), np.linalg.norm(y, axis=-1), rtol=1e-5
    )
  logits = np.einsum('nhd,mhd->hnm', a[0], b[0])
  at = offsets((4, 4)) if layout else [(0, i) for i in range(16)]
  seen = {}
  for i, j in np.ndindex(16, 16):
    offset = at[i][0] - at[j][0], at[i][1] - at[j][1]
    seen.setdefault(offset, []).append(logits[:, i, j])
  spread = [np.ptp(values, axis=0).max() for values in seen.values()]
  assert max(spread) < 1e-4
  assert np.ptp([values[0] for values in seen.values()], axis=0).min() > 0.1


def test_relative_bias_gathers_the_entry_of_each_offset():
  q, k = arrays()
  module = build('relative_bias', **GRIDDED)
  params = jittered(module, q, k)
  assert params['params']['table'].shape == (5, 7, H)
  bias = module.apply(params, q, k)[2]
  assert bias.shape == (1, H, N, N)
  table, rest = (params['params'][x] for x in ('table', 'prefix'))
  at = offsets()
  for i, j in np.ndindex(N, N):
    if min(i, j) >= PREFIX:
      (r, c), (s, t) = at[i - PREFIX], at[j - PREFIX]
      expected = table[r - s + 2, c - t + 3]
    else:  # BEiT's three: prefix to patch, patch to prefix, prefix to prefix
      expected = rest[0 if j >= PREFIX else 1 if i >= PREFIX else 2]
    np.testing.assert_array_equal(bias[0, :, i, j], expected)
  start = module.init(jax.random.key(0), q, k)
  assert not any(np.any(x) for x in jax.tree.leaves(start))


def test_relative_bias_on_a_sequence_is_toeplitz():
  q, k = arrays(5)
  module = build('relative_bias')
  params = jittered(module, q, k)
  table = np.asarray(params['params']['table'])[0]  # [2N-1 H]
  bias = module.apply(params, q, k)[2]
  for i, j in np.ndindex(5, 5):
    np.testing.assert_array_equal(bias[0, :, i, j], table[i - j + 4])


def test_decomposed_bias_is_the_querys_product_with_both_offsets():
  q, k = arrays()
  module = build('decomposed_bias', **GRIDDED)
  params = jittered(module, q, k)
  row, column = (np.asarray(params['params'][x]) for x in ('row', 'column'))
  bias = np.asarray(module.apply(params, q, k)[2])
  at = offsets()
  assert not bias[:, :, :PREFIX].any()
  assert not bias[:, :, :, :PREFIX].any()
  for i, j in np.ndindex(12, 12):
    (r, c), (s, t) = at[i], at[j]
    learned = row[r - s + 2] + column[c - t + 3]
    expected = np.asarray(q)[1, i + PREFIX] @ learned
    np.testing.assert_allclose(
      bias[1, :, i + PREFIX, j + PREFIX], expected, atol=1e-5
    )


def test_relative_keys_are_clipped_and_scaled():
  q, k = arrays(9)
  module = build('relative_keys(limit=3)')
  params = jittered(module, q, k)
  table = np.asarray(params['params']['table'])
  assert table.shape == (7, D)
  bias = module.apply(params, q, k)[2]
  for i, j in np.ndindex(9, 9):
    entry = table[min(max(j - i, -3), 3) + 3]
    expected = np.asarray(q)[0, i] @ entry / np.sqrt(D)
    np.testing.assert_allclose(bias[0, :, i, j], expected, atol=1e-5)


def test_relative_keys_on_a_grid_are_clipped_by_row_and_by_column():
  q, k = arrays()
  module = build('relative_keys(limit=2)', **GRIDDED)
  params = jittered(module, q, k)
  row, column = (np.asarray(params['params'][x]) for x in ('row', 'column'))
  assert row.shape == column.shape == (5, D)
  bias = np.asarray(module.apply(params, q, k)[2])
  assert not bias[:, :, :PREFIX].any()
  assert not bias[:, :, :, :PREFIX].any()
  at = offsets()
  for i, j in np.ndindex(12, 12):
    (r, c), (s, t) = at[i], at[j]
    entry = row[s - r + 2] + column[min(max(t - c, -2), 2) + 2]
    expected = np.asarray(q)[1, i + PREFIX] @ entry / np.sqrt(D)
    np.testing.assert_allclose(
      bias[1, :, i + PREFIX, j + PREFIX], expected, atol=1e-5
    )
  # Another grid takes the same parameters.
  build('relative_keys(limit=2)', grid=(2, 6)).apply(params, *arrays(12))


def test_alibis_slopes_are_the_published_ones():
  np.testing.assert_allclose(
    position_bias.slopes(8), [1 / 2**i for i in range(1, 9)]
  )
  np.testing.assert_allclose(
    position_bias.slopes(16), [2 ** (-i / 2) for i in range(1, 17)]
  )
  # The authors' rule for 12 heads: 8, and every other one of 16.
  np.testing.assert_allclose(
    position_bias.slopes(12),
    [*(1 / 2**i for i in range(1, 9)), *(2 ** -(i + 0.5) for i in range(4))],
  )
  assert position_bias.slopes(1) == [2**-8]


def test_alibi_falls_with_the_distance():
  q, k = arrays(6)
  bias = build('alibi').apply({}, q, k)[2]
  slope = np.array(position_bias.slopes(H))[:, None, None]
  distance = abs(np.arange(6)[:, None] - np.arange(6))
  np.testing.assert_allclose(bias[0], -slope * distance, rtol=1e-6)
  bias = build('alibi', **GRIDDED).apply({}, *arrays())[2]
  at = np.array(offsets())
  distance = np.zeros((N, N))
  distance[PREFIX:, PREFIX:] = np.linalg.norm(at[:, None] - at, axis=-1)
  np.testing.assert_allclose(bias[0], -slope * distance, atol=1e-6)


@pytest.mark.parametrize('name', sorted(positions.POSITIONS))
def test_given_positions_are_places_in_the_full_layout(name):
  module = build(name, **GRIDDED)
  q, k = arrays()
  params = jittered(module, q, k)
  run = jax.jit(module.apply)
  full = run(params, q, k)
  # Tokens in another order, and only some of them, by example.
  rng = np.random.default_rng(3)
  at = np.stack([rng.permutation(N)[:N] for _ in range(2)])
  some = [np.take_along_axis(x, at[:, :, None, None], 1) for x in (q, k)]
  found = run(params, *some, jnp.asarray(at))
  for x, y in zip(full[:2], found[:2], strict=True):
    expected = np.take_along_axis(np.asarray(x), at[:, :, None, None], 1)
    np.testing.assert_allclose(y, expected, atol=1e-5)
  if full[2] is not None:
    for b in range(2):
      whole = full[2][min(b, full[2].shape[0] - 1)]
      np.testing.assert_allclose(
        found[2][b], whole[:, at[b]][:, :, at[b]], atol=1e-5
      )


# In the layer.


def layer(attend, position, **fields):
  return attention.MultiHeadDotProductAttention(
    2, attend, position=positions.layer(position), **fields
  )


def test_a_bias_is_added_to_the_users_and_rotation_to_the_queries():
  rng = np.random.default_rng(0)
  x, user = (
    jnp.asarray(rng.standard_normal(s), 'f') for s in ((2, 5, 16), (1, 2, 5, 5))
  )
  both = layer(attention.Softmax, 'rotary, relative_bias, alibi')
  params = jittered(both, x)
  assert set(params['params']['position']) == {'relative_bias'}
  plain = {k: v for k, v in params['params'].items() if k != 'position'}

  class Rotated(attention.Attention):
    @nn.compact
    def __call__(self, q, k, v, *, bias, train=False):
      q, k, _ = build('rotary', 2).apply({}, q, k)
      module = build('relative_bias', 2)
      learned = params['params']['position']['relative_bias']
      more = module.apply({'params': learned}, q, k)[2]
      more = more + build('alibi', 2).apply({}, q, k)[2]
      return attention.Softmax()(q, k, v, bias=bias + more)

  expected = layer(Rotated, '').apply({'params': plain}, x, bias=user)
  np.testing.assert_allclose(
    both.apply(params, x, bias=user), expected, atol=1e-5
  )


def test_rotation_fits_kernels_without_a_bias_and_a_bias_does_not():
  x = jax.ShapeDtypeStruct((2, 5, 16), jnp.float32)
  run = lambda position: jax.eval_shape(  # noqa: E731
    layer(attention.ATTENTIONS['linear'], position).init_with_output,
    jax.random.key(0), x,
  )  # fmt: skip
  assert run('rotary')[0].shape == x.shape
  for position in ('alibi', 'rotary, relative_bias', 'relative_keys'):
    with pytest.raises(
      ValueError, match='Linear does not honour bias=; these do: .*Softmax'
    ):
      run(position)


def test_rotated_causal_attention_sees_only_the_past():
  causal = functools.partial(attention.Softmax, causal=True)
  model = layer(causal, 'rotary, relative_bias')
  x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 6, 8)), 'f')
  params = jittered(model, x)
  jacobian = jax.jit(jax.jacrev(lambda x: model.apply(params, x).sum(-1)))(x)
  moved = np.abs(jacobian[0, :, 0]).max(-1)
  assert not moved[np.triu_indices(6, 1)].any()
  assert (moved[np.tril_indices(6)] > 0).all()


def test_every_position_gives_finite_gradients_to_its_parameters():
  for name in positions.POSITIONS:
    model = layer(attention.Softmax, name, **GRIDDED)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, N, 16)), 'f')
    params = jax.tree.map(lambda x: 0.3 * x, jittered(model, x))

    @jax.jit
    def gradient(params, model=model, x=x):
      return jax.grad(lambda p: jnp.sum(model.apply(p, x) ** 2))(params)

    found = gradient(params)['params']
    for leaf in jax.tree.leaves(found):
      assert np.isfinite(leaf).all(), name
    if name not in ('rotary', 'alibi'):
      for leaf in jax.tree.leaves(found['position']):
        assert np.abs(leaf).max() > 1e-6, name


@pytest.mark.parametrize(
  ('spec', 'layout', 'shape', 'message'),
  [
    ('rotary', GRIDDED, (2, N, 1, 6), 'divisible by 4 on a grid; it is 6'),
    ('rotary', {}, (2, 5, 1, 3), 'divisible by 2 on a sequence; it is 3'),
    ('rotary', GRIDDED, (2, N - 1, 1, 4), 'takes 14 tokens, not 13'),
    ('rotary_mixed', {}, (2, 5, 1, 4), 'needs a grid'),
  ],
)
def test_what_a_position_cannot_do_is_an_error(spec, layout, shape, message):
  x = jnp.zeros(shape)
  with pytest.raises(ValueError, match=message):
    build(spec, shape[2], **layout).init(jax.random.key(0), x, x)


@pytest.mark.parametrize('name', ['relative_bias', 'decomposed_bias'])
def test_a_table_belongs_to_one_grid(name):
  q, k = arrays(12)
  params = jittered(build(name, grid=GRID), q, k)
  # The other way round it has as many entries.
  with pytest.raises(ValueError, match='belongs to one grid.*image_size=…'):
    build(name, grid=GRID[::-1]).apply(params, q, k)


def test_queries_of_one_sequence_and_keys_of_another_have_no_offset():
  q, k = arrays(5)
  with pytest.raises(ValueError, match='of one sequence, not 5 .* to 4 keys'):
    build('rotary').apply({}, q, k[:, :4])


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('rotory', "unknown position 'rotory'; did you mean 'rotary'"),
    ('rotary(bases=3)', "no option 'bases'.*did you mean 'base'"),
    ('rotary, rotary', "'rotary' is twice"),
  ],
)
def test_a_wrong_spec_names_the_choices(spec, message):
  with pytest.raises(ValueError, match=message):
    positions.layer(spec)


def test_a_whole_layer_refuses_positions_inside():
  name = sorted(attention.MIXERS)[0]
  mixer = attention.layer(name)
  assert attention.positioned(mixer, '') is mixer
  cls = attention.MIXERS[name].__name__
  with pytest.raises(ValueError, match=f"{cls} is a whole layer.*'rotary'"):
    attention.positioned(mixer, 'rotary')
