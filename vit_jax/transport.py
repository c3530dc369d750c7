"""Optimal transport: Sinkhorn iterations, distances and divergences.

Plain JAX, differentiable, float32 inside.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.shapes import Array, Bool, Float


def balance(
  log_scores: Float[Array, '*B N M'],
  iterations: int,
  *,
  temperature: float | Float[Array, ''] = 1.0,
  keep: Bool[Array, '*#B #N #M'] | None = None,
) -> Float[Array, '*B N M']:
  """Log of the scores made (nearly) doubly stochastic.

  P = diag(e^f) e^(scores/τ) diag(e^g): each iteration makes the columns sum to
  one, then the rows, so the rows are exact and the columns are exact in the
  limit (N = M; otherwise the columns tend to N/M). Sinkhorn & Knopp 1967; in
  log space as Mena et al. 2018, eq. 4. Cost N·M per iteration; the backward
  pass keeps N + M numbers per iteration and computes the rest again.

  Args:
    log_scores: any real scores; only their differences matter.
    iterations: number of column-then-row steps; with none, the scores over τ.
    temperature: τ > 0; τ → 0 gives the best assignment (Hungarian).
    keep: False pairs get no mass: −inf here and zero gradient. A row or a
      column without any pair stays −inf.

  Returns:
    log P in float32, −inf where `keep` is False.

  Raises:
    ValueError: a negative number of iterations, a temperature that is not
      positive.
  """
  if iterations < 0:
    raise ValueError(f'iterations={iterations} must be 0 or more')
  if isinstance(temperature, int | float) and not temperature > 0:
    raise ValueError(f'temperature={temperature} must be positive')
  scores = _float(log_scores) / temperature
  if keep is not None:
    scores = jnp.where(keep, scores, -jnp.inf)

  def step(sums, _):
    columns = _logsumexp(scores - sums[0], -2)
    return (_logsumexp(scores - columns, -1), columns), None

  start = (jnp.zeros_like(scores[..., :1]), jnp.zeros_like(scores[..., :1, :]))
  step = jax.checkpoint(step, prevent_cse=False)
  (rows, columns), _ = jax.lax.scan(step, start, length=iterations)
  return scores - rows - columns


class Plan(NamedTuple):
  """A solved transport problem.

  Attributes:
    plan: [N M] mass moved from i to j, in the masses' unit.
    potentials: f [N] and g [M], prices in the cost's unit: the value of one
      more unit of mass at i or at j. Balanced, f + c and g − c do as well.
    error: Σ_j of what the columns miss, in the masses' unit; the rows are
      exact. 0 when converged.
  """

  plan: Float[Array, 'N M']
  potentials: tuple[Float[Array, 'N'], Float[Array, 'M']]
  error: Float[Array, '']


def sinkhorn(
  cost: Float[Array, 'N M'],
  a: Float[Array, 'N'],
  b: Float[Array, 'M'],
  epsilon: float | Float[Array, ''],
  iterations: int,
  *,
  rho: float | Float[Array, ''] | None = None,
  start: tuple[Float[Array, 'N'], Float[Array, 'M']] | None = None,
  gradient: str = 'unrolled',
) -> Plan:
  """Entropic transport of the masses a to the masses b.

  min_P ⟨P, C⟩ + ε KL(P | a⊗b) with P1 = a and Pᵀ1 = b, solved by
  g_j = −ε log Σ_i a_i e^((f_i − C_ij)/ε), then f alike, in log space;
  P_ij = a_i b_j e^((f_i + g_j − C_ij)/ε). Cuturi 2013, alg. 1; Peyré & Cuturi
  2019, §4.4. With `rho` the marginals may be missed: ρ KL(P1 | a) +
  ρ KL(Pᵀ1 | b) in place of the constraints, each half-step times ρ/(ρ + ε)
  (Chizat et al. 2018). Cost N·M an iteration; iterations grow as 1/ε.

  Args:
    cost: of moving one unit from i to j; any finite number.
    a: mass at the sources, not negative; zeros are allowed.
    b: mass at the targets, with the same total unless `rho` is given.
    epsilon: ε > 0 in the cost's unit; the smaller, the nearer to `exact`.
    iterations: steps, each g then f.
    rho: ρ > 0 in the cost's unit, price of creating or destroying mass; None
      for marginals that must be met.
    start: potentials to go on from, such as those found at a larger ε.
    gradient: 'unrolled' differentiates the steps; 'implicit' the equations
      that the result satisfies, whatever the number of steps, by one M×M
      solve (Luise et al. 2018; balanced, for changes that keep the totals).

  Raises:
    ValueError: shapes that do not fit, masses that are negative or not finite,
      totals that differ without `rho`, ε or ρ not positive. Values that are
      traced (inside `jax.jit`) cannot be looked at; shapes always are.
  """
  cost, a, b = _checked(cost, a, b, rho=rho, epsilon=epsilon)
  if iterations < 1:
    raise ValueError(f'iterations={iterations} must be 1 or more')
  if gradient not in ('unrolled', 'implicit'):
    raise ValueError(
      f"gradient={gradient!r} is unknown; choices: 'unrolled', 'implicit'"
    )
  f, g = (jnp.zeros_like(a), jnp.zeros_like(b)) if start is None else start
  if f.shape != a.shape or g.shape != b.shape:
    raise ValueError(
      f'start has potentials of shapes {f.shape} and {g.shape}, the masses '
      f'have {a.shape} and {b.shape}'
    )
  problem = (cost, a[:, None], b[None], epsilon, rho)
  f, g = _float(f)[:, None], _float(g)[None]
  if gradient == 'unrolled':
    f, g = _iterate(problem, f, g, iterations)
  else:
    solved = jax.lax.stop_gradient(problem)
    g = jax.lax.stop_gradient(_iterate(solved, f, g, iterations)[1])
    g = g + _newton(problem, solved, g)
    f = _rows(problem, g)
  log_a, log_b = _log(a)[:, None], _log(b)[None]
  plan = jnp.exp(log_a + log_b + (f + g - cost) / epsilon)
  wanted = b if rho is None else b * jnp.exp(-g[0] / rho)
  error = jnp.abs(plan.sum(0) - wanted).sum()
  return Plan(plan, (f[:, 0], g[0]), error)


def _rows(problem, g):
  """The potentials [N 1] that make (or near) the rows' marginals, from g."""
  cost, _, b, epsilon, rho = problem
  damp = 1.0 if rho is None else rho / (rho + epsilon)
  return -damp * epsilon * _logsumexp(_log(b) + (g - cost) / epsilon, -1)


