"""The contract of every model in the table, and the sizes of all variants."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from vit_jax import models, sharding

# Parameters at 224 pixels and 1000 classes, as published.
SIZES = {
  'vit': {
    'Ti/16': 5_717_416,
    'S/16': 22_050_664,
    'S/32': 22_878_952,
    'B/8': 86_576_872,
    'B/16': 86_567_656,
    'B/32': 88_224_232,
    'L/16': 304_326_632,
    'L/32': 306_535_400,
    'H/14': 632_045_800,
    'g/14': 1_012_611_432,
    'R+Ti/16': 6_337_704,
    'R26+S/32': 36_431_912,
    'R26+B/32': 101_383_976,
    'R50+B/16': 98_659_112,
    'R50+L/32': 328_994_856,
  },
  'deit': {
    'Ti/16': 5_717_416,
    'S/16': 22_050_664,
    'B/16': 86_567_656,
    'Ti/16-distilled': 5_910_800,
    'S/16-distilled': 22_436_432,
    'B/16-distilled': 87_338_192,
    'III-S/16': 22_059_496,
    'III-B/16': 86_585_320,
    'III-L/16': 304_374_760,
    'III-H/14': 632_126_440,
  },
  'mixer': {
    'S/16': 18_528_264,
    'B/16': 59_880_472,
    'B/32': 60_293_428,
    'L/16': 208_196_168,
  },
}
# Traced at their whole depth too: one of each class.
WHOLE = (('vit', 'Ti/16'), ('deit', 'Ti/16-distilled'), ('mixer', 'S/16'))

# The smallest instances that have every part; images are 8 × 8 RGB. The first
# word is the model's name.
WIDTHS = {
  'hidden_size': 16, 'num_layers': 2, 'num_heads': 2, 'mlp_dim': 24,
  'image_size': 8, 'feature_layers': (0, -1),
}  # fmt: skip
TINY = {
  'vit': {'patch_size': 4, **WIDTHS},
  'vit hybrid': {
    'patch_size': 1, 'resnet': (1,), 'resnet_width': 32, **WIDTHS
  },
  'deit distilled': {
    'patch_size': 4, 'distilled': True, 'layer_scale': 0.1, **WIDTHS
  },
  'mixer': {
    'patch_size': 4, 'hidden_size': 16, 'num_layers': 2, 'tokens_mlp_dim': 12,
    'channels_mlp_dim': 24, 'image_size': 8, 'feature_layers': (0, -1),
  },
}  # fmt: skip
FIXED_SIZE = ('mixer',)


def build_tiny(label, **fields):
  return models.build(label.split()[0], **{**TINY[label], **fields})


def shapes_of(model, images):
  init = functools.partial(model.init, train=False)
  return jax.eval_shape(init, jax.random.key(0), images)


def random_variables(model, images, seed=0, scale=0.3):
  """Jittered variables, without compiling the model's initialisers."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda s: jnp.asarray(scale * rng.standard_normal(s.shape), s.dtype),
    shapes_of(model, images),
  )


@pytest.fixture(scope='module', params=list(TINY))
def tiny(request):
  """(label, model, variables, images, jitted logits)."""
  model = build_tiny(request.param, num_classes=7)
  rng = np.random.default_rng(1)
  images = jnp.asarray(rng.uniform(-1, 1, (3, 8, 8, 3)), jnp.float32)
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
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  params = shapes_of(model, images)['params']
  size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
  block = (params.get('Transformer') or params).items()
  return size(params), [size(x) for name, x in block if 'lock_' in name]


def test_every_published_size_has_the_published_parameter_count():
  found = {}
  for name, sizes in SIZES.items():
    for variant in sizes:
      model = models.build(name, variant=variant, num_classes=1000)
      # Blocks are alike: one is traced, and stands for the others.
      total, (block,) = count(model.clone(num_layers=1))
      total += (model.num_layers - 1) * block
      found.setdefault(name, {})[variant] = total
      if (name, variant) in WHOLE:
        assert count(model) == (total, [block] * model.num_layers)
  assert found == SIZES


def test_every_variant_declares_only_fields_and_a_field_overrides_it():
  for name, cls in models.MODELS.items():
    for variant, row in cls.VARIANTS.items():
      model = models.build(name, variant=variant, num_classes=3)
      assert {k: getattr(model, k) for k in row} == row
      assert model.num_classes == 3
      key = next(iter(row))
      changed = models.build(
        name, variant=variant, num_classes=3, **{key: row[key] + 1}
      )
      assert getattr(changed, key) == row[key] + 1


def test_logits_have_one_row_an_image_and_are_finite(tiny):
  _, _, variables, images, run = tiny
  logits = run(variables, images)
  assert logits.shape == (3, 7)
  assert logits.dtype == jnp.float32
  assert np.isfinite(logits).all()
  # Not constant: each image has its own logits.
  assert np.ptp(np.asarray(logits), axis=0).min() > 1e-3


# Operation by operation, a ResNet takes longer than all the rest of this file.
@pytest.mark.parametrize(
  'tiny', [label for label in TINY if 'hybrid' not in label], indirect=True
)
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
    # Softmax is unchanged by a shift of all logits, and a norm by a shift of
    # all channels of a token: these two are exactly 0.
    if not path.endswith(('key/bias', 'token_mixing/Dense_1/bias')):
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
  images = jax.ShapeDtypeStruct((2, 32, 64, 3), jnp.float32)
  model = model.clone(image_size=(32, 64))
  maps = jax.eval_shape(
    functools.partial(model.apply, method='features'),
    shapes_of(model, images),
    images,
  )
  assert len(maps) == len(model.strides) == len(model.channels) > 1
  for found, stride, channels in zip(
    maps, model.strides, model.channels, strict=True
  ):
    assert found.shape == (2, 32 // stride, 64 // stride, channels)


def test_a_model_without_classes_gives_features_of_the_image(tiny):
  label, _, _, images, _ = tiny
  model = build_tiny(label, num_classes=0)
  variables = shapes_of(model, images)
  assert not {'head', 'head_dist'} & set(variables['params'])
  out = jax.eval_shape(
    functools.partial(model.apply, train=False), variables, images
  )
  assert out.shape == (3, model.channels[-1])


@pytest.mark.parametrize('size', [(8, 16), (16, 12)])
def test_images_of_any_size_that_patches_cover_are_taken(tiny, size):
  label, model, variables, _, _ = tiny
  images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
  run = functools.partial(model.apply, train=False)
  if label in FIXED_SIZE:
    message = f'{size[0]}×{size[1]} .*image_size=8 and fit no other'
    with pytest.raises(ValueError, match=message):
      jax.eval_shape(run, variables, images)
    return
  assert jax.eval_shape(run, variables, images).shape == (2, 7)


def test_an_image_that_patches_do_not_cover_is_refused_at_once(tiny):
  _, model, _, _, _ = tiny
  images = jax.ShapeDtypeStruct((2, 10, 8, 3), jnp.float32)
  with pytest.raises(ValueError, match='10×8'):
    shapes_of(model, images)
  with pytest.raises(ValueError, match=r'10×8.*4×4; the nearest .* 8×8'):
    shapes_of(model.clone(image_size=(10, 8)), images)


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
  assert jaxpr(again).count('remat2[') == model.num_layers + units
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
  assert split > 2 * model.num_layers


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
