"""Classes by name, and a few examples of each."""

import collections
import itertools

import numpy as np
import pytest

from vit_jax import data
from vit_jax.data import views

GOLDFISH = 'n01443537 goldfish, Carassius auratus'
CRANE = 'n02012849 crane'
MACHINE = 'n03126707 crane'


def noise(classes=3, size=12, **options):
  return data.build(
    f'synthetic(classes={classes}, height=2, width=3, channels=1, size={size})',
    train='value_range', test='value_range', decode='decode(channels=1)',
    **options,
  )  # fmt: skip


@pytest.mark.parametrize(
  ('names', 'among', 'index'),
  [
    (['a', 'b'], ['b', 'c', 'a'], (2, 0)),
    (['n01443537'], [CRANE, GOLDFISH], (1,)),
    ([GOLDFISH, CRANE], ['n02012849', 'n01443537'], (1, 0)),
    (['n01443537 gold fish'], [CRANE, GOLDFISH], (1,)),
    # The very same names are the same classes, though two are alike.
    (['crane', 'goose', 'crane'], ['crane', 'goose', 'crane'], (0, 1, 2)),
    ([MACHINE, CRANE], [CRANE, MACHINE], (1, 0)),
    # An equal name decides where an id alone would not.
    (['n02012849'], ['n02012849', CRANE], (0,)),
  ],
)
def test_classes_are_found_by_name_or_wordnet_id(names, among, index):
  assert views.find_classes(names, among) == index


@pytest.mark.parametrize(
  ('names', 'among', 'message'),
  [
    (['dasy', 'rose'], ['daisy', 'rose'], "1 of the 2 .*'dasy' .*: 'daisy'"),
    # Only a WordNet id is more than a word: two foxes are two classes.
    (['red fox'], ['red panda'], "of the model: 'red fox'$"),
    (['n0144353'], [GOLDFISH], 'n0144353'),
    (['n014435370'], [GOLDFISH], 'n014435370'),
    (['crane'], ['crane', 'goose', 'crane'], r'any of .*class 0.*class 2'),
    (['n02012849'], [CRANE, f'{CRANE} bird'], 'may be any of'),
    ([GOLDFISH, 'n01443537'], [f'{GOLDFISH}!'], 'are one class of the model'),
    ([str(i) for i in range(20)], ['a'], '20 of the 20 .* and 12 more'),
  ],
)
def test_a_class_that_is_not_clearly_there_is_an_error(names, among, message):
  with pytest.raises(ValueError, match=message):
    views.find_classes(names, among)


def test_relabelled_data_are_the_same_images_of_other_classes():
  built = noise(on_bad='skip', cache=True)
  labels = ('x', '2', '0', 'y', '1')
  found = built.relabelled(labels)
  assert (found.labels, found.num_classes) == (labels, 5)
  assert (built.labels, built.num_classes) == (('0', '1', '2'), 3)
  assert found.identity != built.identity
  index = np.array([2, 4, 1])
  for one, other in (
    (built.test_batches(5), found.test_batches(5)),
    (built.train_batches(5, seed=1), found.train_batches(5, seed=1)),
  ):
    with one, other:
      pairs = list(itertools.islice(zip(one, other, strict=False), 4))
    assert len(pairs) >= 3
    for a, b in pairs:
      np.testing.assert_array_equal(index[a['label']], b['label'])
      np.testing.assert_array_equal(a['image'], b['image'])
      np.testing.assert_array_equal(a['weight'], b['weight'])


def test_the_same_labels_leave_the_data_alone():
  built = noise()
  assert built.relabelled(['0', '1', '2']) is built


def images(built, **how):
  """(image, label) of the test split."""
  return [
    (image.tobytes(), int(label))
    for batch in built.test_batches(4, **how)
    for image, label, weight in zip(
      batch['image'], batch['label'], batch['weight'], strict=True
    )
    if weight
  ]


def test_a_few_are_training_examples_of_each_class():
  built = noise(size=30)
  few = built.few(4, seed=0)
  assert (few.test_size, built.test_size) == (12, 30)
  found = images(few)
  assert collections.Counter(label for _, label in found) == {0: 4, 1: 4, 2: 4}
  assert len(set(found)) == 12
  with built.train_batches(30, seed=0) as batches:
    batch = next(batches)
  everything = {
    (image.tobytes(), int(label))
    for image, label in zip(batch['image'], batch['label'], strict=True)
  }
  assert set(found) < everything
  assert set(images(built.few(0, seed=0))) == everything


def test_fewer_are_the_first_of_more_and_seeds_differ():
  built = noise(size=60)
  more, fewer = (images(built.few(k, seed=3)) for k in (9, 2))
  for label in range(3):
    of = [[x for x in found if x[1] == label] for found in (more, fewer)]
    assert of[0][:2] == of[1]
  assert set(images(built.few(2, seed=4))) != set(fewer)


def test_a_few_of_relabelled_data_keep_its_classes():
  built = noise(classes=2).relabelled(['1', '0'])
  assert {label for _, label in images(built.few(1, seed=0))} == {0, 1}


def test_too_few_of_a_class_is_an_error():
  with pytest.raises(ValueError, match="5 examples .* has 4 of '0'"):
    noise().few(5, seed=0)
