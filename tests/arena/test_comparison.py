"""Who beats whom, against SciPy, formulas by hand and simulated boards."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from vit_jax.arena import comparison

# Choices × seeds, accuracies on 1,000 examples.
TABLE = np.array([
  [0.953, 0.947, 0.961, 0.955],
  [0.941, 0.938, 0.952, 0.94],
  [0.9, 0.905, 0.912, 0.897],
  [0.899, 0.891, 0.915, 0.909],
])  # fmt: skip


def by_seed(values):
  return dict(enumerate(values))


def named(table):
  return {
    chr(ord('a') + i): by_seed(row) for i, row in enumerate(table.tolist())
  }


def wins(test):
  pairs = itertools.permutations(sorted(test.angles), 2)
  return {(a, b) for a, b in pairs if test.beats(a, b)}


def test_paired_comparison_is_scipys_related_t_test():
  a, b = [0.91, 0.953, 0.887, 0.94], [0.9, 0.91, 0.86, 0.95]
  found = comparison.paired(by_seed(a), by_seed(b))
  expected = stats.ttest_rel(a, b)
  low, high = expected.confidence_interval(0.95)
  np.testing.assert_allclose(
    found[:4], [np.mean(a) - np.mean(b), low, high, expected.pvalue]
  )
  assert found.seeds == 4


def test_only_common_seeds_are_compared():
  found = comparison.paired({0: 0.5, 1: 0.9, 7: 0.8}, {1: 0.7, 7: 0.5, 9: 1.0})
  assert found.seeds == 2
  assert found.difference == pytest.approx(0.25)


def test_equal_differences_are_no_certainty_of_a_pair():
  # Each time one example more of 360.
  a, b = by_seed([0.9] * 3), by_seed([0.9 - 1 / 360] * 3)
  assert comparison.paired(a, b).p == 0
  error = (1 / 360) / math.sqrt(6 * 3)
  expected = 2 * stats.t.sf((1 / 360) / error, 2)
  found = comparison.paired(a, b, 1 / 360)
  assert found.p == pytest.approx(expected)
  assert 0.01 < found.p < 0.2
  # A large one is one all the same.
  assert comparison.paired(a, by_seed([0.1] * 3), 1 / 360).p < 1e-5


def test_angle_has_the_same_binomial_variance_whatever_the_accuracy():
  n = 1000
  for p in (0.5, 0.9, 0.98):
    counts = np.arange(n + 1)
    chance = stats.binom.pmf(counts, n, p)
    y = comparison.angle(counts / n, n)
    variance = chance @ y**2 - (chance @ y) ** 2
    assert variance == pytest.approx(1 / (4 * n), rel=0.03)


def test_rounding_is_the_variance_that_rounding_makes():
  n = 360
  exact = np.random.default_rng(0).uniform(0.85, 0.95, 200_000)
  steps = np.round(exact * n) / n
  error = comparison.angle(steps, n) - comparison.angle(exact, 10**9)
  assert comparison.rounding(steps, n) == pytest.approx(error.var(), rel=0.02)
  share = comparison.rounding(np.array(0.9), n) / (1 / (4 * n))
  assert share == pytest.approx(1 / (12 * n * 0.9 * 0.1), rel=1e-3)


def test_quantile_is_that_of_tukeys_tables():
  assert comparison.quantile(0.95, 3, 4) == pytest.approx(5.04, abs=5e-3)
  assert comparison.quantile(0.95, 10, 20) == pytest.approx(5.01, abs=5e-3)


def test_of_two_choices_it_is_the_paired_t_test_of_the_angles():
  pair = TABLE[1:3]
  test = comparison.tukey(named(pair), 1000)
  d = np.subtract(*np.arcsin(np.sqrt(pair)))
  low, high = stats.ttest_1samp(d, 0).confidence_interval(0.95)
  assert test.least == pytest.approx((high - low) / 2, rel=1e-6)
  assert test.angles['a'] - test.angles['b'] == pytest.approx(d.mean())


def test_it_is_the_analysis_of_variance_in_blocks():
  k, b = TABLE.shape
  test = comparison.tukey(named(TABLE), 1000)
  y = np.arcsin(np.sqrt(TABLE)).ravel()
  choice, seed = (x.ravel() for x in np.indices((k, b)))
  design = np.hstack([np.eye(k)[choice], np.eye(b)[seed][:, 1:]])
  _, squares, rank, _ = np.linalg.lstsq(design, y)
  freedom = k * b - rank
  assert freedom == (k - 1) * (b - 1)
  q = stats.studentized_range.ppf(0.95, k, freedom)
  assert test.least == pytest.approx(q * math.sqrt(squares[0] / freedom / b))
  means = y.reshape(k, b).mean(1)
  apart = means[:, None] - means > q * math.sqrt(squares[0] / freedom / b)
  assert wins(test) == {('abcd'[i], 'abcd'[j]) for i, j in np.argwhere(apart)}
  assert len(wins(test)) == 5


def test_of_choices_without_seed_effects_it_is_scipys_up_to_the_freedom():
  # Angles whose noise sums to 0 in every seed: the blocks explain nothing.
  noise = 0.01 * np.array([[1, 0, -1], [0, -1, 1], [-1, 1, 0.0]])
  y = np.array([1.2, 1.15, 1.0])[:, None] + noise
  test = comparison.tukey(named(np.sin(y) ** 2), 10**6)
  interval = stats.tukey_hsd(*y).confidence_interval(0.95)
  half = (interval.high - interval.low)[0, 1] / 2
  # Within choices SciPy has 3 · 2 degrees of freedom; here 2 · 2 are left.
  q = [stats.studentized_range.ppf(0.95, 3, f) for f in (4, 6)]
  expected = half * q[0] / q[1] * math.sqrt(6 / 4)
  assert test.least == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(('accuracy', 'size'), [(0.9, 1000), (0.97, 360)])
def test_of_equal_choices_at_most_one_board_in_twenty_says_anything(
  accuracy, size
):
  rng = np.random.default_rng(0)
  wrong = found = 0
  draws = 400
  for _ in range(draws):
    p = accuracy + rng.normal(0, 0.01, 3) * np.ones((20, 1))
    board = named(rng.binomial(size, p) / size)
    test = comparison.tukey(board, size)
    wrong += max(test.angles.values()) - min(test.angles.values()) > test.least
    # One is 6 points worse, about six times its binomial deviation.
    board['z'] = by_seed(rng.binomial(size, p[0] - 0.06) / size)
    test = comparison.tukey(board, size)
    found += sum(test.beats(c, 'z') for c in board) / 20
    assert not any(test.beats('z', c) for c in board)
  # Three standard errors of what 5 % give.
  assert wrong / draws < 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)
  # A tenth is what it costs that the noise of the pair itself counts.
  assert found / draws > 0.85


def test_of_an_unstable_choice_it_says_no_more_than_its_own_noise_allows():
  rng = np.random.default_rng(1)
  wrong = 0
  for _ in range(400):
    noise = rng.normal(0, 0.01, (20, 3))
    noise[0] *= 5
    wrong += bool(wins(comparison.tukey(named(np.sin(1.2 + noise) ** 2), 1000)))
  assert wrong / 400 < 0.15  # a third, were its variance that of the others


def test_order_of_choices_and_seeds_does_not_matter():
  expected = comparison.tukey(named(TABLE), 1000)
  shuffled = {
    name: dict(reversed(of.items()))
    for name, of in reversed(named(TABLE).items())
  }
  assert comparison.tukey(shuffled, 1000) == expected
  other = comparison.tukey(named(TABLE[::-1, [2, 0, 3, 1]]), 1000)
  assert other.least == pytest.approx(expected.least)
  flip = dict(zip('abcd', 'dcba', strict=True))
  assert wins(other) == {(flip[a], flip[b]) for a, b in wins(expected)}


@pytest.mark.parametrize('right', [360, 359, 340])
def test_equal_results_are_no_certainty(right):
  # In all seeds the same, one example apart: all of it may be rounding.
  table = np.full((20, 3), right / 360)
  table[10:] -= 1 / 360
  test = comparison.tukey(named(table), 360)
  assert test.least > 0
  assert not wins(test)
  table[10:] -= 10 / 360
  assert len(wins(comparison.tukey(named(table), 360))) == 100


def test_with_one_seed_or_one_choice_nothing_beats_anything():
  for scores in (
    {'a': {0: 1.0}, 'b': {0: 0.0}, 'c': {1: 0.5}}, {'a': by_seed(TABLE[0])}, {}
  ):  # fmt: skip
    test = comparison.tukey(scores, 10)
    assert test == comparison.Tukey({}, (), math.inf, 1.0, {})
    found = comparison.compare(scores, test, 0.1)
    assert not any(c.verdict for c in found.values())
    for c in found.values():
      assert (c.low, c.high, c.p) == (-math.inf, math.inf, 1)
  assert not test.beats('a', 'b')


def test_choices_that_lack_a_seed_are_left_out_and_change_nothing():
  whole = comparison.tukey(named(TABLE), 1000)
  torn = {**named(TABLE), 'torn': {0: 0.1, 1: 0.2}, 'none': {}}
  assert comparison.tukey(torn, 1000) == whole
  # Nor do seeds that one has more than the others.
  torn['a'][4] = 0.5
  assert comparison.tukey(torn, 1000) == whole


def test_the_seeds_are_those_that_leave_most_degrees_of_freedom():
  few = {c: by_seed([0.5] * 2) for c in 'abcdef'}
  assert comparison.blocks({**few, 'g': by_seed([0.5] * 3)}) == (0, 1)
  many = {c: by_seed([0.5] * 9) for c in 'ghi'}
  assert comparison.blocks(few | many) == tuple(range(9))


def test_verdicts_are_the_tests_and_change_sign_with_the_pair():
  test = comparison.tukey(named(TABLE), 1000)
  found = comparison.compare(named(100 * TABLE), test, 0.1)
  assert len(found) == 4 * 3
  for (a, b), c in found.items():
    assert c.low <= c.difference <= c.high
    assert (c.verdict == 1) == test.beats(a, b)
    assert found[b, a].verdict == -c.verdict
    assert found[b, a].low == -c.high
  assert found['a', 'c'].difference == pytest.approx(5.05)


@pytest.mark.parametrize(('even', 'uneven'), ['ab', 'ba'])
def test_a_verdict_against_the_accuracies_is_open(even, uneven):
  # The angle is steeper at the end: there an uneven choice wins by angle.
  scores = {even: by_seed([0.95] * 2), uneven: by_seed([1.0, 0.899])}
  angles = {
    c: sum(math.asin(math.sqrt(a)) for a in of.values()) / 2
    for c, of in scores.items()
  }
  test = comparison.Tukey(
    angles, (0, 1), 0.01, 1.0, dict.fromkeys(angles, 0.0)
  )
  assert test.beats(uneven, even)
  found = comparison.compare(scores, test)
  assert found[even, uneven].difference > 0
  assert found[even, uneven].verdict == 0


def test_the_difference_that_counts_is_the_tests():
  test = comparison.Tukey({}, (0, 1), 0.1, 1.0, {})
  for accuracy in (0.0, 0.001, 0.5, 0.9, 0.999, 1.0):
    middle = math.asin(math.sqrt(accuracy))
    low = min(max(middle - 0.05, 0), math.pi / 2 - 0.1)
    a, b = math.sin(low + 0.1) ** 2, math.sin(low) ** 2
    assert test.around(accuracy) == pytest.approx(a - b)
    assert 0 <= b < a <= 1
  # sin²(θ + h) − sin²(θ − h) = sin 2θ · sin 2h.
  assert test.around(0.9) == pytest.approx(0.6 * math.sin(0.1))
  assert comparison.Tukey({}, (), 1.6, 1.0, {}).around(0.5) == math.inf
  wide = comparison.Tukey({}, (), math.pi / 2, 1.0, {})
  assert wide.around(0.5) == pytest.approx(1)


def test_percentages_are_refused():
  with pytest.raises(ValueError, match='from 89.1 to 96.1; they lie in 0..1'):
    comparison.tukey(named(100 * TABLE), 1000)
