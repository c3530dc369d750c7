"""Divergences that compare histograms bin by bin."""

import jax.numpy as jnp

from vit_jax.shapes import Array, Float
from vit_jax.transport.problem import as_float


def kl(
  p: Float[Array, '*B K'], q: Float[Array, '*B K']
) -> Float[Array, '*B']:
  """KL(p | q) = Σ p log(p/q) − p + q, in nats; 0 log 0 = 0.

  Infinite, with zero gradient, where p has mass and q has none: it does not
  see how far apart two disjoint supports are. Not symmetric. Masses of any
  total, not negative (Peyré & Cuturi 2019, eq. 4.6).
  """
  p, q = as_float(p), as_float(q)
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
  middle = 0.5 * (as_float(p) + as_float(q))
  return 0.5 * kl(p, middle) + 0.5 * kl(q, middle)
