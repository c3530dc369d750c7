"""Reformer: what the paper says of it beyond the contract."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import contract
from attention.oracles.learned import dense
from attention.oracles.learned import out as projected
from vit_jax.attention.reformer import Reformer


def built(spec):
  return contract.Built('reformer', spec, grid=None, prefix=0)


def test_a_token_alone_in_its_bucket_attends_to_itself():
  case = built('reformer(buckets=64, chunk=2, rounds=1)')
  (x,) = case.inputs(2)
  params = case.variables(x)['params']
  x = jnp.stack([x[:, 0], -x[:, 0]], 1)  # opposite, so in opposite buckets
  params['query']['bias'] = jnp.zeros_like(params['query']['bias'])
  out = case.run(x)
  params = contract.wide(params)
  for b in range(contract.B):
    values = dense(np.asarray(x[b]), params['value'])
    np.testing.assert_allclose(
      out[b], projected(values, params['out']), atol=1e-5
    )


def test_there_is_no_key_projection():
  case = built('reformer')
  assert set(case.variables(*case.inputs())['params']) == {
    'query', 'value', 'out'
  }  # fmt: skip


def test_training_draws_other_rotations_each_step():
  case = built('reformer(buckets=4, chunk=2, rounds=1)')
  (x,) = case.inputs()
  run = jax.jit(
    lambda x, seed: case.kernel.apply(
      case.variables(x), x, train=True, rngs={'hash': jax.random.key(seed)}
    )
  )
  np.testing.assert_array_equal(run(x, 0), run(x, 0))
  assert np.abs(run(x, 0) - run(x, 1)).max() > 1e-3


def test_masked_queries_get_no_value():
  case = built('reformer(buckets=4, chunk=3, rounds=2)')
  (x,) = case.inputs()
  found = case.run(x, key_mask=jnp.asarray(contract.MASK))
  bias = case.variables(x)['params']['out']['bias']
  np.testing.assert_allclose(
    found[~contract.MASK], np.broadcast_to(bias, found[~contract.MASK].shape)
  )


@pytest.mark.parametrize('n', [1, 64, 65, 197, 3000, 65536])
def test_the_default_buckets_hold_half_a_chunk_and_hash_cheaply(n):
  factors = Reformer()._factors(n)
  wanted = 2 * math.ceil(n / 64) if n > 64 else 1
  assert wanted <= math.prod(factors) <= 1.5 * wanted
  assert sum(factors) <= max(64, 5 * math.sqrt(wanted))


@pytest.mark.parametrize('buckets', [3, 0, (4, 5)])
def test_an_odd_number_of_buckets_is_an_error(buckets):
  with pytest.raises(ValueError, match=r'buckets=.*choose even factors, or 1'):
    jax.eval_shape(
      Reformer(buckets=buckets).init, jax.random.key(0), jnp.ones((1, 5, 4))
    )


def test_normalised_queries_are_refused():
  with pytest.raises(ValueError, match='Reformer has no normalize_qk'):
    jax.eval_shape(
      Reformer(normalize_qk=True).init, jax.random.key(0), jnp.ones((1, 5, 4))
    )
