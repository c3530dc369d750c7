"""What a transport problem is made of: costs and masses, and their checks."""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.shapes import Array, Float


def distances(
  x: Float[Array, 'N D'], y: Float[Array, 'M D'], *, power: float = 2.0
) -> Float[Array, 'N M']:
  """‖x_i − y_j‖₂^power: length^power, memory N·M·D.

  At x_i = y_j the gradient is 0, also where power < 2 has a corner.
  """
  difference = as_float(x)[:, None] - as_float(y)[None]
  squares = jnp.sum(difference**2, -1)
  if power == 2:
    return squares
  return power_of(squares, power / 2)


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
  cost, a, b = checked(cost, a, b, rho=float('inf'))  # any totals
  stock, demand = _total(a), _total(b)
  if _same(stock, demand):
    return cost, a, b
  rest = jnp.full((1,), abs(stock - demand), cost.dtype)
  if stock > demand:
    column = jnp.full_like(cost[:, :1], price)
    return jnp.concatenate([cost, column], 1), a, jnp.concatenate([b, rest])
  row = jnp.full_like(cost[:1], price)
  return jnp.concatenate([cost, row], 0), jnp.concatenate([a, rest]), b


def checked(cost, a, b, *, rho=None, epsilon=1.0):
  """The arrays as float; ValueError where they state no transport problem."""
  cost, (a, b) = as_float(cost), masses_of(a, b, rho)
  if cost.shape != (a.size, b.size):
    raise ValueError(
      f'cost {cost.shape} must be {(a.size, b.size)} for masses a of shape '
      f'{a.shape} and b of shape {b.shape}'
    )
  for name, value in (('epsilon', epsilon), ('rho', rho)):
    if value is not None and not traced(value) and not value > 0:
      raise ValueError(f'{name}={value} must be positive')
  # What `jax.grad` follows has known values below its tracer.
  known = jax.lax.stop_gradient(cost)
  if not traced(known) and not np.isfinite(np.asarray(known)).all():
    raise ValueError(
      'cost holds numbers that are not finite; forbid a pair by a large cost'
    )
  return cost, a, b


def masses_of(a, b, rho=None):
  """Both as float; ValueError where they are none, or their totals differ."""
  a, b = as_float(a), as_float(b)
  for name, mass in (('a', a), ('b', b)):
    if mass.ndim != 1:
      raise ValueError(
        f'masses are vectors, {name} has the shape {mass.shape}; use jax.vmap '
        'for many problems'
      )
  known = jax.lax.stop_gradient((a, b))
  if traced(*known):
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


def traced(*values):
  """Whether any value is unknown while a program is built."""
  return any(isinstance(x, jax.core.Tracer) for x in values)


def _total(mass):
  return float(np.asarray(mass, np.float64).sum())


def _same(stock, demand):
  # A sum over thousands of float32 masses is good to about this.
  return abs(stock - demand) <= 1e-5 * max(stock, demand)


def uniform(points):
  """1/N for each of N points."""
  return jnp.full((len(points),), 1 / len(points), as_float(points).dtype)


def as_float(x):
  """At least float32."""
  x = jnp.asarray(x)
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def log_of(mass):
  """Log of masses; −inf at 0, where the gradient is 0."""
  some = mass > 0
  return jnp.where(some, jnp.log(jnp.where(some, mass, 1.0)), -jnp.inf)


def logsumexp(x, axis):
  """Log of Σ eˣ along the axis, kept; 0 where all are −inf."""
  top = jax.lax.stop_gradient(jnp.max(x, axis, keepdims=True))
  top = jnp.where(jnp.isfinite(top), top, 0)
  total = jnp.sum(jnp.exp(x - top), axis, keepdims=True)
  some = total > 0
  return jnp.where(some, jnp.log(jnp.where(some, total, 1)) + top, 0)


def power_of(x, exponent):
  """x^exponent of what is not negative, with zero gradient at 0."""
  some = x > 0
  return jnp.where(some, jnp.where(some, x, 1.0) ** exponent, 0.0)