def _columns(problem, f):
  cost, a, _, epsilon, rho = problem
  damp = 1.0 if rho is None else rho / (rho + epsilon)
  return -damp * epsilon * _logsumexp(_log(a) + (f - cost) / epsilon, -2)


def _iterate(problem, f, g, iterations):
  def step(potentials, _):
    g = _columns(problem, potentials[0])
    return (_rows(problem, g), g), None

  # The backward pass keeps the potentials and computes each N×M again.
  step = jax.checkpoint(step, prevent_cse=False)
  return jax.lax.scan(step, (f, g), length=iterations)[0]


def _newton(problem, solved, g):
  """What to add to g: nothing in value, the implicit gradient in gradients.

  g is a fixed point of T(g) = columns(rows(g)), so dg = (I − T')⁻¹ ∂T. T' is
  the product of two softmax weights. Balanced, it has the eigenvector 1 with
  the eigenvalue 1 (potentials shift); adding 1bᵀ fixes the shift.
  """
  cost, a, b, epsilon, rho = solved
  damp = 1.0 if rho is None else rho / (rho + epsilon)
  f = _rows(solved, g)
  onto_rows = jax.nn.softmax(_log(b) + (g - cost) / epsilon, -1)
  onto_columns = jax.nn.softmax(_log(a) + (f - cost) / epsilon, -2)
  system = jnp.eye(g.size) - damp**2 * (onto_columns.T @ onto_rows)
  if rho is None:
    system += jnp.ones_like(b).T @ b / b.sum()
  missing = _columns(problem, _rows(problem, g)) - g
  return jnp.linalg.solve(system, missing[0])[None]


