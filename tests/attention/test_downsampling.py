"""Layers that change the number of tokens, against dense float64 oracles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention.contract import C, D, GRID, H, MASK, N, jitter, wide
from attention.oracles.facts import softmax
from attention.oracles.memory import heads_of, mab, norm, reduced
from vit_jax import attention
from vit_jax.attention.downsampling import size_bias

MASKS = [None, jnp.asarray(MASK)]


def tokens(n=N, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.standard_normal((2, n, C)), jnp.float32)


def run(layer, *inputs, **given):
  shapes = jax.eval_shape(layer.init, jax.random.key(0), *inputs)
  variables = jitter(shapes)
  return jax.jit(layer.apply)(variables, *inputs, **given), wide(variables)


def examples(x, key_mask):
  for b in range(len(x)):
    keep = np.ones(N, bool) if key_mask is None else np.asarray(key_mask[b])
    yield b, np.asarray(x[b], np.float64), keep


def projected(params, y):
  return np.tensordot(y, params['out']['kernel'], 2) + params['out']['bias']


def mean(window):
  return np.mean([t for _, t in window], 0) if window else np.zeros(C)


def largest(window):
  return np.max([t for _, t in window], 0) if window else np.zeros(C)


LAYOUT = {'num_heads': H, 'grid': GRID, 'prefix': 1}


@pytest.mark.parametrize('key_mask', MASKS)
def test_funnel_attends_from_pooled_queries_to_all_tokens(key_mask):
  x = tokens()
  layer = attention.FunnelAttention(**LAYOUT)
  out, variables = run(layer, x, key_mask=key_mask)
  params = variables['params']
  assert out.grid == (2, 2)
  for b, one, keep in examples(x, key_mask):
    pooled, live = reduced(layer, one, keep, 2, 2, mean)
    y = softmax(
      heads_of(params, 'query', pooled), heads_of(params, 'key', one),
      heads_of(params, 'value', one), keep,
    )  # fmt: skip
    np.testing.assert_allclose(out.x[b], projected(params, y), atol=1e-5)
    np.testing.assert_allclose(out.skip[b], pooled, atol=1e-6)
    if key_mask is not None:
      np.testing.assert_array_equal(out.key_mask[b], live)


def test_funnel_with_stride_one_is_softmax_attention():
  x = tokens()
  layer = attention.FunnelAttention(num_heads=H, stride=1)
  plain = attention.MultiHeadDotProductAttention(H, attention.Softmax)
  out, variables = run(layer, x)
  np.testing.assert_allclose(
    out.x, plain.apply(variables, x), atol=1e-5
  )
  np.testing.assert_array_equal(out.skip, x)


@pytest.mark.parametrize('key_mask', MASKS)
@pytest.mark.parametrize('residual', [True, False])
def test_pooling_attention_pools_queries_keys_and_values(key_mask, residual):
  x = tokens()
  layer = attention.PoolingAttention(
    **LAYOUT, stride=2, key_stride=3, residual=residual
  )
  out, variables = run(layer, x, key_mask=key_mask)
  params = variables['params']
  assert out.grid == (2, 2)
  for b, one, keep in examples(x, key_mask):
    made = {}
    for name, stride in (('query', 2), ('key', 3), ('value', 3)):
      filters = params[f'pool_{name}']['kernel'][:, :, 0]
      made[name], live = reduced(
        layer, heads_of(params, name, one), keep, stride, 3,
        lambda window, filters=filters: sum(
          (filters[at] * t for at, t in window), np.zeros((H, D))
        ),
      )  # fmt: skip
      made[name] = norm(params[f'pool_{name}_ln'], made[name])
    y = softmax(made['query'], made['key'], made['value'], live)
    y = y + made['query'] if residual else y
    np.testing.assert_allclose(out.x[b], projected(params, y), atol=2e-5)
    pooled, _ = reduced(layer, one, keep, 2, 3, largest)
    np.testing.assert_allclose(out.skip[b], pooled, atol=1e-6)


def test_without_a_grid_the_sequence_is_pooled():
  out, _ = run(attention.PoolingAttention(num_heads=H, stride=4), tokens())
  assert out.x.shape == out.skip.shape == (2, 4, C)
  assert out.grid is None
  assert out.key_mask is None


@pytest.mark.parametrize('key_mask', MASKS)
def test_pma_is_a_block_from_seeds_to_a_feed_forward_of_the_set(key_mask):
  x = tokens()
  layer = attention.PoolingByAttention(H, seeds=3)
  out, variables = run(layer, x, key_mask=key_mask)
  params = variables['params']
  forward = params['feed_forward']
  for b, one, keep in examples(x, key_mask):
    made = np.maximum(one @ forward['kernel'] + forward['bias'], 0)
    np.testing.assert_allclose(
      out[b], mab(params['pool'], params['seeds'], made, keep), atol=1e-5
    )


def test_pma_does_not_see_the_order():
  layer = attention.PoolingByAttention(H, seeds=2)
  x = tokens()
  (out, _), (other, _) = run(layer, x), run(layer, x[:, ::-1])
  np.testing.assert_allclose(out, other, atol=1e-5)


# Token merging.


def keys(n=N, seed=1):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.standard_normal((2, n, H, D)), jnp.float32)


def merged_oracle(x, metric, sizes, r, prefix):
  """Bolya et al. 2023, section 3, pair by pair; tokens stay in order."""
  metric = metric / np.linalg.norm(metric, axis=-1, keepdims=True)
  edges = []
  for i in range(0, len(x), 2):
    choices = [
      (metric[i] @ metric[j], -j)
      for j in range(1, len(x), 2)
      if min(i, j) >= prefix
    ]
    if choices:
      cosine, j = max(choices)
      edges.append((cosine, i, -j))
  into = {i: j for _, i, j in sorted(edges, reverse=True)[:r]}
  found, found_sizes = [], []
  for t in range(len(x)):
    if t in into:
      continue
    group = [t, *(i for i, j in into.items() if j == t)]
    found_sizes.append(sizes[group].sum())
    found.append((x[group] * sizes[group][:, None]).sum(0) / found_sizes[-1])
  return np.stack(found), np.asarray(found_sizes)


@pytest.mark.parametrize('merge', [1, 4, 6])
def test_merging_equals_the_oracle_pair_by_pair(merge):
  x, k = tokens(), keys()
  sizes = jnp.asarray(np.random.default_rng(2).integers(1, 4, (2, N)), float)
  out = jax.jit(attention.TokenMerging(merge, 1).apply)(
    {}, x, k, sizes=sizes
  )
  assert out.x.shape == (2, N - merge, C)
  for b in range(2):
    metric = np.asarray(k[b], np.float64).mean(1)
    expected, expected_sizes = merged_oracle(
      np.asarray(x[b], np.float64), metric, np.asarray(sizes[b]), merge, 1
    )
    np.testing.assert_allclose(out.x[b], expected, atol=1e-5)
    np.testing.assert_allclose(out.sizes[b], expected_sizes)
  np.testing.assert_allclose(out.x[:, 0], x[:, 0], atol=1e-6)  # class token
  np.testing.assert_allclose(out.sizes.sum(1), sizes.sum(1))


def test_merging_nothing_is_the_identity():
  x = tokens()
  out = attention.TokenMerging(0).apply({}, x, keys())
  np.testing.assert_array_equal(out.x, x)
  np.testing.assert_array_equal(out.origin, np.arange(N)[None].repeat(2, 0))
  np.testing.assert_array_equal(out.sizes, 1)


def test_attention_to_merged_copies_equals_attention_to_the_copies():
  # Tokens in equal pairs: merging the pairs and adding log size loses nothing.
  x, k = tokens(6), keys(6)
  x, k = jnp.repeat(x, 2, axis=1), jnp.repeat(k, 2, axis=1)
  x, k = (jnp.concatenate([y[:, :1], y], axis=1) for y in (x, k))
  softmax_attention = jax.jit(attention.Softmax().apply)
  whole = softmax_attention({}, k, k, x.reshape(*x.shape[:2], H, D))
  out = jax.jit(attention.TokenMerging(6, 1).apply)({}, x, k)
  np.testing.assert_array_equal(out.sizes[0], [1, 2, 2, 2, 2, 2, 2])
  kept = jnp.concatenate([k[:, :1], k[:, 1::2]], axis=1)
  bias, key_mask = size_bias(out.sizes, 7)
  fewer = softmax_attention(
    {}, kept, kept, out.x.reshape(2, 7, H, D), bias=bias, key_mask=key_mask
  )
  back = jnp.take_along_axis(fewer, out.origin[..., None, None], axis=1)
  np.testing.assert_allclose(back, whole, atol=1e-5)


def test_masked_tokens_merge_first_and_weigh_nothing():
  x, k, mask = tokens(), keys(), jnp.asarray(MASK)
  merging = jax.jit(attention.TokenMerging(3, 1).apply)
  out = merging({}, x, k, key_mask=mask)
  noise = lambda y: jnp.where(  # noqa: E731
    mask.reshape(*mask.shape, *(1,) * (y.ndim - 2)), y, 1e3
  )
  other = merging({}, noise(x), noise(k), key_mask=mask)
  np.testing.assert_array_equal(out.x, other.x)
  np.testing.assert_array_equal(out.sizes, other.sizes)
  np.testing.assert_array_equal(out.sizes.sum(1), mask.sum(1))
  # Of the second example, places 6, 8, 10 and 12 are masked, 3 of them merge:
  # no unmasked token moved.
  np.testing.assert_array_equal(out.x[1, :6], x[1, :6])
  np.testing.assert_array_equal(out.sizes[1], [*[1] * 6, *[0] * 4])


def test_gradients_of_a_merge_are_the_shares_of_the_means():
  x, k = tokens(), keys()
  merging = attention.TokenMerging(4, 1)
  gradient = jax.jit(
    jax.grad(lambda x: merging.apply({}, x, k).x.sum())
  )(x)
  out = merging.apply({}, x, k)
  sizes = jnp.take_along_axis(out.sizes, out.origin, axis=1)
  np.testing.assert_allclose(
    gradient, np.broadcast_to(1 / sizes[..., None], x.shape), atol=1e-6
  )


@pytest.mark.parametrize('merge', [-1, 7])
def test_more_merges_than_pairs_are_refused(merge):
  with pytest.raises(ValueError, match=f'merge={merge} must be from 0 to 6'):
    attention.TokenMerging(merge, 1).apply({}, tokens(), keys())


@pytest.mark.parametrize(('n', 'prefix'), [(1, 0), (5, 2), (8, 3)])
def test_all_tokens_but_the_prefix_may_merge_in_pairs(n, prefix):
  most = (n - prefix) // 2
  merging = jax.jit(attention.TokenMerging(most, prefix).apply)
  out = merging({}, tokens(n), keys(n))
  assert out.x.shape == (2, n - most, C)
  np.testing.assert_array_equal(out.x[:, :prefix], tokens(n)[:, :prefix])
