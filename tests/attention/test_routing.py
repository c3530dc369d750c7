"""Routing Transformer: what the paper says of it beyond the contract."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import contract
from attention.oracles.learned import layer_norm
from vit_jax.attention.routing import Routing


def applied(kernel, centroids, *inputs, **options):
  state = {'attention_state': {'centroids': jnp.asarray(centroids)}}
  return jax.jit(functools.partial(kernel.apply, **options))(state, *inputs)


def moved(centroids, *inputs, train=True, **arrays):
  """The centroids after one call in training."""
  run = functools.partial(
    Routing(clusters=3, decay=0.9).apply, train=train,
    mutable=['attention_state'],
  )  # fmt: skip
  state = {'attention_state': {'centroids': jnp.asarray(centroids)}}
  _, changed = jax.jit(run)(state, *inputs, **arrays)
  return changed['attention_state']['centroids']


CENTROIDS = np.random.default_rng(1).standard_normal((2, 3, 4), np.float32)


@pytest.mark.parametrize('masked', [False, True])
def test_training_moves_the_centroids_to_the_mean_of_their_tokens(masked):
  q, k, v = contract.arrays()
  mask = contract.MASK if masked else np.ones_like(contract.MASK)
  arrays = {'key_mask': jnp.asarray(mask)} if masked else {}
  found = moved(CENTROIDS, q, k, v, **arrays)
  for h in range(2):
    unit = CENTROIDS[h] / np.linalg.norm(CENTROIDS[h], axis=-1, keepdims=True)
    means = []
    for x in (q, k):
      tokens = layer_norm(np.asarray(x, np.float64))[:, :, h][mask]
      nearest = np.argmax(tokens @ unit.T, axis=-1)
      means.append([
        tokens[nearest == c].mean(0) if (nearest == c).any()
        else CENTROIDS[h, c] for c in range(3)
      ])  # fmt: skip
    expected = 0.9 * CENTROIDS[h] + 0.1 * np.mean(means, axis=0)
    np.testing.assert_allclose(found[h], expected, atol=1e-5)


def test_a_centroid_without_tokens_stays():
  q, _, v = contract.arrays()
  q = jnp.broadcast_to(jnp.asarray([1.0, 0, 0, -1]), q.shape)
  rows = [[3.0, 0, 0, -3], [-1, 0, 0, 0], [0, -1, 0, 0]]
  centroids = np.tile(rows, (2, 1, 1))
  found = moved(centroids, q, q, v)
  np.testing.assert_array_equal(found[:, 1:], centroids[:, 1:])
  assert np.abs(found[:, 0] - centroids[:, 0]).max() > 1e-3


def test_evaluation_leaves_the_centroids():
  np.testing.assert_array_equal(
    moved(CENTROIDS, *contract.arrays(), train=False), CENTROIDS
  )


def test_queries_that_no_centroid_takes_get_zeros():
  out = applied(Routing(clusters=3, window=2), CENTROIDS, *contract.arrays())
  taken = np.abs(out).max(-1) > 0
  assert 0 < taken.sum(1).max() <= 3 * 2
  assert not taken.all()


def test_the_causal_form_leaves_no_token_out():
  kernel = Routing(clusters=3, window=2, causal=True)
  q, k, _ = contract.arrays()
  out = applied(kernel, CENTROIDS, q, k, jnp.ones_like(k))
  np.testing.assert_allclose(out, 1, atol=1e-6)


def test_a_step_keeps_no_more_than_the_windows():
  kernel = Routing(clusters=3, window=2, causal=True)
  state = kernel.init_state(1, 1000, 2, 4, jnp.float32)
  assert state['k'].shape == (1, 2, 3, 2, 4)


def test_only_the_causal_form_decodes():
  with pytest.raises(ValueError, match='only with causal=True'):
    Routing().init_state(1, 4, 1, 4, jnp.float32)


@pytest.mark.parametrize('options', [{'clusters': 0}, {'window': 0}])
def test_clusters_and_windows_are_not_empty(options):
  with pytest.raises(ValueError, match='must be at least 1'):
    jax.eval_shape(
      Routing(**options).init, jax.random.key(0), *contract.arrays()
    )
