"""Decoding step by step: exact, and as cheap as it says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import attention, flops

B, N, H, D = 2, 9, 2, 4
CACHED = (
  'softmax', 'chunked', 'sigmoid', 'relu', 'cosine', 'entmax',
  'talking_heads', 'differential',
)  # fmt: skip


def arrays(n=N, seed=0, dtype=jnp.float32):
  rng = np.random.default_rng(seed)
  return tuple(
    jnp.asarray(rng.standard_normal((B, n, H, D)), dtype) for _ in range(3)
  )


def build(name, **options):
  return attention.ATTENTIONS[name](causal=True, **options)


def jittered(kernel, *args):
  shapes = jax.eval_shape(kernel.init, jax.random.key(0), *args)
  rng = np.random.default_rng(5)
  return jax.tree.map(
    lambda s: jnp.asarray(0.5 * rng.standard_normal(s.shape), s.dtype), shapes
  )


def decode(kernel, variables, length, q, k, v):
  """All rows, one by one, from a state for `length` steps."""
  state = kernel.apply(
    variables, B, length, H, D, q.dtype, method='init_state'
  )

  def one(state, row):
    row = (x[:, None] for x in row)
    out, state = kernel.apply(variables, state, *row, method='step')
    return state, out[:, 0]

  rows = tuple(jnp.moveaxis(x, 1, 0) for x in (q, k, v))
  state, out = jax.lax.scan(one, state, rows)
  return jnp.moveaxis(out, 0, 1), state


@pytest.mark.parametrize('name', CACHED)
def test_a_cache_longer_than_the_sequence_changes_nothing(name):
  kernel, (q, k, v) = build(name), arrays()
  variables = jittered(kernel, q, k, v)
  run = jax.jit(functools.partial(decode, kernel, variables, N + 4))
  out, state = run(q, k, v)
  np.testing.assert_allclose(
    out, kernel.apply(variables, q, k, v), atol=2e-5
  )
  assert set(state) == {'step', 'k', 'v'}
  assert int(state['step']) == N
  np.testing.assert_array_equal(state['k'][:, :N], k)


@pytest.mark.parametrize('name', CACHED)
def test_a_cached_step_costs_one_row(name):
  kernel = build(name)

  def cost(length):
    q, k, v = arrays(1)
    variables = jittered(kernel, q, k, v)
    state = jax.eval_shape(
      lambda: kernel.apply(
        variables, B, length, H, D, jnp.float32, method='init_state'
      )
    )
    return flops.count(
      functools.partial(kernel.apply, method='step'), variables, state, q, k, v
    )

  # 4 D a head and key; talking heads mix 2 H more.
  extra = H if name == 'talking_heads' else 0
  fixed = 4 * (D // 2) if name == 'differential' else 0  # λ, of the layer
  for length in (64, 256):
    assert cost(length) == 4 * B * length * H * (D + extra) + fixed


def test_the_default_runs_any_causal_kernel_on_its_history():
  kernel, (q, k, v) = build('adaptive_span', longest=3, ramp=2), arrays()
  variables = {'params': {'span': jnp.asarray([0.2, 0.6])}}
  run = jax.jit(functools.partial(decode, kernel, variables, N))
  np.testing.assert_allclose(
    run(q, k, v)[0], kernel.apply(variables, q, k, v), atol=1e-5
  )


def test_the_cache_is_of_the_dtype_that_it_was_asked_for():
  kernel, qkv = build('softmax'), arrays(dtype=jnp.bfloat16)
  out, state = jax.jit(functools.partial(decode, kernel, {}, N))(*qkv)
  assert out.dtype == state['k'].dtype == jnp.bfloat16
  np.testing.assert_allclose(
    out.astype(jnp.float32),
    kernel.apply({}, *qkv).astype(jnp.float32),
    atol=0.03,
  )


@pytest.mark.parametrize('name', ['softmax', 'adaptive_span', 'gpsa'])
def test_a_kernel_that_is_not_causal_does_not_decode(name):
  kernel = attention.ATTENTIONS[name]()
  with pytest.raises(ValueError, match='only with causal=True; .*Softmax'):
    kernel.apply({}, B, N, H, D, jnp.float32, method='init_state')


def test_a_gate_of_the_layers_input_does_not_decode_without_it():
  with pytest.raises(ValueError, match="Gated reads the layer's input"):
    build('gated').apply({}, B, N, H, D, jnp.float32, method='init_state')