def sinkhorn_distance(
  cost: Float[Array, 'N M'],
  a: Float[Array, 'N'],
  b: Float[Array, 'M'],
  epsilon: float | Float[Array, ''],
  iterations: int,
  *,
  rho: float | Float[Array, ''] | None = None,
) -> Float[Array, '']:
  """OT_ε(a, b) = min_P ⟨P, C⟩ + ε KL(P | a⊗b), in cost × mass.

  With unit masses W ≤ ⟨P, C⟩ ≤ OT_ε ≤ W + ε min(H(a), H(b)), H the entropy.
  The gradient is that of the optimum (envelope theorem: P for the cost, f and
  g for the masses), so no step is differentiated. Cuturi's distance is ⟨P, C⟩
  alone: `(plan * cost).sum()` of `sinkhorn`. Peyré & Cuturi 2019, §4.1 and
  9.1; unbalanced as Chizat et al. 2018. Arguments and errors of `sinkhorn`.
  """
  cost, a, b = _checked(cost, a, b, rho=rho, epsilon=epsilon)
  still = jax.lax.stop_gradient((cost, a, b, epsilon))
  f, g = sinkhorn(*still, iterations, rho=jax.lax.stop_gradient(rho)).potentials
  return _dual(cost, a, b, epsilon, rho, *jax.lax.stop_gradient((f, g)))


def _dual(cost, a, b, epsilon, rho, f, g):
  """The dual value at f and g (Séjourné et al. 2019 with KL)."""
  # A pair without mass on both sides has a price but no bound.
  alive = (a > 0)[:, None] | (b > 0)[None]
  exponent = jnp.where(alive, f[:, None] + g[None] - cost, 0.0) / epsilon
  excess = epsilon * (a @ jnp.expm1(exponent) @ b)
  if rho is None:
    return a @ f + b @ g - excess
  relaxed = a @ jnp.expm1(-f / rho) + b @ jnp.expm1(-g / rho)
  return -rho * relaxed - excess


def sinkhorn_divergence(
  x: Float[Array, 'N D'],
  y: Float[Array, 'M D'],
  epsilon: float | Float[Array, ''],
  iterations: int,
  *,
  a: Float[Array, 'N'] | None = None,
  b: Float[Array, 'M'] | None = None,
  power: float = 2.0,
  rho: float | Float[Array, ''] | None = None,
) -> Float[Array, '']:
  """S_ε = OT_ε(x, y) − ½ OT_ε(x, x) − ½ OT_ε(y, y): zero only at x = y.

  Debiased: W^power as ε → 0, a kernel distance (MMD) as ε → ∞. Feydy et al.
  2019, eq. 3; the symmetric terms by averaged steps, eq. 25; with `rho` plus
  (ε/2)(Σa − Σb)² (Séjourné et al. 2019). A loss for points or for masses.

  Args:
    x: source points, in any unit of length.
    y: target points.
    epsilon: ε > 0 in length^power.
    iterations: steps of each of the three problems.
    a: masses at x; 1/N each if None.
    b: masses at y; 1/M each if None.
    power: the cost is ‖x − y‖^power.
    rho: as in `sinkhorn`.

  Raises:
    ValueError: as `sinkhorn`.
  """
  a = _uniform(x) if a is None else a
  b = _uniform(y) if b is None else b
  between = distances(x, y, power=power)
  value = sinkhorn_distance(between, a, b, epsilon, iterations, rho=rho)
  for points, mass in ((x, a), (y, b)):
    within = distances(points, points, power=power)
    problem = (within, mass[:, None], mass[None], epsilon, rho)
    f = _symmetric(jax.lax.stop_gradient(problem), iterations)
    value -= 0.5 * _dual(within, mass, mass, epsilon, rho, f, f)
  if rho is not None:
    value += 0.5 * epsilon * (a.sum() - b.sum()) ** 2
  return value


