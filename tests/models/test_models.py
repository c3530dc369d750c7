"""The contract of every model in the table, and the sizes of all variants."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from models.table import (
  EAGER,
  FIXED_SIZE,
  FLAT,
  MULTIPLE,
  SIZES,
  TINY,
  WHOLE,
)

from vit_jax import models, sharding

def build_tiny(label, **fields):
  return models.build(label.split()[0], **{**TINY[label], **fields})


def shapes_of(model, images):
  init = functools.partial(model.init, train=False)
  return jax.eval_shape(init, jax.random.key(0), images)


def random_variables(model, images, seed=0, scale=0.3):
  """Jittered variables, without compiling the model's initialisers."""
  rng = np.random.default_rng(seed)

  def draw(path, like):
    x = scale * rng.standard_normal(like.shape)
    if path[-1].key == 'var':  # a variance
      x = 0.5 + np.abs(x)
    return jnp.asarray(x, like.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes_of(model, images))


def blocks_of(variables):
  """Paths of the numbered blocks."""
  flat = traverse_util.flatten_dict(variables['params'], sep='/')
  matches = (re.match(r'(.*?/)?\w*[bB]lock_\d+(?=/)', path) for path in flat)
  return {m[0] for m in matches if m and 'MlpBlock' not in m[0]}


@pytest.fixture(scope='module', params=list(TINY))
def tiny(request):
  """(label, model, variables, images, jitted logits)."""
  model = build_tiny(request.param, num_classes=7)
  rng = np.random.default_rng(1)
  sides = (model.image_size,) * 2
  images = jnp.asarray(rng.uniform(-1, 1, (3, *sides, 3)), jnp.float32)
  variables = random_variables(model, images)
  run = jax.jit(functools.partial(model.apply, train=False))
  return request.param, model, variables, images, run


@pytest.fixture(scope='module')
def gradients(tiny):
  """Gradients of a random projection of the logits, in training."""
  _, model, variables, images, _ = tiny
  weight = jnp.asarray(np.random.default_rng(2).standard_normal((3, 7)))

  @jax.jit
  def grad(params):
    def value(params):
      logits, _ = model.apply(
        {**variables, 'params': params}, images, train=True,
        rngs=jax.random.key(0), mutable=[k for k in variables if k != 'params'],
      )  # fmt: skip
      return jnp.sum(weight * logits)

    return jax.grad(value)(params)

  return grad(variables['params'])


def test_every_model_has_published_sizes_and_a_tiny_instance():
  assert set(SIZES) == set(models.MODELS)
  assert {label.split()[0] for label in TINY} == set(models.MODELS)


def count(model):
  """Parameters of everything, and of each block by its path."""
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  variables = shapes_of(model, images)
  flat = traverse_util.flatten_dict(variables['params'], sep='/')
  blocks = dict.fromkeys(blocks_of(variables), 0)
  for path, x in flat.items():
    for block in blocks:
      if path.startswith(f'{block}/'):
        blocks[block] += x.size
  return sum(x.size for x in flat.values()), blocks


def short_count(model):
  """The count, of which few blocks are traced and stand for the others.

  All `num_layers` are alike; in a stage of `depths`, those after the first
  take turns of two.
  """
  if not hasattr(model, 'depths'):
    total, blocks = count(model.clone(num_layers=1))
    first = min(blocks, key=lambda path: int(path.rpartition('_')[2]))
    return total + (model.num_layers - 1) * blocks[first]
  shown = tuple(min(depth, 3) for depth in model.depths)
  total, blocks = count(model.clone(depths=shown))
  for stage, depth in enumerate(model.depths):
    for i in range(3, depth):
      total += blocks[f'stage_{stage}/block_{2 - i % 2}']
  return total


