"""Metrics: parts merge into the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import metrics

RNG = np.random.default_rng(0)
VALUES = RNG.standard_normal(10).astype(np.float32)
WEIGHTS = RNG.uniform(0.1, 2.0, 10).astype(np.float32)


def mean_of(values, weights):
  return metrics.Mean.of(jnp.asarray(values), jnp.asarray(weights))


def test_a_mean_is_numpys_weighted_average():
  found = mean_of(VALUES, WEIGHTS).value()
  assert found == pytest.approx(np.average(VALUES, weights=WEIGHTS), rel=1e-6)


@pytest.mark.parametrize('cut', [0, 1, 4, 10])
def test_parts_of_a_mean_merge_into_the_whole(cut):
  parts = [mean_of(VALUES[s], WEIGHTS[s]) for s in np.s_[:cut, cut:]]
  merged = parts[0].merge(parts[1])
  assert merged.value() == pytest.approx(
    mean_of(VALUES, WEIGHTS).value(), rel=1e-6
  )


def test_weight_zero_leaves_an_example_out_even_if_it_is_not_a_number():
  values, weights = VALUES.copy(), WEIGHTS.copy()
  values[3], weights[3] = np.nan, 0.0
  expected = np.average(np.delete(values, 3), weights=np.delete(weights, 3))
  assert mean_of(values, weights).value() == pytest.approx(expected, rel=1e-6)


def test_the_mean_of_nothing_is_not_a_number():
  assert np.isnan(mean_of(VALUES, np.zeros(10, np.float32)).value())


def test_booleans_and_halves_are_summed_in_float32():
  ones = np.ones(3000, np.float32)
  for dtype in (bool, jnp.bfloat16):
    found = mean_of(ones.astype(dtype), ones)
    assert found.total.dtype == jnp.float32
    assert float(found.total) == 3000


def test_a_mean_passes_through_jit():
  found = jax.jit(metrics.Mean.of)(jnp.asarray(VALUES), jnp.asarray(WEIGHTS))
  assert found.value() == pytest.approx(
    mean_of(VALUES, WEIGHTS).value(), rel=1e-6
  )


def test_collect_keeps_everything_in_order():
  def last_of_sorted(scores, labels):
    return float(labels[np.argsort(scores)][-1])

  left, right = (
    metrics.Collect(
      {'scores': jnp.asarray(s), 'labels': jnp.asarray(x)}, last_of_sorted
    )
    for s, x in (([0.1, 0.9], [1, 2]), ([0.5, 0.3], [3, 4]))
  )
  merged = left.merge(right)
  np.testing.assert_array_equal(
    merged.arrays['scores'], np.array([0.1, 0.9, 0.5, 0.3], np.float32)
  )
  np.testing.assert_array_equal(merged.arrays['labels'], [1, 2, 3, 4])
  assert merged.value() == right.merge(left).value() == 2.0
  assert right.value() == 3.0


def test_dicts_of_metrics_merge_key_by_key():
  parts = [
    {'a': mean_of(VALUES[s], WEIGHTS[s]), 'b': mean_of([1.0], [1.0])}
    for s in np.s_[:4, 4:]
  ]
  merged = None
  for part in parts:
    merged = metrics.merge(merged, part)
  found = metrics.values(merged)
  assert set(found) == {'a', 'b'}
  assert found['a'] == pytest.approx(mean_of(VALUES, WEIGHTS).value(), rel=1e-6)
  assert float(merged['b'].weight) == 2


def test_long_passes_add_up_in_float64_on_the_host():
  # In float32, 2²⁴ + 1 = 2²⁴: the last examples would not count.
  big = metrics.to_host({'x': metrics.Mean(jnp.float32(0), jnp.float32(2**24))})
  one = metrics.to_host({'x': metrics.Mean(jnp.float32(1), jnp.float32(1))})
  for _ in range(3):
    big = metrics.merge(big, one)
  assert float(big['x'].weight) == 2**24 + 3
  assert big['x'].value() == pytest.approx(3 / (2**24 + 3), rel=1e-12)


def test_on_the_host_integers_stay_integers():
  found = metrics.to_host(
    {'x': metrics.Collect({'labels': jnp.arange(3)}, len)}
  )
  assert found['x'].arrays['labels'].dtype == np.int32
