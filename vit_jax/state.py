"""The training state: made, placed on devices, and split into items to save."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from vit_jax import optimizers
from vit_jax import sharding as shardings
from vit_jax.shapes import Array, Float, Int


@flax.struct.dataclass
class TrainState:
  """All that changes in training; randomness is folded from seed and step."""

  step: Int[Array, ''] | Any
  params: Any
  variables: Any  # batch statistics, centroids: every collection but params
  optimizer: Any
  ema: Any  # averaged parameters, or {} without averaging

  @property
  def served(self) -> dict[str, Any]:
    """The variables that evaluation uses: averaged parameters if there are."""
    return {'params': self.ema or self.params, **self.variables}


def init_state(
  key: jax.Array,
  image: Float[Array, 'B Y X C'] | Int[Array, 'B N'],
  *,
  model: nn.Module,
  optimizer: optimizers.Optimizer,
) -> TrainState:
  """The state at step 0; `image` is what the model reads, tokens perhaps."""
  variables = dict(model.init(key, image, train=False))
  return fresh(variables, optimizer=optimizer)


def fresh(
  variables: dict[str, Any], *, optimizer: optimizers.Optimizer
) -> TrainState:
  """The state at step 0 with these variables."""
  variables = dict(variables)
  params = variables.pop('params')
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    variables=variables,
    optimizer=optimizer.tx.init(params),
    ema=jax.tree.map(jnp.copy, params) if optimizer.ema else {},
  )


def place(state: TrainState, mesh: shardings.Sharding) -> TrainState:
  """The sharding of every leaf of a state (of arrays or their shapes)."""
  params = mesh.parameters(state.params)

  def like(tree):
    return mesh.like(tree, state.params, params)

  return TrainState(
    step=mesh.replicated,
    params=params,
    variables=like(state.variables),
    optimizer=like(state.optimizer),
    ema=like(state.ema),
  )


def to_items(state: TrainState) -> dict[str, Any]:
  """The state as the items of a checkpoint."""
  return {
    'params': state.params,
    'variables': state.variables,
    'optimizer': {'step': state.step, 'state': state.optimizer},
    'ema': state.ema,
  }


def from_items(items: dict[str, Any]) -> TrainState:
  """The state from the items of a checkpoint."""
  return TrainState(
    step=items['optimizer']['step'],
    params=items['params'],
    variables=items['variables'],
    optimizer=items['optimizer']['state'],
    ema=items['ema'],
  )
