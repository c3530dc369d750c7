"""Exact attention and the variants of its map, as the papers state them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from vit_jax import attention
from vit_jax.attention.entmax import entmax


def arrays(n, m=None, heads=2, width=4, seed=0, scale=1.0):
  rng = np.random.default_rng(seed)
  return tuple(
    jnp.asarray(scale * rng.standard_normal((2, length, heads, width)), 'f')
    for length in (n, m or n, m or n)
  )


def eye(n, heads=2):
  return jnp.broadcast_to(jnp.eye(n)[None, :, None], (2, n, heads, n))


def start(kernel, *args):
  return jax.jit(kernel.init)(jax.random.key(0), *args)


def weights_of(kernel, variables, q, k, **given):
  """The map [B H N M], by the identity probe."""
  out = jax.jit(functools.partial(kernel.apply, **given))(
    variables, q, k, eye(k.shape[1], k.shape[2])
  )
  return np.moveaxis(np.asarray(out), 2, 1)


# Chunked.


def test_chunks_give_softmaxs_gradients_with_masks_bias_and_fewer_queries():
  q, k, v = arrays(7, 11)
  rng = np.random.default_rng(1)
  given = {
    'bias': jnp.asarray(rng.standard_normal((1, 2, 7, 11)), 'f'),
    'mask': jnp.asarray(rng.random((2, 1, 7, 11)) < 0.7),
    'key_mask': jnp.asarray(rng.random((2, 11)) < 0.8),
  }

  def value_and_gradient(kernel):
    def value(q, k, v, bias):
      out = kernel.apply({}, q, k, v, **{**given, 'bias': bias})
      return jnp.sum(out**2)

    return jax.jit(jax.value_and_grad(value, (0, 1, 2, 3)))(
      q, k, v, given['bias']
    )

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
    value_and_gradient(attention.Softmax(causal=True)),
    value_and_gradient(
      attention.ATTENTIONS['chunked'](size=3, causal=True)
    ),
  )


def test_memory_of_chunks_is_linear_backwards_too():
  def bytes_at(n, kernel):
    shape = jax.ShapeDtypeStruct((1, n, 2, 16), jnp.float32)
    value = lambda *a: jnp.sum(kernel.apply({}, *a) ** 2)  # noqa: E731
    compiled = (
      jax.jit(jax.grad(value, (0, 1, 2))).lower(shape, shape, shape).compile()
    )
    return compiled.memory_analysis().temp_size_in_bytes

  chunked = attention.ATTENTIONS['chunked']()
  small, large = (bytes_at(n, chunked) for n in (1024, 4096))
  assert large < 5 * small
  assert large < bytes_at(4096, attention.Softmax()) / 20


def test_chunks_drop_weights_independently():
  q, k, _ = arrays(24)
  kernel = attention.ATTENTIONS['chunked'](size=8, dropout_rate=0.4)
  dropped = weights_of(
    kernel, {}, q, k, train=True, rngs={'dropout': jax.random.key(1)}
  )
  exact = weights_of(kernel, {}, q, k)
  gone = dropped == 0
  assert abs(gone.mean() - 0.4) < 0.04
  np.testing.assert_allclose(dropped[~gone], exact[~gone] / 0.6, rtol=1e-4)
  # No two blocks of the map drop the same pairs.
  blocks = gone.reshape(2, 2, 3, 8, 3, 8).transpose(2, 4, 0, 1, 3, 5)
  assert len({b.tobytes() for b in blocks.reshape(9, -1)}) == 9


# Pointwise weights and cosines.


def test_relu_weights_are_zero_where_the_logit_is_negative():
  q, k, _ = arrays(6)
  found = weights_of(attention.ATTENTIONS['relu'](), {}, q, k)
  logits = np.einsum('bnhd,bmhd->bhnm', q, k)
  np.testing.assert_array_equal(found > 0, logits > 0)


def test_sigmoid_weights_do_not_compete():
  # Another key changes no weight, but for the count of keys.
  q, k, _ = arrays(6)
  kernel = attention.ATTENTIONS['sigmoid']()
  found = weights_of(kernel, {}, q, k)
  other = weights_of(kernel, {}, q, k.at[:, 5].add(3.0))
  np.testing.assert_array_equal(found[..., :5], other[..., :5])
  assert (np.abs(found - other)[..., 5] > 1e-4).any()


def test_cosines_ignore_lengths_and_their_scale_ends_at_100():
  q, k, v = arrays(6)
  kernel = attention.ATTENTIONS['cosine']()
  run = jax.jit(kernel.apply)
  params = start(kernel, q, k, v)
  np.testing.assert_allclose(params['params']['log_scale'], np.log([10, 10]))
  np.testing.assert_allclose(
    run(params, q, k, v), run(params, 7 * q, 0.1 * k, v), atol=1e-5
  )
  at = lambda s: run({'params': {'log_scale': jnp.full(2, s)}}, q, k, v)  # noqa: E731
  np.testing.assert_allclose(at(np.log(100.0)), at(9.0), atol=1e-6)
  assert np.abs(at(np.log(99.0)) - at(np.log(90.0))).max() > 1e-6


# Entmax.


def threshold(z, alpha):
  """[(α-1) z - τ]₊^(1/(α-1)), τ by root finding in float64."""
  power = 1 / (alpha - 1)
  z = (alpha - 1) * z
  of = lambda t: np.maximum(z - t, 0) ** power  # noqa: E731
  root = optimize.brentq(
    lambda t: of(t).sum() - 1, z.max() - 1.0 - 1e-9, z.max(), xtol=1e-15
  )
  return of(root)


@pytest.mark.parametrize('alpha', [1.5, 2])
@pytest.mark.parametrize('scale', [0.01, 1.0, 30.0])
def test_entmax_is_the_root_with_its_gradient(alpha, scale):
  rng = np.random.default_rng(0)
  z = scale * rng.standard_normal((3, 40))
  z[1, 5] = z[1, 7] = z[1].max() + 0.1  # a tie at the top
  run = jax.jit(functools.partial(entmax, alpha=alpha))
  found = run(jnp.asarray(z, 'f'))
  expected = np.stack([threshold(row, alpha) for row in z])
  np.testing.assert_allclose(found, expected, atol=2e-6 * max(1, scale))
  jacobian = jax.jit(jax.jacrev(run))(jnp.asarray(z, 'f'))
  for i, p in enumerate(expected):
    # Peters et al. 2019, proposition 2: diag(s) - s sᵀ / Σ s, s = p^(2-α).
    s = np.where(p > 0, p ** (2 - alpha), 0)
    exact = np.diag(s) - np.outer(s, s) / s.sum()
    np.testing.assert_allclose(
      jacobian[i, :, i], exact, atol=1e-4 * max(1, scale)
    )


def test_entmax_has_exact_zeros_and_fewer_as_alpha_falls():
  q, k, _ = arrays(16, scale=2.0)
  kernel = attention.ATTENTIONS['entmax']
  zeros = [
    (weights_of(kernel(alpha=alpha), {}, q, k) == 0).mean()
    for alpha in (1.5, 2)
  ]
  assert 0.1 < zeros[0] < zeros[1]


def test_long_rows_of_entmax_sum_to_one():
  z = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4096)), 'f')
  for alpha in (1.5, 2):
    found = jax.jit(functools.partial(entmax, alpha=alpha))(0.1 * z)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)


# Heads.


@pytest.mark.parametrize('spec', ['talking_heads', "reattention(norm='none')"])
def test_mixing_heads_starts_as_softmax(spec):
  q, k, v = arrays(6)
  kernel = attention.build(spec)
  np.testing.assert_allclose(
    jax.jit(kernel.apply)(start(kernel, q, k, v), q, k, v),
    attention.Softmax().apply({}, q, k, v),
    atol=1e-6,
  )


def test_a_talking_head_attends_where_another_one_looks():
  q, k, v = arrays(6)
  kernel = attention.ATTENTIONS['talking_heads']()
  params = start(kernel, q, k, v)['params']
  swap = jnp.asarray([[0.0, 1.0], [1.0, 0.0]])
  # Head g gets the sum over h of map_h P[h, g].
  params = {**params, 'logits_kernel': swap}
  found = weights_of(kernel, {'params': params}, q, k)
  exact = weights_of(attention.Softmax(), {}, q, k)
  np.testing.assert_allclose(found, exact[:, ::-1], atol=1e-6)


def test_reattention_normalises_each_heads_map_over_kept_keys_in_training():
  q, k, _ = arrays(6)
  kernel = attention.ATTENTIONS['reattention']()
  variables = start(kernel, q, k, eye(6))
  kept = jnp.asarray([[True] * 6, [True] * 4 + [False] * 2])
  out, changed = kernel.apply(
    variables, q, k, eye(6), key_mask=kept, train=True, mutable=['batch_stats']
  )
  found = np.moveaxis(np.asarray(out), 2, 1)
  assert not found[1, :, :, 4:].any()
  raw = weights_of(attention.Softmax(), {}, q, k, key_mask=kept)
  for h in range(2):
    seen = np.concatenate([raw[0, h].ravel(), raw[1, h, :, :4].ravel()])
    mean, variance = seen.mean(), seen.var()
    np.testing.assert_allclose(
      found[0, h], (raw[0, h] - mean) / np.sqrt(variance + 1e-5), atol=1e-4
    )
    norm = changed['batch_stats']['norm']
    np.testing.assert_allclose(norm['mean'][h], 0.1 * mean, rtol=1e-4)
    np.testing.assert_allclose(
      norm['var'][h], 0.9 + 0.1 * variance, rtol=1e-4
    )


# Differential.


def test_rows_of_the_difference_sum_to_one_minus_lambda():
  q, k, v = arrays(6)
  kernel = attention.ATTENTIONS['differential'](normalize=False, initial=0.3)
  params = start(kernel, q, k, v)['params']
  first, second = (
    np.exp(params[f'lambda_q{i}'] @ params[f'lambda_k{i}']) for i in (1, 2)
  )
  found = weights_of(kernel, {'params': params}, q, k)
  np.testing.assert_allclose(
    found.sum(-1), 1 - (first - second + 0.3), atol=1e-5
  )
  assert abs(first - second) < 0.1  # λ starts near λ₀
  assert (found < 0).any()


def test_the_norm_gives_every_head_the_scale_one_minus_lambda_0():
  q, k, v = arrays(6, width=16)
  kernel = attention.ATTENTIONS['differential'](initial=0.6)
  out = jax.jit(kernel.apply)(start(kernel, q, k, v), q, k, v)
  np.testing.assert_allclose(
    np.sqrt((out**2).mean(-1)), 0.4, rtol=1e-2
  )


# Positions.


def test_open_gates_start_as_the_shifts_of_a_convolution():
  rows, columns, prefix, heads = 4, 5, 1, 9
  n = prefix + rows * columns
  q, k, v = arrays(n, heads=heads)
  kernel = attention.ATTENTIONS['gpsa'](
    grid=(rows, columns), prefix=prefix, strength=50.0, gate=50.0
  )
  variables = start(kernel, q, k, v)
  found = weights_of(kernel, variables, q, k)[0]
  # The map of head h is the matrix of a 3×3 convolution with one weight.
  for h in range(heads):
    dy, dx = h // 3 - 1, h % 3 - 1
    for r in range(1, rows - 1):
      for c in range(1, columns - 1):
        expected = np.zeros(n)
        expected[prefix + (r + dy) * columns + c + dx] = 1
        at = prefix + r * columns + c
        np.testing.assert_allclose(found[h, at], expected, atol=1e-5)
  # The prefix attends by content.
  exact = weights_of(attention.Softmax(), {}, q, k)[0]
  np.testing.assert_allclose(found[:, 0], exact[:, 0], atol=1e-5)


def test_a_gate_mixes_content_and_position():
  q, k, v = arrays(9)
  kernel = attention.ATTENTIONS['gpsa'](grid=(3, 3))
  params = start(kernel, q, k, v)['params']
  np.testing.assert_array_equal(params['gate'], 1.0)
  at = lambda gate: weights_of(  # noqa: E731
    kernel, {'params': {**params, 'gate': jnp.full(2, gate)}}, q, k
  )
  share = 1 / (1 + np.exp(-0.7))
  np.testing.assert_allclose(
    at(0.7), (1 - share) * at(-99.0) + share * at(99.0), atol=1e-5
  )


def test_a_span_ends_at_its_ramp_and_learns_from_its_first_value():
  q, k, v = arrays(12)
  kernel = attention.ATTENTIONS['adaptive_span'](longest=10, ramp=2.5)
  variables = {'params': {'span': jnp.asarray([0.0, 0.3])}}
  found = weights_of(kernel, variables, q, k)
  distance = abs(np.arange(12)[:, None] - np.arange(12))
  for h, reach in enumerate((2.5, 5.5)):
    np.testing.assert_array_equal(found[0, h] > 0, distance < reach)
  value = lambda p: jnp.sum(kernel.apply(p, q, k, v) ** 2)  # noqa: E731
  gradient = jax.jit(jax.grad(value))(start(kernel, q, k, v))
  assert (np.abs(gradient['params']['span']) > 1e-5).all()


def test_what_is_beyond_the_span_may_be_as_large_as_it_likes():
  q, k, v = arrays(12)
  kernel = attention.ATTENTIONS['adaptive_span'](longest=10, ramp=2.5)
  variables = {'params': {'span': jnp.asarray([0.0, 0.3])}}
  value = lambda q, k, v: jnp.sum(kernel.apply(variables, q, k, v) ** 2)  # noqa: E731
  run = jax.jit(jax.value_and_grad(value, (0, 1, 2)))
  far = np.array(k)
  far[:, 11] = 400 * np.array(q)[:, 0]  # seen by none of the first six
  query = np.array(q)
  query[:, 6:] = 0
  near, grads = run(query, jnp.asarray(far), v)
  exact, _ = run(query, jnp.asarray(far).at[:, 11].set(0), v)
  np.testing.assert_allclose(near, exact, rtol=1e-6)
  for gradient in grads:
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
  ('spec', 'width', 'message'),
  [
    ('chunked(size=0)', 4, 'size=0 is not a positive'),
    ('entmax(alpha=1.2)', 4, r"alpha=1.5 and alpha=2 .*1\.2; .* 'softmax'"),
    ("reattention(norm='layer')", 4, "norm='layer'; choices: batch, none"),
    ('differential', 5, 'halves; its width 5 is odd'),
    ('reattention(causal=True)', 4, "'reattention' has no causal form"),
  ],
)
def test_a_wrong_option_is_an_error_with_the_choices(spec, width, message):
  q, k, v = arrays(3, width=width)
  with pytest.raises(ValueError, match=message):
    attention.build(spec).init(jax.random.key(0), q, k, v)