def _symmetric(problem, iterations):
  def step(f, _):
    return 0.5 * (f + _rows(problem, f.T)), None

  f = jnp.zeros_like(problem[1])
  f, _ = jax.lax.scan(step, f, length=iterations)
  return jax.lax.stop_gradient(f[:, 0])


def exact(
  cost: Float[Array, 'N M'], a: Float[Array, 'N'], b: Float[Array, 'M']
) -> Plan:
  """The optimal plan: min_P ⟨P, C⟩ with P ≥ 0, P1 = a, Pᵀ1 = b.

  Solved on the host by SciPy in float64: `linprog` (HiGHS), or
  `linear_sum_assignment` where N = M and all masses are equal. The plan and
  the prices are constants for differentiation, which is right for a loss:
  (plan * cost).sum() has the gradient P in the cost, f and g are those in a
  and b. Works inside `jax.jit`. Peyré & Cuturi 2019, §2.3 and 2.5.

  Raises:
    ValueError: as `sinkhorn`.
  """
  cost, a, b = jax.lax.stop_gradient(_checked(cost, a, b))
  if not _traced(cost, a, b):
    # A host computation needs no callback where the values are known.
    solved = _linear_program(cost, a, b)
    plan, f, g = (jnp.asarray(x, cost.dtype) for x in solved)
  else:
    plan, f, g = jax.pure_callback(
      lambda *args: tuple(
        x.astype(cost.dtype) for x in _linear_program(*args)
      ),
      tuple(jax.ShapeDtypeStruct(x.shape, cost.dtype) for x in (cost, a, b)),
      cost, a, b, vmap_method='sequential',
    )  # fmt: skip
  return Plan(plan, (f, g), jnp.abs(plan.sum(0) - b).sum())


def _linear_program(cost, a, b):
  import scipy.optimize
  import scipy.sparse

  cost, a, b = (np.asarray(x, np.float64) for x in (cost, a, b))
  n, m = cost.shape
  if n == m and np.ptp(np.concatenate([a, b])) == 0:
    i, j = scipy.optimize.linear_sum_assignment(cost)
    plan = np.zeros_like(cost)
    plan[i, j] = a
    g = np.zeros(m)
    for _ in range(m):  # Bellman–Ford: f_i + g_j ≤ C_ij, equal where matched
      f = cost[i, j] - g[j]
      g = np.minimum(g, (cost - f[:, None]).min(0))
    return plan, cost[i, j] - g[j], g
  rows = scipy.sparse.kron(scipy.sparse.eye_array(n), np.ones((1, m)))
  columns = scipy.sparse.kron(np.ones((1, n)), scipy.sparse.eye_array(m))
  found = scipy.optimize.linprog(
    cost.ravel(),
    A_eq=scipy.sparse.vstack([rows, columns]).tocsr(),
    # Totals equal to the last bit: the program has no slack for rounding.
    b_eq=np.concatenate([a, b * (a.sum() / b.sum() if b.sum() else 1.0)]),
    method='highs',
  )
  if not found.success:
    raise RuntimeError(f'linprog: {found.message}')
  f, g = np.split(found.eqlin.marginals, [n])
  return found.x.reshape(n, m), f, g


def wasserstein(
  x: Float[Array, 'N D'],
  y: Float[Array, 'M D'],
  *,
  a: Float[Array, 'N'] | None = None,
  b: Float[Array, 'M'] | None = None,
  power: float = 1.0,
) -> Float[Array, '']:
  """W_p = (min_P Σ P_ij ‖x_i − y_j‖^p)^(1/p) without regularisation.

  On a line (D = 1) by sorting, N log N, with ott-jax; otherwise `exact`.
  Differentiable in the points and the masses; at W = 0, where it has a corner,
  the gradient is 0. Peyré & Cuturi 2019, prop. 2.2 and §2.6.

  Args:
    x: source points, in any unit of length; the distance has the same unit.
    y: target points.
    a: masses at x, 1/N each if None.
    b: masses at y, of the same total; 1/M each if None.
    power: p ≥ 1.

  Raises:
    ValueError: p < 1, otherwise as `sinkhorn`.
  """
  if power < 1:
    raise ValueError(f'power={power} must be 1 or more')
  x, y = _float(x), _float(y)
  a, b = _masses(
    _uniform(x) if a is None else a, _uniform(y) if b is None else b
  )
  if x.shape[1] == 1:
    value = _on_a_line(x, y, a, b, power)
  else:
    cost = distances(x, y, power=power)
    plan, (f, g), _ = exact(cost, a, b)
    value = (plan * cost).sum()
    # Nothing in value, the prices in the gradient.
    value += f @ (a - jax.lax.stop_gradient(a))
    value += g @ (b - jax.lax.stop_gradient(b))
  return _power(value, 1 / power)


