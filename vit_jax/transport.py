"""Optimal transport: Sinkhorn iterations, distances and divergences.

Plain JAX, differentiable, float32 inside.
"""

import jax
import jax.numpy as jnp

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
  scores = log_scores.astype(jnp.float32) / temperature
  if keep is not None:
    scores = jnp.where(keep, scores, -jnp.inf)

  def step(sums, _):
    columns = _logsumexp(scores - sums[0], -2)
    return (_logsumexp(scores - columns, -1), columns), None

  start = (jnp.zeros_like(scores[..., :1]), jnp.zeros_like(scores[..., :1, :]))
  step = jax.checkpoint(step, prevent_cse=False)
  (rows, columns), _ = jax.lax.scan(step, start, length=iterations)
  return scores - rows - columns


def _logsumexp(x, axis):
  """log Σ eˣ along the axis, kept; 0 where all are −inf, so that x − it is."""
  top = jax.lax.stop_gradient(jnp.max(x, axis, keepdims=True))
  top = jnp.where(jnp.isfinite(top), top, 0)
  total = jnp.sum(jnp.exp(x - top), axis, keepdims=True)
  some = total > 0
  return jnp.where(some, jnp.log(jnp.where(some, total, 1)) + top, 0)
