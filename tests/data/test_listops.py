"""ListOps are what was published, and sequences go through the pipeline."""

import collections

import numpy as np
import pytest

from vit_jax import data
from vit_jax.data import listops


@pytest.fixture(scope='module')
def examples():
  source = listops.Listops('train')
  return [source[i] for i in range(400)]


def words(example):
  return [listops.VOCABULARY[i] for i in example['tokens']]


def test_labels_are_the_values(examples):
  for example in examples:
    assert listops.evaluate(words(example)) == example['label']


def test_operators_are_those_of_the_paper():
  said = '[MAX 4 [MIN 2 3 ] [MED 1 9 6 ] [MED 1 2 4 9 ] [SM 5 6 7 ] 0 ]'
  assert listops.evaluate(said.split()) == 8  # max(4, 2, 6, 3, 8, 0)
  for wrong in ('[MAX 1 2', '1 2', '[MIN ]', ']'):
    with pytest.raises(ValueError, match='expression|ends no list'):
      listops.evaluate(wrong.split())


def test_lengths_lie_between_the_published_ones(examples):
  lengths = [len(e['tokens']) for e in examples]
  assert min(lengths) > 500
  assert max(lengths) < 2000
  assert max(lengths) > 1800  # up to there


def test_trees_have_the_published_depth_and_arguments(examples):
  depths, arguments, operators = [], collections.Counter(), set()
  for example in examples:
    open_lists = []
    deepest = 0
    for word in words(example):
      if word == listops.END:
        arguments[open_lists.pop()] += 1
        continue
      if open_lists:
        open_lists[-1] += 1
      if word in listops.OPERATORS:
        operators.add(word)
        open_lists.append(0)
        deepest = max(deepest, len(open_lists))
    depths.append(deepest)
  assert operators == {'[MIN', '[MAX', '[MED', '[SM'}
  assert max(depths) == 9  # lists; the digits inside have depth 10
  assert set(arguments) == set(range(2, 11))
  # Uniform, but for the lengths that are rejected, which longer lists favour.
  share = np.array([arguments[n] for n in range(2, 11)]) / arguments.total()
  assert np.abs(share - 1 / 9).max() < 0.03


def test_a_quarter_of_the_nodes_above_the_last_depth_are_lists():
  # Without rejection: the children of the root of small trees.
  import random

  rng = random.Random(0)
  lists = 0
  for _ in range(4000):
    words, _ = listops.tree(rng, 10**6, 2, 10)
    lists += words[0] in listops.OPERATORS
  assert abs(lists / 4000 - listops.SHARE) < 4 * (0.25 * 0.75 / 4000) ** 0.5


def test_classes_are_as_unbalanced_as_minima_and_maxima_make_them(examples):
  counts = np.bincount([e['label'] for e in examples], minlength=10)
  share = counts / counts.sum()
  # [MIN and [MAX of many are 0 and 9, half of all operators; the other half
  # gives every digit. Guessing the most frequent class is right in a sixth.
  assert share.min() > 0.04
  assert 0.12 < share.max() < 0.22
  assert set(np.argsort(share)[-2:]) == {0, 9}


def test_an_example_depends_on_split_seed_and_index_only():
  a, b = listops.Listops('test'), listops.Listops('test', size=7)
  np.testing.assert_array_equal(a[5]['tokens'], b[5]['tokens'])
  seeded = listops.Listops('test', seed=1)
  others = [a[6], listops.Listops('train')[5], seeded[5]]
  assert len({x['tokens'].tobytes() for x in [a[5], *others]}) == 4
  assert (len(a), len(listops.Listops('train'))) == (2000, 96000)
  assert a.fingerprint != seeded.fingerprint
  with pytest.raises(IndexError):
    b[7]


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'split': 'dev'}, 'choices: train, validation, test'),
    ({'min_length': 500, 'max_length': 501}, 'no list is longer'),
    ({'max_depth': 2, 'max_args': 3}, 'the longest list has 5 symbols'),
  ],
)
def test_settings_that_no_tree_fulfils_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    listops.Listops(**options)


SMALL = 'listops(min_length=3, max_length=20, max_depth=3, max_args=4, size=10)'


def small(**changes):
  return data.build(**{'source': SMALL, 'train': '', 'test': '', **changes})


def test_sequences_are_padded_and_every_test_example_counts_once():
  found = small()
  assert found.input == 'tokens'
  assert found.spec['tokens'] == ((20,), np.dtype(np.int32))
  assert found.channels is None
  batches = list(found.test_batches(4))
  assert [b['weight'].sum() for b in batches] == [4, 4, 2]
  source = listops.Listops('test', 3, 20, 3, 4, 10)
  rows = np.concatenate([b['tokens'] for b in batches])
  for i in range(10):
    tokens = source[i]['tokens']
    np.testing.assert_array_equal(rows[i, : len(tokens)], tokens)
    assert not rows[i, len(tokens) :].any()
    assert tokens.all()  # 0 is padding alone
  assert not rows[10:].any()


def test_training_order_follows_the_seed_whatever_the_cache():
  with small().train_batches(4, 0) as a, small(cache=True).train_batches(
    4, 0
  ) as b, small().train_batches(4, 1) as c:
    for _ in range(4):
      x, y, z = (next(it)['tokens'] for it in (a, b, c))
      np.testing.assert_array_equal(x, y)
  assert (x != z).any()


@pytest.mark.parametrize(
  'options',
  [{'train': 'flip'}, {'decode': 'decode(channels=1)'}, {'on_bad': 'skip'}],
)
def test_what_is_of_images_is_refused(options):
  with pytest.raises(ValueError, match='about images'):
    small(**options)
