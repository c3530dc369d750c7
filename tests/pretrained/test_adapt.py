"""A loaded model at another size, with another head, attention or patches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from vit_jax import layers, models, pretrained
from vit_jax.pretrained import base, convert
from vit_jax.pretrained.adapt import resize_patches

VIT = {
  'name': 'vit', 'patch_size': 4, 'hidden_size': 16, 'num_layers': 1,
  'num_heads': 2, 'mlp_dim': 24, 'image_size': 16, 'num_classes': 3,
}  # fmt: skip
PREPROCESS = {
  'decode': 'decode(channels=3)',
  'transform': 'resize_short(size=18), center_crop(size=16), value_range',
}
PYRAMID = {
  'name': 'pvt', 'hidden_sizes': (8, 12), 'depths': (1, 1), 'num_heads': (1, 2),
  'mlp_ratios': (1, 1), 'reductions': (2, 1), 'feature_layers': (0, 1),
  'image_size': 16, 'num_classes': 3,
}  # fmt: skip


def drawn(**fields):
  """A loaded ViT of random variables."""
  return loaded(**{**VIT, **fields})


@functools.cache
def loaded(**config):
  model, rng = models.build(**config), np.random.default_rng(0)
  variables = jax.tree.map(
    lambda s: jnp.asarray(rng.standard_normal(s.shape), s.dtype),
    base.shapes(model, 3),
  )
  labels = tuple('abc')[: model.num_classes]
  return pretrained.Pretrained(model, variables, PREPROCESS, labels, config)


def flat(found):
  return convert.flatten(found.variables)


TABLE = 'Transformer/posembed_input/pos_embedding'


def differences(found, changed):
  """Names of the variables that are not the very same."""
  old, new = flat(found), flat(changed)
  assert set(old) == set(new)
  return {
    n for n in old
    if old[n].shape != new[n].shape or not np.array_equal(old[n], new[n])
  }  # fmt: skip


@pytest.mark.parametrize(
  ('fields', 'prefix'),
  [
    ({}, 1),
    ({'prefix_positions': 0}, 0),
    ({'classifier': 'gap'}, 0),
    ({'num_registers': 2, 'prefix_positions': 3}, 3),
    ({'name': 'deit', 'distilled': True,
      'position_resize': 'align_corners'}, 2),
  ],
)  # fmt: skip
@pytest.mark.parametrize('size', [28, (8, 24)])
def test_positions_are_resized_as_scipy_zooms_and_nothing_else(
  fields, prefix, size
):
  found = drawn(**fields)
  changed = pretrained.change(found, image_size=size)
  assert differences(found, changed) == {TABLE}
  old, new = (np.asarray(flat(f)[TABLE])[0] for f in (found, changed))
  rows, columns = (s // 4 for s in np.broadcast_to(size, 2))
  np.testing.assert_array_equal(new[:prefix], old[:prefix])
  cells = ndimage.zoom(
    old[prefix:].reshape(4, 4, 16).astype(np.float64),
    (rows / 4, columns / 4, 1), order=1,
  )  # fmt: skip
  np.testing.assert_allclose(
    new[prefix:], cells.reshape(-1, 16), atol=1e-6, rtol=0
  )


def test_a_grid_of_as_many_cells_is_another_grid():
  found = drawn(image_size=(8, 32))
  changed = pretrained.change(found, image_size=16)
  assert differences(found, changed) == {TABLE}


def test_the_rule_of_the_source_resizes_unless_another_is_given():
  found = drawn(position_resize='bicubic')
  plain = flat(pretrained.change(found, image_size=24))[TABLE]
  given = {'image_size': 24, 'position_resize': 'align_corners'}
  other = flat(pretrained.change(found, **given))[TABLE]
  assert np.abs(plain - other).max() > 0.1
  cells = jax.image.resize(
    np.asarray(flat(found)[TABLE])[0, 1:].reshape(4, 4, 16), (6, 6, 16),
    'bicubic',
  )  # fmt: skip
  np.testing.assert_allclose(
    plain[0, 1:], cells.reshape(36, 16), atol=1e-6, rtol=0
  )


def test_a_hybrids_grid_is_that_of_its_stride():
  found = drawn(resnet=(1, 1), resnet_width=32, patch_size=1, image_size=32)
  changed = pretrained.change(found, image_size=64)
  assert differences(found, changed) == {TABLE}
  assert flat(changed)[TABLE].shape == (1, 1 + 8 * 8, 16)


@pytest.mark.parametrize('position', ['relative_bias', 'alibi, relative_bias'])
def test_biases_by_offset_are_resized_as_scipy_zooms(position):
  found = drawn(position=position)
  changed = pretrained.change(found, image_size=(8, 24))
  (name,) = differences(found, changed)
  old, new = (np.asarray(flat(f)[name]) for f in (found, changed))
  assert old.shape == (7, 7, 2)
  expected = ndimage.zoom(old.astype(np.float64), (3 / 7, 11 / 7, 1), order=1)
  np.testing.assert_allclose(new, expected, atol=1e-6, rtol=0)
  # Offsets of 0 and the farthest ones keep their entries.
  np.testing.assert_allclose(new[1, 5], old[3, 3], atol=1e-6)
  np.testing.assert_allclose(new[0, 0], old[0, 0], atol=1e-6)


def test_decomposed_biases_are_resized_axis_by_axis():
  found = drawn(position='decomposed_bias', position_resize='bicubic_torch')
  changed = pretrained.change(found, image_size=(16, 24))
  (name,) = differences(found, changed)
  assert name.endswith('/position/column')
  old, new = (np.asarray(flat(f)[name]) for f in (found, changed))
  expected = layers.cubic_torch(11, 7) @ old
  np.testing.assert_allclose(new, expected, atol=1e-6)


def test_every_stage_of_a_pyramid_has_its_tables_grid():
  found = loaded(**PYRAMID)
  changed = pretrained.change(found, image_size=(16, 24))
  tables = [f'stage_{s}/posembed_input/pos_embedding' for s in (0, 1)]
  assert differences(found, changed) == set(tables)
  for table, prefix, side in zip(tables, (0, 1), (4, 2), strict=True):
    old, new = (np.asarray(flat(f)[table])[0] for f in (found, changed))
    np.testing.assert_array_equal(new[:prefix], old[:prefix])
    rows, columns = side, side * 3 // 2
    # Areas aligned, and the border's halves repeat it.
    at = np.clip((np.arange(columns) + 0.5) * 2 / 3 - 0.5, 0, side - 1)
    cells = old[prefix:].reshape(rows, side, -1).astype(np.float64)
    for r, c in np.ndindex(rows, columns):
      low = min(int(at[c]), side - 2)
      weight = at[c] - low
      expected = (1 - weight) * cells[r, low] + weight * cells[r, low + 1]
      np.testing.assert_allclose(
        new[prefix + r * columns + c], expected, atol=1e-6
      )


@pytest.mark.parametrize(
  ('size', 'transform'),
  [
    (24, 'resize_short(size=27), center_crop(size=24), value_range'),
    (
      (16, 32),
      'resize_short(size=36), center_crop(size=(16, 32)), value_range',
    ),
    (8, 'resize_short(size=9), center_crop(size=8), value_range'),
  ],
)
def test_sizes_in_the_preprocessing_follow_the_images(size, transform):
  changed = pretrained.change(drawn(), image_size=size)
  assert changed.preprocess == {**PREPROCESS, 'transform': transform}
  assert changed.labels == ('a', 'b', 'c')


def test_a_resize_to_two_sides_follows_either():
  plain = {**PREPROCESS, 'transform': "resize(size=(16, 16), resample='box')"}
  found = dataclasses.replace(drawn(), preprocess=plain)
  changed = pretrained.change(found, image_size=(8, 24))
  assert changed.preprocess['transform'] == (
    "resize(size=(8, 24), resample='box')"
  )
  found = dataclasses.replace(found, preprocess={**plain, 'transform': ''})
  changed = pretrained.change(found, image_size=8)
  assert changed.preprocess['transform'] == ''


def test_another_number_of_classes_starts_a_head_and_keeps_the_rest():
  found = dataclasses.replace(drawn(), dtypes={'head/bias': 'float16'})
  changed = pretrained.change(found, num_classes=7)
  assert differences(found, changed) == {'head/kernel', 'head/bias'}
  assert changed.labels == ()
  head = changed.variables['params']['head']
  assert head['kernel'].shape == (16, 7)
  assert not np.any(head['kernel'])  # zeros, as the original's
  assert not np.any(head['bias'])
  same = pretrained.change(found, num_classes=3)
  assert not differences(found, same)
  assert same.labels == found.labels


def test_no_classes_drop_the_head_and_some_add_one():
  found = drawn()
  bare = pretrained.change(found, num_classes=0)
  assert set(flat(found)) - set(flat(bare)) == {'head/kernel', 'head/bias'}
  images = jnp.ones((1, 16, 16, 3))
  shape = jax.eval_shape(bare.model.apply, bare.variables, images).shape
  assert shape == (1, 16)
  again = pretrained.change(bare, num_classes=2)
  assert flat(again)['head/kernel'].shape == (16, 2)


def test_both_heads_of_a_distilled_model_change():
  found = drawn(name='deit', distilled=True)
  changed = pretrained.change(found, num_classes=7)
  assert differences(found, changed) == {
    f'{head}/{part}'
    for head in ('head', 'head_dist')
    for part in ('kernel', 'bias')
  }


def test_another_attention_keeps_the_projections_and_starts_its_own():
  found = drawn()
  changed = pretrained.change(found, attention='linformer(rank=3)')
  own = set(flat(changed)) - set(flat(found))
  assert own
  assert all('/attend/' in name for name in own)
  for name, x in flat(found).items():
    assert flat(changed)[name] is x
  back = pretrained.change(changed, attention='softmax')
  assert not differences(found, back)
  other = pretrained.change(changed, attention='linformer(rank=5)')
  assert set(flat(other)) == set(flat(changed))


def test_weights_that_cannot_follow_are_named():
  with pytest.raises(ValueError, match='no place for .*query/kernel'):
    pretrained.change(drawn(), attention='fnet')
  mixer = {
    'name': 'mixer', 'patch_size': 4, 'hidden_size': 16, 'num_layers': 1,
    'tokens_mlp_dim': 6, 'channels_mlp_dim': 24, 'image_size': 16,
    'num_classes': 3,
  }  # fmt: skip
  model = models.build(**mixer)
  variables = jax.tree.map(
    lambda s: jnp.ones(s.shape), base.shapes(model, 3)
  )
  found = pretrained.Pretrained(model, variables, PREPROCESS, (), mixer)
  with pytest.raises(ValueError, match=r'token_mixing/.* \(16, 6\) in the'):
    pretrained.change(found, image_size=32)


@pytest.mark.parametrize('field', ['hidden_size', 'gelu', 'colour'])
def test_the_architecture_is_the_checkpoints(field):
  with pytest.raises(ValueError, match=f'{field}=1 is given, .*may change: '):
    pretrained.change(drawn(), **{field: 1})


def test_nothing_to_change_changes_nothing():
  found = drawn()
  assert pretrained.change(found) is found
  assert not differences(found, pretrained.change(found, dropout_rate=0.1))


def embed(kernel, patch):
  return np.einsum('yxi,yxio->o', patch, kernel)


@pytest.mark.parametrize('size', [(8, 8), (6, 9), (4, 4), (5, 4)])
def test_grown_patches_keep_their_embedding(size):
  # B p is the patch, bilinearly resized; <B p, (Bᵀ)⁺ w> = <p, w>.
  rng = np.random.default_rng(0)
  kernel = rng.standard_normal((4, 4, 3, 10)).astype(np.float32)
  new = resize_patches(jnp.asarray(kernel), size)
  assert new.shape == (*size, 3, 10)
  for _ in range(5):
    patch = rng.standard_normal((4, 4, 3)).astype(np.float32)
    grown = jax.image.resize(patch, (*size, 3), 'bilinear')
    np.testing.assert_allclose(
      embed(new, grown), embed(kernel, patch), atol=1e-4, rtol=0
    )


def test_shrunken_patches_have_the_nearest_embedding_there_is():
  # The new kernel minimises ‖w - Bᵀ v‖, the error over white-noise patches.
  rng = np.random.default_rng(0)
  kernel = rng.standard_normal((4, 4, 1, 2)).astype(np.float32)
  new = np.asarray(resize_patches(jnp.asarray(kernel), (2, 2)))
  basis = np.eye(16, dtype=np.float32).reshape(16, 4, 4)
  shrink = np.asarray(jax.image.resize(basis, (16, 2, 2), 'bilinear'))
  best, *_ = np.linalg.lstsq(
    shrink.reshape(16, 4).astype(np.float64), kernel.reshape(16, 2), rcond=None
  )
  np.testing.assert_allclose(new.reshape(4, 2), best, atol=1e-5)


def test_another_patch_size_resizes_embedding_and_positions():
  found = drawn()
  changed = pretrained.change(found, patch_size=8)
  assert differences(found, changed) == {TABLE, 'embedding/kernel'}
  assert flat(changed)[TABLE].shape == (1, 1 + 2 * 2, 16)
  both = pretrained.change(found, patch_size=8, image_size=32)
  assert differences(found, both) == {'embedding/kernel'}
  # Images twice as large, of patches twice as large, are the same tokens.
  images = np.random.default_rng(1).uniform(-1, 1, (1, 16, 16, 3))
  images = images.astype(np.float32)
  patches = images.reshape(1, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5)
  grown = jax.image.resize(patches, (1, 4, 4, 8, 8, 3), 'bilinear')
  grown = grown.transpose(0, 1, 3, 2, 4, 5).reshape(1, 32, 32, 3)
  tokens, _ = found.model.apply(
    found.variables, jnp.asarray(images), method='embed'
  )
  new, _ = both.model.apply(both.variables, grown, method='embed')
  np.testing.assert_allclose(new, tokens, atol=1e-4)
