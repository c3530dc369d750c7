"""Formulations chosen for speed equal the plain ones, and so do gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import attention, layers

B, N, M, H, D, E = 2, 5, 7, 3, 8, 6


def plain_attention(q, k, v, bias, keep):
  """Normalised weights first, then their product with the values."""
  logits = jnp.einsum('bnhd,bmhd->bhnm', q, k) / math.sqrt(D) + bias
  weights = jax.nn.softmax(jnp.where(keep, logits, -1e30), axis=-1)
  weights = jnp.where(keep, weights, 0.0)
  return jnp.einsum('bhnm,bmhe->bnhe', weights, v)


def arrays(scale):
  keys = jax.random.split(jax.random.key(0), 5)
  q = scale * jax.random.normal(keys[0], (B, N, H, D))
  k = scale * jax.random.normal(keys[1], (B, M, H, D))
  v = jax.random.normal(keys[2], (B, M, H, E))
  bias = jax.random.normal(keys[3], (B, H, N, M))
  keep = jax.random.bernoulli(keys[4], 0.7, (B, H, N, M))
  return q, k, v, bias, keep.at[0, 0, 0].set(False)


@pytest.mark.parametrize('scale', [1.0, 30.0])  # logits of 30² saturate
@pytest.mark.parametrize('masked', [False, True])
def test_attention_that_divides_last_equals_plain_softmax(scale, masked):
  q, k, v, bias, keep = arrays(scale)
  keep = keep if masked else jnp.ones_like(keep)
  kernel = attention.build('softmax(implementation="xla")')

  def ours(q, k, v, bias):
    return kernel.apply(
      {}, q, k, v, bias=bias, mask=keep if masked else None
    )

  def plain(q, k, v, bias):
    return plain_attention(q, k, v, bias, keep)

  with jax.default_matmul_precision('highest'):
    got, ours_back = jax.vjp(ours, q, k, v, bias)
    want, plain_back = jax.vjp(plain, q, k, v, bias)
    np.testing.assert_allclose(got, want, atol=1e-6)
    cotangent = jax.random.normal(jax.random.key(1), want.shape)
    for a, b in zip(ours_back(cotangent), plain_back(cotangent), strict=True):
      # Relative to gradients that grow with the scale of q and k.
      np.testing.assert_allclose(a, b, atol=2e-6 * scale)


def test_attention_dropout_keeps_the_expectation():
  q, k, v, _, _ = arrays(1.0)
  kernel = attention.build('softmax', dropout_rate=0.3)

  def draw(key):
    return kernel.apply({}, q, k, v, train=True, rngs={'dropout': key})

  mean = jax.vmap(draw)(jax.random.split(jax.random.key(2), 4000)).mean(0)
  # 4,000 draws of values of order 1: a standard error of about 0.01.
  np.testing.assert_allclose(
    mean, kernel.apply({}, q, k, v, train=False), atol=0.06
  )


def test_exact_gelu_is_x_times_the_normal_distribution():
  x = np.linspace(-12.0, 12.0, 4801)
  phi = np.array([0.5 * math.erfc(-a / math.sqrt(2.0)) for a in x])
  density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
  found = layers.exact_gelu(jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(found, x * phi, atol=1e-6)
  slope = jax.vmap(jax.grad(layers.exact_gelu))(jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(slope, phi + x * density, atol=1e-6)


def test_exact_gelu_in_bfloat16_is_float32_rounded_once():
  x = jnp.linspace(-6.0, 6.0, 801).astype(jnp.bfloat16)
  found = layers.exact_gelu(x)
  assert found.dtype == jnp.bfloat16
  wide = layers.exact_gelu(x.astype(jnp.float32))
  np.testing.assert_array_equal(found, wide.astype(jnp.bfloat16))
