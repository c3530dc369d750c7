"""ResNets with BatchNorm: blocks by definition, stems, starts, formats."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pretrained import jitter

from vit_jax import models
from vit_jax.models import resnet_classifier
from vit_jax.pretrained import arrays, huggingface, preprocess, resnet, timm

TINY = {
  'num_classes': 5, 'depths': (1, 2), 'hidden_sizes': (8, 12),
  'embedding_size': 8, 'image_size': 16,
}  # fmt: skip


def build(**fields):
  return models.build('resnet', **{**TINY, **fields})


def random_images(*shape, seed=1):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.uniform(-1, 1, shape), jnp.float32)


def random_variables(module, x, seed=0):
  rng = np.random.default_rng(seed)

  def draw(path, like):
    value = 0.3 * rng.standard_normal(like.shape)
    value = abs(value) + 0.5 if path[-1].key == 'var' else value
    return jnp.asarray(value, like.dtype)

  shapes = jax.eval_shape(module.init, jax.random.key(0), x)
  return jax.tree_util.tree_map_with_path(draw, shapes)


def convolved(x, kernel, stride):
  """PyTorch's Conv2d, (k - 1)/2 zeros on every side; x [Y X I]."""
  size = len(kernel)
  x = np.pad(x, ((size // 2,) * 2,) * 2 + ((0, 0),))
  rows, columns = (
    range(0, n - size + 1, stride) for n in x.shape[:2]
  )
  return np.array([
    [np.einsum('yxi,yxio->o', x[r : r + size, c : c + size], kernel)
     for c in columns]
    for r in rows
  ])  # fmt: skip


def unit(variables, name, x, stride):
  """Convolution and BatchNorm in evaluation."""
  variables = jax.tree.map(np.float64, variables)
  p, s = (variables[k][name] for k in ('params', 'batch_stats'))
  x = convolved(x, p['conv']['kernel'], stride)
  x = (x - s['norm']['mean']) / np.sqrt(s['norm']['var'] + 1e-5)
  return x * p['norm']['scale'] + p['norm']['bias']


@pytest.mark.parametrize(
  ('kind', 'strides', 'early'),
  [
    ('basic', (2, 1), False), ('bottleneck', (1, 2, 1), False),
    ('bottleneck', (2, 1, 1), True),
  ],
)  # fmt: skip
def test_a_block_is_the_papers_figure(kind, strides, early):
  x = random_images(2, 5, 6, 3)
  block = resnet_classifier.ResidualBlock(kind, 8, 2, early)
  variables = random_variables(block, x)
  found = jax.jit(block.apply)(variables, x)
  for b in range(2):
    y = np.float64(x[b])
    for i, stride in enumerate(strides):
      y = np.maximum(y, 0) if i else y
      y = unit(variables, f'conv{i + 1}', y, stride)
    wanted = np.maximum(y + unit(variables, 'shortcut', np.float64(x[b]), 2), 0)
    np.testing.assert_allclose(found[b], wanted, atol=1e-5)


def test_a_block_that_keeps_the_shape_adds_its_input():
  x = random_images(1, 4, 3, 8)
  block = resnet_classifier.ResidualBlock('basic', 8)
  variables = random_variables(block, x)
  y = np.float64(x[0])
  y = np.maximum(unit(variables, 'conv1', y, 1), 0)
  wanted = np.maximum(unit(variables, 'conv2', y, 1) + np.asarray(x[0]), 0)
  found = jax.jit(block.apply)(variables, x)
  np.testing.assert_allclose(found[0], wanted, atol=1e-5)


@pytest.mark.parametrize(
  ('fields', 'size', 'grids', 'strides'),
  [
    ({}, (33, 50), ((9, 13), (5, 7)), (4, 8)),
    ({'downsample_in_first_stage': True}, (33, 50), ((5, 7), (3, 4)), (8, 16)),
    ({'stem': 'cifar'}, (9, 10), ((9, 10), (5, 5)), (1, 2)),
    ({'feature_layers': (-1, 0)}, (16, 16), ((2, 2), (4, 4)), (8, 4)),
  ],
)
def test_maps_have_their_strides_rounded_up(fields, size, grids, strides):
  model = build(**fields)
  images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
  maps, _ = jax.eval_shape(
    functools.partial(model.init_with_output, method='features'),
    jax.random.key(0), images,
  )  # fmt: skip
  assert tuple(m.shape[1:3] for m in maps) == grids
  assert model.strides == strides
  assert tuple(m.shape[3] for m in maps) == model.channels


def test_the_stem_pools_the_largest_of_three_by_three():
  model = build(num_classes=0, depths=(1,), hidden_sizes=(8,), block='basic')
  images = random_images(1, 9, 7, 3)
  variables = jax.tree.map(jnp.copy, random_variables(model, images))
  # A block that adds nothing: the last scale and bias are 0.
  last = variables['params']['stage_0']['block_0']['conv2']['norm']
  last.update(scale=jnp.zeros(8), bias=jnp.zeros(8))
  average = variables['batch_stats']['stage_0']['block_0']['conv2']['norm']
  average.update(mean=jnp.zeros(8))
  found = jax.jit(functools.partial(model.apply, method='features'))(
    variables, images
  )
  root = unit(variables, 'embedding', np.float64(images[0]), 2)
  root = np.maximum(root, 0)
  rows, columns = root.shape[:2]
  wanted = [
    [root[max(r - 1, 0) : r + 2, max(c - 1, 0) : c + 2].max((0, 1))
     for c in range(0, columns, 2)]
    for r in range(0, rows, 2)
  ]  # fmt: skip
  np.testing.assert_allclose(found[0][0], wanted, atol=1e-5)


def test_a_model_starts_as_published():
  model = build(
    depths=(1, 1), hidden_sizes=(64, 128), embedding_size=64, num_classes=40
  )

  @jax.jit
  def start(key):
    variables = model.init(key, jnp.zeros((1, 16, 16, 3)))
    return variables, model.apply(
      variables, random_images(1, 16, 16, 3), method='features'
    )

  variables, (_, last) = start(jax.random.key(0))
  params = variables['params']
  block = params['stage_1']['block_0']
  for conv, fan_out in (
    (params['embedding'], 49 * 64), (block['conv2'], 9 * 32),
    (block['conv3'], 128), (block['shortcut'], 128),
  ):  # fmt: skip
    kernel = np.asarray(conv['conv']['kernel'])
    expected = np.sqrt(2 / fan_out)
    error = expected / np.sqrt(2 * kernel.size)
    assert abs(kernel.std() - expected) < 4 * error
  assert not np.any(block['conv3']['norm']['scale'])
  assert np.all(np.asarray(block['conv2']['norm']['scale']) == 1)
  head = np.asarray(params['head']['kernel'])
  assert abs(head.std() - 0.01) < 4 * 0.01 / np.sqrt(2 * head.size)
  assert not np.any(params['head']['bias'])
  # Each block is its shortcut, so nothing depends on its branch.
  assert np.all(np.asarray(last) >= 0)
  assert np.asarray(last).max() > 0


def test_drop_path_grows_linearly_over_all_blocks():
  model = build(depths=(2, 3), drop_path_rate=0.4).bind({})
  rates = [stage.drop_path_rates for stage in model.stages]
  np.testing.assert_allclose(np.concatenate(rates), [0, 0.1, 0.2, 0.3, 0.4])


def test_frozen_norms_are_the_same_in_training_and_stay():
  images = random_images(4, 16, 16, 3)
  model = build(frozen_norm=True)
  variables = random_variables(model, images)

  @jax.jit
  def both(variables):
    trained = model.apply(
      variables, images, train=True, mutable=['batch_stats']
    )
    return model.apply(variables, images), trained

  logits, (trained, changed) = both(variables)
  np.testing.assert_allclose(logits, trained, atol=1e-6)
  jax.tree.map(
    np.testing.assert_array_equal, changed['batch_stats'],
    variables['batch_stats'],
  )  # fmt: skip


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'block': 'basics'}, "'basics'; choices: basic, bottleneck"),
    ({'stem': 'cifar10'}, "'cifar10'; did you mean 'cifar'"),
    ({'depths': (1, 1, 1)}, r'depths=\(1, 1, 1\) and hidden_sizes=\(8, 12\)'),
    ({'depths': (1, 0)}, 'a positive number for each stage'),
    ({'hidden_sizes': (8, 10)}, r'\(8, 10\) of bottlenecks .* of 4'),
    (
      {'block': 'basic', 'downsample_in_bottleneck': True},
      "needs block='bottleneck', not 'basic'",
    ),
  ],
)
def test_a_wrong_field_is_an_error_with_the_constraint(fields, message):
  images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(build(**fields).init, jax.random.key(0), images)


