"""The training loop, top to bottom, and the step it repeats."""

import contextlib
import functools
import math
import os
import pathlib
import signal
import threading
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.experimental import multihost_utils

from vit_jax import (
  checkpoints,
  evaluate,
  flops,
  identity,
  metrics,
  optimizers,
  plots,
  writers,
)
from vit_jax import sharding as shardings
from vit_jax import state as states
from vit_jax.shapes import Array


# Layers sow scalar losses of their own here, already weighted (in training
# only); the mean over micro-batches is added to the task's loss.
LOSSES = 'losses'


def train_step(
  state: states.TrainState,
  task: Any,
  batch: dict[str, Array],
  key: jax.Array,
  *,
  model: nn.Module,
  optimizer: optimizers.Optimizer,
  accumulate: int = 1,
) -> tuple[states.TrainState, dict[str, metrics.Metric]]:
  """One update from one batch, in `accumulate` micro-batches.

  The task prepares the whole batch and fixes its denominators first, so the
  micro-batches' gradients add up to the batch's exactly. Batch statistics see
  one micro-batch after the other, which is not the same.
  """
  key = jax.random.fold_in(key, state.step)
  prepare_key, key = jax.random.split(key)
  batch = task.prepare(batch, prepare_key)

  def loss_fn(params, variables, batch, key):
    model_key, task_key = jax.random.split(key)
    mutated, sown = dict(variables), []

    def forward(*args, method=None, train):
      out, changed = model.apply(
        {'params': params, **mutated}, *args, train=train, method=method,
        rngs=model_key, mutable=[*variables, LOSSES],
      )  # fmt: skip
      changed = dict(changed)
      sown.extend(jax.tree.leaves(changed.pop(LOSSES, ())))
      mutated.update(changed)
      return out

    loss, found = task.loss(forward, batch, task_key)
    if sown:
      auxiliary = sum(sown) / accumulate
      found['auxiliary_loss'] = metrics.Mean(auxiliary, 1.0 / accumulate)
      loss = loss + auxiliary
    return loss, (mutated, found)

  grad_fn = jax.grad(loss_fn, has_aux=True)

  def micro_step(carry, xs):
    grads, variables = carry
    index, part = xs
    new, (variables, found) = grad_fn(
      state.params, variables, part, jax.random.fold_in(key, index)
    )
    return (jax.tree.map(jnp.add, grads, new), variables), found

  if accumulate == 1:
    grads, (variables, found) = grad_fn(
      state.params, state.variables, batch, jax.random.fold_in(key, 0)
    )
  else:
    # Strided, so that every device keeps its own examples.
    parts = jax.tree.map(
      lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch
    )
    start = (jax.tree.map(jnp.zeros_like, state.params), state.variables)
    (grads, variables), stacked = jax.lax.scan(
      micro_step, start, (jnp.arange(accumulate), parts)
    )
    for name, metric in stacked.items():
      if isinstance(metric, metrics.Collect):
        raise ValueError(
          f'accumulate={accumulate} merges training metrics inside the step, '
          f'where only means merge; {name} is a {type(metric).__name__}'
        )
    found = functools.reduce(
      metrics.merge,
      [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(accumulate)],
    )
  updates, opt = optimizer.tx.update(grads, state.optimizer, state.params)
  params = optax.apply_updates(state.params, updates)
  ema = state.ema
  if optimizer.ema:
    ema = optimizers.update_ema(ema, params, state.step, optimizer.ema)
  one = jnp.ones(())
  rate = jnp.asarray(optimizer.learning_rate(state.step))
  found['learning_rate'] = metrics.Mean(rate, one)
  found['grad_norm'] = metrics.Mean(optax.tree.norm(grads), one)
  found['skipped'] = metrics.Mean((batch['weight'] == 0).sum() * one, one)
  return states.TrainState(state.step + 1, params, variables, opt, ema), found


class NonFiniteLossError(FloatingPointError):
  """The loss or its gradient is not a number any more."""


