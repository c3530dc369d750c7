"""Metrics that merge: over micro-batches, batches, devices and processes."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.shapes import Array, Float, Shaped


@runtime_checkable
class Metric(Protocol):
  """What a task reports: parts merge, the whole has a value."""

  def merge(self, other: 'Metric') -> 'Metric':
    """The metric of both parts together."""

  def value(self) -> float:
    """The metric of what was merged."""


@flax.struct.dataclass
class Mean:
  """Σ weight·value / Σ weight."""

  total: Float[Array, ''] | Any
  weight: Float[Array, ''] | Any

  @classmethod
  def of(
    cls, values: Shaped[Array, 'B'], weights: Float[Array, 'B']
  ) -> 'Mean':
    """The weighted mean of a batch; weight 0 leaves an example out whole."""
    values = jnp.where(weights != 0, values.astype(jnp.float32), 0.0)
    return cls(jnp.sum(values * weights), jnp.sum(weights))

  def merge(self, other: 'Mean') -> 'Mean':
    """Adds totals and weights."""
    return Mean(self.total + other.total, self.weight + other.weight)

  def value(self) -> float:
    """The mean; NaN where nothing was counted."""
    weight = float(self.weight)
    return float(self.total) / weight if weight else float('nan')


@flax.struct.dataclass
class Collect:
  """Keeps arrays whole and computes `fn(**arrays)` at the end, on the host.

  For metrics that no mean gives: average precision, BLEU, a confusion matrix.
  Rows of weight 0 must be left out by `fn`.
  """

  arrays: dict[str, Any]
  fn: Callable[..., float] = flax.struct.field(pytree_node=False)

  def merge(self, other: 'Collect') -> 'Collect':
    """Concatenates along the first axis."""
    arrays = {
      k: np.concatenate([np.asarray(v), np.asarray(other.arrays[k])])
      for k, v in self.arrays.items()
    }
    return Collect(arrays, self.fn)

  def value(self) -> float:
    """`fn` of everything collected."""
    return self.fn(**self.arrays)


def merge(
  left: Mapping[str, Metric] | None, right: Mapping[str, Metric]
) -> dict[str, Metric]:
  """Merges two dicts of metrics; None is the empty one."""
  if left is None:
    return dict(right)
  return {k: left[k].merge(v) for k, v in right.items()}


def to_host(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
  """Copies metrics to the host, sums in float64 so that long passes add up."""
  return jax.tree.map(
    lambda x: x.astype(np.float64) if x.dtype.kind == 'f' else x,
    jax.device_get(dict(metrics)),
  )


def values(metrics: Mapping[str, Metric]) -> dict[str, float]:
  """The value of each metric."""
  return {k: m.value() for k, m in metrics.items()}
