"""What Sinkhorn attention, SortCut, Sinkformer and LOTFormer claim to be."""

import dataclasses

import flax
import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest
from jax.test_util import check_grads
from ott.geometry import geometry
from ott.problems.linear import linear_problem
from ott.solvers.linear import implicit_differentiation
from ott.solvers.linear import sinkhorn as ott_sinkhorn
from scipy import optimize, special

from attention import contract
from attention.oracles import FACTS
from attention.oracles.sinkhorn import plan, sinkhorn
from vit_jax import attention, flops
from vit_jax.attention.block_sort import balance_causal, mix
from vit_jax.attention.optimal import LOTFormer, Sinkformer
from vit_jax.attention.sinkhorn import Sinkhorn, SortCut

BLOCKS = 8


def normal(*shape, seed=0, scale=1.0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)


def apply(kernel):
  return jax.jit(kernel.apply, static_argnames='train')


def layer(scores, size=2):
  """x and parameters of a sort net whose R is `scores` [U U], one head."""
  n = len(scores)
  eye = jnp.eye(n)
  shift = scores.min()  # the same for all, so balancing cancels it
  x = jnp.repeat(scores - shift, size, axis=0)[None]
  hidden = {'kernel': eye, 'bias': jnp.zeros(n)}
  return x, {'params': {'sort_hidden': hidden, 'sort_out': eye[:, None]}}


def order(kernel, scores, size=2, **options):
  """P of the kernel for R = scores, by the values alone.

  Without queries a token sees its block and what is beside it alike, and the
  values are the number of their block.
  """
  x, variables = layer(scores, size)
  n = len(scores)
  v = jnp.repeat(jnp.eye(n), size, axis=0)[None, :, None]
  k = normal(*v.shape)
  out = apply(kernel)(variables, 0 * k, k, v, x=x, **options)
  return 2 * out[0, ::size, 0] - jnp.eye(n)


def by_ott(cost, epsilon, a=None, b=None):
  """The converged plan, differentiated implicitly."""
  with jax.numpy_rank_promotion('allow'):  # ott-jax broadcasts by rank
    problem = linear_problem.LinearProblem(
      geometry.Geometry(cost_matrix=cost, epsilon=epsilon), a=a, b=b
    )
    # Potentials are defined up to a constant, hence the ridge; conjugate
    # gradients, the default, return NaN on some of these small systems.
    implicit = implicit_differentiation.ImplicitDiff(solver_kwargs={
      'ridge_kernel': 1.0,
      'nonsym_solver': lambda rtol, atol: lineax.LU(),
    })
    return ott_sinkhorn.Sinkhorn(
      threshold=1e-6, max_iterations=1000, implicit_diff=implicit
    )(problem).matrix


# The order of the blocks.


def test_the_order_tends_to_a_doubly_stochastic_one_and_its_rows_are_exact():
  scores = 3 * normal(BLOCKS, BLOCKS)
  errors = []
  for iterations in (1, 8, 20, 200):
    kernel = Sinkhorn(
      blocks=BLOCKS, sort='net', iterations=iterations, temperature=1.0
    )
    p = order(kernel, scores)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(
      p, sinkhorn(np.asarray(scores, np.float64), iterations), atol=1e-5
    )
    errors.append(float(np.abs(p.sum(0) - 1).max()))
  assert errors[0] > 0.3 > errors[1] > errors[2]
  assert errors[-1] < 1e-5


def test_a_cold_order_is_the_best_assignment():
  kernel = Sinkhorn(
    blocks=BLOCKS, sort='net', iterations=5000, temperature=0.01
  )
  run = jax.jit(lambda scores: order(kernel, scores))
  for seed in range(4):
    scores = normal(BLOCKS, BLOCKS, seed=seed)
    rows, columns = optimize.linear_sum_assignment(scores, maximize=True)
    assert list(columns) != list(scores.argmax(1))  # not each row's best
    expected = np.zeros((BLOCKS, BLOCKS))
    expected[rows, columns] = 1
    # Towards a permutation Sinkhorn converges as 1 / iterations.
    np.testing.assert_allclose(run(scores), expected, atol=2e-3)


def test_the_order_and_its_gradient_agree_with_ott():
  scores, weights = normal(BLOCKS, BLOCKS, seed=3), normal(BLOCKS, BLOCKS)
  kernel = Sinkhorn(blocks=BLOCKS, sort='net', iterations=100)

  def ours(scores):
    p = order(kernel, scores)
    return jnp.sum(weights * p), p

  def theirs(scores):
    p = BLOCKS * by_ott(-scores, kernel.temperature)
    return jnp.sum(weights * p), p

  gradient, p = jax.jit(jax.grad(ours, has_aux=True))(scores)
  with jax.numpy_rank_promotion('allow'):  # and so does its backward pass
    expected_gradient, expected = jax.jit(
      jax.grad(theirs, has_aux=True)
    )(scores)
  np.testing.assert_allclose(p, expected, atol=2e-5)
  np.testing.assert_allclose(gradient, expected_gradient, atol=2e-5)
  assert np.abs(gradient).max() > 0.1


