"""Compact Transformers: the whole model by definition, sizes, and starts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.test_resnet_classifier import convolved, random_variables
from scipy import special

from vit_jax import models
from vit_jax.optimizers import layer_factors

TINY = {
  'num_classes': 5, 'patch_size': 4, 'hidden_size': 8, 'num_layers': 2,
  'num_heads': 2, 'mlp_dim': 12, 'image_size': 8,
}  # fmt: skip


def build(**fields):
  return models.build('compact', **{**TINY, **fields})


def images_of(*shape, seed=1):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.uniform(-1, 1, shape), jnp.float32)


def norm(p, x):
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
  return x * p['scale'] + p['bias']


def dense(p, x):
  return x @ p['kernel'] + p['bias']


def pooled(x):
  """Max-pool 3×3 / 2 of a map, one cell of padding."""
  return np.array([
    [x[max(r - 1, 0) : r + 2, max(c - 1, 0) : c + 2].max((0, 1))
     for c in range(0, x.shape[1], 2)]
    for r in range(0, x.shape[0], 2)
  ])  # fmt: skip


def block(p, x):
  """As the authors' encoder layer: the second norm is of the stream."""
  inner = p['MultiHeadDotProductAttention_0']
  assert 'bias' not in inner['query']
  y = norm(p['LayerNorm_0'], x)
  q, k, v = (
    np.einsum('nc,chd->nhd', y, inner[name]['kernel'])
    for name in ('query', 'key', 'value')
  )
  heads = []
  for h in range(q.shape[1]):
    weights = special.softmax(q[:, h] @ k[:, h].T / np.sqrt(q.shape[2]), -1)
    heads.append(weights @ v[:, h] @ inner['out']['kernel'][h])
  x = x + sum(heads) + inner['out']['bias']
  x = norm(p['LayerNorm_1'], x)
  mlp = p['MlpBlock_0']
  y = dense(mlp['Dense_0'], x)
  y = y * (1 + special.erf(y / np.sqrt(2))) / 2
  return x + dense(mlp['Dense_1'], y)


def logits(p, tokens, classifier):
  x = tokens
  if classifier == 'token':
    x = np.concatenate([p['cls'][0], x])
  x = x + p['positions']['pos_embedding'][0]
  for i in range(2):
    x = block(p[f'block_{i}'], x)
  x = norm(p['encoder_norm'], x)
  if classifier == 'token':
    return dense(p['head'], x[0])
  weights = special.softmax(dense(p['sequence_pool']['weight'], x)[:, 0])
  return dense(p['head'], weights @ x)


@pytest.mark.parametrize(
  ('stem', 'classifier', 'size'),
  [
    ('tokenizer(layers=2, width=6)', 'sequence_pool', (8, 12)),
    ('tokenizer(kernel_size=7)', 'sequence_pool', (12, 8)),
    ('patches', 'token', (8, 8)),
  ],
)
def test_a_model_is_its_definition(stem, classifier, size):
  model = build(stem=stem, classifier=classifier, image_size=size)
  images = images_of(2, *size, 3)
  variables = random_variables(model, images)
  found = jax.jit(model.apply)(variables, images)
  p = jax.tree.map(np.float64, variables['params'])
  for b in range(2):
    x = np.float64(images[b])
    if stem == 'patches':
      x = x.reshape(2, 4, 2, 4, 3).transpose(0, 2, 1, 3, 4).reshape(4, -1)
      kernel = p['embedding']['kernel'].reshape(-1, 8)
      x = x @ kernel + p['embedding']['bias']
    else:
      for name in sorted(p['embedding']):
        kernel = p['embedding'][name]['kernel']
        stride = 2 if len(kernel) == 7 else 1
        x = pooled(np.maximum(convolved(x, kernel, stride), 0))
    x = x.reshape(-1, 8)
    np.testing.assert_allclose(
      found[b], logits(p, x, classifier), atol=1e-5
    )


# Hassani et al. 2021, tables 2 and 3, in millions at their numbers of classes.
PUBLISHED = {
  'ViT-Lite-7/16': 3.89, 'ViT-Lite-7/8': 3.74, 'ViT-Lite-7/4': 3.72,
  'CVT-7/8': 3.74, 'CVT-7/4': 3.72, 'CCT-2/3x2': 0.28, 'CCT-4/3x2': 0.48,
  'CCT-6/3x2': 3.33, 'CCT-7/3x2': 3.85, 'CCT-7/3x1': 3.76,
}  # fmt: skip


