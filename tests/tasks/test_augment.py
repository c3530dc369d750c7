"""Augmentation of whole batches: labels, areas, determinism."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import specs
from vit_jax.tasks import augment

B, SIZE = 8, 16


def build(spec):
  return specs.build(spec, augment.AUGMENTATIONS, 'batch augmentation')


@functools.cache
def jitted(spec):
  return jax.jit(build(spec))


def make_batch(size=SIZE, count=B, seed=0):
  rng = np.random.default_rng(seed)
  weight = np.ones(count, np.float32)
  weight[2:3] = 0.0
  target = rng.dirichlet(np.ones(count), count).astype(np.float32)
  return {
    'image': jnp.asarray(rng.uniform(-1, 1, (count, size, size, 3)), 'float32'),
    'target': jnp.asarray(target),
    'label': jnp.asarray(target.argmax(-1)),
    'weight': jnp.asarray(weight),
  }


def numbered(count=B, size=SIZE):
  """Image i is i everywhere, its target is one-hot i."""
  batch = make_batch(size, count)
  image = jnp.broadcast_to(
    jnp.arange(count, dtype=jnp.float32)[:, None, None, None],
    (count, size, size, 3),
  )
  return {**batch, 'image': image, 'target': jnp.eye(count)}


@pytest.fixture(scope='module', params=sorted(augment.AUGMENTATIONS))
def entry(request):
  return jitted(request.param)


def keys(count, seed=0):
  return jax.random.split(jax.random.key(seed), count)


def test_an_augmentation_is_determined_by_its_key(entry):
  batch = make_batch()
  first, again = (entry(batch, jax.random.key(1)) for _ in range(2))
  others = [entry(batch, key) for key in keys(4)]
  for name in batch:
    np.testing.assert_array_equal(first[name], again[name])
  assert any(np.any(o['image'] != first['image']) for o in others)


def test_an_augmentation_keeps_shapes_types_and_keys(entry):
  batch = make_batch()
  for dtype in (jnp.float32, jnp.bfloat16):
    batch = {**batch, 'image': batch['image'].astype(dtype)}
    found = jax.eval_shape(entry, batch, jax.random.key(0))
    assert {k: (v.shape, v.dtype) for k, v in found.items()} == {
      k: (v.shape, v.dtype) for k, v in batch.items()
    }


def test_an_augmentation_conserves_the_mass_of_labels(entry):
  batch = make_batch()
  for key in keys(4):
    found = entry(batch, key)
    np.testing.assert_allclose(found['target'].sum(-1), 1.0, atol=1e-6)
    assert np.min(found['target']) >= 0
    for name in ('label', 'weight'):
      np.testing.assert_array_equal(found[name], batch[name])


def test_an_augmentation_differs_from_doing_nothing(entry):
  batch = make_batch()
  changed = [
    np.any(entry(batch, key)['image'] != batch['image']) for key in keys(8)
  ]
  assert any(changed)


MIXING = ('mixup', 'cutmix', 'mixup_or_cutmix')


@pytest.mark.parametrize('spec', MIXING)
def test_the_mixed_share_of_an_image_equals_that_of_its_label(spec):
  # The mean of image i is Σ_j share_j · j: the labels must say the same.
  batch, run = numbered(), jitted(spec)
  shares = []
  for key in keys(12):
    found = run(batch, key)
    mean = np.asarray(found['image'], np.float64).mean((1, 2, 3))
    np.testing.assert_allclose(
      mean, found['target'] @ np.arange(B, dtype=np.float32), atol=1e-4
    )
    # Only the example before takes part.
    other = np.asarray(found['target']).copy()
    other[np.arange(B), np.arange(B)] = 0
    other[np.arange(B), np.arange(B) - 1] = 0
    assert not other.any()
    shares.append(float(found['target'][1, 0]))
  assert np.std(shares) > 0.1


@pytest.mark.parametrize('spec', MIXING)
def test_examples_of_weight_zero_are_never_mixed_into_others(spec):
  batch, run = numbered(), jitted(spec)
  for key in keys(6):
    found = run(batch, key)
    np.testing.assert_array_equal(found['image'][3], batch['image'][3])
    np.testing.assert_array_equal(found['target'][3], batch['target'][3])


def test_mixup_blends_every_pixel_alike():
  batch, shares = make_batch(), []
  rows = np.arange(B) != 3  # whose partner has weight 0
  image = np.asarray(batch['image'])
  image, other = image[rows], np.roll(image, 1, axis=0)[rows]
  apart = image - other
  for key in keys(8):
    new = np.asarray(jitted('mixup')(batch, key)['image'])[rows]
    share = ((new - other) * apart).sum() / (apart**2).sum()
    np.testing.assert_allclose(new, other + share * apart, atol=1e-5)
    shares.append(share)
  assert any(0.1 < share < 0.9 for share in shares)


def test_mixups_share_is_beta_distributed():
  run = jax.jit(jax.vmap(build('mixup(alpha=0.4)'), in_axes=(None, 0)))
  found = run(numbered(4, 1), keys(3000))['target'][:, 1, 1]
  assert abs(found.mean() - 0.5) < 0.03
  # Var Beta(α, α) = 1 / (4 (2α + 1))
  assert found.var() == pytest.approx(1 / (4 * 1.8), rel=0.1)


def test_cutmix_pastes_one_box_of_the_other_image():
  batch, run = numbered(), jitted('cutmix')
  for key in keys(12):
    image = np.asarray(run(batch, key)['image'])[..., 0]
    for i in (1, 4):
      pasted = image[i] == i - 1
      assert (pasted | (image[i] == i)).all()
      rows, columns = pasted.any(1), pasted.any(0)
      np.testing.assert_array_equal(pasted, np.outer(rows, columns))
      for line in (rows, columns):  # in one piece
        assert np.abs(np.diff(line.astype(int))).sum() <= 2


def test_cutmixs_area_follows_its_distribution():
  # λ ~ U(0, 1): a box of sides s = √(1-λ), centred uniformly and cut at the
  # border, covers s (1 - s/4) of each axis on average, so that
  # E area = ∫ (s (1 - s/4))² 2s ds = 1/2 - 1/5 + 1/48.
  run = jax.jit(jax.vmap(build('cutmix'), in_axes=(None, 0)))
  found = run(numbered(2, 64), keys(1500))
  area = np.asarray(found['target'][:, 1, 0])
  assert area.mean() == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.02)


def test_mixup_or_cutmix_switches_between_them_as_told():
  run = jax.jit(
    jax.vmap(build('mixup_or_cutmix(switch=0.3)'), in_axes=(None, 0))
  )
  image = np.asarray(run(numbered(2, 8), keys(600))['image'])
  # CutMix leaves whole numbers only.
  cut = (image == np.round(image)).all((1, 2, 3, 4))
  assert abs(cut.mean() - 0.3) < 0.06


def test_erasing_fills_one_rectangle_within_its_bounds_with_noise():
  spec = 'erasing(probability=1.0, area_min=0.1, area_max=0.2, ratio=0.5)'
  count, size = 400, 32
  batch = {'image': jnp.full((count, size, size, 1), 9.0)}
  image = np.asarray(jax.jit(build(spec))(batch, jax.random.key(0))['image'])
  erased = image[..., 0] != 9.0
  heights, widths = (erased.any(a).sum(-1) for a in (2, 1))
  np.testing.assert_array_equal(erased.sum((1, 2)), heights * widths)
  # A side is off by less than a pixel.
  assert ((heights + 1) * (widths + 1) >= 0.1 * size**2).all()
  assert ((heights - 1) * (widths - 1) <= 0.2 * size**2).all()
  ratio = heights / widths
  assert 0.4 < ratio.min() < 0.6
  assert 1.7 < ratio.max() < 2.5
  noise = image[..., 0][erased]
  assert abs(noise.mean()) < 0.02
  assert abs(noise.std() - 1) < 0.02
  # Anywhere in the image.
  assert erased.any(0).mean() > 0.95


def test_erasing_leaves_its_share_of_images_alone():
  batch = {'image': jnp.full((2000, 4, 4, 1), 9.0)}
  run = jax.jit(build('erasing(probability=0.25, area_min=0.3)'))
  image = run(batch, jax.random.key(0))['image']
  share = np.mean(np.any(np.asarray(image) != 9.0, axis=(1, 2, 3)))
  assert abs(share - 0.25) < 0.03


def test_flip_mirrors_columns_of_half_of_the_images():
  image = np.tile(np.arange(6.0).reshape(1, 2, 3, 1), (1000, 1, 1, 1))
  batch = {'image': jnp.asarray(image)}
  out = np.asarray(jax.jit(build('flip'))(batch, jax.random.key(0))['image'])
  same = (out == image).all((1, 2, 3))
  mirrored = (out == image[:, :, ::-1]).all((1, 2, 3))
  assert (same ^ mirrored).all()
  assert abs(same.mean() - 0.5) < 0.06


def test_pad_crop_shifts_by_every_offset_up_to_the_padding():
  rng = np.random.default_rng(0)
  image = rng.standard_normal((1, 5, 6, 1)).astype(np.float32)
  batch = {'image': jnp.asarray(np.repeat(image, 300, axis=0))}
  out = np.asarray(
    jax.jit(build('pad_crop(padding=2)'))(batch, jax.random.key(0))['image']
  )
  padded = np.pad(image[0], ((2, 2), (2, 2), (0, 0)), mode='reflect')
  crops = [padded[r : r + 5, c : c + 6] for r in range(5) for c in range(5)]
  found = [
    next(i for i, crop in enumerate(crops) if np.array_equal(crop, x))
    for x in out
  ]
  assert set(found) == set(range(25))


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('mixup(alpha=0.0)', 'alpha=0.0 must be positive'),
    ('cutmix(alpha=-1.0)', 'alpha=-1.0 must be positive'),
    ('mixup_or_cutmix(switch=1.5)', 'switch=1.5 is not a probability'),
    ('mixup_or_cutmix(cutmix=0.0)', 'cutmix=0.0 must be positive'),
    ('erasing(probability=2.0)', 'probability=2.0 is not a probability'),
    ('erasing(area_min=0.5)', 'area_min <= area_max <= 1; got 0.5'),
    ('pad_crop(padding=0)', 'padding=0 must be positive'),
  ],
)
def test_a_value_out_of_range_is_an_error_that_names_it(spec, message):
  with pytest.raises(ValueError, match=message):
    build(spec)
