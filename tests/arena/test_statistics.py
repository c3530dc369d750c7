"""The statistics of the arena, against SciPy and cases made by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from vit_jax.arena import statistics

VALUES = [0.91, 0.953, 0.887, 0.94]


def test_mean_and_standard_error_are_scipys():
  assert statistics.mean(VALUES) == pytest.approx(np.mean(VALUES), abs=1e-15)
  assert statistics.standard_error(VALUES) == pytest.approx(stats.sem(VALUES))
  assert math.isnan(statistics.standard_error([0.5]))


def test_bootstrap_is_the_percentile_interval_of_scipy():
  found = statistics.bootstrap(VALUES, samples=200_000)
  expected = stats.bootstrap(
    (VALUES,), np.mean, method='percentile', n_resamples=200_000,
    rng=np.random.default_rng(5),
  ).confidence_interval  # fmt: skip
  np.testing.assert_allclose(found, expected, atol=5e-4)


def test_bootstrap_is_the_one_of_its_docstring_and_knows_no_order():
  drawn = np.random.default_rng(3).integers(4, size=(50, 4))
  means = np.array(sorted(VALUES))[drawn].mean(1)
  expected = np.quantile(means, [0.05, 0.95])
  for values in (VALUES, VALUES[::-1]):
    found = statistics.bootstrap(values, level=0.9, samples=50, seed=3)
    assert found == tuple(expected)


def test_one_value_has_no_bootstrap_interval():
  assert all(map(math.isnan, statistics.bootstrap([0.9])))


def test_pareto_front_by_hand():
  points = [(1, 0.5), (2, 0.4), (2, 0.9), (3, 0.9), (2, 0.9), (0.5, 0.1)]
  assert statistics.pareto(points) == [True, False, True, False, True, True]


def test_crossover_is_exact_on_power_laws_and_bounded_at_the_ends():
  lengths = [64, 256, 1024, 4096]
  ratios = [n / 700 for n in lengths]
  found = statistics.crossover(lengths, ratios)
  assert found.length == pytest.approx(700)
  assert str(found) == '700'
  assert str(statistics.crossover(lengths, [2.0] * 4)) == '< 64'
  assert str(statistics.crossover(lengths, [2.0, 2.0, 2.0, 1.0])) == '> 4,096'


def test_crossover_is_for_good():
  found = statistics.crossover([64, 256, 1024, 4096], [2.0, 0.5, 0.5, 2.0])
  assert found.length == pytest.approx(2048)


def test_slope_of_a_power_law_is_its_power_whatever_comes_before():
  lengths = [64, 256, 1024, 4096]
  values = [1e9, *(3 * n**1.5 for n in lengths[1:])]
  assert statistics.slope(lengths, values) == pytest.approx(1.5)
  noisy = [5.0, 9.0, 40.0, 300.0]
  expected = stats.linregress(np.log(lengths), np.log(noisy)).slope
  assert statistics.slope(lengths, noisy, 4) == pytest.approx(expected)


def test_slope_leaves_zeros_out_and_is_nan_of_one_point():
  assert statistics.slope([1, 2, 4], [0, 2, 4]) == pytest.approx(1)
  assert math.isnan(statistics.slope([1, 2], [0, 3]))


CURVE = [[10, 100.0, 1.0, 0.2], [20, 200.0, 3.0, 0.6]]


def test_accuracy_at_a_budget_is_linear_between_evaluations():
  at = statistics.at_budget
  assert at(CURVE, 150, statistics.FLOPS) == pytest.approx(0.4)
  assert at(CURVE, 1.5, statistics.SECONDS) == pytest.approx(0.3)
  assert at(CURVE, 500, statistics.FLOPS) == 0.6
  assert math.isnan(at(CURVE, 99, statistics.FLOPS))


def test_equal_budgets_are_what_the_thriftiest_needs():
  slow = [[10, 100.0, 4.0, 0.5], [20, 200.0, 8.0, 0.9]]
  curves = {'a': {0: CURVE, 1: CURVE}, 'b': {0: slow}}
  budget, found = statistics.equal_budget(curves, statistics.SECONDS)
  assert budget == 3
  assert found['a'] == {0: 0.6, 1: 0.6}
  assert math.isnan(found['b'][0])
  budget, found = statistics.equal_budget(curves, statistics.FLOPS)
  assert (budget, found['b'][0]) == (200, 0.9)


@pytest.mark.parametrize(
  'call',
  [
    lambda: statistics.mean([]),
    lambda: statistics.bootstrap([]),
    lambda: statistics.crossover([], []),
    lambda: statistics.equal_budget({}, statistics.FLOPS),
  ],
)
def test_no_values_are_refused(call):
  with pytest.raises(ValueError, match='no values'):
    call()


def test_lengths_that_do_not_ascend_are_refused():
  with pytest.raises(ValueError, match='do not ascend'):
    statistics.crossover([64, 64], [1.0, 2.0])
  with pytest.raises(ValueError, match='1 ratios for 2 lengths'):
    statistics.crossover([64, 128], [1.0])
