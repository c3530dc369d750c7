"""The table of tasks: what a model is trained for, and how it is measured."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax

from vit_jax import specs
from vit_jax.metrics import Metric
from vit_jax.shapes import Array, Float
from vit_jax.tasks.classification import Classification, classification
from vit_jax.tasks.distillation import Distillation, distillation


@runtime_checkable
class Task(Protocol):
  """A pytree passed into the jitted step; its arrays are arguments of it.

  `forward(*args, method=None, train=…)` runs the model and collects what it
  mutates. Examples of weight 0 (padding, skipped images) count for nothing.
  """

  def prepare(
    self, batch: dict[str, Array], rng: jax.Array
  ) -> dict[str, Array]:
    """Augments a whole batch and fixes the denominators of its loss."""

  def loss(
    self, forward: Callable[..., Any], batch: dict[str, Array], rng: jax.Array
  ) -> tuple[Float[Array, ''], dict[str, Metric]]:
    """A micro-batch's share of the loss (shares add up), and metrics."""

  def metrics(
    self, forward: Callable[..., Any], batch: dict[str, Array]
  ) -> dict[str, Metric]:
    """Metrics of an evaluation batch."""


TASKS: dict[str, Callable[..., Task]] = {
  'classification': classification,  # softmax or sigmoid cross-entropy
  'distillation': distillation,  # a teacher's answers and features
}


def build(name: str, **fields: Any) -> Task:
  """Builds a task: `build('classification', num_classes=10)`.

  Raises:
    ValueError: unknown name or field, or a bad value.
  """
  entry = specs.lookup(TASKS, name, 'task')
  specs.check_options(entry, fields, f'the task {name!r}')
  return entry(**fields)


__all__ = [
  'TASKS', 'Classification', 'Distillation', 'Task', 'build', 'classification',
  'distillation',
]  # fmt: skip
