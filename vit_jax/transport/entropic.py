"""Entropic transport by Sinkhorn's iterations: plans, distance, divergence."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vit_jax.shapes import Array, Bool, Float
from vit_jax.transport.problem import (
  as_float,
  checked,
  distances,
  log_of,
  logsumexp,
  uniform,
)


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
  log space as Mena et al. 2018. Cost N·M per iteration; the backward
  pass keeps N + M numbers per iteration and computes the rest again.

  Args:
    log_scores: any real scores; only their differences matter.
    iterations: number of column-then-row steps; with none, the scores over τ.
    temperature: τ > 0; τ → 0 gives the best assignment (Hungarian).
    keep: False pairs get no mass: −inf here and zero gradient. A row or a
      column without any pair stays −inf.

  Returns:
    log P, −inf where `keep` is False.

  Raises:
    ValueError: a negative number of iterations, a temperature that is not
      positive.
  """
  if iterations < 0:
    raise ValueError(f'iterations={iterations} must be 0 or more')
  if isinstance(temperature, int | float) and not temperature > 0:
    raise ValueError(f'temperature={temperature} must be positive')
  scores = as_float(log_scores) / temperature
  if keep is not None:
    scores = jnp.where(keep, scores, -jnp.inf)

  def step(sums, _):
    columns = logsumexp(scores - sums[0], -2)
    return (logsumexp(scores - columns, -1), columns), None

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
  cost, a, b = checked(cost, a, b, rho=rho, epsilon=epsilon)
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
  f, g = as_float(f)[:, None], as_float(g)[None]
  if gradient == 'unrolled':
    f, g = _iterate(problem, f, g, iterations)
  else:
    solved = jax.lax.stop_gradient(problem)
    g = jax.lax.stop_gradient(_iterate(solved, f, g, iterations)[1])
    g = g + _newton(problem, solved, g)
    f = _rows(problem, g)
  log_a, log_b = log_of(a)[:, None], log_of(b)[None]
  plan = jnp.exp(log_a + log_b + (f + g - cost) / epsilon)
  wanted = b if rho is None else b * jnp.exp(-g[0] / rho)
  error = jnp.abs(plan.sum(0) - wanted).sum()
  return Plan(plan, (f[:, 0], g[0]), error)


def _rows(problem, g):
  """The potentials [N 1] that make (or near) the rows' marginals, from g."""
  cost, _, b, epsilon, rho = problem
  damp = 1.0 if rho is None else rho / (rho + epsilon)
  return -damp * epsilon * logsumexp(log_of(b) + (g - cost) / epsilon, -1)


def _columns(problem, f):
  cost, a, _, epsilon, rho = problem
  damp = 1.0 if rho is None else rho / (rho + epsilon)
  return -damp * epsilon * logsumexp(log_of(a) + (f - cost) / epsilon, -2)


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
  onto_rows = jax.nn.softmax(log_of(b) + (g - cost) / epsilon, -1)
  onto_columns = jax.nn.softmax(log_of(a) + (f - cost) / epsilon, -2)
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
  cost, a, b = checked(cost, a, b, rho=rho, epsilon=epsilon)
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
  a = uniform(x) if a is None else a
  b = uniform(y) if b is None else b
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
