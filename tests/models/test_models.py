"""The contract of every model in the table, and the sizes of all variants."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from vit_jax import models

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
  },
}

# The smallest instance that has every part; images are 8 × 8 RGB.
TINY = {
  'vit': {
    'patch_size': 4,
    'hidden_size': 16,
    'num_layers': 2,
    'num_heads': 2,
    'mlp_dim': 24,
    'image_size': 8,
    'feature_layers': (0, -1),
  },
}


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


@pytest.fixture(scope='module', params=sorted(models.MODELS))
def tiny(request):
  """(name, model, variables, images, jitted logits)."""
  model = models.build(request.param, num_classes=7, **TINY[request.param])
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
  assert set(SIZES) == set(TINY) == set(models.MODELS)


def test_every_published_size_has_the_published_parameter_count():
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  found = {
    name: {
      variant: sum(
        leaf.size
        for leaf in jax.tree.leaves(
          shapes_of(
            models.build(name, variant=variant, num_classes=1000), images
          )['params']
        )
      )
      for variant in sizes
    }
    for name, sizes in SIZES.items()
  }
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
    # Softmax is unchanged by a shift of all logits: this one is exactly 0.
    if not path.endswith('key/bias'):
      assert np.abs(gradient).max() > 1e-5, path


def test_evaluation_is_deterministic_and_needs_no_randomness(tiny):
  name, model, variables, images, run = tiny
  noisy = model.clone(dropout_rate=0.5, drop_path_rate=0.5)
  np.testing.assert_array_equal(
    jax.jit(functools.partial(noisy.apply, train=False))(variables, images),
    run(variables, images),
  )


def test_features_have_the_declared_strides_and_channels(tiny):
  _, model, variables, _, _ = tiny
  images = jax.ShapeDtypeStruct((2, 32, 64, 3), jnp.float32)
  maps = jax.eval_shape(
    functools.partial(model.apply, method='features'), variables, images
  )
  assert len(maps) == len(model.strides) == len(model.channels) > 1
  for found, stride, channels in zip(
    maps, model.strides, model.channels, strict=True
  ):
    assert found.shape == (2, 32 // stride, 64 // stride, channels)


def test_a_model_without_classes_gives_features_of_the_image(tiny):
  name, _, _, images, _ = tiny
  model = models.build(name, num_classes=0, **TINY[name])
  variables = shapes_of(model, images)
  assert 'head' not in variables['params']
  out = jax.eval_shape(
    functools.partial(model.apply, train=False), variables, images
  )
  assert out.shape == (3, model.channels[-1])


@pytest.mark.parametrize('size', [(8, 16), (16, 12)])
def test_images_of_any_size_that_patches_cover_are_taken(tiny, size):
  _, model, variables, _, _ = tiny
  out = jax.eval_shape(
    functools.partial(model.apply, train=False),
    variables,
    jax.ShapeDtypeStruct((2, *size, 3), jnp.float32),
  )
  assert out.shape == (2, 7)


def test_half_precision_computes_in_bfloat16_from_float32_parameters(tiny):
  name, _, variables, images, run = tiny
  model = models.build(
    name, num_classes=7, dtype='bfloat16', **TINY[name]
  )
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
