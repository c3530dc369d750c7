"""Attentions through a memory: what is particular to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention.contract import C, D, H, MASK, N, arrays, jitter, wide
from attention.oracles.memory import luna_oracle
from vit_jax import attention
from vit_jax.attention.strides import Windows


def variables_of(kernel, *inputs, **given):
  shapes = jax.eval_shape(kernel.init, jax.random.key(0), *inputs, **given)
  return jitter(shapes)


def tokens(n=N, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.standard_normal((2, n, C)), jnp.float32)


def test_a_compressed_key_is_seen_from_its_last_token_on():
  kernel = attention.build('memory_compressed(causal=True)')
  q, k, v = arrays()
  variables = variables_of(kernel, q, k, v)
  moved = jax.jit(
    jax.jacrev(lambda v: kernel.apply(variables, q, k, v).sum((0, 2, 3)))
  )(v)
  seen = np.abs(moved).max((1, 3, 4)) > 0
  i, j = np.indices((N, N))
  np.testing.assert_array_equal(seen, 3 * (j // 3) + 2 <= i)


def test_before_the_first_compressed_key_there_is_only_the_null_key():
  kernel = attention.build('memory_compressed(causal=True)')
  q, k, v = arrays()
  out = kernel.apply(variables_of(kernel, q, k, v), q, k, v)
  assert not np.any(out[:, :2])
  assert np.abs(out[:, 2]).max() > 0


def test_decoding_a_compressed_memory_keeps_a_third_of_the_keys():
  kernel = attention.build('memory_compressed(causal=True)')
  q, k, v = arrays()
  variables = variables_of(kernel, q, k, v)
  state = kernel.apply(
    variables, 2, 30, H, D, jnp.float32, method='init_state'
  )
  assert state['compressed'].shape == (2, 2, 10, H, D)
  with pytest.raises(ValueError, match='decodes only with causal=True'):
    kernel.clone(causal=False).apply(
      variables, 2, 30, H, D, jnp.float32, method='init_state'
    )


def test_a_stride_below_one_is_refused():
  with pytest.raises(ValueError, match='stride=0 must be at least 1'):
    attention.build('memory_compressed(stride=0)').init(
      jax.random.key(0), *arrays()
    )


@pytest.mark.parametrize('name', ['perceiver', 'luna'])
def test_equal_values_come_out_as_they_are(name):
  # Both attentions have rows that sum to one.
  q, k, v = arrays()
  v = jnp.broadcast_to(v[:, :1], v.shape)
  kernel = attention.build(name)
  out = kernel.apply(variables_of(kernel, q, k, v), q, k, v)
  np.testing.assert_allclose(out, v, atol=1e-5)


def test_luna_projects_its_keys_only_where_widths_differ():
  kernel = attention.build('luna(length=3)')
  shapes = lambda width: jax.tree.map(  # noqa: E731
    jnp.shape, variables_of(kernel, *arrays(width=width))['params']
  )
  assert shapes(D) == {'memory': (1, H, 3, D)}
  assert shapes(6) == {'memory': (1, H, 3, D), 'unpack_keys': (H, 6, D)}
  inputs = arrays(width=6)
  variables = variables_of(kernel, *inputs)
  expected = luna_oracle(
    kernel, wide(variables), *(wide(x[0]) for x in inputs)
  )
  np.testing.assert_allclose(
    kernel.apply(variables, *inputs)[0], expected, atol=1e-5
  )


def test_isab_is_invariant_to_repeating_the_set():
  # Softmax over a set in which every token is twice is the same mean.
  layer = attention.MIXERS['isab'](num_heads=H, inducing=3)
  x = tokens()
  variables = variables_of(layer, x)
  run = jax.jit(layer.apply)
  twice = run(variables, jnp.concatenate([x, x], 1))
  np.testing.assert_allclose(twice[:, :N], run(variables, x), atol=1e-5)


# Windows over the grid.


@pytest.mark.parametrize('size', [2, 3, 5])
@pytest.mark.parametrize('grid', [(3, 4), (1, 1), (5, 2), None])
def test_every_cell_of_the_stride_has_a_window_that_covers_it(grid, size):
  n = 1 + (12 if grid is None else grid[0] * grid[1])
  windows = Windows(grid, 1, n, 2, size)
  _, patches, _ = windows.split(jnp.ones((1, n, 1)), None)
  pooled = windows.pool(patches, None, 'average')
  rows, columns = windows.shape
  out = (-(-rows // 2), columns if grid is None else -(-columns // 2))
  assert pooled.shape == (1, *out, 1) == (1, *windows.out, 1)
  np.testing.assert_allclose(pooled, 1)  # nothing beyond the border counts
  every = windows.key_mask(jnp.ones((1, n), bool))
  assert every.shape == (1, 1 + out[0] * out[1])
  assert every.all()


def test_a_window_takes_the_unmasked_tokens_only():
  windows = Windows((2, 4), 0, 8, 2, 2)
  x = jnp.arange(8.0)[None, :, None]
  mask = jnp.asarray([[1, 0, 0, 0, 1, 0, 0, 0]], bool)
  _, patches, keep = windows.split(x - 9, mask)
  for method, expected in (('average', -7.0), ('max', -5.0)):
    pooled = windows.pool(patches, keep, method)[0, 0, :, 0]
    np.testing.assert_array_equal(pooled, [expected, 0])
  np.testing.assert_array_equal(windows.key_mask(mask), [[True, False]])


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('pooled(stride=2, size=1)', 'stride=2 must be .* at most the size 1'),
    ("pooled(method='min')", "'min'; choices: .*'convolution'"),
    ('pooled(residual=True)', 'width 4 to values of width 6'),
  ],
)
def test_pooled_refuses_what_it_cannot_be(spec, message):
  with pytest.raises(ValueError, match=message):
    attention.build(spec).init(jax.random.key(0), *arrays(width=6))


def test_the_residual_of_pooled_attention_is_the_queries():
  q, k, v = arrays()
  kernel = attention.build('pooled', grid=(3, 4), prefix=1)
  np.testing.assert_allclose(
    kernel.clone(residual=True).apply({}, q, k, v) - kernel.apply({}, q, k, v),
    q, atol=1e-6,
  )  # fmt: skip


def test_prefix_tokens_are_keys_as_they_are():
  # The map of the values reaches the prefix token alone, the grid in cells.
  q, k, _ = arrays()
  eye = jnp.broadcast_to(jnp.eye(N)[None, :, None], (2, N, H, N))
  kernel = attention.build('pooled', grid=(3, 4), prefix=1)
  weights = np.asarray(kernel.apply({}, q, k, eye))[:, :, :, 1:]
  weights = weights.reshape(2, N, H, 3, 4)
  np.testing.assert_allclose(weights[..., 0, 0], weights[..., 1, 1], atol=1e-6)
  np.testing.assert_allclose(weights[..., 0, 1], weights[..., 1, 0], atol=1e-6)
  assert np.abs(weights[..., 0, 0] - weights[..., 0, 2]).max() > 1e-3


def test_pvts_linear_form_has_a_fixed_number_of_keys():
  layer = attention.MIXERS['spatial_reduction'](num_heads=H, pool=7)
  per_token = [layer.flops(n, H, D) / n for n in (4096, 16384)]
  assert abs(per_token[1] / per_token[0] - 1) < 0.01


def test_batch_norm_of_cvt_leaves_padding_out_of_its_statistics():
  layer = attention.MIXERS['conv_projection'](num_heads=H)
  x, mask = tokens(), jnp.asarray(MASK)
  variables = layer.init(jax.random.key(0), x)

  @jax.jit
  def statistics(x):
    _, updated = layer.apply(
      variables, x, key_mask=mask, train=True, mutable=['batch_stats']
    )
    return updated['batch_stats']

  first = statistics(x)
  other = statistics(jnp.where(mask[..., None], x, 1e3))
  for a, b in zip(*map(jax.tree.leaves, (first, other)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)
  assert np.abs(first['query_norm']['mean']).max() > 0


def test_cvt_refuses_an_unknown_norm():
  layer = attention.MIXERS['conv_projection'](norm='group')
  with pytest.raises(ValueError, match="'group'; choices.*'batch'"):
    layer.init(jax.random.key(0), tokens())


@pytest.mark.parametrize('name', ['pooled', 'spatial_reduction', 'average'])
def test_tokens_that_are_not_the_grids_are_refused(name):
  both = attention.ATTENTIONS | attention.MIXERS
  kernel = both[name](grid=(3, 4), prefix=0)
  inputs = arrays() if name == 'pooled' else (tokens(),)
  with pytest.raises(ValueError, match='takes 12 tokens, not 13'):
    kernel.init(jax.random.key(0), *inputs)


def test_fnet_of_its_own_result_is_the_input_turned_round():
  # Re F is a real symmetric map whose square keeps the even part of the input.
  layer = attention.MIXERS['fnet']()
  x = tokens()
  twice = layer.apply({}, layer.apply({}, x)) / (N * C)
  turned = jnp.roll(x[:, ::-1, ::-1], (1, 1), (1, 2))
  np.testing.assert_allclose(twice, (x + turned) / 2, atol=1e-5)


@pytest.mark.parametrize('spec', ['perceiver(latents=8)', 'luna(length=8)'])
def test_learned_tokens_give_the_same_with_and_without_jit(spec):
  # XLA's CPU compiler gets two products with the same broadcast array wrong
  # from a batch of 8 on: compiled, every query got the same row.
  rng = np.random.default_rng(0)
  q, k, v = (
    jnp.asarray(rng.standard_normal((8, 16, 4, 16)), jnp.float32)
    for _ in range(3)
  )
  kernel = attention.build(spec)
  variables = kernel.init(jax.random.key(0), q, k, v)
  np.testing.assert_allclose(
    jax.jit(kernel.apply)(variables, q, k, v),
    kernel.apply(variables, q, k, v),
    atol=1e-5,
  )
