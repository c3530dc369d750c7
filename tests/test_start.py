"""A checkpoint fits config and data, or the error says what to change."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vit_jax import data, models, pretrained, start

SIZE = 16
PREPROCESS = {
  'decode': 'decode(channels=3, convert=True)',
  'transform': 'resize_short(size=20), center_crop(size=16), '
               'normalize(mean=0.5, std=0.5)',
}  # fmt: skip
NAMES = ('daisy', 'rose', 'tulip')


@pytest.fixture(scope='module')
def found():
  """A tiny ViT of three flowers, as if it were loaded."""
  config = {**tiny.CONFIG['model'], 'image_size': SIZE, 'num_classes': 3}
  model = models.build(**config)
  variables = model.init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
  head = variables['params']['head']
  head['bias'] = jnp.arange(3.0)
  return pretrained.Pretrained(model, variables, PREPROCESS, NAMES, config)


@pytest.fixture
def path(found, monkeypatch):
  monkeypatch.setattr(pretrained, 'load', lambda path: found)
  return 'runs/flowers'


def flowers(labels, **options):
  """Data of these classes; the labels of a source come from its names."""
  built = data.build(
    f'synthetic(classes={len(labels)}, height=8, width=8, size=8)',
    train='resize(size=16), value_range', test='resize(size=16), value_range',
    **options,
  )  # fmt: skip
  built.labels = tuple(labels)
  return built


# What config.model may change.


def test_what_a_section_says_alike_changes_nothing(found, path):
  section = {
    'name': 'vit', 'hidden_size': 16, 'classifier': 'token',
    'dropout_rate': 0.0, 'dtype': 'float32', 'attention': None,
  }  # fmt: skip
  assert start.changes(found, section) == {}
  assert start.load(path, section) is found


def test_what_it_says_otherwise_changes_the_model(path):
  section = {'image_size': 8, 'drop_path_rate': 0.5, 'num_classes': 7}
  changed = start.load(path, section)
  assert changed.model.image_size == 8
  assert changed.model.drop_path_rate == 0.5
  assert changed.model.num_classes == 3  # a matter of the data: see fit
  assert 'center_crop(size=8)' in changed.preprocess['transform']


@pytest.mark.parametrize(
  ('section', 'message'),
  [
    ({'mlp_dim': 64}, 'mlp_dim=64 .* may change: num_classes'),
    ({'name': 'mixer'}, "name='mixer'"),
    ({'variant': 'Ti/16'}, 'hidden_size=192|patch_size=16|num_layers=12'),
    ({'variant': 'B/17'}, "'B/17'; did you mean 'B/16'"),
    ({'hiden_size': 16}, "hiden_size.*did you mean 'hidden_size'"),
  ],
)
def test_another_architecture_is_an_error(path, section, message):
  with pytest.raises(ValueError, match=message):
    start.load(path, section)


# What config.data leaves out.

SCALE = 'normalize(mean=0.5, std=0.5)'


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('flip', f'flip, {SCALE}'),
    ('inception_crop, flip', f'inception_crop(size=16), flip, {SCALE}'),
    (
      'resize_short(size=18), center_crop',
      f'resize_short(size=18), center_crop(size=16), {SCALE}',
    ),
    (
      'inception_crop(area_min=0.5, size=32)',
      f'inception_crop(area_min=0.5, size=32), {SCALE}',
    ),
    ('pad_crop(padding=2)', f'pad_crop(padding=2), {SCALE}'),  # needs none
    ('flip, value_range', 'flip, value_range'),  # the same scaling
  ],
)
def test_size_and_scaling_that_are_left_out_are_the_checkpoints(text, expected):
  assert start.complete(text, PREPROCESS['transform'], 3) == expected


@pytest.mark.parametrize(
  'other', ['value_range(low=0.0)', 'normalize(mean=0.48, std=0.27)']
)
def test_another_scaling_is_an_error(other):
  with pytest.raises(ValueError, match='otherwise .*leave it out') as error:
    start.complete(f'flip, {other}', PREPROCESS['transform'], 3)
  assert other in str(error.value)
  assert SCALE in str(error.value)


def test_rectangles_go_where_they_fit():
  theirs = 'resize(size=(16, 24)), value_range'
  assert start.complete('inception_crop, resize_short', theirs, 3) == (
    'inception_crop(size=(16, 24)), resize_short(size=24), value_range'
  )
  # A square is one number: resize_short takes no other.
  assert start.complete('resize_short', 'resize(size=(9, 9))', 3) == (
    'resize_short(size=9)'
  )


def test_empty_transforms_are_the_checkpoints_whole(found, capsys):
  section = {'source': 'synthetic', 'test': '', 'decode': ''}
  filled = start.transforms(section, found)
  assert filled['train'] == filled['test'] == PREPROCESS['transform']
  assert filled['decode'] == PREPROCESS['decode']
  assert filled['source'] == 'synthetic'
  said = capsys.readouterr().out
  for key in ('decode', 'train', 'test'):
    assert f'data.{key}, with what the checkpoint says' in said
  assert start.transforms(filled, found) == filled
  assert capsys.readouterr().out == ''


def test_training_takes_its_size_from_the_test_transforms(found):
  section = {'train': 'inception_crop', 'test': 'resize(size=24)'}
  filled = start.transforms(section, found)
  assert filled['train'] == f'inception_crop(size=24), {SCALE}'
  assert filled['test'] == f'resize(size=24), {SCALE}'


# Classes.


def fit(found, built, head='by_name', num_classes=None, training=False):
  return start.fit(
    found, built, head=head, num_classes=num_classes, training=training
  )


def labels_of(built):
  (batch,) = built.test_batches(8)
  return batch['label'].tolist()


@pytest.mark.parametrize('training', [False, True])
def test_the_same_names_in_another_order_are_renumbered(found, training):
  same, built = fit(found, flowers(('tulip', 'daisy', 'rose')), 'by_name', None,
                    training)
  assert same is found
  assert built.labels == NAMES
  assert labels_of(built) == [2, 0, 1, 2, 0, 1, 2, 0]


def test_some_of_the_classes_are_evaluated_among_all(found):
  _, built = fit(found, flowers(('tulip', 'rose')))
  assert (built.num_classes, built.labels) == (3, NAMES)
  assert labels_of(built) == [2, 1] * 4


@pytest.mark.parametrize('training', [False, True])
def test_by_number_trusts_the_order(found, training):
  data_in = flowers(('tulpe', 'rose', 'veilchen'))
  same, built = fit(found, data_in, 'by_number', None, training)
  assert same is found
  assert built is data_in


def test_a_checkpoint_without_names_goes_by_number_and_says_so(found, capsys):
  nameless = dataclasses.replace(found, labels=())
  built = flowers(('a', 'b', 'c'))
  assert fit(nameless, built) == (nameless, built)
  assert 'names no classes' in capsys.readouterr().out
  with pytest.raises(ValueError, match='3 classes and the data 2.*labels'):
    fit(nameless, flowers(('a', 'b')))


@pytest.mark.parametrize(
  ('head', 'num_classes', 'labels'),
  [
    ('new', None, ('a', 'b')),
    ('by_name', 2, ('a', 'b')),  # another number asks for it
    ('new', None, NAMES),  # of the same number, too
    ('new', 3, ('tulip', 'rose', 'daisy')),
  ],
)
def test_a_new_head_starts_anew_and_keeps_the_rest(
  found, head, num_classes, labels, capsys
):
  built = flowers(labels)
  fresh, same = fit(found, built, head, num_classes, training=True)
  assert same is built
  params = fresh.variables['params']
  assert params['head']['kernel'].shape == (16, len(labels))
  assert not np.any(params['head']['bias'])
  old = found.variables['params']
  for name in ('embedding', 'Transformer', 'cls'):
    for a, b in zip(
      jax.tree.leaves(params[name]), jax.tree.leaves(old[name]), strict=True
    ):
      np.testing.assert_array_equal(a, b)
  assert fresh.labels == ()
  assert fresh.config['num_classes'] == fresh.model.num_classes == len(labels)
  assert f'new head for {len(labels)}' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('options', 'labels', 'message'),
  [
    # Training.
    ({'training': True}, ('rose', 'tulip'),
     "has 3 classes and the data 2; config.head='new' starts"),
    ({'training': True}, ('rose', 'tulip', 'dasy'),
     "'dasy' .nearest: 'daisy'.*head='new' starts.*by_number"),
    ({'training': True, 'num_classes': 4}, NAMES, 'num_classes=4.* has 3'),
    ({'training': True, 'head': 'by_number'}, ('a', 'b'), '3 .* data 2'),
    # Evaluation.
    ({}, ('rose', 'violet'), "1 of the 2 .*'violet'$"),
    ({}, ('rose', 'violet', 'tulip'), "'violet'; config.head='by_number'"),
    ({'head': 'new'}, NAMES, "head='new' is for training"),
    ({'head': 'by_number'}, ('a', 'b'), '3 classes and the data 2'),
  ],
)  # fmt: skip
def test_classes_that_do_not_fit_are_an_error(found, options, labels, message):
  with pytest.raises(ValueError, match=message):
    fit(found, flowers(labels), **options)


def test_images_of_other_channels_are_an_error(found):
  grey = flowers(NAMES, decode='decode(channels=1)')
  with pytest.raises(ValueError, match='1 channels, .* takes 3: .*channels=3'):
    start.check_channels(found, grey)
  start.check_channels(found, flowers(NAMES))
