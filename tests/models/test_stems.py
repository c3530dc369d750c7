"""Stems: tokens by definition, and what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.test_resnet_classifier import random_variables, unit

from vit_jax import models, tasks
from vit_jax.models import stems
from vit_jax.models.initialization import initializers
from vit_jax.pretrained import base

TINY = {
  'num_classes': 5, 'patch_size': 4, 'hidden_size': 8, 'num_layers': 1,
  'num_heads': 2, 'mlp_dim': 8, 'image_size': 8,
}  # fmt: skip


def stem(spec, patch_size=4, features=5):
  return stems.build(
    spec, features, patch_size, jnp.float32, initializers('original')
  )


def images_of(*shape, seed=1):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.uniform(-1, 1, shape), jnp.float32)


def tokens(module, images):
  """Jittered variables, and the tokens that they make of images."""
  variables = random_variables(module, images)
  found = jax.jit(module.apply)(variables, images)
  return jax.tree.map(np.float64, variables), np.asarray(found)


def dense(params, x):
  return x @ params['kernel'] + params['bias']


def test_a_conv_stem_is_convolutions_and_a_one_by_one_without_relu():
  images = images_of(2, 8, 12, 3)
  module = stem('conv(widths=(4, 6, 6), strides=(2, 1, 2))')
  variables, found = tokens(module, images)
  for b in range(2):
    x = np.float64(images[b])
    for i, stride in enumerate((2, 1, 2)):
      x = np.maximum(unit(variables, f'conv{i + 1}', x, stride), 0)
    wanted = dense(variables['params']['out'], x).reshape(6, 5)
    np.testing.assert_allclose(found[b], wanted, atol=1e-5)
  assert found.min() < 0
  assert 'bias' not in variables['params']['conv1']['conv']


def test_a_residual_stem_is_blocks_and_a_one_by_one():
  images = images_of(1, 4, 8, 3)
  module = stem('residual(widths=(4, 6))')
  variables, found = tokens(module, images)
  x = np.float64(images[0])
  for name in ('unit1', 'unit2'):
    inner = {k: variables[k][name] for k in variables}
    y = np.maximum(unit(inner, 'conv1', x, 2), 0)
    y = unit(inner, 'conv2', y, 1)
    x = np.maximum(y + unit(inner, 'shortcut', x, 2), 0)
  wanted = dense(variables['params']['out'], x).reshape(2, 5)
  np.testing.assert_allclose(found[0], wanted, atol=1e-5)


@pytest.mark.parametrize('patch_size', [2, 5])
def test_shifted_patches_hold_the_image_and_its_four_diagonal_shifts(
  patch_size,
):
  p, half = patch_size, patch_size // 2
  images = images_of(2, 2 * p, 3 * p, 2)
  variables, found = tokens(stem('spt', p), images)
  params = variables['params']
  for b, r, c in np.ndindex(2, 2, 3):
    patch = []
    for y, x in np.ndindex(p, p):
      # A picture moved up and left shows what was below and to the right.
      for dy, dx in ((0, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)):
        row, column = r * p + y + dy * half, c * p + x + dx * half
        inside = 0 <= row < 2 * p and 0 <= column < 3 * p
        pixel = images[b, row, column] if inside else (0, 0)
        patch += [float(v) for v in pixel]
    patch = np.array(patch)
    patch = (patch - patch.mean()) / np.sqrt(patch.var() + 1e-5)
    patch = patch * params['norm']['scale'] + params['norm']['bias']
    wanted = dense(params['out'], patch)
    np.testing.assert_allclose(found[b, 3 * r + c], wanted, atol=1e-5)


def test_a_plain_stem_is_the_patch_embedding_with_its_names():
  images = images_of(1, 8, 8, 3)
  variables, found = tokens(stem('patches'), images)
  assert set(variables['params']) == {'kernel', 'bias'}
  kernel = variables['params']['kernel'].reshape(-1, 5)
  corner = np.float64(images[0, :4, 4:]).ravel()
  wanted = corner @ kernel + variables['params']['bias']
  np.testing.assert_allclose(found[0, 1], wanted, atol=1e-5)


def test_stems_start_as_published():
  module = stem('conv(widths=(32, 64))', features=48)

  @jax.jit
  def start(key):
    return module.init(key, jnp.zeros((1, 8, 8, 3)))['params']

  params = start(jax.random.key(0))
  for kernel, fan_out in (
    (params['conv2']['conv']['kernel'], 9 * 64), (params['out']['kernel'], 48)
  ):  # fmt: skip
    kernel, expected = np.asarray(kernel), np.sqrt(2 / fan_out)
    assert abs(kernel.std() - expected) < 4 * expected / np.sqrt(
      2 * kernel.size
    )
  assert not np.any(params['out']['bias'])
  # A patch embedding that a model starts otherwise starts so here too.
  other = stems.build('spt', 5, 2, jnp.float32, initializers('truncated'))
  assert other.kernel_init is initializers('truncated').patches


@pytest.mark.parametrize(
  ('spec', 'patch_size', 'message'),
  [
    ('convs', 4, "unknown stem 'convs'; did you mean 'conv'"),
    ('conv(width=(4, 4))', 4, "no option 'width'.*did you mean 'widths'"),
    ('conv', 4, 'widths'),
    ('conv(widths=(4, 4), patch_size=4)', 4, 'set by the caller'),
    ('conv, spt', 4, 'expected one stem, got 2'),
  ],
)
def test_a_wrong_spec_is_an_error_with_choices(spec, patch_size, message):
  with pytest.raises(ValueError, match=message):
    stem(spec, patch_size)


@pytest.mark.parametrize(
  ('spec', 'patch_size', 'message'),
  [
    ('conv(widths=(4, 4))', 8, r'takes 4 pixels a token.*patch_size=8'),
    ('conv(widths=(4, 4), strides=(4,))', 4, 'as many'),
    ('residual(widths=(4, 4, 4))', 4, 'takes 8 pixels a token'),
    ('spt', 1, 'patch_size=1: patches of at least 2 pixels'),
    ('tokenizer', 4, 'layers=1 takes 2 pixels a token, not patch_size=4'),
    ('tokenizer(kernel_size=4)', 2, 'kernel_size=4, .* odd kernels from 3'),
    ('tokenizer(layers=0)', 2, 'at least one layer'),
  ],
)
def test_a_stem_that_does_not_make_the_patch_size_is_refused(
  spec, patch_size, message
):
  images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(stem(spec, patch_size).init, jax.random.key(0), images)


# In a model.


def test_any_stem_fits_by_one_word_with_every_method():
  for spec, patch_size in (
    ('residual(widths=(4, 4))', 4), ('spt', 4), ('tokenizer', 2),
    ('tokenizer(layers=2)', 4), ('tokenizer(kernel_size=7)', 4),
  ):  # fmt: skip
    model = models.build(
      'vit', **{**TINY, 'patch_size': patch_size, 'stem': spec}
    )
    images = jax.ShapeDtypeStruct((2, 8, 12, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    run = functools.partial(jax.eval_shape, variables=variables, images=images)
    logits = run(lambda variables, images, m=model: m.apply(variables, images))
    (found,) = run(
      lambda variables, images, m=model: m.apply(
        variables, images, method='features'
      )
    )
    assert logits.shape == (2, 5)
    assert found.shape == (2, 8 // patch_size, 12 // patch_size, 8)
    assert 'kernel' not in variables['params']['embedding']


def test_images_that_tokens_do_not_cover_and_hybrids_are_refused():
  fields = {**TINY, 'stem': 'conv(widths=(4, 4))'}
  images = jax.ShapeDtypeStruct((1, 8, 10, 3), jnp.float32)
  init = models.build('vit', **fields).init
  with pytest.raises(ValueError, match='8×10 .*4×4; the nearest'):
    jax.eval_shape(init, jax.random.key(0), images)
  hybrid = models.build('vit', **fields, resnet=(1,), resnet_width=32)
  images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
  with pytest.raises(ValueError, match="and resnet=.*stem='patches'"):
    jax.eval_shape(hybrid.init, jax.random.key(0), images)


@pytest.mark.parametrize('weights', [{'hard': 0.5, 'soft': 0.0, 'token': True},
                                     {'features': 1.0}])  # fmt: skip
def test_a_distilled_stem_learns_its_running_averages(weights):
  fields = {**TINY, 'stem': 'conv(widths=(4, 4))'}
  token = 'token' in weights
  model = models.build('deit' if token else 'vit', **fields)
  model = model.clone(distilled=True) if token else model
  images = images_of(4, 8, 8, 3)
  variables = random_variables(model, images)
  teacher = models.build('vit', **TINY)
  weights_of = random_variables(teacher, images)
  found = base.Pretrained(teacher, weights_of, {}, (), {})
  task = tasks.build('distillation', num_classes=5, teacher=found, **weights)
  batch = {
    'image': images, 'label': jnp.arange(4), 'weight': jnp.ones(4)
  }  # fmt: skip

  @jax.jit
  def run(variables):
    ready = task.prepare(batch, jax.random.key(0))
    mutated = {}

    def forward(*args, method=None, train):
      out, changed = model.apply(
        variables, *args, train=train, method=method, mutable=['batch_stats']
      )
      mutated.update(changed)
      return out

    task.loss(forward, ready, jax.random.key(1))
    return mutated

  before = variables['batch_stats']['embedding']['conv1']['norm']['mean']
  after = run(variables)['batch_stats']['embedding']['conv1']['norm']['mean']
  assert np.abs(after - before).max() > 1e-4
