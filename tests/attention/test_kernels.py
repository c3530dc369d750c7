"""Linear attentions: their forms agree; what their papers promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import contract
from attention.contract import B, D, H, N, arrays
from vit_jax import attention

# Entries with a causal form, and a spec of it that takes several chunks.
CAUSAL = {
  'linear': 'linear(causal=True, chunk={chunk})',
  'performer': 'performer(features=24, causal=True, chunk={chunk})',
}


def case_of(spec, **layout):
  layout = {'grid': None, 'prefix': 0, **layout}
  return contract.Built(spec.partition('(')[0], spec, **layout)


@pytest.mark.parametrize('name', CAUSAL)
def test_the_length_of_chunks_changes_no_result(name):
  q, k, v = arrays()
  whole, *others = (
    case_of(CAUSAL[name].format(chunk=chunk)).run(q, k, v)
    for chunk in (64, 1, 5)
  )
  for other in others:
    np.testing.assert_allclose(other, whole, atol=1e-5)


@pytest.mark.parametrize('name', CAUSAL)
@pytest.mark.parametrize(('n', 'm'), [(5, 9), (9, 5)])
def test_causal_attention_aligns_the_last_query_with_the_last_key(name, n, m):
  case = case_of(CAUSAL[name].format(chunk=4))
  inputs = arrays(n, m, width=6)
  np.testing.assert_allclose(
    case.run(*inputs), case.oracle(inputs), atol=1e-5
  )


def largest(jaxpr):
  """The size of the largest array of a jaxpr and all that it calls."""
  sizes = [v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars]
  for eqn in jaxpr.eqns:
    for value in eqn.params.values():
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        sizes.append(largest(inner))
  return max(sizes, default=0)


@pytest.mark.parametrize('name', CAUSAL)
def test_the_causal_form_holds_no_state_a_token(name):
  case = case_of(CAUSAL[name].format(chunk=16))
  inputs = arrays(256)
  found = jax.make_jaxpr(jax.grad(lambda *a: case.call(*a).sum()))(*inputs)
  features = case.kernel.init_state(B, 1, H, D, jnp.float32)
  features = features.get('memory', features)['keys'].shape[-1]
  # φ(q), φ(k), q, v, sums and one state a chunk, but no [N F E] or [N N].
  assert largest(found.jaxpr) <= B * H * 256 * max(features, 16)


@pytest.mark.parametrize('name', CAUSAL)
def test_the_state_of_decoding_does_not_grow_with_the_length(name):
  kernel = case_of(CAUSAL[name].format(chunk=4)).kernel
  short, long = (
    jax.tree.map(jnp.shape, kernel.init_state(B, n, H, D, jnp.bfloat16))
    for n in (1, 1000)
  )
  assert short == long


@pytest.mark.parametrize('name', CAUSAL)
def test_only_a_causal_kernel_decodes(name):
  with pytest.raises(ValueError, match='decodes only with causal=True'):
    attention.ATTENTIONS[name]().init_state(1, 1, 1, 1, jnp.float32)


def test_a_chunk_without_tokens_is_an_error():
  with pytest.raises(ValueError, match='chunk=0; .* at least 1'):
    case_of('linear(causal=True, chunk=0)').call(*arrays())


def test_linear_weighs_keys_far_below_zero():
  """In float32 elu(-20) + 1 is zero, and weights would be lost."""
  q, k, v = arrays()
  case = case_of('linear')
  inputs = (q, 0.1 * k - 20, v)
  expected = case.oracle(inputs)
  assert np.abs(expected).max() > 0.1
  np.testing.assert_allclose(case.run(*inputs), expected, atol=1e-4)


def test_linear_without_any_weight_is_zero_with_finite_gradients():
  q, k, v = arrays()
  run = lambda *a: jnp.sum((case_of('linear').call(*a) + 1) ** 2)  # noqa: E731
  grads = jax.grad(run, (0, 1, 2))(q - 200, k - 200, v)
  assert all(np.isfinite(g).all() for g in grads)


def test_linear_is_its_own_recurrence_over_tokens():
  """Katharopoulos et al. 2020, eqs. 18 to 20, one key at a time."""
  q, k, v = (np.asarray(x, np.float64)[0, :, 0] for x in arrays())
  phi = lambda x: np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))  # noqa: E731
  s, z, expected = np.zeros((D, D)), np.zeros(D), np.zeros((N, D))
  for i in range(N):
    s += np.outer(phi(k[i]), v[i])
    z += phi(k[i])
    expected[i] = phi(q[i]) @ s / (phi(q[i]) @ z)
  out = case_of(CAUSAL['linear'].format(chunk=4)).run(*arrays())
  np.testing.assert_allclose(out[0, :, 0], expected, atol=1e-5)
