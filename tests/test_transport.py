"""Plans, distances and divergences against SciPy, ott-jax and theorems."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from jax.test_util import check_grads
from ott.geometry import costs, geometry, pointcloud
from ott.problems.linear import linear_problem
from ott.solvers.linear import implicit_differentiation
from ott.solvers.linear import sinkhorn as ott_sinkhorn
from ott.tools import sinkhorn_divergence as ott_divergence

from vit_jax import transport

EPSILON = 0.1


def problem(n=6, m=9, seed=0):
  """Points in the square and unequal masses of total 1."""
  rng = np.random.default_rng(seed)
  x, y = rng.uniform(size=(n, 2)), rng.uniform(size=(m, 2))
  a, b = rng.uniform(0.5, 2, n), rng.uniform(0.5, 2, m)
  return tuple(
    jnp.asarray(z, jnp.float32) for z in (x, y, a / a.sum(), b / b.sum())
  )


def costed(n=6, m=9, seed=0):
  """As `problem`: cost and masses."""
  x, y, a, b = problem(n, m, seed)
  return transport.distances(x, y), a, b


def scores(sigma=3.0, n=8, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(sigma * rng.normal(size=(2, n, n)), jnp.float32)


def by_linprog(cost, a, b):
  """The optimum, from constraints written as the definition has them."""
  n, m = cost.shape
  equal = np.zeros((n + m, n, m))
  for i in range(n):
    equal[i, i] = 1
  for j in range(m):
    equal[n + j, :, j] = 1
  found = scipy.optimize.linprog(
    np.asarray(cost, np.float64).ravel(), A_eq=equal.reshape(n + m, -1)[:-1],
    b_eq=np.concatenate([a, b]).astype(np.float64)[:-1], method='highs',
  )  # fmt: skip
  return found.fun


def by_ott(cost, a, b, rho=None, implicit=True):
  """Their solution; unbalanced, their entropy is relative to 1, not to a⊗b."""
  tau = 1.0 if rho is None else rho / (rho + EPSILON)
  if rho is not None:
    cost = cost - EPSILON * jnp.log(a[:, None] * b[None])
  linear = linear_problem.LinearProblem(
    geometry.Geometry(cost, epsilon=EPSILON), a=a, b=b, tau_a=tau, tau_b=tau
  )
  diff = implicit_differentiation.ImplicitDiff() if implicit else None
  solver = ott_sinkhorn.Sinkhorn(
    threshold=1e-6, max_iterations=500, implicit_diff=diff
  )  # fmt: skip
  return solver(linear)


@pytest.fixture
def broadcasting():
  """ott-jax broadcasts by rank."""
  with jax.numpy_rank_promotion('allow'):
    yield


# --- balance ---------------------------------------------------------------


def test_rows_are_exact_and_columns_become_so():
  errors = []
  for iterations in (1, 8, 20, 100):
    plan = jnp.exp(transport.balance(scores(), iterations))
    np.testing.assert_allclose(plan.sum(-1), 1, atol=1e-5)
    errors.append(float(abs(plan.sum(-2) - 1).max()))
  assert errors == sorted(errors, reverse=True)
  assert errors[0] > 0.1
  assert errors[-1] < 1e-3


def test_more_columns_than_rows_share_the_rows():
  plan = jnp.exp(transport.balance(scores()[:, :5], 100))
  np.testing.assert_allclose(plan.sum(-1), 1, atol=1e-5)
  np.testing.assert_allclose(plan.sum(-2), 5 / 8, atol=1e-3)


def test_no_iterations_leave_the_scores_over_the_temperature():
  found = transport.balance(scores(), 0, temperature=0.5)
  np.testing.assert_allclose(found, 2 * scores())


def test_low_temperature_gives_the_hungarian_assignment():
  for matrix in scores(1.0, 6):
    # One more on each pair of the best: the next is at least 2 behind.
    rows, columns = scipy.optimize.linear_sum_assignment(-matrix)
    wanted = np.zeros_like(matrix)
    wanted[rows, columns] = 1
    matrix = matrix + wanted.astype('f')
    plan = jnp.exp(transport.balance(matrix, 3000, temperature=0.05))
    np.testing.assert_allclose(plan, wanted, atol=1e-3)


def test_balance_is_sinkhorn_with_masses_of_one():
  cost = -scores()[0]
  ones = jnp.ones(8)
  plan = transport.sinkhorn(cost, ones, ones, 0.7, 5).plan
  log = transport.balance(-cost, 5, temperature=0.7)
  np.testing.assert_allclose(jnp.exp(log), plan, atol=1e-5)


def test_constants_on_rows_and_columns_cancel():
  rng = np.random.default_rng(1)
  moved = scores(1.0) + rng.normal(size=(2, 8, 1)).astype('f')
  moved += rng.normal(size=(2, 1, 8)).astype('f')
  np.testing.assert_allclose(
    transport.balance(moved, 200), transport.balance(scores(1.0), 200),
    atol=1e-3,
  )  # fmt: skip


def test_left_out_pairs_have_no_mass_no_influence_and_no_gradient():
  keep = jnp.tril(jnp.ones((8, 8), bool))[None]
  keep = keep.at[0, 3].set(False).at[0, :, 2].set(False)

  @jax.jit
  def solve(scores):
    plan = jnp.exp(transport.balance(scores, 8, keep=keep))
    return (plan**2).sum(), plan

  gradient, plan = jax.grad(solve, has_aux=True)(scores())
  assert not plan[:, ~keep[0]].any()
  np.testing.assert_allclose(plan.sum(-1)[:, [0, 1, 2, 4, 5, 6, 7]], 1, 1e-5)
  other = jnp.where(keep, scores(), 1e6 * scores())
  np.testing.assert_array_equal(plan, solve(other)[1])
  assert jnp.isfinite(gradient).all()
  assert not gradient[:, ~keep[0]].any()
  assert gradient[:, keep[0]].any()


def test_nothing_kept_is_nothing_moved():
  keep = jnp.zeros((1, 8, 8), bool)
  value, gradient = jax.jit(
    jax.value_and_grad(
      lambda s: jnp.exp(transport.balance(s, 3, keep=keep)).sum()
    )
  )(scores())
  assert value == 0
  assert not gradient.any()


def test_gradients_of_balance():
  x = scores(0.5, 4)
  weights = jnp.asarray(np.random.default_rng(2).normal(size=x.shape), 'f')
  check_grads(
    jax.jit(lambda s: (weights * jnp.exp(transport.balance(s, 5))).sum()),
    (x,), 1, ('rev',), atol=1e-2, rtol=1e-2,
  )  # fmt: skip
  temperature = jnp.float32(0.8)
  assert jax.grad(
    lambda t: (weights * jnp.exp(transport.balance(x, 5, temperature=t))).sum()
  )(temperature)


@pytest.mark.parametrize(
  ('options', 'match'),
  [
    ({'iterations': -1}, 'iterations=-1 must be 0 or more'),
    ({'iterations': 1, 'temperature': 0.0}, 'temperature=0.0 must be positive'),
  ],
)
def test_balance_refuses(options, match):
  with pytest.raises(ValueError, match=match):
    transport.balance(scores(), **options)


# --- sinkhorn --------------------------------------------------------------


def test_plan_has_the_marginals_and_the_form_that_the_potentials_give():
  cost, a, b = costed()
  plan, (f, g), error = transport.sinkhorn(cost, a, b, EPSILON, 300)
  np.testing.assert_allclose(plan.sum(1), a, atol=1e-6)
  np.testing.assert_allclose(plan.sum(0), b, atol=1e-6)
  assert error < 1e-5
  exponent = (f[:, None] + g[None] - cost) / EPSILON
  np.testing.assert_allclose(
    plan, a[:, None] * b[None] * jnp.exp(exponent), atol=1e-6
  )


@pytest.mark.usefixtures('broadcasting')
@pytest.mark.parametrize('rho', [None, 0.5])
def test_plan_and_its_implicit_and_unrolled_gradients_agree_with_ott(rho):
  cost, a, b = costed()
  b = 2 * b if rho else b
  weights = jnp.asarray(np.random.default_rng(3).normal(size=cost.shape), 'f')

  def ours(cost, kind):
    return transport.sinkhorn(
      cost, a, b, EPSILON, 200, rho=rho, gradient=kind
    ).plan

  def theirs(cost, kind):
    return by_ott(cost, a, b, rho, kind == 'implicit').matrix

  found = {}
  for of in (ours, theirs):
    for kind in ('implicit', 'unrolled'):

      @jax.jit
      def weighted(cost, of=of, kind=kind):
        plan = of(cost, kind)
        return (weights * plan).sum(), plan

      found[of, kind] = jax.grad(weighted, has_aux=True)(cost)
  gradient, plan = found[ours, 'implicit']
  assert abs(gradient).max() > 0.1
  for other, their_plan in found.values():
    np.testing.assert_allclose(plan, their_plan, atol=1e-5)
    np.testing.assert_allclose(gradient, other, atol=1e-4)


@pytest.mark.usefixtures('broadcasting')
def test_distance_and_its_gradients_agree_with_ott():
  given = costed()
  ours, theirs = (
    jax.jit(jax.value_and_grad(of, (0, 1, 2)))(*given)
    for of in (
      lambda *args: transport.sinkhorn_distance(*args, EPSILON, 200),
      lambda *args: by_ott(*args).reg_ot_cost,
    )
  )
  np.testing.assert_allclose(ours[0], theirs[0], atol=1e-5)
  np.testing.assert_allclose(ours[1][0], theirs[1][0], atol=1e-5)
  for found, wanted in zip(ours[1][1:], theirs[1][1:], strict=True):
    # Prices are known up to a constant.
    np.testing.assert_allclose(
      found - found.mean(), wanted - wanted.mean(), atol=1e-4
    )


def test_implicit_gradient_for_masses_equals_unrolled_where_totals_stay():
  cost, a, b = costed()
  weights = jnp.asarray(np.random.default_rng(3).normal(size=cost.shape), 'f')

  @jax.jit
  @jax.jacrev
  def gradients(a):
    return [
      (
        weights
        * transport.sinkhorn(cost, a, b, EPSILON, 200, gradient=kind).plan
      ).sum()
      for kind in ('implicit', 'unrolled')
    ]

  found = [x - x.mean() for x in gradients(a)]
  assert abs(found[0]).max() > 0.1
  np.testing.assert_allclose(*found, atol=1e-3)


def test_few_steps_give_an_unrolled_gradient_that_is_not_the_implicit_one():
  cost, a, b = costed()

  @jax.jit
  @jax.jacrev
  def gradients(cost):
    return [
      (transport.sinkhorn(cost, a, b, 0.02, 2, gradient=kind).plan ** 2).sum()
      for kind in ('implicit', 'unrolled')
    ]

  implicit, unrolled = gradients(cost)
  assert abs(unrolled - implicit).max() > 1e-3


def test_places_without_mass_change_nothing_else():
  cost, a, b = costed()
  more = jnp.pad(cost, ((0, 2), (0, 3)), constant_values=0.3)
  a0, b0 = jnp.pad(a, (0, 2)), jnp.pad(b, (0, 3))

  @jax.jit
  def solve(cost, a, b):
    distance, by_cost = jax.value_and_grad(transport.sinkhorn_distance)(
      cost, a, b, EPSILON, 100
    )
    return transport.sinkhorn(cost, a, b, EPSILON, 100).plan, distance, by_cost

  for found, wanted in zip(
    solve(more, a0, b0), solve(cost, a, b), strict=True
  ):
    if found.ndim:
      assert not found[6:].any()
      assert not found[:, 9:].any()
      found = found[:6, :9]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_gradients_are_finite_where_there_is_no_mass():
  cost, a, b = costed()
  a = a.at[0].set(0).at[1].add(a[0])
  b = b.at[0].set(0).at[1].add(b[0])

  @jax.jit
  def gradients(cost, a, b):
    of = lambda *args: [  # noqa: E731
      transport.sinkhorn_distance(*args, EPSILON, 20),
      *(
        (transport.sinkhorn(*args, EPSILON, 20, gradient=kind).plan**2).sum()
        for kind in ('unrolled', 'implicit')
      ),
    ]
    return jax.jacrev(of, (0, 1, 2))(cost, a, b)

  for gradient in jax.tree.leaves(gradients(cost, a, b)):
    assert jnp.isfinite(gradient).all()
    assert gradient.any()


def test_going_on_from_potentials_is_the_longer_run():
  cost, a, b = costed()
  half = transport.sinkhorn(cost, a, b, EPSILON, 10)
  found = transport.sinkhorn(cost, a, b, EPSILON, 10, start=half.potentials)
  whole = transport.sinkhorn(cost, a, b, EPSILON, 20)
  np.testing.assert_allclose(found.plan, whole.plan, atol=1e-7)


def test_dear_relaxation_is_balanced_and_cheap_relaxation_destroys_mass():
  cost, a, b = costed()
  balanced = transport.sinkhorn(cost, a, b, EPSILON, 300).plan
  dear = transport.sinkhorn(cost, a, b, EPSILON, 300, rho=1e4).plan
  np.testing.assert_allclose(dear, balanced, atol=1e-4)
  far = 5 + cost
  cheap = transport.sinkhorn(far, a, b, EPSILON, 300, rho=0.1).plan
  assert cheap.sum() < 1e-3


def test_unbalanced_plan_serves_demand_above_stock_in_part():
  cost, a, b = costed()
  plan = transport.sinkhorn(cost, a, 3 * b, 0.01, 500, rho=1.0).plan
  assert 1 < plan.sum() < 3


@pytest.mark.parametrize('rho', [None, 0.5])
def test_distance_and_its_gradient_are_what_the_definition_says(rho):
  cost, a, b = costed()
  b = 2 * b if rho else b

  def defined(cost, a):
    plan = transport.sinkhorn(cost, a, b, EPSILON, 200, rho=rho).plan
    value = (plan * cost).sum() + EPSILON * transport.kl(
      plan.ravel(), (a[:, None] * b[None]).ravel()
    )
    if rho:
      value += rho * transport.kl(plan.sum(1), a)
      value += rho * transport.kl(plan.sum(0), b)
    return value

  def ours(cost, a):
    return transport.sinkhorn_distance(cost, a, b, EPSILON, 200, rho=rho)

  found, wanted = (
    jax.jit(jax.value_and_grad(of, (0, 1)))(cost, a) for of in (ours, defined)
  )
  np.testing.assert_allclose(found[0], wanted[0], atol=1e-6)
  np.testing.assert_allclose(found[1][0], wanted[1][0], atol=1e-5)
  by_a, to_a = found[1][1], wanted[1][1]
  if rho is None:
    by_a, to_a = by_a - by_a.mean(), to_a - to_a.mean()
  np.testing.assert_allclose(by_a, to_a, atol=1e-4)


# --- exact and Wasserstein -------------------------------------------------


def test_exact_optimum_equals_linprog():
  for n, m, seed in ((5, 7, 0), (8, 3, 1)):
    cost, a, b = costed(n, m, seed)
    plan, (f, g), error = transport.exact(cost, a, b)
    value = (plan * cost).sum()
    np.testing.assert_allclose(value, by_linprog(cost, a, b), rtol=1e-6)
    np.testing.assert_allclose(plan.sum(1), a, atol=1e-6)
    assert error < 1e-6
    assert (plan >= 0).all()
    # Strong duality: prices below costs, equal where mass moves.
    slack = cost - f[:, None] - g[None]
    assert slack.min() > -1e-6
    assert abs(slack * plan).max() < 1e-6
    np.testing.assert_allclose(a @ f + b @ g, value, rtol=1e-5)


def test_equal_masses_make_an_assignment_with_prices():
  cost = costed(7, 7)[0]
  masses = jnp.full(7, 2.0)
  plan, (f, g), _ = transport.exact(cost, masses, masses)
  assert sorted(np.unique(plan)) == [0, 2]
  np.testing.assert_allclose(
    (plan * cost).sum(), by_linprog(cost, masses, masses), rtol=1e-6
  )
  slack = cost - f[:, None] - g[None]
  assert slack.min() > -1e-6
  assert abs(slack * plan).max() < 1e-6


def test_exact_works_inside_jit_and_vmap():
  cost, a, b = costed()
  wanted = transport.exact(cost, a, b).plan
  both = jax.jit(jax.vmap(lambda c: transport.exact(c, a, b).plan))
  found = both(jnp.stack([cost, cost + 1]))
  np.testing.assert_allclose(found, jnp.stack([wanted, wanted]), atol=1e-6)


def test_sinkhorn_gap_is_below_epsilon_times_entropy_and_vanishes():
  cost, a, b = costed(12, 12)
  best = by_linprog(cost, a, b)
  bound = float(min(-(a * jnp.log(a)).sum(), -(b * jnp.log(b)).sum()))
  gaps = []
  solve = jax.jit(
    lambda epsilon, start: transport.sinkhorn(
      cost, a, b, epsilon, 1000, start=start
    )
  )
  distance = jax.jit(
    lambda epsilon: transport.sinkhorn_distance(cost, a, b, epsilon, 4000)
  )
  start = (jnp.zeros(12), jnp.zeros(12))
  for epsilon in (0.3, 0.1, 0.03, 0.01, 0.003, 0.001):
    plan, start, error = solve(epsilon, start)
    assert error < 1e-3
    moved = float((plan * cost).sum())
    value = float(distance(epsilon))
    assert best - 1e-4 < moved < value + 1e-4
    assert value < best + epsilon * bound + 1e-4
    gaps.append(moved - best)
  assert gaps == sorted(gaps, reverse=True)
  assert abs(gaps[-1]) < 1e-3 * best


def test_wasserstein_of_a_translation_is_its_length():
  for dimension in (1, 2):
    x = problem(8)[0][:, :dimension]
    move = jnp.asarray([[3.0, -4.0]])[:, :dimension]
    length = float(jnp.linalg.norm(move))
    for power in (1, 3):
      found, gradient = jax.jit(
        jax.value_and_grad(
          lambda t, x=x, power=power: transport.wasserstein(
            x, x + t, power=power
          )
        )
      )(move)
      np.testing.assert_allclose(found, length, rtol=1e-5)
      np.testing.assert_allclose(gradient, move / length, atol=1e-4)


def test_wasserstein_of_equal_points_is_zero_with_zero_gradient():
  for dimension in (1, 2):
    x = problem()[0][:, :dimension]
    for power in (1, 2):
      found, gradient = jax.value_and_grad(
        lambda y, x=x, power=power: transport.wasserstein(x, y, power=power)
      )(x)
      assert abs(found) < 1e-6
      assert jnp.isfinite(gradient).all()


def test_line_by_ott_equals_scipy_and_the_linear_program():
  x, y, a, b = problem()
  x, y = x[:, :1], y[:, :1]
  found = transport.wasserstein(x, y, a=a, b=b)
  wanted = scipy.stats.wasserstein_distance(x[:, 0], y[:, 0], a, b)
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
  flat = lambda z: jnp.pad(z, ((0, 0), (0, 1)))  # noqa: E731
  for power in (1, 2):
    line, plane = (
      jax.value_and_grad(
        lambda x, a, y=y, power=power: transport.wasserstein(
          x, y, a=a, b=b, power=power
        ), (0, 1)
      )(x, a)
      for x, y in ((x, y), (flat(x), flat(y)))
    )  # fmt: skip
    np.testing.assert_allclose(line[0], plane[0], rtol=1e-4)
    np.testing.assert_allclose(line[1][0], plane[1][0][:, :1], atol=1e-4)


def test_wasserstein_gradient_in_the_masses_is_the_price():
  x, y, a, b = problem()
  gradient = jax.grad(lambda a: transport.wasserstein(x, y, a=a, b=b))(a)
  move = jnp.zeros(6).at[0].set(1e-3).at[3].set(-1e-3)
  ahead, behind = (
    transport.wasserstein(x, y, a=a + s * move, b=b) for s in (1, -1)
  )
  np.testing.assert_allclose(
    gradient @ move, (ahead - behind) / 2, rtol=0.05
  )


# --- divergences -----------------------------------------------------------


@pytest.mark.usefixtures('broadcasting')
def test_divergence_and_its_gradient_agree_with_ott():
  x, y, a, b = problem()

  def ours(x):
    return transport.sinkhorn_divergence(x, y, EPSILON, 200, a=a, b=b)

  def theirs(x):
    return ott_divergence.sinkhorn_divergence(
      pointcloud.PointCloud, x, y, cost_fn=costs.SqEuclidean(),
      epsilon=EPSILON, a=a, b=b, solve_kwargs={'threshold': 1e-6},
    )[0]  # fmt: skip

  found, wanted = (jax.jit(jax.value_and_grad(of))(x) for of in (ours, theirs))
  np.testing.assert_allclose(found[0], wanted[0], atol=1e-5)
  np.testing.assert_allclose(found[1], wanted[1], atol=1e-4)


def test_divergence_is_the_distance_less_both_to_themselves():
  x, y, a, b = problem()
  b = 2 * b
  found = transport.sinkhorn_divergence(x, y, EPSILON, 200, a=a, b=b, rho=0.5)
  between, within_x, within_y = (
    transport.sinkhorn_distance(
      transport.distances(p, q), c, d, EPSILON, 200, rho=0.5
    )
    for p, c, q, d in ((x, a, y, b), (x, a, x, a), (y, b, y, b))
  )
  wanted = between - 0.5 * (within_x + within_y) + 0.5 * EPSILON * (1 - 2) ** 2
  np.testing.assert_allclose(found, wanted, atol=1e-6)
  assert found > 0.1


def test_divergence_is_zero_only_between_equals():
  x, y, a, b = problem()
  of = lambda y, b: transport.sinkhorn_divergence(  # noqa: E731
    x, y, EPSILON, 200, a=a, b=b
  )
  value, gradient = jax.value_and_grad(of)(x, a)
  assert abs(value) < 1e-6
  np.testing.assert_allclose(gradient, 0, atol=1e-5)
  assert of(y, b) > 1e-3
  biased = transport.sinkhorn_distance(
    transport.distances(x, x), a, a, EPSILON, 200
  )
  assert biased > 1e-2


def test_divergence_of_a_translation_is_its_squared_length():
  # The linear term of ‖x − y − t‖² is the same for every plan.
  x = problem(8)[0]
  move = jnp.asarray([[0.3, -0.4]])
  found = transport.sinkhorn_divergence(x, x + move, EPSILON, 500)
  np.testing.assert_allclose(found, 0.25, rtol=1e-4)


def test_divergence_is_between_wasserstein_and_a_kernel_distance():
  x, y, a, b = problem()
  of = lambda epsilon, count: float(  # noqa: E731
    transport.sinkhorn_divergence(x, y, epsilon, count, a=a, b=b)
  )
  exact = float(transport.wasserstein(x, y, a=a, b=b, power=2)) ** 2
  np.testing.assert_allclose(of(1e-3, 5000), exact, rtol=0.02)
  means = ((a @ x - b @ y) ** 2).sum()  # the kernel −‖x − y‖² sees the means
  np.testing.assert_allclose(of(1e3, 50), means, rtol=0.02)


def bump(position):
  """A histogram on 0 … 10 with compact support of width 2."""
  away = jnp.linspace(0, 10, 101) - position
  mass = jnp.where(abs(away) < 1, 1 + jnp.cos(jnp.pi * away), 0)
  return mass / mass.sum()


def test_disjoint_supports_blind_kl_and_jensen_shannon_not_wasserstein():
  p, places = bump(2.0), jnp.linspace(0, 10, 101)[:, None]
  wasserstein = jax.jit(
    jax.value_and_grad(
      lambda t: transport.wasserstein(places, places, a=p, b=bump(t))
    )
  )
  for position in (5.0, 7.55):
    assert jnp.isinf(transport.kl(p, bump(position)))
    value, gradient = jax.value_and_grad(
      lambda t: transport.jensen_shannon(p, bump(t))
    )(position)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    assert abs(gradient) < 1e-5
    value, gradient = wasserstein(position)
    np.testing.assert_allclose(value, position - 2, rtol=1e-3)
    np.testing.assert_allclose(gradient, 1, rtol=0.05)


def test_kl_is_infinite_one_way_and_finite_the_other():
  p, q = jnp.asarray([0.5, 0.5, 0.0]), jnp.asarray([0.25, 0.25, 0.5])
  np.testing.assert_allclose(transport.kl(p, q), np.log(2), rtol=1e-6)
  assert transport.kl(q, p) == np.inf
  both = jnp.stack([p, q])
  np.testing.assert_allclose(transport.kl(both, both), 0, atol=1e-7)
  np.testing.assert_allclose(
    transport.jensen_shannon(p, q), transport.jensen_shannon(q, p), rtol=1e-6
  )
  for of in (transport.kl, transport.jensen_shannon):
    for gradient in jax.grad(lambda *a, of=of: of(*a), (0, 1))(p, q):
      assert jnp.isfinite(gradient).all()


def test_kl_agrees_with_scipy():
  _, _, p, q = problem(9, 9)
  np.testing.assert_allclose(
    transport.kl(p, q), scipy.stats.entropy(p, q), rtol=1e-4
  )


# --- what is refused -------------------------------------------------------


def plain(function):
  """Without the tests' shape checks, as users call it."""
  return inspect.unwrap(function)


