"""DeiT: two tokens, two heads, and its own start."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models
from vit_jax.models import initialization

TINY = {
  'patch_size': 4, 'hidden_size': 16, 'num_layers': 2, 'num_heads': 2,
  'mlp_dim': 24, 'image_size': (8, 12), 'num_classes': 5, 'distilled': True,
}  # fmt: skip


def build(**fields):
  return models.build('deit', **{**TINY, **fields})


def random_images(*shape, seed=1):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.uniform(-1, 1, shape), jnp.float32)


def random_variables(model, images, seed=0, scale=0.3):
  """Jittered variables, without compiling the model's initialisers."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda s: jnp.asarray(scale * rng.standard_normal(s.shape), s.dtype),
    jax.eval_shape(model.init, jax.random.key(0), images),
  )


def test_a_distilled_model_is_a_vit_whose_first_two_tokens_are_classified():
  model = build(num_registers=1, norm_after_pooling=True)
  # The table belongs to a third size: it is resized as DeiT's is.
  images = random_images(2, 12, 8, 3)
  variables = random_variables(model, images)
  (params,) = variables.values()
  one_head = {k: v for k, v in params.items() if k != 'head_dist'}
  # Its tokens are cls, dist, register; the vit's are cls and two registers.
  tokens = jnp.concatenate([params['dist'], params['register']], axis=1)
  one_head = {k: v for k, v in one_head.items() if k != 'dist'}
  vit = models.build(
    'vit', **{k: v for k, v in TINY.items() if k != 'distilled'},
    classifier='token_unpooled', num_registers=2, prefix_positions=2,
    gelu='exact', position_resize='bicubic_torch', norm_after_pooling=True,
  )  # fmt: skip

  @jax.jit
  def both(variables):
    return (
      model.apply(variables, images, method='heads'),
      model.apply(variables, images),
    )

  @functools.partial(jax.jit, static_argnums=0)
  def tokenwise(name):
    p = {**one_head, 'register': tokens, 'head': params[name]}
    return vit.apply({'params': p}, images)

  (of_class, of_teacher), logits = both(variables)
  of_cls, of_dist = tokenwise('head')[:, 0], tokenwise('head_dist')[:, 1]
  np.testing.assert_allclose(of_class, of_cls, atol=1e-5)
  np.testing.assert_allclose(of_teacher, of_dist, atol=1e-5)
  np.testing.assert_allclose(logits, (of_cls + of_dist) / 2, atol=1e-5)
  assert np.abs(of_class - of_teacher).max() > 0.1


def test_without_distillation_it_is_a_vit_with_the_exact_gelu():
  images = random_images(2, 8, 12, 3)
  model = build(distilled=False)
  vit = models.build(
    'vit', **{k: v for k, v in TINY.items() if k != 'distilled'}, gelu='exact'
  )
  variables = random_variables(model, images)
  np.testing.assert_allclose(
    jax.jit(model.apply)(variables, images),
    jax.jit(vit.apply)(variables, images),
    atol=1e-6,
  )
  with pytest.raises(ValueError, match='two only with distilled=True'):
    jax.eval_shape(
      functools.partial(model.apply, method='heads'), variables, images
    )


def test_without_classes_a_distilled_model_gives_the_mean_of_its_tokens():
  images = random_images(2, 8, 12, 3)
  model = build(num_classes=0)
  variables = random_variables(model, images)

  @jax.jit
  def run(variables):
    tokens, grid = model.apply(variables, images, method='embed')
    encoded, _ = model.apply(variables, tokens, grid, method='encode')
    return model.apply(variables, images), encoded

  found, encoded = run(variables)
  np.testing.assert_allclose(
    found, (encoded[:, 0] + encoded[:, 1]) / 2, atol=1e-6
  )


@pytest.mark.parametrize(
  ('fields', 'rows'),
  [
    ({}, 2), ({'prefix_positions': 0}, 0), ({'prefix_positions': 1}, 1),
    ({'num_registers': 2}, 2), ({'num_registers': 2, 'prefix_positions': 3}, 3),
    ({'distilled': False}, 1),
  ],
)  # fmt: skip
def test_the_table_has_rows_for_the_first_tokens(fields, rows):
  model = build(**fields)
  images = jax.ShapeDtypeStruct((1, 8, 12, 3), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), images)['params']
  table = params['Transformer']['posembed_input']['pos_embedding']
  assert table.shape == (1, rows + 6, 16)


def test_the_third_deit_has_layer_scale_and_no_position_of_the_class_token():
  model = models.build('deit', variant='III-B/16', num_classes=3)
  assert (model.layer_scale, model.prefix_positions) == (1e-4, 0)
  assert (model.gelu, model.initialization) == ('exact', 'truncated')


def test_truncated_initial_values_deviate_by_002_and_end_at_a_cut():
  model = build(hidden_size=64, mlp_dim=128, num_classes=70, num_registers=4)

  @jax.jit
  def some(key):
    params = model.init(key, jnp.zeros((1, 8, 12, 3)))['params']
    block = params['Transformer']['encoderblock_1']
    attention = block['MultiHeadDotProductAttention_0']
    return (
      {
        'cls': params['cls'],
        'dist': params['dist'],
        'register': params['register'],
        'positions': params['Transformer']['posembed_input'],
        'patches': params['embedding']['kernel'],
        'query': attention['query']['kernel'],
        'out': attention['out']['kernel'],
        'mlp': block['MlpBlock_0']['Dense_1']['kernel'],
        'head': params['head']['kernel'],
        'head_dist': params['head_dist']['kernel'],
      },
      [
        params['embedding']['bias'], attention['query']['bias'],
        block['MlpBlock_0']['Dense_0']['bias'], params['head']['bias'],
      ],
    )  # fmt: skip

  drawn, biases = some(jax.random.key(0))
  cut = 2 * 0.02 / 0.8796  # two deviations of the uncut distribution
  for name, found in drawn.items():
    found = np.concatenate([x.ravel() for x in jax.tree.leaves(found)])
    spread = 0.02 * 3 / np.sqrt(2 * found.size)  # three standard errors
    assert abs(found.std() - 0.02) < spread, name
    assert np.abs(found).max() < cut, name
    assert np.abs(found).max() > 0.6 * cut, name
  for bias in biases:
    assert not np.any(bias)


@pytest.mark.parametrize('name', initialization.INITIALIZATIONS)
def test_every_part_of_a_start_is_drawn(name):
  start = initialization.initializers(name)
  for init in start:
    found = init(jax.random.key(0), (3, 4))
    assert found.shape == (3, 4)
    assert found.dtype == jnp.float32


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'classifier': 'gap'}, "classifier='token' and .*; they are 'gap'"),
    ({'representation_size': 8}, "representation_size=None; .*'token' and 8"),
    ({'initialization': 'trunc'}, "'trunc'; did you mean 'truncated'"),
    ({'prefix_positions': 3}, r'=3 must be in \[0, 2\]'),
  ],
)
def test_a_wrong_field_is_an_error_with_the_constraint(fields, message):
  images = jax.ShapeDtypeStruct((1, 8, 12, 3), jnp.float32)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(build(**fields).init, jax.random.key(0), images)
