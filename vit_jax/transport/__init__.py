"""Optimal transport: plans, distances and divergences, all usable as losses.

Plain JAX, at least float32 inside. SciPy and ott-jax are imported where they
are called: by `exact` and `wasserstein`.
"""

from vit_jax.transport.entropic import (
  Plan,
  balance,
  sinkhorn,
  sinkhorn_distance,
  sinkhorn_divergence,
)
from vit_jax.transport.histograms import jensen_shannon, kl
from vit_jax.transport.problem import add_dummy, distances
from vit_jax.transport.program import exact, wasserstein

__all__ = [
  'Plan', 'add_dummy', 'balance', 'distances', 'exact', 'jensen_shannon', 'kl',
  'sinkhorn', 'sinkhorn_distance', 'sinkhorn_divergence', 'wasserstein',
]  # fmt: skip