@pytest.mark.parametrize(
  ('change', 'match'),
  [
    ({'a': [0.5, -0.25, 0.75]}, r'a\[1\]=-0.25 is no mass: masses are finite'),
    ({'b': [0.5, np.nan]}, r'b\[1\]=nan is no mass'),
    ({'a': [0.5, np.inf, 0.0]}, r'a\[1\]=inf is no mass'),
    (
      {'b': [0.75, 0.75]},
      r'demand b exceeds stock a: a has a total of 1, b of 1.5, and .*rho=.*'
      r'add_dummy take the difference of 0.5',
    ),
    ({'a': [1.0, 1.0, 0.0]}, 'stock a exceeds demand b: a has a total of 2'),
    ({'b': [0.5, 0.25, 0.25]}, r'cost \(3, 2\) must be \(3, 3\)'),
    ({'b': [[0.5, 0.5]]}, r'masses are vectors, b has the shape \(1, 2\)'),
    ({'cost': np.full((3, 2), np.inf)}, 'cost holds numbers that are not fin'),
  ],
)
def test_what_is_no_transport_problem_is_refused(change, match):
  given = {'cost': np.ones((3, 2)), 'a': [0.5, 0.25, 0.25], 'b': [0.5, 0.5]}
  given = {k: jnp.asarray(v) for k, v in (given | change).items()}
  with pytest.raises(ValueError, match=match):
    plain(transport.sinkhorn)(**given, epsilon=0.1, iterations=1)
  with pytest.raises(ValueError, match=match):
    plain(transport.exact)(**given)
  with pytest.raises(ValueError, match=match):
    plain(transport.sinkhorn_distance)(**given, epsilon=0.1, iterations=1)


