"""One exact pass over a split: each example counts once, at any batch size."""

import functools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from vit_jax import metrics
from vit_jax import sharding as shardings


def eval_step(
  variables: Any, task: Any, batch: dict[str, Any], *, model: nn.Module
) -> dict[str, metrics.Metric]:
  """The metrics of one batch."""

  def forward(*args, method=None, train):
    return model.apply(variables, *args, train=train, method=method)

  count = batch['weight'].sum()
  return {**task.metrics(forward, batch), 'count': metrics.Mean(count, count)}


@functools.lru_cache(maxsize=8)
def _compiled(model: nn.Module, sharding: shardings.Sharding):
  """One compilation a model and mesh: evaluation runs many times."""
  return jax.jit(
    functools.partial(eval_step, model=model),
    in_shardings=(None, sharding.replicated, sharding.batch),
    out_shardings=sharding.replicated,
  )


def run(
  variables: Any,
  *,
  model: nn.Module,
  task: Any,
  data: Any,
  sharding: shardings.Sharding,
  batch_size: int,
) -> dict[str, float]:
  """The task's metrics over the test split of `data`.

  Every process goes through the same number of batches; what pads the last
  ones, and images that were skipped, has weight 0. `skipped` counts the latter
  where there are any.
  """
  sharding.check_batch(batch_size)
  step = _compiled(model, sharding)
  found = None
  batches = data.test_batches(
    batch_size, jax.process_index(), jax.process_count()
  )
  for batch in batches:
    batch = shardings.put_batch(batch, sharding)
    new = metrics.to_host(step(variables, task, batch))
    found = metrics.merge(found, new)
  if found is None:
    raise ValueError('the test split is empty: there is nothing to evaluate')
  counted = float(found.pop('count').weight)
  values = metrics.values(found)
  if counted != data.test_size:
    values['skipped'] = data.test_size - counted
  return values


def evaluate(
  workdir: str | os.PathLike,
  *,
  batch_size: int,
  model: nn.Module,
  task: Any,
  data: Any,
  sharding: shardings.Sharding,
  init: Mapping[str, Any],
) -> dict[str, float]:
  """Evaluates the variables `init`; prints and writes evaluation.json."""
  variables = shardings.replicate(init, sharding)
  task = shardings.replicate(task, sharding)
  values = run(
    variables, model=model, task=task, data=data, sharding=sharding,
    batch_size=batch_size,
  )  # fmt: skip
  if jax.process_index() == 0:
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / 'evaluation.json').write_text(json.dumps(values) + '\n')
    print('  '.join(f'test/{k} {v:.4f}' for k, v in values.items()))
  return values
