"""Another attention in a loaded model: it loads, and its error is measured."""

import dataclasses

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import attention, models, pretrained
from vit_jax.pretrained import base, swap

SECTION = {
  'name': 'vit', 'patch_size': 4, 'hidden_size': 16, 'num_layers': 3,
  'num_heads': 2, 'mlp_dim': 24, 'num_classes': 3, 'image_size': 24,
}  # fmt: skip
GRID = (6, 6)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (5, 24, 24, 3))
IMAGES = jnp.asarray(IMAGES, jnp.float32)


@pytest.fixture(scope='module')
def exact():
  model = models.build(**SECTION)
  rng = np.random.default_rng(1)
  variables = jax.tree.map(
    lambda s: jnp.asarray(0.3 * rng.standard_normal(s.shape), s.dtype),
    base.shapes(model, 3),
  )
  scaled = "normalize(mean=0.5, std=0.5)"
  preprocess = {'decode': 'decode(channels=3)', 'transform': scaled}
  return pretrained.Pretrained(
    model, variables, preprocess, ('a', 'b', 'c'), SECTION
  )


def swapped(exact, spec):
  return pretrained.change(exact, attention=spec)


def test_the_exact_kernels_have_no_error(exact):
  # chunked is the same sum in other pieces: rounding only.
  for other in (exact, swapped(exact, 'chunked(size=5)')):
    for row in swap.layer_errors(exact, other, IMAGES):
      assert max(row['local'], row['accumulated']) < 1e-5


def test_errors_equal_their_definition(exact):
  # Inputs and outputs as flax captures them; the other layer on its own.
  other = swapped(exact, 'linformer(rank=4)')
  kinds = ('LayerNorm', 'MultiHeadDotProductAttention', 'Encoder1DBlock')
  name = 'MultiHeadDotProductAttention_0'

  def watch(found):
    _, seen = found.model.apply(
      found.variables, IMAGES,
      capture_intermediates=lambda m, _: type(m).__name__ in kinds,
    )  # fmt: skip
    seen = seen['intermediates']['Transformer']
    return [seen[f'encoderblock_{i}'] for i in range(3)]

  @jax.jit
  def definition():
    out = []
    layer = attention.layer('linformer(rank=4)')(
      num_heads=2, grid=GRID, prefix=1
    )
    params = other.variables['params']['Transformer']
    for i, (ours, theirs) in enumerate(
      zip(watch(exact), watch(other), strict=True)
    ):
      (x,), (a,) = (ours[n]['__call__'] for n in ('LayerNorm_0', name))
      p = {'params': params[f'encoderblock_{i}'][name]}
      (y,), (z,) = (b['__call__'] for b in (ours, theirs))
      pairs = (layer.apply(p, x), a), (z, y)
      out.append([
        jnp.linalg.norm((b - c).ravel()) / jnp.linalg.norm(c.ravel())
        for b, c in pairs
      ])  # fmt: skip
    return out

  rows = swap.layer_errors(exact, other, IMAGES, batch_size=3)
  assert [r['layer'] for r in rows] == [0, 1, 2]
  for row, (local, accumulated) in zip(rows, definition(), strict=True):
    assert row['local'] == pytest.approx(float(local), rel=1e-5)
    assert row['accumulated'] == pytest.approx(float(accumulated), rel=1e-5)
    assert row['local'] > 0.01


def test_the_error_is_of_the_swapped_blocks_alone(exact):
  # Every other block stays exact, but what it is fed is not any more.
  rows = swap.layer_errors(
    exact, swapped(exact, 'softmax, linear, softmax'), IMAGES
  )
  assert [r['local'] < 1e-5 for r in rows] == [True, False, True]
  assert [r['accumulated'] < 1e-5 for r in rows] == [True, False, False]


def test_other_kernels_have_an_error_in_every_block(exact):
  other = swapped(exact, 'window(size=3), performer(features=8), hydra')
  for row in swap.layer_errors(exact, other, IMAGES):
    assert 0.01 < row['local'] < 10
    assert 0.001 < row['accumulated'] < 10


def test_recomputed_and_half_precision_blocks_are_measured_too(exact):
  again = pretrained.change(exact, remat=True, dtype='bfloat16')
  rows = swap.layer_errors(exact, again, IMAGES)
  assert all(0 < r['local'] < 0.03 for r in rows)


@pytest.mark.parametrize(
  ('change', 'images', 'message'),
  [
    ({'num_layers': 2}, IMAGES, 'num_layers=3 and the swapped one 2'),
    ({'num_registers': 1}, IMAGES, 'prefix=1 and the swapped one 2'),
    ({}, IMAGES[:0], 'empty'),
  ],
)
def test_what_cannot_be_compared_is_refused(exact, change, images, message):
  other = dataclasses.replace(exact, model=exact.model.clone(**change))
  with pytest.raises(ValueError, match=message):
    swap.layer_errors(exact, other, images)


def test_models_without_such_blocks_are_refused(exact):
  import flax.linen as nn

  other = dataclasses.replace(exact, model=nn.Dense(3))
  with pytest.raises(ValueError, match='not of Dense'):
    swap.layer_errors(exact, other, IMAGES)


@pytest.fixture(scope='module')
def saved(exact, tmp_path_factory):
  path = tmp_path_factory.mktemp('swap') / 'exact'
  pretrained.save(path, exact)
  return path


@pytest.mark.parametrize(
  'spec',
  [
    'linformer(rank=4)',  # parameters sized by all 37 tokens
    # One with a collection of its own, and as many specs as layers.
    'window(size=3), performer(features=8), softmax',
  ],
)
def test_a_checkpoint_loads_with_another_attention(exact, saved, spec):
  found = pretrained.load(saved, attention=spec)
  assert found.config['attention'] == found.model.attention == spec
  assert found.labels == exact.labels
  flat, old = (
    flax.traverse_util.flatten_dict(f.variables, sep='/')
    for f in (found, exact)
  )
  for name, value in old.items():
    np.testing.assert_array_equal(flat[name], value, name)
  new = set(flat) - set(old)
  assert new
  assert all('/attend/' in name for name in new)
  logits = jax.jit(found.model.apply)(found.variables, IMAGES)
  assert np.isfinite(logits).all()
  # And back: the kernel's own parameters go.
  again = pretrained.change(found, attention='softmax')
  assert again.model == exact.model
  jax.tree.map(np.testing.assert_array_equal, again.variables, exact.variables)


def test_a_layer_without_a_place_for_the_weights_is_refused(exact):
  # Reformer's queries are its keys.
  with pytest.raises(ValueError, match='no place for .*key/'):
    swapped(exact, 'reformer')