class Stop:
  """Whether SIGTERM asked the run to save and end; agreed by all processes."""

  def __enter__(self) -> 'Stop':
    self._asked, self._previous = False, None
    # Python allows handlers in the main thread only; with several processes,
    # jax.distributed has its own, which agrees on a step with the others.
    main = threading.current_thread() is threading.main_thread()
    if main and jax.process_count() == 1:
      self._previous = signal.signal(signal.SIGTERM, self._ask)
    return self

  def __exit__(self, *error) -> None:
    if self._previous is not None:
      signal.signal(signal.SIGTERM, self._previous)

  def _ask(self, *_) -> None:
    self._asked = True

  def asked(self, step: int) -> bool:
    """All processes answer alike at the same step."""
    if jax.process_count() == 1:
      return self._asked
    return multihost_utils.reached_preemption_sync_point(step)


def every(period: int, step: int, steps: int) -> bool:
  """Whether something periodic is due after `step`; always at the end."""
  return step == steps or (period > 0 and step % period == 0)


def train(
  workdir: str | os.PathLike,
  *,
  seed: int,
  steps: int,
  batch_size: int,
  model: nn.Module,
  task: Any,
  data: Any,
  optimizer: optimizers.Optimizer,
  sharding: shardings.Sharding,
  record: Mapping[str, Any],
  accumulate: int = 1,
  log_every: int = 50,
  eval_every: int = 0,
  checkpoint_every: int = 0,
  profile: tuple[int, ...] = (),
  init: Mapping[str, Any] | None = None,
) -> dict[str, float]:
  """Trains, resuming from the newest good checkpoint in `workdir`.

  Args:
    workdir: holds metrics.jsonl, config.json, checkpoints/, curves.png.
    seed: of initialisation, order, augmentation and dropout.
    steps: updates in all.
    batch_size: examples an update, over all processes.
    model: the module to train.
    task: what it is trained for; see `vit_jax.tasks.Task`.
    data: batches, shapes and labels; see `vit_jax.data.build`.
    optimizer: see `vit_jax.optimizers.build`.
    sharding: the mesh and where parameters lie; see `vit_jax.shardings.build`.
    record: the config they were built from, as JSON-able sections; stored in
      the checkpoints. Its 'model' rebuilds the model for prediction, and what
      `identity.of` reads must be equal for a run to resume.
    accumulate: micro-batches an update.
    log_every: steps between rows of training metrics; 0 is only at the end.
    eval_every: steps between evaluations; 0 is only at the end.
    checkpoint_every: steps between checkpoints; 0 is only at the end.
    profile: (first, last) steps traced to workdir/profile.
    init: variables to start from instead of random ones.

  Returns:
    The metrics of the last evaluation.

  Raises:
    ValueError: another run's workdir, or a batch that does not divide.
    NonFiniteLossError: the loss is not finite; names the step and the last
      good checkpoint.
    RuntimeError: a checkpoint cannot be saved; names the last good one.
  """
  workdir = pathlib.Path(workdir)
  sharding.check_batch(batch_size, accumulate)
  periods = {
    'log_every': log_every, 'eval_every': eval_every,
    'checkpoint_every': checkpoint_every,
  }  # fmt: skip
  for name, period in periods.items():
    if period < 0:
      raise ValueError(f'{name}={period} must be 0 (at the end) or positive')
  meta = identity.describe(record, data)
  identity.claim(workdir, meta)

  # State: shapes first, so that it is born sharded.
  key = jax.jit(
    lambda: jax.random.key(seed), out_shardings=sharding.replicated
  )()
  shape, dtype = data.spec[data.input]
  example = jnp.zeros((1, *shape), dtype)
  start = functools.partial(
    states.init_state, model=model, optimizer=optimizer
  )
  shapes = jax.eval_shape(start, key, example)
  placed = states.place(shapes, sharding)
  step_fn = jax.jit(
    functools.partial(
      train_step, model=model, optimizer=optimizer, accumulate=accumulate
    ),
    in_shardings=(
      placed, sharding.replicated, sharding.batch, sharding.replicated,
    ),
    out_shardings=(placed, sharding.replicated),
    donate_argnums=0,
  )  # fmt: skip

  with contextlib.ExitStack() as stack:
    stop = stack.enter_context(Stop())
    saved = stack.enter_context(contextlib.closing(
      checkpoints.Checkpoints(workdir)
    ))  # fmt: skip
    writer = stack.enter_context(contextlib.closing(
      writers.Writer(workdir, saved.good or 0, steps)
    ))  # fmt: skip
    for step, fault in saved.faults.items():
      writer.say(f'checkpoint of step {step} set aside: {fault}')

    # Restore.
    last, first = {}, saved.good or 0
    if saved.good is not None:
      old = saved.meta(first)
      identity.compare(meta['identity'], old['identity'], saved.describe())
      abstract = jax.tree.map(
        lambda s, at: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at),
        shapes, placed,
      )  # fmt: skip
      state = states.from_items(
        saved.restore(first, states.to_items(abstract))
      )
      last = old['metrics'] or {}
      writer.say(f'resumed from {saved.describe()}')
      if first >= steps:
        writer.say('nothing left to do: the run is complete')
        return last
    elif init is None:
      state = jax.jit(start, out_shardings=placed)(key, example)
    else:
      state = jax.jit(
        functools.partial(states.fresh, optimizer=optimizer),
        out_shardings=placed,
      )(shardings.replicate(init, sharding))
    del init

    # Loop: metrics are read one step late, so that the devices never wait.
    task = shardings.replicate(task, sharding)
    batches = stack.enter_context(contextlib.closing(data.train_batches(
      batch_size, seed, first, jax.process_index(), jax.process_count()
    )))  # fmt: skip
    forward = flops.count(
      functools.partial(model.apply, train=False),
      jax.eval_shape(lambda s: s.served, shapes),
      example,
    )
    speed = writers.Speed(
      first + 1, steps, batch_size, 3 * forward * batch_size,
      flops.peak(model.dtype) * jax.device_count(),
    )  # fmt: skip
    writer.say(describe(shapes.params, data))
    pending = None

    def settle():
      """Reads the metrics of the pending step; stops if one is not finite."""
      nonlocal pending
      if pending is None:
        return
      (step, found), pending = pending, None
      row = metrics.values(metrics.to_host(found))
      for name in ('loss', 'grad_norm'):
        if not math.isfinite(row[name]):
          saved.wait()
          raise NonFiniteLossError(
            f'{name} is {row[name]} at step {step}; the last good checkpoint '
            f'is {saved.describe()}. A lower learning rate, a longer warm-up '
            'or optimizer.clip may help'
          )
      if every(log_every, step, steps):
        row = {f'train/{k}': v for k, v in row.items()}
        writer.write(step, {**row, **speed.rates(step)}, speed.eta(step))

    for step in range(first + 1, steps + 1):
      if profile and step == profile[0]:
        jax.profiler.start_trace(str(workdir / 'profile'))
      with speed.waiting():
        batch = shardings.put_batch(next(batches), sharding)
      with jax.transfer_guard_host_to_device('disallow'):
        state, found = step_fn(state, task, batch, key)
      settle()
      pending = (step, found)
      if profile and step == profile[-1]:
        jax.block_until_ready(state)
        jax.profiler.stop_trace()
      if step == first + 1:
        settle()  # the first step compiles: the clock starts after it
        speed.start(step)
      stopping = stop.asked(step)
      if every(eval_every, step, steps):
        settle()
        with speed.paused():
          last = evaluate.run(
            state.served, model=model, task=task, data=data, sharding=sharding,
            batch_size=batch_size,
          )  # fmt: skip
          last = {f'test/{k}': v for k, v in last.items()}
          writer.write(step, last)
          measured = last
      else:
        measured = None
      if every(checkpoint_every, step, steps) or stopping:
        settle()
        with speed.paused():
          saved.save(
            step,
            states.to_items(state),
            {**meta, 'metrics': measured},
            measured,
          )
      if stopping:
        writer.say(f'SIGTERM: saving step {step}; the same command resumes')
        break
    saved.wait()
  if jax.process_index() == 0:
    plots.curves(workdir / 'metrics.jsonl', workdir / 'curves.png')
  return last


def describe(params: Any, data: Any) -> str:
  """One line on what is about to be trained, on what."""
  count = sum(x.size for x in jax.tree.leaves(params))
  device = jax.devices()[0]
  return (
    f'{count:,} parameters; {data.train_size:,} training and '
    f'{data.test_size:,} test examples; {jax.device_count()} × '
    f'{device.device_kind}, {jax.process_count()} process(es)'
  )
