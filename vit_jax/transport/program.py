"""Transport without regularisation: the linear program, Wasserstein."""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.shapes import Array, Float
from vit_jax.transport.entropic import Plan
from vit_jax.transport.problem import (
  as_float,
  checked,
  distances,
  masses_of,
  power_of,
  traced,
  uniform,
)


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
  cost, a, b = jax.lax.stop_gradient(checked(cost, a, b))
  if not traced(cost, a, b):
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
      lower = np.minimum(g, (cost - f[:, None]).min(0))
      if (lower == g).all():
        break
      g = lower
    return plan, f, g
  rows = scipy.sparse.kron(scipy.sparse.eye_array(n), np.ones((1, m)))
  columns = scipy.sparse.kron(np.ones((1, n)), scipy.sparse.eye_array(m))
  found = scipy.optimize.linprog(
    cost.ravel(),
    A_eq=scipy.sparse.vstack([rows, columns]).tocsr(),
    # Totals equal to the last bit: the program has no slack for rounding.
    b_eq=np.concatenate([a, b * (a.sum() / b.sum() if b.sum() else 1.0)]),
    method='highs',
    options={'presolve': False},  # removes nothing, at five times the time
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
  x, y = as_float(x), as_float(y)
  a, b = masses_of(
    uniform(x) if a is None else a, uniform(y) if b is None else b
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
  return power_of(value, 1 / power)


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
  return solved.mass_paired_indices[0] @ power_of(apart, power)
