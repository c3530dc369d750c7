"""Exact softmax attention: the oracle of every other one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from vit_jax.attention import Softmax


def arrays(n, m, seed=0, scale=1.0, width=4, dtype=jnp.float32):
  rng = np.random.default_rng(seed)
  return tuple(
    jnp.asarray(scale * rng.standard_normal((2, length, 2, width)), dtype)
    for length in (n, m, m)
  )


def oracle(q, k, v, bias=0.0, keep=True):
  """In float64."""
  q, k, v = (np.asarray(x, np.float64).swapaxes(1, 2) for x in (q, k, v))
  logits = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1]) + bias
  logits = np.where(keep, logits, -np.inf)
  return (special.softmax(logits, axis=-1) @ v).swapaxes(1, 2)


def run(kernel, *args, train=False, **kwargs):
  call = functools.partial(kernel.apply, {}, train=train)
  return jax.jit(call)(*args, **kwargs)


def test_bias_and_both_masks_combine_as_in_float64():
  q, k, v = arrays(5, 7)
  rng = np.random.default_rng(1)
  bias = rng.standard_normal((1, 2, 5, 7)).astype(np.float32)
  mask = rng.random((2, 1, 5, 7)) < 0.7
  key_mask = rng.random((2, 7)) < 0.8
  mask[..., 2], key_mask[:, 2] = True, True  # every query keeps a key
  out = run(
    Softmax(), q, k, v, bias=jnp.asarray(bias), mask=jnp.asarray(mask),
    key_mask=jnp.asarray(key_mask),
  )  # fmt: skip
  keep = mask & key_mask[:, None, None]
  np.testing.assert_allclose(out, oracle(q, k, v, bias, keep), atol=1e-6)


def test_masked_keys_lose_to_any_logit():
  # Softmax does not change with a shift of all logits; a mask of -1e4, or one
  # that is added, would let the masked keys in.
  q, k, v = arrays(5, 7)
  mask = jnp.asarray(np.arange(7) % 3 > 0)[None].repeat(2, axis=0)
  shift = jnp.full((1, 1, 5, 7), -3e5)
  np.testing.assert_allclose(
    run(Softmax(), q, k, v, key_mask=mask, bias=shift),
    run(Softmax(), q, k, v, key_mask=mask),
    atol=0.1,  # at 3e5, float32 rounds logits to 1/32
  )


@pytest.mark.parametrize(('n', 'm'), [(6, 6), (4, 7), (7, 4)])
def test_causal_queries_see_exactly_the_keys_of_the_past(n, m):
  # Aligned bottom-right: the last query sees the last key.
  kernel = Softmax(causal=True)
  past = np.arange(m)[None] <= np.arange(n)[:, None] + m - n
  qkv = arrays(n, m)

  @jax.jit
  def jacobian(q, k, v):
    of = jax.jacobian(lambda *a: kernel.apply({}, *a), argnums=(1, 2))
    return of(q, k, v)

  by_key, by_value = (
    np.abs(x).max((0, 2, 3, 4, 6, 7)) for x in jacobian(*qkv)
  )
  np.testing.assert_array_equal(by_value > 0, past)
  # A query with one key gives it weight 1 whatever the key is.
  several = past & (past.sum(1) > 1)[:, None]
  np.testing.assert_array_equal(by_key > 0, several)
  if n <= m:
    out = kernel.apply({}, *qkv)
    np.testing.assert_allclose(out, oracle(*qkv, keep=past), atol=1e-6)


def test_dropout_is_unbiased_and_in_training_only():
  kernel = Softmax(dropout_rate=0.4)
  q, k, v = arrays(3, 5)
  exact = run(Softmax(), q, k, v)
  np.testing.assert_array_equal(run(kernel, q, k, v), exact)
  draws = jax.jit(
    jax.vmap(
      lambda key: kernel.apply(
        {}, q, k, v, train=True, rngs={'dropout': key}
      )
    )
  )(jax.random.split(jax.random.key(0), 4000))
  error = draws.std(0) / np.sqrt(4000)
  assert error.min() > 1e-4
  assert np.abs((draws.mean(0) - exact) / error).max() < 5


def test_dropout_drops_weights_and_not_outputs():
  kernel = Softmax(dropout_rate=0.4)
  q, k, _ = arrays(50, 40)
  eye = jnp.broadcast_to(jnp.eye(40)[None, :, None], (2, 40, 2, 40))
  weights = run(
    kernel, q, k, eye, train=True, rngs={'dropout': jax.random.key(1)}
  )
  exact = run(Softmax(), q, k, eye)
  dropped = np.asarray(weights == 0)
  assert abs(dropped.mean() - 0.4) < 0.02
  np.testing.assert_allclose(
    weights[~dropped], exact[~dropped] / 0.6, rtol=1e-5
  )


def test_bfloat16_inputs_are_attended_to_in_float32():
  # Logits of up to a hundred, which bfloat16 rounds by a half: computing them
  # in bfloat16 misses by more than 0.3.
  q, k, v = arrays(64, 64, scale=4.0, width=32, dtype=jnp.bfloat16)
  v = v / 4
  out = run(Softmax(), q, k, v)
  assert out.dtype == jnp.bfloat16
  # The scaled query, the weights and the result are each rounded to 8 bits.
  np.testing.assert_allclose(
    out.astype(jnp.float32), oracle(q, k, v), atol=0.06
  )


def test_large_logits_neither_overflow_nor_lose_gradients():
  q, k, v = arrays(4, 4, scale=1e4)
  value = lambda *a: jnp.sum(Softmax().apply({}, *a))  # noqa: E731
  out, gradients = jax.jit(jax.value_and_grad(value, (0, 1, 2)))(q, k, v)
  assert np.isfinite(out)
  for gradient in gradients:
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
  ('implementation', 'message'),
  [
    ('flash', r"'flash'; choices: \('auto', 'xla', 'cudnn'\)"),
    ('cudnn', 'needs a GPU, bfloat16 .*got cpu, float32, widths 4 and 4'),
  ],
)
def test_an_implementation_that_cannot_run_is_an_error(implementation, message):
  with pytest.raises(ValueError, match=message):
    Softmax(implementation=implementation).apply({}, *arrays(3, 3))