@pytest.mark.parametrize(
  ('options', 'match'),
  [
    ({'epsilon': 0.0}, 'epsilon=0.0 must be positive'),
    ({'epsilon': float('nan')}, 'epsilon=nan must be positive'),
    ({'rho': -1.0}, 'rho=-1.0 must be positive'),
    ({'iterations': 0}, 'iterations=0 must be 1 or more'),
    ({'gradient': 'none'}, "'none' is unknown; choices: 'unrolled', 'impli"),
    (
      {'start': (jnp.zeros(2), jnp.zeros(9))},
      r'start has potentials of shapes \(2,\) and \(9,\)',
    ),
  ],
)
def test_bad_options_are_refused(options, match):
  cost, a, b = costed()
  given = {'epsilon': 0.1, 'iterations': 1} | options
  with pytest.raises(ValueError, match=match):
    plain(transport.sinkhorn)(cost, a, b, **given)


def test_powers_below_one_are_refused():
  x = problem()[0]
  with pytest.raises(ValueError, match=r'power=0.5 must be 1 or more'):
    transport.wasserstein(x, x, power=0.5)


def test_shapes_are_refused_under_jit_too():
  cost, a, b = costed()
  with pytest.raises(ValueError, match=r'cost \(6, 9\) must be \(6, 6\)'):
    jax.jit(plain(transport.exact))(cost, a, a)


def test_dummy_takes_the_difference_of_the_totals():
  cost, a, b = costed()
  for stock, demand, shape in (
    (2 * a, b, (6, 10)), (a, 2 * b, (7, 9)), (a, b, (6, 9)),
  ):  # fmt: skip
    new = transport.add_dummy(cost, stock, demand, price=4.0)
    assert new[0].shape == shape
    plan = transport.exact(*new).plan
    np.testing.assert_allclose(plan.sum(), max(stock.sum(), demand.sum()), 1e-5)
    # With a price above all costs, no unit that can be served is left.
    np.testing.assert_allclose(plan[:6, :9].sum(), 1, atol=1e-5)