def count(name, num_classes=10):
  model = models.build('compact', variant=name, num_classes=num_classes)
  images = jnp.zeros((1, model.image_size, model.image_size, 3))
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)
  return sum(x.size for x in jax.tree.leaves(shapes))


@pytest.mark.parametrize('name', ['CCT-2/3x2', 'CCT-7/3x1', 'ViT-Lite-7/16'])
def test_sizes_are_those_of_the_paper_at_ten_classes(name):
  assert round(count(name) / 1e6, 2) == PUBLISHED[name]


def test_the_first_published_size_is_exact():
  assert count('CCT-7/3x1') == 3_760_139


def test_the_sizes_at_a_thousand_classes_are_those_at_ten_and_their_rows():
  # What tests/models/table.py counts, from the published ones.
  from models.table import SIZES

  for name, millions in PUBLISHED.items():
    width = models.CompactTransformer.VARIANTS[name]['hidden_size']
    total = SIZES['compact'][name] - 990 * (width + 1)
    assert round(total / 1e6, 2) == millions


def test_a_model_starts_as_the_authors():
  model = build(hidden_size=32, mlp_dim=64, image_size=32, patch_size=2)

  @jax.jit
  def start(key):
    return model.init(key, jnp.zeros((1, 32, 32, 3)))['params']

  params = start(jax.random.key(0))
  inner = params['block_1']
  for x, expected in (
    (params['positions']['pos_embedding'], 0.2),
    (params['embedding']['conv1']['kernel'], np.sqrt(2 / 27)),
    (inner['MlpBlock_0']['Dense_0']['kernel'], 0.02),
    (inner['MultiHeadDotProductAttention_0']['query']['kernel'], 0.02),
    (params['head']['kernel'], 0.02),
  ):
    x = np.asarray(x)
    assert abs(x.std() - expected) < 4 * expected / np.sqrt(2 * x.size)
  assert not np.any(inner['MlpBlock_0']['Dense_0']['bias'])


def test_the_pool_comes_after_all_blocks_in_layer_decay():
  images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
  params = jax.eval_shape(
    build(stem='tokenizer(layers=2)').init, jax.random.key(0), images
  )['params']
  factors = layer_factors(params, 0.5)
  assert factors['sequence_pool']['weight']['kernel'] == 1
  assert factors['head']['kernel'] == 1
  assert factors['block_1']['LayerNorm_0']['scale'] == 0.5
  assert factors['embedding']['conv1']['kernel'] == 0.125
  assert factors['positions']['pos_embedding'] == 0.125


def test_without_positions_any_order_of_patches_gives_the_same():
  model = build(position='none', stem='patches')
  images = images_of(2, 8, 8, 3)
  variables = random_variables(model, images)
  assert 'positions' not in variables['params']
  swapped = jnp.concatenate([images[:, 4:], images[:, :4]], axis=1)
  run = jax.jit(model.apply)
  np.testing.assert_allclose(
    run(variables, images), run(variables, swapped), atol=1e-5
  )


def test_any_attention_fits_by_one_word():
  for spec in ('lsa', 'window(size=2), softmax', 'fnet'):
    model = build(attention=spec, stem='patches')
    out, _ = jax.eval_shape(
      functools.partial(model.init_with_output, jax.random.key(0)),
      jax.ShapeDtypeStruct((1, 8, 16, 3), jnp.float32),
    )
    assert out.shape == (1, 5)


def test_drop_path_grows_linearly_from_zero(monkeypatch):
  kept = []

  def bernoulli(key, p, shape):
    kept.append(p)
    return jnp.ones(shape, bool)

  monkeypatch.setattr(jax.random, 'bernoulli', bernoulli)
  model = build(stem='patches', drop_path_rate=0.5, num_layers=3)
  images = images_of(1, 8, 8, 3)
  jax.eval_shape(
    functools.partial(model.apply, train=True, rngs=jax.random.key(0)),
    random_variables(model, images), images,
  )  # fmt: skip
  assert kept == [0.75, 0.75, 0.5, 0.5]  # both branches of all but the first


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'classifier': 'gap'}, "'gap'; choices: sequence_pool, token"),
    ({'position': 'rotary'}, "'rotary'; choices: learned, none"),
    ({'stem': 'tokenizer'}, 'takes 2 pixels a token, not patch_size=4'),
    ({'position_resize': 'cubic'}, "'cubic'; choices: "),
  ],
)
def test_a_wrong_field_is_an_error_with_choices(fields, message):
  images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(build(**fields).init, jax.random.key(0), images)