def test_a_stage_that_is_not_there_is_an_error():
  with pytest.raises(ValueError, match='0 to 1, or -1 to -2 from the end'):
    assert build(feature_layers=(0, 2)).strides


# Formats.


def folder(path, golden, **changes):
  """The folder of a golden, its config changed."""
  found = jitter.golden(golden)
  config = {**found['config'], **changes}
  path.mkdir()
  (path / 'config.json').write_text(json.dumps(config))
  arrays.write_safetensors(
    path / 'model.safetensors', jitter.arrays(found['layout'])
  )
  return path


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    ({'avg_down': True}, 'avg_down=True in model_args is no model of ours'),
    ({'stem_type': 'deep'}, "stem_type='deep' .* may be ''"),
    ({'layers': [3, 4, 6, 3]}, r'layers is \[3, 4, 6, 3\], by its arrays'),
    ({'channels': [8, 8, 8, 8]}, r'channels is \[8, 8, 8, 8\], by its'),
    ({'chanels': [8, 8]}, "chanels=.* did you mean 'channels'"),
    ({'img_size': 64}, 'img_size=64 in model_args is not known'),
  ],
)
def test_timms_arguments_are_followed_or_refused(args, message, tmp_path):
  given = jitter.golden('family_timm_resnet18')['config']['model_args']
  path = folder(
    tmp_path / 'x', 'family_timm_resnet18', model_args={**given, **args}
  )
  with pytest.raises(ValueError, match=message):
    timm.read(path)