@pytest.mark.parametrize('kernel', [
  Sinkhorn(blocks=3, sort='net', iterations=4),
  Sinkhorn(blocks=3, sort='net', iterations=4, causal=True),
  SortCut(blocks=3, sort='net', iterations=4, keep=1),
])  # fmt: skip
def test_gradients_reach_the_sort_net_and_are_right(kernel):
  q, k, v = (normal(1, 6, 2, 4, seed=i) for i in range(3))
  x = normal(1, 6, 8, seed=4)
  shapes = jax.eval_shape(kernel.init, jax.random.key(0), q, k, v, x=x)
  variables = contract.jitter(shapes)
  value = jax.jit(
    lambda variables: jnp.sum(kernel.apply(variables, q, k, v, x=x) ** 2)
  )
  for path, g in jax.tree.leaves_with_path(jax.grad(value)(variables)):
    assert np.abs(g).max() > 1e-4, jax.tree_util.keystr(path)
  check_grads(value, (variables,), 1, 'rev', atol=1e-2, rtol=1e-2)


# Noise.


def test_noise_is_drawn_in_training_only_from_its_own_stream():
  kernel = Sinkhorn(blocks=BLOCKS, sort='net', iterations=100)
  scores = normal(BLOCKS, BLOCKS)
  calm = order(kernel, scores)
  rngs = {'gumbel': jax.random.key(1)}
  np.testing.assert_array_equal(order(kernel, scores, rngs=rngs), calm)
  noisy = order(kernel, scores, rngs=rngs, train=True)
  assert np.abs(noisy - calm).max() > 0.1
  np.testing.assert_allclose(noisy.sum(0), 1, atol=1e-4)
  with pytest.raises(flax.errors.InvalidRngError, match='gumbel'):
    order(kernel, scores, train=True)


def test_noise_is_added_before_the_temperature(monkeypatch):
  noise = normal(BLOCKS, BLOCKS, seed=5)
  monkeypatch.setattr(
    jax.random, 'gumbel', lambda key, shape: noise.reshape(shape)
  )
  scores = normal(BLOCKS, BLOCKS)
  p = order(
    Sinkhorn(blocks=BLOCKS, sort='net', temperature=0.5), scores,
    train=True, rngs=jax.random.key(0),
  )  # fmt: skip
  expected = sinkhorn(np.asarray(scores + noise, np.float64) / 0.5, 8)
  np.testing.assert_allclose(p, expected, atol=1e-5)


# What public code gets wrong.


def test_the_sorted_values_are_values_not_keys():
  q, k, v = (normal(1, 8, 1, 4, seed=i) for i in range(3))
  kernel = Sinkhorn(blocks=4)
  out = apply(kernel)({}, q, k, jnp.ones_like(v))
  np.testing.assert_allclose(out, 1.0, atol=1e-5)
  assert not np.any(apply(kernel)({}, q, k, jnp.zeros_like(v)))


def test_a_place_gets_one_block_not_the_sum_of_all():
  permutation = np.array([2, 0, 3, 1])
  x = normal(2, 3, 4, 2, 5)
  shares = jnp.broadcast_to(jnp.eye(4)[permutation], (2, 3, 4, 4))
  np.testing.assert_array_equal(mix(shares, x)[0], x[:, :, permutation])


# Causal.


@pytest.mark.parametrize('least', [0.0, -50.0, -80.0])
def test_a_place_of_next_to_nothing_has_the_right_gradient(least):
  rng = np.random.default_rng(4)
  log_shares = np.array([[0.0, -1.0, -2.0], [-0.5, -3.0, 0.0]])
  log_shares[:, 1:] += least  # all there is at token 1, as block 0 lacks it
  there = np.ones((1, 1, 3, 2, 1), bool)
  there[0, 0, 0, 1] = False
  x, weights = rng.standard_normal((3, 2, 5)), rng.standard_normal((2, 2, 5))

  @jax.jit
  @jax.value_and_grad
  def run(log_shares, x):
    y, _ = mix(jnp.exp(log_shares)[None, None], x[None, None], there)
    return jnp.sum(y[0, 0] * weights)

  value, found = run(jnp.float32(log_shares), jnp.float32(x))
  total, gradient = 0.0, np.zeros((2, 3))
  for i, some in ((0, slice(0, 3)), (1, slice(1, 3))):
    w = special.softmax(log_shares[:, some], -1)  # [U V]
    y = w @ x[some, i]
    total += np.sum(y * weights[:, i])
    pull = np.einsum('uvd,ud->uv', x[None, some, i] - y[:, None], weights[:, i])
    gradient[:, some] += w * pull
  np.testing.assert_allclose(value, total, rtol=1e-4)
  np.testing.assert_allclose(found, gradient, atol=1e-4)


