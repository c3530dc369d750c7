"""Linear attentions: their forms agree; what their papers promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import contract
from attention.contract import B, D, H, N, arrays
from attention.oracles.facts import softmax
from vit_jax import attention
from vit_jax.attention import focused

# Entries with a causal form, and a spec of it that takes several chunks.
CAUSAL = {
  'linear': 'linear(causal=True, chunk={chunk})',
  'performer': 'performer(features=24, causal=True, chunk={chunk})',
  'random_features': 'random_features(features=24, causal=True, chunk={chunk})',
  'cosformer': 'cosformer(causal=True, chunk={chunk})',
  'based': 'based(causal=True, chunk={chunk})',
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


def test_random_features_converge_to_softmax_of_unit_vectors():
  """exp(-‖σ(q̂ - k̂)‖²/2) is exp(σ² q̂·k̂) up to what the rows cancel."""
  q, k, v = arrays()
  kernel = attention.build('random_features(features=8192)')
  out, variables = kernel.init_with_output(jax.random.key(0), q, k, v)
  assert not np.any(variables['params']['sigma'] - 1)
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
  exact = softmax(
    unit(np.asarray(q[0])) * D**0.5, unit(np.asarray(k[0])), np.asarray(v[0])
  )
  np.testing.assert_allclose(out[0], exact, atol=0.02)


def test_random_features_that_cancel_do_not_explode():
  q, k, v = arrays()
  case = case_of('random_features(features=1, causal=True, chunk=4)')
  variables = jax.tree.map(lambda x: 5 * x, case.variables(q, k, v))
  out = case.kernel.apply(variables, q, k, v)
  bound = N * np.abs(v).max() / case.kernel.epsilon
  assert np.abs(out).max() <= bound


def test_cosformer_depends_on_distances_of_the_given_positions():
  q, k, v = case_of('cosformer').inputs()
  case = case_of('cosformer(length=40)')
  order = np.random.default_rng(0).permutation(N)
  places = jnp.broadcast_to(jnp.arange(N)[None], (B, N))
  whole = case.run(q, k, v)
  for positions in (places, places + 20):
    np.testing.assert_allclose(
      case.run(q, k, v, positions=positions), whole, atol=1e-5
    )
  mixed = case.run(
    *(x[:, order] for x in (q, k, v)), positions=places[:, order]
  )
  np.testing.assert_allclose(mixed, whole[:, order], atol=1e-5)
  sparse = case.run(q, k, v, positions=3 * places)
  assert np.abs(sparse - whole).max() > 1e-3
  np.testing.assert_allclose(
    sparse, case.oracle((q, k, v), positions=3 * places), atol=1e-5
  )


def test_cosformer_names_what_its_length_forbids():
  q, k, v = arrays()
  with pytest.raises(ValueError, match='length=12 takes at most .* not 13'):
    case_of('cosformer(length=12)').call(q, k, v)
  places = jnp.zeros((B, N), int)
  with pytest.raises(ValueError, match='positions with length='):
    case_of('cosformer').call(q, k, v, positions=places)


def test_cosformer_without_a_common_channel_is_zero_with_finite_gradients():
  q, k, v = arrays()
  positive = jnp.arange(D)[None, None, None] < 2
  q = jnp.where(positive, 1 + q**2, -1.0)
  k = jnp.where(positive, -1.0, 1 + k**2)
  value = lambda *a: (  # noqa: E731
    jnp.sum((case_of('cosformer').call(*a) + 1) ** 2)
  )
  total, grads = jax.value_and_grad(value, (0, 1, 2))(q, k, v)
  assert total == v.size
  assert all(np.isfinite(g).all() for g in grads)


def test_efficient_attention_mixes_columns_of_values_alike():
  """Without its queries it is the same D maps for every token."""
  q, k, v = arrays()
  out = case_of('efficient').run(jnp.zeros_like(q), k, v)
  expected = np.einsum(
    'bmhd,bmhe->bhe', jax.nn.softmax(k, axis=1), v
  ) / D
  np.testing.assert_allclose(
    out, np.broadcast_to(expected[:, None], out.shape), atol=1e-5
  )


@pytest.mark.parametrize(
  'spec', [
    'linear', 'performer(features=24)', 'random_features(features=24)',
    'cosformer', 'efficient', 'aft', 'based',
  ],
)  # fmt: skip
def test_bfloat16_inputs_lose_nothing_but_their_rounding(spec):
  case = case_of(spec)
  inputs = case.inputs(dtype=jnp.bfloat16)
  exact = case.oracle(tuple(x.astype(jnp.float32) for x in inputs))
  np.testing.assert_allclose(
    case.run(*inputs).astype(jnp.float32), exact, atol=0.01
  )  # half a unit of the last place of 2.0 is 0.004


@pytest.mark.parametrize('name', CAUSAL)
def test_one_token_gets_its_own_value(name):
  case = case_of(CAUSAL[name].format(chunk=4))
  inputs = case.inputs(1)
  np.testing.assert_allclose(case.run(*inputs), inputs[2], atol=1e-5)


@pytest.mark.parametrize('name', ['xca', 'hydra', 'focused', 'aft'])
def test_values_of_another_width_are_refused_where_channels_mix(name):
  q, k, v = arrays(width=6)
  with pytest.raises(ValueError, match='as wide as queries; got widths 6 and'):
    case_of(name).kernel.init(jax.random.key(0), q, k, v)


def test_xca_forgets_the_scales_of_channels():
  """Queries and keys are normalised over tokens: a channel's scale is lost."""
  q, k, v = arrays()
  scales = jnp.asarray([0.1, 1.0, 10.0, 100.0])[None, None, None]
  case = case_of('xca')
  np.testing.assert_allclose(
    case.run(q * scales, k / scales, v), case.run(q, k, v), atol=1e-5
  )