def _on_a_line(x, y, a, b, power):
  from ott.geometry import costs, pointcloud
  from ott.solvers import linear

  with jax.numpy_rank_promotion('allow'):  # ott broadcasts by rank
    line = pointcloud.PointCloud(
      *jax.lax.stop_gradient((x, y)), cost_fn=costs.PNormP(power)
    )
    solved = linear.solve_univariate(line, a=a, b=b, return_transport=True)
  # Its cost is 1 too much for each x = y when differentiated (0.6): only the
  # pairs and their masses are taken.
  i, j = solved.paired_indices[0]
  apart = jnp.abs(x[i] - y[j])[:, 0]
  return solved.mass_paired_indices[0] @ _power(apart, power)


def add_dummy(
  cost: Float[Array, 'N M'],
  a: Float[Array, 'N'],
  b: Float[Array, 'M'],
  *,
  price: float = 0.0,
) -> tuple[Float[Array, 'N2 M2'], Float[Array, 'N2'], Float[Array, 'M2']]:
  """Makes the totals equal: a dummy target for unused stock, or a dummy source.

  Args:
    cost: of moving one unit from i to j.
    a: stock of the sources.
    b: demand of the targets.
    price: of leaving a unit of stock unused, or of demand unserved.

  Returns:
    cost, a and b with one more column (stock above demand) or one more row
    (demand above stock) that takes the difference; as given where they agree.
  """
  cost, a, b = _checked(cost, a, b, rho=float('inf'))  # any totals
  stock, demand = _total(a), _total(b)
  if _same(stock, demand):
    return cost, a, b
  rest = jnp.full((1,), abs(stock - demand), cost.dtype)
  if stock > demand:
    column = jnp.full_like(cost[:, :1], price)
    return jnp.concatenate([cost, column], 1), a, jnp.concatenate([b, rest])
  row = jnp.full_like(cost[:1], price)
  return jnp.concatenate([cost, row], 0), jnp.concatenate([a, rest]), b


def distances(
  x: Float[Array, 'N D'], y: Float[Array, 'M D'], *, power: float = 2.0
) -> Float[Array, 'N M']:
  """‖x_i − y_j‖₂^power: length^power, memory N·M·D.

  At x_i = y_j the gradient is 0, also where power < 2 has a corner.
  """
  difference = _float(x)[:, None] - _float(y)[None]
  squares = jnp.sum(difference**2, -1)
  if power == 2:
    return squares
  return _power(squares, power / 2)


def kl(
  p: Float[Array, '*B K'], q: Float[Array, '*B K']
) -> Float[Array, '*B']:
  """KL(p | q) = Σ p log(p/q) − p + q, in nats; 0 log 0 = 0.

  Infinite, with zero gradient, where p has mass and q has none: it does not
  see how far apart two disjoint supports are. Not symmetric. Masses of any
  total, not negative (Peyré & Cuturi 2019, eq. 4.6).
  """
  p, q = _float(p), _float(q)
  both = (p > 0) & (q > 0)
  ratio = jnp.where(both, p, 1.0) / jnp.where(both, q, 1.0)
  terms = jnp.where(both, p * jnp.log(ratio), 0.0) - p + q
  return terms.sum(-1) + jnp.where((p > 0) & (q <= 0), jnp.inf, 0.0).sum(-1)


