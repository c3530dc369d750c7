"""Sequences: padding is as if it were not there; the arena's own settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import lra
from vit_jax import attention, building, models, train

TINY = {
  'vocabulary_size': 9, 'length': 12, 'hidden_size': 8, 'num_layers': 2,
  'num_heads': 2, 'mlp_dim': 12, 'num_classes': 3,
}  # fmt: skip


def built(tokens, name='sequence', **fields):
  model = models.build(name, **{**TINY, **fields})
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
  ('name', 'variant'),
  [('sequence', 'text'), ('sequence', 'image'), ('sequence', 'pathfinder'),
   ('pair', 'retrieval')],
)  # fmt: skip
def test_the_other_published_models_have_their_parameters(name, variant):
  model = models.build(name, variant=variant, num_classes=2)
  assert model.vocabulary_size == 257
  assert model.hidden_size % model.num_heads == 0
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, *model.input_shape), jnp.int32)
  )
  c, m = model.hidden_size, model.mlp_dim
  block = 4 * c * (c + 1) + c * m + m + m * c + c + 4 * c
  features = c * (4 if name == 'pair' else 1)
  outside = 257 * c + 2 * c + features * m + m + m * 2 + 2
  outside += c * (model.classifier == 'token')
  outside += 1024 * c * (model.position == 'learned')
  count = sum(x.size for x in jax.tree.leaves(shapes))
  assert count == model.num_layers * block + outside


@pytest.fixture(scope='module')
def pairs():
  return jnp.asarray(np.random.default_rng(2).integers(1, 9, (3, 2, 7)))


def test_a_pair_is_what_its_documents_are_alone(pairs):
  model, variables = built(pairs, 'pair')
  kinds = jax.tree.map(np.asarray, variables['params'])
  encoder = {k: v for k, v in kinds.items() if k not in ('pre_logits', 'head')}
  alone = models.build('sequence', **{**TINY, 'num_classes': 0})
  run = jax.jit(alone.apply)
  one, two = (
    np.asarray(run({'params': encoder}, pairs[:, i])) for i in (0, 1)
  )
  x = np.concatenate([one, two, one * two, one - two], axis=-1)
  features = jax.jit(model.clone(num_classes=0).apply)(variables, pairs)
  np.testing.assert_allclose(features, x, atol=1e-5)
  dense, head = kinds['pre_logits'], kinds['head']
  x = np.maximum(x @ dense['kernel'] + dense['bias'], 0)
  logits = x @ head['kernel'] + head['bias']
  found = jax.jit(model.apply)(variables, pairs)
  np.testing.assert_allclose(found, logits, rtol=1e-5, atol=1e-5)


def test_swapped_documents_swap_their_features(pairs):
  model, variables = built(pairs, 'pair', num_classes=0)
  run = jax.jit(model.apply)
  features, swapped = (
    np.split(np.asarray(run(variables, x)), 4, axis=-1)
    for x in (pairs, pairs[:, ::-1])
  )
  one, two, product, difference = features
  expected = (two, one, product, -difference)
  np.testing.assert_allclose(swapped, expected, atol=1e-5)
  assert np.abs(difference).max() > 1e-3


@pytest.mark.parametrize('classifier', ['token', 'mean'])
def test_padding_of_one_document_has_no_influence(pairs, classifier):
  model, variables = built(pairs, 'pair', classifier=classifier)
  run = jax.jit(model.apply)
  short = pairs.at[:, 1, 4:].set(0)
  logits = run(variables, short)
  padded = run(variables, jnp.pad(short, ((0, 0), (0, 0), (0, 5))))
  np.testing.assert_allclose(padded, logits, atol=1e-5)
  assert np.abs(run(variables, pairs) - logits).max() > 1e-3


def test_gradients_reach_both_documents(pairs):
  model, variables = built(pairs, 'pair')
  params = variables['params']
  # Words 1…4 in the first documents, 5…8 in the second: each word's embedding
  # has a gradient.
  tokens = jnp.stack([1 + pairs[:, 0] % 4, 5 + pairs[:, 1] % 4], axis=1)

  def loss(table):
    changed = {**params, 'embedding': {'embedding': table}}
    return jnp.sum(model.apply({'params': changed}, tokens) ** 2)

  gradient = jax.jit(jax.grad(loss))(params['embedding']['embedding'])
  size = np.abs(gradient).max(1)
  for word in np.unique(tokens):
    assert size[word] > 1e-6
  assert size[0] == 0  # padding, of which there is none


def test_three_documents_are_no_pair(pairs):
  model, variables = built(pairs, 'pair')
  with pytest.raises(ValueError, match='3 documents an example'):
    model.apply(variables, jnp.concatenate([pairs, pairs[:, :1]], axis=1))


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


@pytest.mark.parametrize('short', ['', ',short'])
@pytest.mark.parametrize('task', lra.TASKS)
def test_the_arenas_tasks_fit_their_models(task, short, tmp_path):
  config = lra.get_config(task + short).to_dict()
  kinds = {'text': '{}\t{}\n', 'retrieval': '{}\ta\tb\t{}\tof it\n'}
  if task in kinds:  # nobody has the texts here
    for split in ('train', 'test'):
      lines = [kinds[task].format(k % 2, k) for k in range(4)]
      (tmp_path / f'{split}.tsv').write_text(''.join(lines))
    source = config['data']['source'].replace(repr(task), repr(str(tmp_path)))
    config['data']['source'] = source
  elif task == 'image' and not short:  # nor CIFAR-10
    config['data']['source'] = 'synthetic(size=20)'
  built = building.build(config, tmp_path, {'train': train.train})
  shape, dtype = built['data'].spec['tokens']
  length = {
    'image': (1024, 64), 'pathfinder': (1024, 1024), 'text': (4000, 256),
    'retrieval': (4000, 256),
  }[task][bool(short)]  # fmt: skip
  assert shape == ((2, length) if task == 'retrieval' else (length,))
  logits, _ = jax.eval_shape(
    built['model'].init_with_output, jax.random.key(0),
    jax.ShapeDtypeStruct((3, *shape), dtype),
  )  # fmt: skip
  assert logits.shape == (3, 10 if task == 'image' else 2)