def test_the_sort_net_leaks_nothing_either():
  facts = dataclasses.replace(
    FACTS['sinkhorn'], causal='sinkhorn(blocks=5, sort="net", causal=True)'
  )
  contract.check_causality(contract.Built('sinkhorn', facts=facts))


def test_causal_balance_of_the_first_rows_needs_no_others():
  scores = 2 * normal(6, 6)
  p = jnp.exp(balance_causal(scores, 5))
  np.testing.assert_allclose(p.sum(1), 1, atol=1e-6)
  np.testing.assert_array_equal(p, np.tril(p))
  np.testing.assert_allclose(
    p[:4, :4], jnp.exp(balance_causal(scores[:4, :4], 5)), atol=1e-6
  )
  last = jnp.exp(balance_causal(scores, 3000))
  assert np.diag(last).min() > 0.9  # the drift to the identity


def test_the_first_causal_block_sees_itself_only():
  q, k, v = (normal(1, 8, 1, 4, seed=i) for i in range(3))
  out = apply(Sinkhorn(blocks=2, causal=True))({}, q, k, v)
  alone = attention.build('softmax(causal=True)').apply(
    {}, q[:, :4], k[:, :4], v[:, :4]
  )
  np.testing.assert_allclose(out[:, :4], alone, atol=1e-6)


def test_step_by_step_equals_all_at_once():
  q, k, v = (normal(2, 7, 2, 4, seed=i) for i in range(3))
  kernel = Sinkhorn(blocks=3, causal=True).bind({})
  state = kernel.init_state(2, 7, 2, 4, jnp.float32)

  def one(state, row):
    out, state = kernel.step(state, *(x[:, None] for x in row))
    return state, out[:, 0]

  rows = tuple(jnp.moveaxis(x, 1, 0) for x in (q, k, v))
  out = jnp.moveaxis(jax.lax.scan(one, state, rows)[1], 0, 1)
  np.testing.assert_allclose(
    out, apply(Sinkhorn(blocks=3, causal=True))({}, q, k, v), atol=1e-5
  )
  net = Sinkhorn(blocks=3, causal=True, sort='net').bind({})
  with pytest.raises(ValueError, match="sort='net' orders by .*: give x="):
    net.step(state, q[:, :1], k[:, :1], v[:, :1])


# Masks and cost.


@pytest.mark.parametrize('kernel', [
  Sinkhorn(blocks=4), Sinkhorn(blocks=4, causal=True), SortCut(blocks=4),
])  # fmt: skip
def test_blocks_of_padding_change_nothing(kernel):
  q, k, v = (normal(2, 12, 2, 4, seed=i) for i in range(3))
  expected = apply(kernel)({}, q, k, v)
  run = apply(kernel.clone(blocks=6))
  for before in (0, 6):
    pad = ((0, 0), (before, 6 - before), (0, 0), (0, 0))
    padded = (jnp.pad(x, pad, constant_values=9.0) for x in (q, k, v))
    mask = np.zeros((2, 18), bool)
    mask[:, before : before + 12] = True
    out = run({}, *padded, key_mask=mask)[:, before : before + 12]
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize('make', [Sinkhorn, SortCut])
def test_cost_grows_as_the_three_halves_of_n_with_root_n_blocks(make):
  counts = []
  for n in (1024, 4096, 16384):
    shape = jax.ShapeDtypeStruct((1, n, 1, 16), jnp.float32)
    counts.append(flops.count(make().apply, {}, shape, shape, shape))
  slopes = np.diff(np.log2(counts)) / 2
  np.testing.assert_allclose(slopes, 1.5, atol=0.03)


def test_applying_the_order_is_paid_for_every_pair_of_blocks():
  b, d, blocks = 4, 8, 16
  like = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)  # noqa: E731
  counted = flops.count(
    lambda shares, x: mix(shares, x)[0],
    like(1, 1, blocks, blocks), like(1, 1, blocks, b, d),
  )  # fmt: skip
  assert counted == 2 * blocks**2 * b * d


# Doubly stochastic attention.


def weights_of(kernel, q, k, variables=None):
  """The map [N N] of one example and one head."""
  n = q.shape[1]
  eye = jnp.eye(n)[None, :, None]
  return apply(kernel)(variables or {}, q, k, eye)[0, :, 0]


