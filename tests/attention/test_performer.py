"""Random features: unbiased, convergent, and better when orthogonal."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import contract
from attention.contract import B, D, H, N, arrays
from attention.oracles.facts import softmax
from vit_jax import attention
from vit_jax.attention import performer

WIDTH = 16


def pairs(scale=0.25, width=WIDTH, count=16, seed=0):
  rng = np.random.default_rng(seed)
  return scale * rng.standard_normal((2, count, width))


def estimates(ws, x, y):
  """φ(x_i)·φ(y_i) of each W [draws F D]: [draws pairs]."""
  flat = ws.reshape(-1, ws.shape[-1])
  phi = lambda x: np.exp(  # noqa: E731
    performer.log_features(jnp.asarray(x, jnp.float32)[None, :, None], flat)
  )[0, 0]
  return (phi(x) * phi(y)).reshape(len(x), *ws.shape[:2]).mean(-1).T


@functools.cache
def many(orthogonal):
  """64 draws of 1024 rows, one compiled program for all tests."""
  draw = lambda key: performer.draw_features(  # noqa: E731
    key, 1024, WIDTH, orthogonal
  )
  return jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(3), 64))


def draws(features, orthogonal):
  """Their blocks are independent, so that few rows make many draws."""
  return many(orthogonal).reshape(-1, features, WIDTH)


def relative_errors(ws, scale=0.25):
  x, y = pairs(scale)
  exact = np.exp((x * y).sum(-1) / np.sqrt(x.shape[-1]))
  return estimates(ws, x, y).astype(np.float64) / exact - 1


def biases(errors):
  """The mean error of each pair, in units of its standard error."""
  return errors.mean(0) / (errors.std(0) / np.sqrt(len(errors)))


def without_sign_fix(features, count):
  """Orthogonal rows straight from QR: not Haar, and so not normal."""
  rng = np.random.default_rng(5)
  blocks = rng.standard_normal((count, features // WIDTH, WIDTH, WIDTH))
  rows = np.linalg.qr(blocks)[0].reshape(count, features, WIDTH)
  lengths = np.sqrt(rng.chisquare(WIDTH, (count, features, 1)))
  return jnp.asarray(rows * lengths, jnp.float32)


@pytest.mark.parametrize('orthogonal', [True, False])
def test_the_kernel_before_normalisation_is_unbiased(orthogonal):
  z = biases(relative_errors(draws(32, orthogonal)),)
  assert np.abs(z).max() < 4.5
  assert np.abs(z).mean() < 1.1  # of a normal: 0.8


def test_orthogonal_rows_from_qr_without_signs_are_biased():
  """The trap of several public Performers; ours stays within noise."""
  wrong = relative_errors(without_sign_fix(32, 2048))
  right = relative_errors(draws(32, True))
  assert np.abs(biases(wrong)).mean() > 5
  assert np.abs(biases(right)).mean() < 1.1
  assert np.abs(wrong.mean(0)).mean() > 4 * np.abs(right.mean(0)).mean()


def test_the_error_falls_as_the_root_of_the_features():
  counts = (16, 64, 256, 1024)
  errors = [
    np.sqrt(np.mean(relative_errors(draws(m, True)) ** 2)) for m in counts
  ]
  slope, _ = np.polyfit(np.log(counts), np.log(errors), 1)
  assert abs(slope + 0.5) < 0.1, slope


def test_orthogonal_features_have_a_smaller_error_than_independent_ones():
  error = {
    kind: np.mean(relative_errors(draws(WIDTH, kind)) ** 2)
    for kind in (True, False)
  }
  assert error[True] < 0.9 * error[False]


def test_the_rows_are_orthogonal_in_blocks_and_of_chi_length():
  cut = performer.draw_features(jax.random.key(0), 40, WIDTH)  # 16 + 16 + 8
  assert cut.shape == (40, WIDTH)
  for ws in (cut[:16], cut[16:32], cut[32:], *draws(16, True)[:9]):
    products = np.asarray(ws @ ws.T)
    assert np.abs(products - np.diag(np.diag(products))).max() < 1e-4
  squares = (np.asarray(many(True)) ** 2).sum(-1)
  assert abs(squares.mean() - WIDTH) < 0.1
  assert abs(squares.var() - 2 * WIDTH) < 1.0


def test_blocks_are_drawn_as_jax_draws_them_one_after_the_other():
  # A batch of factorisations in each of a few layers never ends on a CPU.
  key = jax.random.key(0)
  draw = lambda key: performer.draw_features(key, 40, WIDTH)  # noqa: E731
  text = str(jax.make_jaxpr(draw)(key))
  assert 'qr[' in text
  assert f'f32[{WIDTH},{WIDTH}] = qr[' in ' '.join(text.split())
  assert f',{WIDTH},{WIDTH}] = qr[' not in ' '.join(text.split())
  ws = np.asarray(draw(key))
  expected = jax.random.orthogonal(jax.random.split(key)[0], WIDTH, (3,))
  expected = np.asarray(expected).reshape(-1, WIDTH)[:40]
  np.testing.assert_allclose(
    ws / np.linalg.norm(ws, axis=1, keepdims=True), expected, atol=1e-5
  )


@pytest.mark.parametrize('causal', [False, True])
def test_with_many_features_it_converges_to_softmax(causal):
  q, k, v = arrays()
  q, k = 0.3 * q, 0.3 * k
  keep = np.tri(N, dtype=bool) if causal else True
  one = lambda b: softmax(*(np.asarray(x[b]) for x in (q, k, v)), keep)  # noqa: E731
  exact = np.stack([one(b) for b in range(B)])
  error = []
  for features in (16, 1024):
    kernel = performer.Performer(features=features, causal=causal)
    out, _ = kernel.init_with_output(jax.random.key(1), q, k, v)
    error.append(np.sqrt(np.mean((out - exact) ** 2)))
  assert error[1] < 0.25 * error[0]
  assert error[1] < 0.01


def built(spec):
  return contract.Built('performer', spec, grid=None, prefix=0)


def test_exponents_of_hundreds_lose_no_row():
  """The largest key exponent of each feature goes to the queries."""
  q, k, v = arrays()
  case = built('performer(features=24)')

  @jax.jit
  def run(*a):
    value = lambda *a: (jnp.sum(case.call(*a) ** 2), case.call(*a))  # noqa: E731
    return jax.grad(value, (0, 1, 2), has_aux=True)(*a)

  grads, out = run(100 * q, 100 * k, jnp.ones_like(v))
  np.testing.assert_allclose(out, 1, atol=1e-5)
  assert all(np.isfinite(g).all() for g in grads)


def test_later_keys_change_no_bit_of_the_causal_form():
  """A maximum over all keys would cancel, but leave its rounding errors."""
  q, k, v = arrays()
  case = built('performer(features=24, causal=True, chunk=4)')
  other = k.at[:, 6:].multiply(20)
  out, moved = case.run(q, k, v), case.run(q, other, v)
  np.testing.assert_array_equal(out[:, :6], moved[:, :6])
  assert np.abs(out[:, 6:] - moved[:, 6:]).max() > 1e-2
  assert np.isfinite(moved).all()


def test_a_masked_key_of_any_size_changes_no_bit():
  q, k, v = arrays()
  mask = jnp.ones((B, N), bool).at[:, 4].set(False)
  for spec in ('performer(features=24)', 'performer(features=24, causal=True)'):
    case = built(spec)
    out, other = (
      case.run(q, keys, v, key_mask=mask)
      for keys in (k, k.at[:, 4].multiply(100))
    )
    np.testing.assert_array_equal(out, other)


def test_redraw_draws_in_training_and_keeps_what_it_drew():
  q, k, v = arrays()
  kernel = performer.Performer(features=8, redraw=True)
  variables = kernel.init(jax.random.key(0), q, k, v, train=True)
  first = variables['attention_state']['features']
  out, state = kernel.apply(
    variables, q, k, v, train=True, mutable=['attention_state'],
    rngs={'features': jax.random.key(1)},
  )  # fmt: skip
  second = state['attention_state']['features']
  assert np.abs(first - second).max() > 0.1
  np.testing.assert_allclose(kernel.apply(state, q, k, v), out, atol=1e-6)
  fixed = kernel.clone(redraw=False)
  _, same = fixed.apply(
    variables, q, k, v, train=True, mutable=['attention_state']
  )
  np.testing.assert_array_equal(same['attention_state']['features'], first)


def test_the_relu_kernel_never_divides_by_zero():
  _, k, v = arrays()
  case = built("performer(features=6, kernel='relu')")
  out = case.run(jnp.zeros_like(k), 0 * k, v)
  np.testing.assert_allclose(
    out, jnp.broadcast_to(v.mean(1, keepdims=True), v.shape), atol=1e-5
  )


def test_an_unknown_kernel_names_the_choices():
  with pytest.raises(ValueError, match="'exp'; choices: 'softmax' and 'relu'"):
    attention.build("performer(kernel='exp')").init(
      jax.random.key(0), *arrays()
    )


def test_relu_features_decode_with_a_state_of_sums():
  case = built("performer(features=6, kernel='relu', causal=True)")
  q, k, v = arrays()
  variables = case.variables(q, k, v)
  state = case.kernel.init_state(B, N, H, D, jnp.float32)
  assert set(state) == {'values', 'keys'}
  step = jax.jit(functools.partial(case.kernel.apply, method='step'))
  for t in range(N):
    out, state = step(variables, state, *(x[:, t : t + 1] for x in (q, k, v)))
  np.testing.assert_allclose(out[:, 0], case.run(q, k, v)[:, -1], atol=1e-5)
