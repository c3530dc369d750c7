"""Beside the published Long-Range Arena: orders, and how far they agree."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from vit_jax import attention
from vit_jax.arena import page, published, report_published
from vit_jax.arena.standings import Standing


def standing(choice, accuracy, board='listops short', seeds=3, steps=5000):
  rows = {
    s: {
      'board': board, 'accuracy': accuracy + 0.001 * (s - 1), 'steps': steps,
      'batch_size': 32, 'parameters': 1000, 'test_size': 2000,
      'step_seconds': 0.01, 'rates': [0.1], 'status': 'ok', 'choice': choice,
      'error': '', 'leaf': 'model.attention',
    }
    for s in range(seeds)
  }  # fmt: skip
  return Standing(choice, 0.1, rows, {}, [])


def told(found, lost=()):
  rows = [row for s in found for row in s.rows.values()]
  return report_published.section(found, [*rows, *lost])


def text(blocks):
  return page.markdown(blocks)


def test_the_table_is_the_published_one():
  # Averages as the paper prints them, in its last column. Sinkhorn's is not
  # the mean of its own row there, 51.48.
  printed = {
    'Transformer': 54.39, 'Local': 46.06, 'Sparse': 51.24, 'Longformer': 53.46,
    'Linformer': 51.36, 'Reformer': 50.67, 'Sinkhorn': 51.39,
    'Synthesizer': 52.88, 'BigBird': 55.01, 'Linear': 50.55,
    'Performer': 51.41,
  }  # fmt: skip
  assert set(printed) == set(published.MODELS)
  for model, average in printed.items():
    off = abs(np.mean(published.MODELS[model].percent) - average)
    assert off < (0.09 if model == 'Sinkhorn' else 0.006), model
  assert published.accuracy('Performer', 'pathfinder') == 77.05


def test_every_model_has_attentions_of_ours_and_none_belongs_to_two():
  both = attention.ATTENTIONS | attention.MIXERS
  named = [name for m in published.MODELS.values() for name in m.ours]
  assert set(named) <= set(both)
  assert len(set(named)) == len(named)


@pytest.mark.parametrize(('board', 'task'), [
  ('listops', 'listops'), ('listops short', 'listops'), ('Text-4k', 'text'),
  ('pathfinder_64', 'pathfinder'), ('digits', None), ('textures', None),
  ('imagenet', None),
])  # fmt: skip
def test_a_board_is_of_the_task_that_its_name_begins_with(board, task):
  assert published.task_of(board) == task
  found = told([standing('softmax', 0.5, board)])
  assert bool(found) == (task is not None)
  other = standing('softmax', 0.5, board)
  for row in other.rows.values():
    row['leaf'] = 'model.num_heads'
  assert not told([other])


def test_of_several_choices_the_likest_stands_beside_a_model():
  found = published.matched([
    'performer(features=8)', 'performer', 'synthesizer_dense', 'wrong_linear',
    'softmax, linear', 'mine: half', 'window(size=2)',
  ])  # fmt: skip
  assert found == {
    'Performer': 'performer', 'Synthesizer': 'synthesizer_dense',
    'Local': 'window(size=2)',
  }  # fmt: skip


def test_correlations_are_scipys_and_permutations_are_all_counted():
  rng = np.random.default_rng(1)
  theirs = rng.permutation(5).astype(float)
  ours = np.array([3.0, 1.0, 1.0, 2.0, 5.0])  # with a tie
  found = published.agreement([[x] for x in ours], theirs.tolist())
  tau, rho = stats.kendalltau(ours, theirs), stats.spearmanr(ours, theirs)
  assert found['kendall'].value == pytest.approx(tau.statistic)
  assert found['spearman'].value == pytest.approx(rho.statistic)
  least = [
    stats.kendalltau(p, theirs).statistic >= tau.statistic - 1e-12
    for p in itertools.permutations(ours)
  ]
  assert found['kendall'].p == pytest.approx(np.mean(least))
  assert math.isnan(found['kendall'].low)  # a seed has no spread


def test_the_same_order_of_many_is_seldom_by_chance_and_the_opposite_always():
  for n in (4, 8, 11):
    values = [[float(i), i + 0.1] for i in range(n)]
    same = published.agreement(values, list(range(n)))['kendall']
    assert same.value == 1
    assert same.low == same.high == 1
    exact = 1 / math.factorial(n) if n <= 8 else 1 / (published.DRAWN + 1)
    assert same.p == pytest.approx(exact)
    other = published.agreement(values, list(range(n))[::-1])['spearman']
    assert other.value == pytest.approx(-1)
    assert other.p == pytest.approx(1, abs=1e-3)


def test_noise_of_the_seeds_widens_the_interval():
  theirs = [1.0, 2.0, 3.0, 4.0]
  wide = published.agreement(
    [[x - 2, x, x + 2] for x in theirs], theirs
  )['kendall']  # fmt: skip
  assert wide.value == 1
  assert wide.low < 0.7


def test_no_order_has_no_correlation_and_too_few_are_refused():
  found = published.agreement([[0.3, 0.5], [0.4, 0.4]], [1.0, 2.0])
  assert math.isnan(found['kendall'].value)
  assert found['spearman'].p == 1
  for scores, other in (([[1.0]], [1.0]), ([[1.0]] * 2, [1.0])):
    with pytest.raises(ValueError, match='at least 2'):
      published.agreement(scores, other)


def test_the_section_says_what_differs_and_whether_the_order_agrees():
  listops = [
    ('reformer', 0.30), ('softmax', 0.29), ('linformer', 0.28),
    ('performer', 0.27), ('linear', 0.26), ('fnet', 0.9),
  ]  # fmt: skip
  found = [standing(c, a, steps=500) for c, a in listops]
  said = text(told(found))
  assert '500 steps of 32 examples' in said
  assert '0.1 times as many steps' in said
  assert 'Order of the 5 models' in said
  assert 'τ-b = 1.00' in said
  assert 'The order agrees' in said
  assert '27.00 ± 0.06' in said
  assert '18.01' in said
  assert 'fnet' not in said
  # The same with the order turned round.
  turned = [
    standing(c, 0.5 - a) for c, a in listops if c != 'fnet'
  ]
  said = text(told(turned))
  assert 'τ-b = -1.00' in said
  assert 'is not shown' in said
  assert 'the same number of steps' in said


def test_few_models_prove_nothing_and_failures_say_why():
  lost = [{
    'choice': 'sinkhorn', 'status': 'refused', 'error': 'needs a fixed length',
    'board': 'listops short', 'leaf': 'model.attention',
  }]  # fmt: skip
  names = ('reformer', 'softmax', 'linear')
  found = [standing(c, 0.3 - 0.01 * i) for i, c in enumerate(names)]
  said = text(told(found, lost))
  assert '3 models cannot make it so (the least is 0.17)' in said
  assert 'sinkhorn: refused: needs a fixed length' in said
  assert 'not on this board' in said
  assert 'no orders to be compared' in text(told(found[:2]))
  equal = [standing(c, 0.3) for c in names]
  assert 'all equal here' in text(told(equal))