def jensen_shannon(
  p: Float[Array, '*B K'], q: Float[Array, '*B K']
) -> Float[Array, '*B']:
  """JS = ½ KL(p | m) + ½ KL(q | m), m = (p + q)/2, in nats.

  Symmetric and at most log 2 for total masses of 1: exactly that for any two
  disjoint supports, however far apart (Lin 1991).
  """
  middle = 0.5 * (_float(p) + _float(q))
  return 0.5 * kl(p, middle) + 0.5 * kl(q, middle)


def _float(x):
  """At least float32."""
  x = jnp.asarray(x)
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _logsumexp(x, axis):
  """Log of Σ eˣ along the axis, kept; 0 where all are −inf."""
  top = jax.lax.stop_gradient(jnp.max(x, axis, keepdims=True))
  top = jnp.where(jnp.isfinite(top), top, 0)
  total = jnp.sum(jnp.exp(x - top), axis, keepdims=True)
  some = total > 0
  return jnp.where(some, jnp.log(jnp.where(some, total, 1)) + top, 0)


def _log(mass):
  """−inf at 0, where the gradient is 0."""
  some = mass > 0
  return jnp.where(some, jnp.log(jnp.where(some, mass, 1.0)), -jnp.inf)


def _power(x, exponent):
  """x^exponent of what is not negative, with zero gradient at 0."""
  some = x > 0
  return jnp.where(some, jnp.where(some, x, 1.0) ** exponent, 0.0)


def _uniform(points):
  return jnp.full((len(points),), 1 / len(points), _float(points).dtype)


def _traced(*values):
  return any(isinstance(x, jax.core.Tracer) for x in values)


def _total(mass):
  return float(np.asarray(mass, np.float64).sum())


def _same(stock, demand):
  # A sum over thousands of float32 masses is good to about this.
  return abs(stock - demand) <= 1e-5 * max(stock, demand)


def _checked(cost, a, b, *, rho=None, epsilon=1.0):
  """The arrays as float; ValueError where they state no transport problem."""
  cost, (a, b) = _float(cost), _masses(a, b, rho)
  if cost.shape != (a.size, b.size):
    raise ValueError(
      f'cost {cost.shape} must be {(a.size, b.size)} for masses a of shape '
      f'{a.shape} and b of shape {b.shape}'
    )
  for name, value in (('epsilon', epsilon), ('rho', rho)):
    if value is not None and not _traced(value) and not value > 0:
      raise ValueError(f'{name}={value} must be positive')
  # What `jax.grad` follows has known values below its tracer.
  known = jax.lax.stop_gradient(cost)
  if not _traced(known) and not np.isfinite(np.asarray(known)).all():
    raise ValueError(
      'cost holds numbers that are not finite; forbid a pair by a large cost'
    )
  return cost, a, b


def _masses(a, b, rho=None):
  a, b = _float(a), _float(b)
  for name, mass in (('a', a), ('b', b)):
    if mass.ndim != 1:
      raise ValueError(
        f'masses are vectors, {name} has the shape {mass.shape}; use jax.vmap '
        'for many problems'
      )
  known = jax.lax.stop_gradient((a, b))
  if _traced(*known):
    return a, b
  for name, mass in zip('ab', known, strict=True):
    mass = np.asarray(mass)
    wrong = np.flatnonzero(~(np.isfinite(mass) & (mass >= 0)))
    if wrong.size:
      raise ValueError(
        f'{name}[{wrong[0]}]={mass[wrong[0]]} is no mass: masses are finite '
        f'and not negative ({wrong.size} of {mass.size} are wrong)'
      )
  stock, demand = (_total(x) for x in known)
  if rho is None and not _same(stock, demand):
    which = ('stock a', 'demand b')
    above, below = which if stock > demand else which[::-1]
    raise ValueError(
      f'{above} exceeds {below}: a has a total of {stock:.7g}, b of '
      f'{demand:.7g}, and every unit must be moved; relax the marginals with '
      'sinkhorn(..., rho=), or let transport.add_dummy take the difference of '
      f'{abs(stock - demand):.7g}'
    )
  return a, b