def test_xca_of_tokens_that_are_zero_has_finite_gradients():
  q, k, v = arrays()
  value = lambda *a: jnp.sum(case_of('xca').call(*a) ** 2)  # noqa: E731
  out, grads = jax.value_and_grad(value, (0, 1, 2))(0 * q, 0 * k, v)
  np.testing.assert_allclose(
    out, np.sum(np.asarray(v).mean(-1) ** 2) * D, rtol=1e-5
  )
  assert all(np.isfinite(g).all() for g in grads)


def test_hydra_does_not_depend_on_the_number_of_heads():
  q, k, v = arrays()
  case = case_of('hydra')
  merged = case.kernel.apply(
    {}, *(x.reshape(B, N, 1, H * D) for x in (q, k, v))
  )
  np.testing.assert_allclose(
    merged.reshape(v.shape), case.run(q, k, v), atol=1e-6
  )


@pytest.mark.parametrize(('n', 'm'), [(5, 9), (9, 5)])
@pytest.mark.parametrize('name', ['hydra', 'aft'])
def test_running_sums_align_the_last_query_with_the_last_key(name, n, m):
  case = case_of(f'{name}(causal=True)')
  inputs = arrays(n, m)
  np.testing.assert_allclose(
    case.run(*inputs), case.oracle(inputs), atol=1e-5
  )


def test_focusing_keeps_lengths_and_sharpens_directions():
  """Han et al. 2023, proposition 1: channels in common come nearer."""
  x = jnp.asarray([[[[3.0, 1.0, -5.0, 0.0]], [[0.0, -1.0, 0.0, 0.0]]]])
  found = np.asarray(focused.focus(1e20 * x, 3))[0, 0] / 1e20
  np.testing.assert_allclose(np.linalg.norm(found[0]), np.sqrt(10), rtol=1e-5)
  np.testing.assert_allclose(found[0, 0] / found[0, 1], 27, rtol=1e-5)
  assert not np.any(found[1])
  plain = np.asarray(focused.focus(x, 1))[0, 0]
  np.testing.assert_allclose(plain[0], [3, 1, 0, 0], rtol=1e-5)


def test_focusing_of_zero_and_of_one_channel_has_the_right_gradient():
  x = jnp.zeros((1, 2, 1, 3)).at[0, 0, 0, 1].set(2.0)
  jacobian = jax.jacobian(lambda x: focused.focus(x, 3)[0, 0])(x)[..., 0, :]
  # The largest channel passes; channels at zero have no first-order part.
  expected = np.zeros((2, 3, 2, 3))
  expected[0, 1, 0, 1] = 1
  np.testing.assert_allclose(jacobian[:, :, 0], expected, atol=1e-6)


def test_prefix_tokens_take_no_part_in_the_convolution():
  q, k, v = map(jnp.asarray, case_of('focused').inputs())
  grid = contract.GRID
  case = case_of('focused(kernel_size=3)', grid=grid, prefix=1)
  variables = case.variables(q, k, v)
  flat = jax.tree.map(jnp.zeros_like, variables)
  part = case.kernel.apply(variables, q, k, v) - case.kernel.apply(
    flat, q, k, v
  )
  assert not np.any(part[:, 0])
  moved = v.at[:, 0].add(1.0)
  other = case.kernel.apply(variables, q, k, moved) - case.kernel.apply(
    flat, q, k, moved
  )
  np.testing.assert_allclose(other, part, atol=1e-5)
  alone = case_of('focused', grid=None, prefix=1)
  one = tuple(x[:, :1] for x in (q, k, v))
  np.testing.assert_allclose(alone.run(*one), one[2], atol=1e-5)


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('focused(p=0)', 'p=0; the power must be at least 1'),
    ('focused(kernel_size=4)', 'kernel_size=4; it must be odd'),
  ],
)
def test_focused_names_its_wrong_options(spec, message):
  with pytest.raises(ValueError, match=message):
    attention.build(spec).init(jax.random.key(0), *arrays())



def test_aft_with_great_keys_neither_overflows_nor_leaks():
  q, k, v = arrays()
  case = case_of('aft(causal=True)')
  out = case.run(q, 100 * k, v)
  np.testing.assert_allclose(out, case.oracle((q, 100 * k, v)), atol=1e-5)
  other = case.run(q, 100 * k.at[:, 6:].multiply(10), v)
  np.testing.assert_array_equal(out[:, :6], other[:, :6])
