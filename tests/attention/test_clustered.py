"""Clustered attention: what the paper says of it beyond the contract."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import contract
from attention.oracles.facts import softmax
from attention.oracles.learned import clustered_oracle
from vit_jax.attention.clustered import Clustered, ImprovedClustered

N, M = contract.N, 9


def maps(kernel, q, k):
  """The map of the values, [B N H M]."""
  eye = jnp.eye(k.shape[1])[None, :, None]
  eye = jnp.broadcast_to(eye, (*k.shape[:3], k.shape[1]))
  return np.asarray(jax.jit(kernel.apply)({}, q, k, eye))


def test_equal_queries_share_a_row_of_the_map():
  q, k, _ = contract.arrays(12)
  q = jnp.tile(q[:, :3], (1, 4, 1, 1))
  found = maps(Clustered(clusters=3), q, k)
  np.testing.assert_allclose(
    found[:, 3:], np.tile(found[:, :3], (1, 3, 1, 1)), atol=1e-6
  )
  for b in range(contract.B):  # and each cluster is one of the three queries
    np.testing.assert_allclose(
      found[b], softmax(q[b], k[b], np.eye(12)[:, None].repeat(2, 1)), atol=1e-5
    )


def test_improved_is_at_least_as_close_to_softmax_row_by_row():
  q, k, _ = contract.arrays(n=N, m=M, seed=3)
  eye = np.eye(M)[:, None].repeat(contract.H, 1)
  exact = np.stack([softmax(q[b], k[b], eye) for b in range(contract.B)])
  error = lambda kernel: np.abs(maps(kernel, q, k) - exact).sum(-1)  # noqa: E731
  before, after = Clustered(clusters=2), ImprovedClustered(clusters=2, topk=3)
  assert (error(after) <= error(before) + 1e-5).all()
  assert error(after).mean() < 0.9 * error(before).mean()


@pytest.mark.parametrize('masked', [False, True])
def test_fewer_keys_than_queries_equal_the_oracle(masked):
  q, k, v = contract.arrays(N, M)
  mask = np.arange(M)[None] < np.array([[M], [4]]) if masked else None
  arrays = {'key_mask': jnp.asarray(mask)} if masked else {}
  kernel = ImprovedClustered(clusters=3, topk=2)
  found = jax.jit(kernel.apply)({}, q, k, v, **arrays)
  for b in range(contract.B):
    one = (np.asarray(x[b], np.float64) for x in (q, k, v))
    given = {'key_mask': mask[b]} if masked else {}
    np.testing.assert_allclose(
      found[b], clustered_oracle(kernel, {}, *one, **given), atol=1e-5
    )


def test_training_draws_other_planes_each_step():
  run = jax.jit(
    lambda seed: Clustered(clusters=3).apply(
      {}, *contract.arrays(), train=True, rngs={'hash': jax.random.key(seed)}
    )
  )
  np.testing.assert_array_equal(run(0), run(0))
  assert np.abs(run(0) - run(1)).max() > 1e-3


@pytest.mark.parametrize('name', ['clusters', 'bits', 'iterations', 'topk'])
def test_an_option_below_1_is_an_error(name):
  kernel = ImprovedClustered(**{name: 0})
  with pytest.raises(ValueError, match=f'{name}=0 must be at least 1'):
    jax.eval_shape(functools.partial(kernel.apply, {}), *contract.arrays())
