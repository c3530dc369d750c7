"""Rows that were not won fairly are not shown."""

import copy

import pytest

from vit_jax.arena import board as boards
from vit_jax.arena import fairness

RATES = [1e-3, 3e-3]


def row(choice, rate, seed, **changes):
  return {
    'suite': 'train', 'status': 'ok', 'board': 'b', 'choice': choice,
    'learning_rate': rate, 'seed': seed, 'leaf': 'model.attention',
    'recipe': 'r', 'rates': RATES, 'steps': 10, 'batch_size': 4,
    'test_size': 8, 'order': f'o{seed}', 'start': f's{seed}',
    'validation': 0.5 + (rate == 3e-3) * 0.1, 'validation_loss': 1.0,
    **changes,
  }  # fmt: skip


def rows():
  return [
    row(choice, rate, seed)
    for choice in ('softmax', 'linear', 'window')
    for rate, seed in ((1e-3, 0), (3e-3, 0), (3e-3, 1), (3e-3, 2))
  ]


def test_equal_conditions_are_fair():
  fairness.check(rows())


@pytest.mark.parametrize(('field', 'value'), [
  ('recipe', 'another'), ('rates', [1e-3, 3e-3, 1e-2]), ('steps', 20),
  ('batch_size', 8), ('order', 'sorted'), ('start', 'pretrained'),
  ('leaf', 'model.num_heads'), ('test_size', 4),
])  # fmt: skip
def test_an_advantage_of_one_choice_is_refused_by_name(field, value):
  found = rows()
  found[-1][field] = value
  with pytest.raises(fairness.UnfairError, match="'window'") as e:
    fairness.check(found)
  assert field in str(e.value)
  assert 'softmax' not in str(e.value)


def test_a_rate_outside_the_grid_is_refused():
  found = rows()
  found[-1]['learning_rate'] = 0.1
  with pytest.raises(fairness.UnfairError, match=r'\[0.1\].*not in the grid'):
    fairness.check(found)


def test_a_rate_that_the_validation_examples_did_not_choose_is_refused():
  found = rows()
  found[-1]['learning_rate'] = 1e-3
  with pytest.raises(fairness.UnfairError, match='chose 0.003'):
    fairness.check(found)


def test_a_choice_that_was_never_tuned_is_refused():
  found = [r for r in rows() if r['choice'] != 'window' or r['seed']]
  with pytest.raises(fairness.UnfairError, match="'window' was never tuned"):
    fairness.check(found)


def test_boards_are_judged_apart_and_failures_break_no_rule():
  other = [{**copy.deepcopy(r), 'board': 'c', 'recipe': 'q'} for r in rows()]
  failed = {'suite': 'train', 'board': 'b', 'choice': 'x', 'status': 'failed'}
  fairness.check([*rows(), *other, failed])


BASE = {
  'run': 'arena', 'board': 'b', 'seed': 3, 'steps': 10, 'batch_size': 4,
  'model': {'name': 'vit', 'attention': 'softmax', 'num_heads': 2},
  'optimizer': {'learning_rate': 1.0}, 'sharding': {}, 'log_every': 5,
}  # fmt: skip


def board(base=BASE, leaf='model.attention', **changes):
  given = {
    'name': 'b', 'base': base, 'leaf': leaf, 'rates': (1e-3,), 'seeds': 3,
    'validation': 0.1, 'evaluations': 2, **changes,
  }  # fmt: skip
  return boards.Board(**given)


def test_a_cell_differs_from_the_recipe_in_one_leaf():
  found = board().config('linear')
  assert found['model'] == {**BASE['model'], 'attention': 'linear'}
  assert BASE['model']['attention'] == 'softmax'
  assert 'log_every' not in found


def test_the_recipe_is_what_all_rows_share():
  one = board()
  changed = copy.deepcopy(BASE)
  changed['model']['attention'] = 'linear'
  changed['optimizer']['learning_rate'] = 2.0
  changed['log_every'] = 7
  assert board(changed).recipe == one.recipe
  changed['model']['num_heads'] = 4
  assert board(changed).recipe != one.recipe
  assert board(validation=0.2).recipe != one.recipe
  assert one.seeds_of() == (3, 4, 5)


@pytest.mark.parametrize(('changes', 'message'), [
  ({'leaf': 'model.atention'}, "did you mean 'attention'"),
  ({'leaf': 'optimizer.learning_rate'}, 'tuned for every choice'),
  ({'leaf': 'log_every'}, 'not part of the recipe'),
  ({'rates': ()}, 'one or more'),
  ({'rates': (1e-3, 1e-3)}, 'all different'),
  ({'rates': (0.0,)}, 'no learning rate'),
  ({'seeds': 0}, 'at least 1'),
  ({'validation': 0.0}, 'between 0 and 1'),
  ({'evaluations': 11}, r'\[1, 10\]'),
])  # fmt: skip
def test_a_bad_board_says_why(changes, message):
  with pytest.raises(ValueError, match=message):
    board(**changes)


def test_shards_are_a_partition():
  labels = [f'c{i}' for i in range(10)]
  parts = [boards.share_of(labels, f'{i}/3') for i in range(3)]
  assert sorted(sum(parts, [])) == labels
  names = {boards.file_name(f'{i}/3') for i in range(3)}
  assert len(names) == 3
  for bad in ('3/3', '1', 'a/b', '-1/3'):
    with pytest.raises(ValueError, match='0 ≤ i < n'):
      boards.parse_shard(bad)


def test_no_choices_are_all_attentions_and_only_those():
  found = boards.choices_of((), 'model.attention', 'softmax')
  assert len(found) >= 65
  assert next(iter(found)) == 'softmax'
  with pytest.raises(ValueError, match='say what to compare'):
    boards.choices_of((), 'model.num_heads', 4)
  with pytest.raises(ValueError, match='twice'):
    boards.choices_of((1, 1), 'model.num_heads', 4)
  assert boards.choices_of((1, 2), 'model.num_heads', 4) == {'1': 1, '2': 2}