@pytest.mark.parametrize(
  'every', [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_every_published_size_has_the_published_parameter_count(every):
  rows = {
    name: [v for v in sizes if every or (name, v) in WHOLE]
    for name, sizes in SIZES.items()
  }
  found = {}
  for name, variants in rows.items():
    for variant in variants:
      model = models.build(name, variant=variant, num_classes=1000)
      total = short_count(model)
      whole = every and (name, variant) in WHOLE
      if whole or total != SIZES[name][variant]:
        short, (total, blocks) = total, count(model)
        alike = len(set(blocks.values())) == 1 or hasattr(model, 'depths')
        assert not alike or total == short
      found.setdefault(name, {})[variant] = total
  assert found == {
    name: {v: SIZES[name][v] for v in variants}
    for name, variants in rows.items() if variants
  }  # fmt: skip


def test_every_variant_declares_only_fields_and_a_field_overrides_it():
  for name, cls in models.MODELS.items():
    for variant, row in cls.VARIANTS.items():
      model = models.build(name, variant=variant, num_classes=3)
      assert {k: getattr(model, k) for k in row} == row
      assert model.num_classes == 3
      changed = models.build(
        name, variant=variant, num_classes=3, image_size=96
      )
      assert changed.image_size == 96


def test_logits_have_one_row_an_image_and_are_finite(tiny):
  _, _, variables, images, run = tiny
  logits = run(variables, images)
  assert logits.shape == (3, 7)
  assert logits.dtype == jnp.float32
  assert np.isfinite(logits).all()
  # Not constant: each image has its own logits.
  assert np.ptp(np.asarray(logits), axis=0).min() > 1e-3


@pytest.mark.parametrize('tiny', EAGER, indirect=True)
def test_jit_equals_no_jit(tiny):
  _, model, variables, images, run = tiny
  np.testing.assert_allclose(
    model.apply(variables, images, train=False),
    run(variables, images),
    atol=1e-5,
  )


def test_an_image_does_not_influence_the_others(tiny):
  _, _, variables, images, run = tiny
  logits = run(variables, images)
  changed = run(variables, images.at[1].set(1 - images[1]))
  np.testing.assert_array_equal(logits[0], changed[0])
  np.testing.assert_array_equal(logits[2], changed[2])
  assert np.abs(logits[1] - changed[1]).max() > 1e-3


def test_a_batch_in_another_order_gives_logits_in_that_order(tiny):
  _, _, variables, images, run = tiny
  np.testing.assert_allclose(
    run(variables, images)[::-1], run(variables, images[::-1]), atol=1e-6
  )


def test_gradients_are_finite_and_reach_every_parameter(gradients):
  flat = traverse_util.flatten_dict(gradients, sep='/')
  for path, gradient in flat.items():
    assert np.isfinite(gradient).all(), path
    if not path.endswith(FLAT):
      assert np.abs(gradient).max() > 1e-5, path


def test_evaluation_is_deterministic_and_needs_no_randomness(tiny):
  _, model, variables, images, run = tiny
  rates = ('dropout_rate', 'drop_path_rate')
  noisy = model.clone(**{r: 0.5 for r in rates if hasattr(model, r)})
  np.testing.assert_array_equal(
    jax.jit(functools.partial(noisy.apply, train=False))(variables, images),
    run(variables, images),
  )


def test_features_have_the_declared_strides_and_channels(tiny):
  _, model, _, _, _ = tiny
  height, width = 4 * model.image_size, 8 * model.image_size
  images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
  model = model.clone(image_size=(height, width))
  maps = jax.eval_shape(
    functools.partial(model.apply, method='features'),
    shapes_of(model, images),
    images,
  )
  assert len(maps) == len(model.strides) == len(model.channels) > 1
  for found, stride, channels in zip(
    maps, model.strides, model.channels, strict=True
  ):
    assert found.shape == (2, height // stride, width // stride, channels)


def test_a_model_without_classes_gives_features_of_the_image(tiny):
  label, _, _, images, _ = tiny
  model = build_tiny(label, num_classes=0)
  variables = shapes_of(model, images)
  assert not {'head', 'head_dist'} & set(variables['params'])
  out = jax.eval_shape(
    functools.partial(model.apply, train=False), variables, images
  )
  assert out.shape == (3, model.channels[-1])


@pytest.mark.parametrize('wide', [False, True])
def test_images_of_any_size_that_patches_cover_are_taken(tiny, wide):
  label, model, variables, _, _ = tiny
  side = model.image_size
  size = (side, 2 * side) if wide else (2 * side, side + MULTIPLE[label])
  images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
  run = functools.partial(model.apply, train=False)
  if label in FIXED_SIZE:
    message = f'{size[0]}×{size[1]} .*image_size={side} and fit no other'
    with pytest.raises(ValueError, match=message):
      jax.eval_shape(run, variables, images)
    return
  assert jax.eval_shape(run, variables, images).shape == (2, 7)


def test_an_image_that_patches_do_not_cover_is_refused_at_once(tiny):
  label, model, _, _, _ = tiny
  side, step = model.image_size, MULTIPLE[label]
  if step == 1:
    pytest.skip('it pads images of any size')
  height = side + step // 2
  images = jax.ShapeDtypeStruct((2, height, side, 3), jnp.float32)
  with pytest.raises(ValueError, match=f'{height}×{side}'):
    shapes_of(model, images)
  message = f'{height}×{side}.*{step}×{step}; the nearest .* {side}×{side}'
  with pytest.raises(ValueError, match=message):
    shapes_of(model.clone(image_size=(height, side)), images)


def test_rematerialised_blocks_have_the_same_parameters(tiny):
  _, model, variables, images, _ = tiny
  again = model.clone(remat=True)
  assert jax.tree.map(jnp.shape, shapes_of(again, images)) == jax.tree.map(
    jnp.shape, variables
  )
  jaxpr = lambda model: str(  # noqa: E731
    jax.make_jaxpr(functools.partial(model.apply, train=False))(
      variables, images
    )
  )
  units = sum(getattr(model, 'resnet', None) or ())
  assert jaxpr(again).count('remat2[') == len(blocks_of(variables)) + units
  assert 'remat2[' not in jaxpr(model)


def test_the_sharding_rules_place_every_parameter(tiny):
  _, model, variables, _, _ = tiny
  split = 0
  for axes in ({'fsdp': 2}, {'tensor': 2}):
    placed = sharding.build(**axes).parameters(variables['params'])
    assert jax.tree.structure(placed) == jax.tree.structure(
      variables['params']
    )
    split += sum(not x.is_fully_replicated for x in jax.tree.leaves(placed))
  assert split > 2 * len(blocks_of(variables))


def test_half_precision_computes_in_bfloat16_from_float32_parameters(tiny):
  label, _, variables, images, run = tiny
  model = build_tiny(label, num_classes=7, dtype='bfloat16')
  for leaf in jax.tree.leaves(shapes_of(model, images)):
    assert leaf.dtype == jnp.float32
  logits = jax.jit(functools.partial(model.apply, train=False))(
    variables, images
  )
  assert logits.dtype == jnp.bfloat16
  exact = np.asarray(run(variables, images))
  # Eight bits of mantissa, after some twenty roundings.
  np.testing.assert_allclose(
    logits.astype(jnp.float32), exact, atol=0.03 * np.abs(exact).max()
  )


@pytest.mark.parametrize(
  ('name', 'fields', 'message'),
  [
    ('vitt', {}, "unknown model 'vitt'; did you mean 'vit'"),
    (
      'mixer', {'variant': 'S/16', 'num_classes': 3, 'attention': 'linear'},
      "'mixer' has no option 'attention'",
    ),
    ('vit', {'variant': 'B/61'}, "'B/61'; did you mean 'B/16'.*choices: B/14"),
    (
      'vit',
      {'variant': 'B/16', 'num_clases': 3},
      "'num_clases' .*num_clases=3.*did you mean 'num_classes'.*choices: ",
    ),
    ('vit', {'variant': 'B/16'}, 'num_classes.*missing fields'),
    ('vit', {'num_classes': 3}, r'patch_size.*give a variant \(Ti/8, '),
  ],
)
def test_a_wrong_name_or_field_is_an_error_with_choices(name, fields, message):
  with pytest.raises(ValueError, match=message):
    models.build(name, **fields)


def test_lists_as_json_has_them_stand_for_tuples():
  fields = {**TINY['vit hybrid'], 'resnet': [1], 'image_size': [8, 8]}
  model = models.build('vit', num_classes=3, **fields)
  assert (model.resnet, model.image_size) == ((1,), (8, 8))
  assert model == model.clone()  # hashed as a key of compiled programs
  assert hash(model) == hash(model.clone())
