"""Attentions of low rank: what is particular to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention.contract import H, N, arrays, jitter
from attention.oracles.facts import softmax
from vit_jax import attention
from vit_jax.attention import nystrom


def variables_of(kernel, *inputs):
  return jitter(jax.eval_shape(kernel.init, jax.random.key(0), *inputs))


def identity_map(kernel, q, k, variables=None):
  """The map of the values [B H N M]."""
  eye = jnp.broadcast_to(jnp.eye(N)[None, :, None], (*q.shape[:3], N))
  if variables is None:
    variables = variables_of(kernel, q, k, eye)
  return np.asarray(kernel.apply(variables, q, k, eye)).swapaxes(1, 2)


def rank_of(maps):
  values = np.linalg.svd(np.asarray(maps, np.float64), compute_uv=False)
  return (values > 1e-4 * values.max()).sum(-1).max()


@pytest.mark.parametrize(
  ('spec', 'rank'),
  [
    ('linformer(rank=3)', 3),
    ('nystrom(landmarks=3, conv=0)', 3),
    ('perceiver(latents=3)', 3),
  ],
)
def test_the_map_has_the_declared_rank(spec, rank):
  q, k, _ = arrays()
  assert rank_of(identity_map(attention.build(spec), q, k)) == rank


def test_a_factorised_synthesizer_has_logits_of_its_rank():
  # So its weights do: the logarithm of a row plus its constant is of rank + 1.
  q, k, _ = arrays()
  kernel = attention.build('synthesizer_factorized_random(rank=2)')
  assert rank_of(np.log(identity_map(kernel, q, k))) == 3


def test_linformer_shares_its_projections_as_it_says():
  q, k, v = arrays()
  shapes = {
    share: jax.tree.map(
      jnp.shape,
      variables_of(
        attention.build(f"linformer(rank=5, share='{share}')"), q, k, v
      )['params'],
    )
    for share in ('none', 'headwise', 'key-value')
  }
  assert shapes == {
    'none': {'project_keys': (H, 5, N), 'project_values': (H, 5, N)},
    'headwise': {'project_keys': (1, 5, N), 'project_values': (1, 5, N)},
    'key-value': {'project_keys': (1, 5, N)},
  }
  with pytest.raises(ValueError, match="'layer'; choices.*'headwise'"):
    attention.build("linformer(share='layer')").init(
      jax.random.key(0), q, k, v
    )


def test_linformer_at_initialisation_keeps_logits_of_order_one():
  q, k, v = arrays(n=256)
  kernel = attention.build('linformer(rank=16)')
  params = kernel.init(jax.random.key(0), q, k, v)['params']
  projected = jnp.einsum('hrm,bmhd->bhrd', params['project_keys'], k)
  assert 0.7 < float(projected.std()) < 1.3


@pytest.mark.parametrize(('iterations', 'most'), [(6, 0.5), (20, 1e-5)])
def test_nystrom_with_all_landmarks_converges_to_softmax(iterations, most):
  q, k, v = arrays(seed=2)
  k = 2 * q + 0.1 * k  # a well-conditioned map
  kernel = attention.build(f'nystrom(landmarks={N}, conv=0)').clone(
    iterations=iterations
  )
  out = kernel.apply({}, q, k, v)
  exact = [
    softmax(*(np.asarray(x[b], np.float64) for x in (q, k, v)))
    for b in range(len(q))
  ]
  assert np.abs(out - np.stack(exact)).max() < most


def test_nystroms_inverse_is_the_pseudo_inverse_of_what_is_not_empty():
  rng = np.random.default_rng(0)
  a = np.zeros((5, 5), np.float32)
  a[:4, :4] = np.eye(4) + 0.2 * rng.random((4, 4))
  found = nystrom.inverse(jnp.asarray(a), 20)
  np.testing.assert_allclose(found, np.linalg.pinv(a), atol=1e-5)
  assert not np.any(nystrom.inverse(jnp.zeros((3, 3)), 6))


def test_segments_divide_the_unmasked_tokens_evenly():
  x = jnp.arange(10.0)[None, :, None]
  mask = jnp.asarray(np.isin(np.arange(10), [0, 2, 3, 7, 8, 9]))[None]
  means, alive = nystrom.segment_means(x, 3, mask)
  np.testing.assert_allclose(means[0, :, 0], [1.0, 5.0, 8.5])
  assert alive.all()
  even, alive = nystrom.segment_means(x, 5, None)
  np.testing.assert_allclose(even[0, :, 0], [0.5, 2.5, 4.5, 6.5, 8.5])
  assert alive is None


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('nystrom(conv=4)', 'conv=4 odd'),
    ('nystrom(landmarks=0)', 'landmarks=0 must be at least 1'),
  ],
)
def test_nystrom_refuses_what_it_cannot_be(spec, message):
  with pytest.raises(ValueError, match=message):
    attention.build(spec).init(jax.random.key(0), *arrays())


@pytest.mark.parametrize(
  'spec', ['linformer', 'synthesizer_random', 'synthesizer_factorized_random']
)
def test_weights_sized_by_the_tokens_refuse_other_tokens(spec):
  kernel = attention.build(spec)
  variables = variables_of(kernel, *arrays())
  with pytest.raises(ValueError, match='number of tokens is fixed'):
    kernel.apply(variables, *arrays(n=N + 1))


def test_a_random_synthesizer_does_not_read_queries_or_keys():
  kernel = attention.build('synthesizer_random')
  q, k, v = arrays()
  variables = variables_of(kernel, q, k, v)
  np.testing.assert_array_equal(
    kernel.apply(variables, q, k, v), kernel.apply(variables, 2 * q, -k, v)
  )


def test_a_mixture_begins_half_and_half():
  kernel = attention.build('synthesizer_random(mixture=True)')
  variables = kernel.init(jax.random.key(0), *arrays())
  assert jax.nn.sigmoid(variables['params']['mixture']).item() == 0.5


@pytest.mark.parametrize('n', [1, 12, 13])
@pytest.mark.parametrize('factor', [0, 1, 5, 20])
def test_factors_make_a_logit_for_every_token(n, factor):
  kernel = attention.MIXERS['synthesizer_factorized_dense'](factor=factor)
  first, second = kernel._factors(n)
  assert first * second >= n > first * (second - 1)


def test_soft_has_a_symmetric_map():
  # Queries are the keys, so what i gives j is what j gives i.
  kernel = attention.MIXERS['soft'](num_heads=1, grid=(3, 4), prefix=1)
  rng = np.random.default_rng(0)
  x = jnp.asarray(2 * rng.standard_normal((1, N, 4)), jnp.float32)
  variables = variables_of(kernel, x)
  eye = np.eye(4).reshape(4, 1, 4)
  params = {
    **variables['params'],
    'out': {'kernel': eye.swapaxes(0, 1), 'bias': np.zeros(4)},
  }

  def apply(values):
    # A value that is one channel of x, alone.
    found = {**params, 'value': {'kernel': values, 'bias': np.zeros((1, 4))}}
    return kernel.apply({'params': found}, x)

  mixed = np.asarray(apply(jnp.asarray(eye)))[0]  # S x
  product = np.asarray(x[0]).T @ mixed  # xᵀ S x
  np.testing.assert_allclose(product, product.T, atol=1e-3)


def test_soft_refuses_dropout_of_weights():
  layer = attention.MIXERS['soft'](dropout_rate=0.1)
  with pytest.raises(ValueError, match='Soft has no dropout_rate'):
    layer.init(jax.random.key(0), jnp.ones((1, 4, 4)))
