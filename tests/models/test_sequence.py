"""Sequences: padding is as if it were not there; the arena's own settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import attention, models

TINY = {
  'vocabulary_size': 9, 'length': 12, 'hidden_size': 8, 'num_layers': 2,
  'num_heads': 2, 'mlp_dim': 12, 'num_classes': 3,
}  # fmt: skip


def built(tokens, **fields):
  model = models.build('sequence', **{**TINY, **fields})
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
  rng = np.random.default_rng(0)
  return model, jax.tree.map(
    lambda s: jnp.asarray(0.5 * rng.standard_normal(s.shape), s.dtype), shapes
  )


@pytest.fixture(scope='module')
def tokens():
  return jnp.asarray(np.random.default_rng(1).integers(1, 9, (2, 7)))


@pytest.mark.parametrize('classifier', ['token', 'mean'])
@pytest.mark.parametrize('position', ['learned', 'sincos1d, rotary'])
def test_padding_has_no_influence(tokens, classifier, position):
  model, variables = built(tokens, classifier=classifier, position=position)
  run = jax.jit(model.apply)
  alone = run(variables, tokens)
  assert alone.shape == (2, 3)
  assert np.abs(alone[0] - alone[1]).max() > 1e-3
  padded = run(variables, jnp.pad(tokens, ((0, 0), (0, 5))))
  np.testing.assert_allclose(padded, alone, atol=1e-5)


def test_order_matters_unless_there_is_no_position(tokens):
  model, variables = built(tokens, classifier='mean')
  turned = tokens[:, ::-1]
  apart = model.apply(variables, tokens) - model.apply(variables, turned)
  assert np.abs(apart).max() > 1e-3
  model = model.clone(position='none')
  same = [model.apply(variables, x) for x in (tokens, turned)]
  np.testing.assert_allclose(*same, atol=1e-5)


def test_an_attention_that_would_see_padding_is_refused(tokens):
  blind = [
    name
    for name, entry in (attention.ATTENTIONS | attention.MIXERS).items()
    if not attention.base.honours(entry, 'key_mask')
  ]
  assert 'fnet' in blind
  for name in blind[:3]:
    model = models.build('sequence', **TINY, attention=name)
    with pytest.raises(ValueError, match='does not honour key_mask'):
      jax.eval_shape(model.init, jax.random.key(0), tokens)
  model = models.build('sequence', **TINY, attention='fnet', padded=False)
  jax.eval_shape(model.init, jax.random.key(0), tokens)


def test_the_head_is_dense_relu_dense(tokens):
  model, variables = built(tokens)
  features = np.asarray(model.clone(num_classes=0).apply(variables, tokens))
  p = jax.tree.map(np.asarray, variables['params'])
  x = features @ p['pre_logits']['kernel'] + p['pre_logits']['bias']
  logits = np.maximum(x, 0) @ p['head']['kernel'] + p['head']['bias']
  np.testing.assert_allclose(model.apply(variables, tokens), logits, atol=1e-5)


def test_the_published_listops_model_has_its_parameters():
  model = models.build('sequence', variant='listops', num_classes=10)
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 2000), jnp.int32)
  )
  c, m, layers = 512, 1024, 4
  block = 4 * c * (c + 1) + c * m + m + m * c + c + 4 * c
  outside = 16 * c + c + 2000 * c + 2 * c + c * m + m + m * 10 + 10
  count = sum(x.size for x in jax.tree.leaves(shapes))
  assert count == layers * block + outside


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'length': 5}, '7 tokens, and the model was built for a length of 5'),
    ({'classifier': 'gap'}, 'choices: token, mean'),
    ({'position': 'sincos2d'}, 'is of images'),
    ({'position': 'conditional'}, 'is of images'),
  ],
)
def test_a_bad_field_says_why(tokens, fields, message):
  with pytest.raises(ValueError, match=message):
    built(tokens, **fields)