def test_sinkformer_agrees_with_ott_and_is_doubly_stochastic():
  q, k = normal(1, 9, 1, 4), normal(1, 9, 1, 4, seed=1)
  weights = normal(9, 9, seed=2)

  def ours(q):
    p = weights_of(Sinkformer(iterations=101), q, k)
    return jnp.sum(weights * p), p

  def theirs(q):
    p = 9 * by_ott(-q[0, :, 0] @ k[0, :, 0].T / 2, 1.0)
    return jnp.sum(weights * p), p

  gradient, p = jax.jit(jax.grad(ours, has_aux=True))(q)
  with jax.numpy_rank_promotion('allow'):  # and so does its backward pass
    expected_gradient, expected = jax.jit(
      jax.grad(theirs, has_aux=True)
    )(q)
  np.testing.assert_allclose(p.sum(0), 1, atol=1e-5)
  np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
  np.testing.assert_allclose(p, expected, atol=2e-5)
  np.testing.assert_allclose(gradient, expected_gradient, atol=2e-5)


def test_lotformer_is_doubly_stochastic_of_the_rank_of_its_pivots():
  n, rank = 9, 3
  q, k = normal(1, n, 1, 4), normal(1, n, 1, 4, seed=1)
  z, logits = normal(1, rank, 4, seed=2), normal(1, rank, seed=3)
  kernel = LOTFormer(rank=rank, iterations=100, temperature=0.5)
  p = weights_of(kernel, q, k, {'params': {'pivots': z, 'masses': logits}})
  np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
  np.testing.assert_allclose(p.sum(0), 1, atol=1e-5)
  assert np.linalg.matrix_rank(p, tol=1e-5) == rank
  uniform, sigma = jnp.full(n, 1 / n), jax.nn.softmax(logits[0])
  theirs = jax.jit(by_ott)
  onto = theirs(-q[0, :, 0] @ z[0].T / 2, 0.5, uniform, sigma)
  out_of = theirs(-k[0, :, 0] @ z[0].T / 2, 0.5, uniform, sigma).T
  np.testing.assert_allclose(p, n * (onto / sigma[None]) @ out_of, atol=2e-5)


def test_lotformer_transports_the_squared_distance_as_well():
  """The squared norms are constants of rows and columns."""
  n, rank = 9, 3
  q, z = np.asarray(normal(n, 4)), np.asarray(normal(rank, 4, seed=2))
  a, b = np.full(n, 1 / n), special.softmax(np.arange(rank) / 2)
  cost = ((q[:, None] - z[None]) ** 2).sum(-1) / 2
  np.testing.assert_allclose(
    plan(q @ z.T, a, b, 1.0, 300), plan(-cost, a, b, 1.0, 300), atol=1e-8
  )


# Errors.


@pytest.mark.parametrize(
  ('kernel', 'match'),
  [
    (Sinkhorn(blocks=0), 'blocks=0 must be 1 or more'),
    (Sinkhorn(sort='mlp'), "sort='mlp'; choices: 'dot', 'net'"),
    (Sinkhorn(iterations=0), 'iterations=0 must be 1 or more'),
    (Sinkhorn(temperature=0.0), r'temperature=0\.0 must be positive'),
    (Sinkhorn(sort='net'), "sort='net' orders by the layer's input: give x="),
    (Sinkhorn(prefix=7), 'prefix=7 .*, not 6'),
    (SortCut(keep=0), 'keep=0 must be 1 or more'),
    (Sinkformer(iterations=2), 'iterations=2 must be odd'),
    (Sinkformer(iterations=-1), 'iterations=-1 must be odd'),
    (LOTFormer(rank=0), 'rank=0 must be 1 or more'),
    (LOTFormer(iterations=0), 'iterations=0 must be 1 or more'),
    (LOTFormer(temperature=0.0), r'epsilon=0\.0 must be positive'),
  ],
)
def test_a_bad_option_is_an_error(kernel, match):
  q = normal(1, 6, 1, 4)
  with pytest.raises(ValueError, match=match):
    jax.eval_shape(kernel.init, jax.random.key(0), q, q, q)


def test_a_sort_net_keeps_its_number_of_blocks():
  q, x = normal(1, 9, 1, 4), normal(1, 9, 4)
  kernel = Sinkhorn(sort='net')
  variables = contract.jitter(
    jax.eval_shape(kernel.init, jax.random.key(0), q, q, q, x=x)
  )
  q, x = normal(1, 16, 1, 4), normal(1, 16, 4)
  with pytest.raises(ValueError, match="'sort_out' .*tokens is fixed"):
    jax.eval_shape(kernel.apply, variables, q, q, q, x=x)