def test_timms_name_must_have_the_block_of_the_arrays(tmp_path):
  path = folder(
    tmp_path / 'x', 'family_timm_resnet18', architecture='resnet50'
  )
  with pytest.raises(ValueError, match="block is 'bottleneck', by its arrays"):
    timm.read(path)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'hidden_act': 'gelu'}, "hidden_act='gelu' is not read; choices: 'relu'"),
    ({'layer_type': 'plain'}, "'plain' .*'basic', 'bottleneck'"),
    ({'depths': [1]}, 'must be as many'),
    ({'embedding_size': 12}, 'embedding_size=12, but .* is'),
    ({'depths': [1, 'a']}, "depths='a' must be a whole number"),
  ],
)
def test_transformers_config_must_agree_with_the_arrays(
  changes, message, tmp_path
):
  path = folder(tmp_path / 'x', 'family_hf_resnet', **changes)
  with pytest.raises(ValueError, match=message):
    huggingface.read(path)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'stem': 'cifar'}, "timm has no place for stem='cifar'"),
    ({}, 'timm has no place for embedding_size=8'),
    ({'embedding_size': 64}, r'four stages; depths=\(1, 2\)'),
    ({'epsilon': 1e-3, 'embedding_size': 64}, 'no place for epsilon=0.001'),
  ],
)
def test_a_model_that_timm_has_not_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    resnet.write_timm(build(**fields))


def test_the_published_processor_crops_small_images_and_warps_large_ones():
  config = {  # as microsoft/resnet-50 has it
    'crop_pct': 0.875, 'do_normalize': True, 'do_resize': True,
    'feature_extractor_type': 'ConvNextFeatureExtractor',
    'image_mean': [0.485, 0.456, 0.406], 'image_std': [0.229, 0.224, 0.225],
    'resample': 3, 'size': 224,
  }  # fmt: skip
  read = functools.partial(preprocess.from_huggingface, 'file')
  scaling = 'normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))'
  assert read(config)['transform'] == (
    "resize_short(size=256, resample='bicubic'), "
    f'center_crop(size=(224, 224)), {scaling}'
  )
  assert read({**config, 'size': {'shortest_edge': 384}})['transform'] == (
    f"resize(size=(384, 384), resample='bicubic'), {scaling}"
  )
  for changes, message in (
    ({'crop_pct': 0}, 'crop_pct=0 must be'),
    ({'size': {'height': 8, 'width': 8}}, 'must be a shortest_edge'),
    ({'do_center_crop': True}, 'do_center_crop=True is not read'),
  ):
    with pytest.raises(ValueError, match=message):
      read({**config, **changes})


def test_without_a_processor_transformers_own_is_taken(tmp_path):
  found = huggingface.read(folder(tmp_path / 'x', 'family_hf_resnet'))
  assert found.preprocess['transform'].startswith(
    "resize_short(size=256, resample='bicubic'), center_crop(size=(224, 224))"
  )
