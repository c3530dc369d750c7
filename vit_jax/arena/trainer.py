"""One choice of a board, compiled once for all its cells."""

import dataclasses
import functools
import math
import pathlib
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax import (
  benchmark,
  building,
  evaluate,
  flops,
  metrics,
  optimizers,
  train,
)
from vit_jax import sharding as shardings
from vit_jax import state as states
from vit_jax.arena import board as boards
from vit_jax.arena import fairness, memory, process, wrong
from vit_jax.arena.board import Board, digest

CHUNK = 10  # steps that are timed together
# Of what a device says is free; the rest is for what XLA does not plan.
SAFE = 0.9


class DivergedError(FloatingPointError):
  """A loss is not a number any more."""


class Trainer:
  """One choice, compiled once: learning rate and seed are arguments.

  With an `init` in the recipe every cell starts from that checkpoint's weights;
  what a choice has besides them starts alike for all seeds, which then differ
  in their examples' order, in augmentation and in dropout.

  Attributes:
    fixed: fields of every row of this choice.
  """

  def __init__(self, board: Board, value: Any, folder: pathlib.Path):
    self.board = board
    if board.leaf.rpartition('.')[2] == 'attention':
      value = wrong.layer(value)
    config = board.config(None if callable(value) else value)
    boards.put(config, board.leaf, value)  # a notebook's class is no JSON
    config['optimizer']['learning_rate'] = 1.0  # times the cell's
    parts = build(config, folder)
    self.model, self.task = parts['model'], parts['task']
    self.sharding = parts['sharding']
    self.optimizer = parts['optimizer']
    self.data, self.held = parts['data'].held_out(board.validation)
    self.steps, self.batch_size = config['steps'], config['batch_size']
    self.sharding.check_batch(self.batch_size, config['accumulate'])
    self.accumulate = config['accumulate']
    self.init = parts['init']
    base = build(board.recipe_sections(), folder)
    self._init_base = jax.jit(functools.partial(
      base['model'].init, train=False
    ))  # fmt: skip
    if self.init is not None:
      self._init_base = lambda *_: base['init']
    self._compile()

  def _compile(self) -> None:
    shape, dtype = self.data.spec[self.data.input]
    example = jax.ShapeDtypeStruct((1, *shape), dtype)
    key = jax.eval_shape(lambda: jax.random.key(0))
    start = functools.partial(
      states.init_state, model=self.model, optimizer=scaled(self.optimizer, 1.)
    )
    with wrong.watched() as masked:
      shapes = jax.eval_shape(start, key, example)
    self._placed = states.place(shapes, self.sharding)
    batch = {
      name: jax.ShapeDtypeStruct((self.batch_size, *s), d)
      for name, (s, d) in self.data.spec.items()
    }
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    replicated = self.sharding.replicated
    begin = time.perf_counter()
    lowered = jax.jit(
      functools.partial(
        step, model=self.model, optimizer=self.optimizer,
        accumulate=self.accumulate,
      ),
      in_shardings=(
        self._placed, replicated, self.sharding.batch, replicated, replicated,
      ),
      out_shardings=(self._placed, replicated),
      donate_argnums=0,
    ).lower(shapes, self.task, batch, key, rate)  # fmt: skip
    self._step = lowered.compile()
    seconds = time.perf_counter() - begin
    needed, free = benchmark.planned(self._step), process.available_bytes()
    if needed > SAFE * free:
      raise MemoryError(
        f'a training step needs {needed / memory.GIB:.2f} GiB a device, and '
        f'{free / memory.GIB:.2f} GiB are free'
      )
    self._start = jax.jit(start, out_shardings=self._placed)
    if self.init is not None:
      begin = jax.jit(
        functools.partial(trained, optimizer=start.keywords['optimizer']),
        out_shardings=self._placed,
      )
      variables = shardings.replicate(self.init, self.sharding)
      self._start = lambda *_: begin(variables)
    served = jax.eval_shape(lambda s: s.served, shapes)
    forward = functools.partial(self.model.apply, train=False)
    self.flops = flops.count(forward, served, example)
    self.fixed = {
      'suite': 'train', 'board': self.board.name, 'leaf': self.board.leaf,
      'recipe': self.board.recipe, 'rates': list(self.board.rates),
      'steps': self.steps, 'batch_size': self.batch_size,
      'train_size': self.data.train_size, 'test_size': self.data.test_size,
      'parameters': sum(x.size for x in jax.tree.leaves(shapes.params)),
      'flops': self.flops, 'memory': needed, 'compile_seconds': seconds,
      'masked': masked(),  # whether attention sees which tokens are padding
    }  # fmt: skip

  def cell(self, rate: float, seed: int) -> dict[str, Any]:
    """Trains with that learning rate and seed; what was measured.

    Raises:
      DivergedError: the loss is not finite; names the step.
    """
    key = jax.device_put(jax.random.key(seed), self.sharding.replicated)
    shape, dtype = self.data.spec[self.data.input]
    state = self._start(key, jnp.zeros((1, *shape), dtype))
    start, share = self._same_start(state.params, key)
    rate = jax.device_put(np.float32(rate), self.sharding.replicated)
    task = shardings.replicate(self.task, self.sharding)
    order, curve, durations, spent = [], [], [], 0.0
    points = [
      round(self.steps * (i + 1) / self.board.evaluations)
      for i in range(self.board.evaluations)
    ]
    with self.data.train_batches(self.batch_size, seed) as batches:
      for first, last in _chunks(self.steps, points):
        some = [next(batches) for _ in range(first, last)]
        order += [_digest_of(batch) for batch in some]
        some = jax.block_until_ready([
          shardings.put_batch(batch, self.sharding) for batch in some
        ])  # fmt: skip
        begin = time.perf_counter()
        for batch in some:
          state, found = self._step(state, task, batch, key, rate)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - begin
        spent += seconds
        durations.append(seconds / len(some))
        loss = metrics.values(metrics.to_host(found))['loss']
        if not math.isfinite(loss):
          raise DivergedError(f'the training loss is {loss} by step {last}')
        if last in points:
          work = 3.0 * self.flops * self.batch_size * last
          accuracy = self._evaluate(state, self.data)['accuracy']
          curve.append([last, work, spent, accuracy])
    test = self._evaluate(state, self.data)
    held = self._evaluate(state, self.held)
    if not math.isfinite(test['loss'] + held['loss']):
      raise DivergedError('the loss of the trained model is not finite')
    return {
      'accuracy': test['accuracy'], 'loss': test['loss'],
      'validation': held['accuracy'], 'validation_loss': held['loss'],
      'train_loss': loss, 'train_seconds': spent,
      # The first chunk warms caches up, where there is another.
      'step_seconds': statistics.median(durations[1:] or durations),
      'curve': curve, 'order': digest(*order), 'start': start,
      'shared': share,
    }  # fmt: skip

  def _evaluate(self, state: Any, data: Any) -> dict[str, float]:
    return evaluate.run(
      state.served, model=self.model, task=self.task, data=data,
      sharding=self.sharding, batch_size=self.batch_size,
    )  # fmt: skip

  def _same_start(self, params: Any, key: jax.Array) -> tuple[str, float]:
    """A digest of the base's initial parameters, and the share that is equal.

    Raises:
      UnfairError: a parameter of the base's name and shape starts otherwise;
        not where checkpoints are compared, which share nothing.
    """
    shape, dtype = self.data.spec[self.data.input]
    found = self._init_base(key, jnp.zeros((1, *shape), dtype))
    base = _flat(found['params'])
    mine = _flat(params)
    shared = [
      name
      for name, x in base.items()
      if self.board.leaf != boards.INIT
      and name in mine and mine[name].shape == x.shape
    ]  # fmt: skip
    apart = [n for n in shared if not np.array_equal(mine[n], base[n])]
    if apart:
      raise fairness.UnfairError(
        f'{len(apart)} of {len(shared)} parameters shared with the base start '
        f'otherwise, as {apart[0]}'
      )
    size = sum(mine[name].size for name in shared)
    parts = (name.encode() + base[name].tobytes() for name in sorted(base))
    return digest(*parts), size / sum(x.size for x in mine.values())


def step(
  state: states.TrainState, task: Any, batch: Any, key: jax.Array, rate: Any,
  *, model: nn.Module, optimizer: optimizers.Optimizer, accumulate: int,
) -> tuple[states.TrainState, dict[str, metrics.Metric]]:  # fmt: skip
  """`train.train_step` with the learning rate an argument."""
  return train.train_step(
    state, task, batch, key, model=model, optimizer=scaled(optimizer, rate),
    accumulate=accumulate,
  )  # fmt: skip


def scaled(optimizer: optimizers.Optimizer, rate: Any) -> optimizers.Optimizer:
  """`rate` times the updates of an optimiser that was built for a rate of 1.

  Its updates are linear in the learning rate: clipping comes before it, and
  weight decay is multiplied by it.
  """
  return dataclasses.replace(
    optimizer,
    tx=optax.chain(optimizer.tx, optax.scale(rate)),
    learning_rate=lambda at: rate * optimizer.learning_rate(at),
  )


def trained(
  variables: dict[str, Any], *, optimizer: optimizers.Optimizer
) -> states.TrainState:
  """`states.fresh`, of copies: a step takes what its state is made of."""
  return states.fresh(jax.tree.map(jnp.copy, variables), optimizer=optimizer)


def build(config: Mapping[str, Any], folder: pathlib.Path) -> dict[str, Any]:
  """The parts of a cell; `init` is a checkpoint's variables, or None."""
  parts = building.build({**config, 'run': 'train'}, folder, {'train': wanted})
  return {'init': None, **parts}


def wanted(
  *, seed: int, steps: int, batch_size: int, model: nn.Module, task: Any,
  data: Any, optimizer: optimizers.Optimizer, sharding: shardings.Sharding,
  accumulate: int, init: Any = None,
) -> None:  # fmt: skip
  """Its parameters' names say what a cell is made of."""


def _flat(tree: Any) -> dict[str, np.ndarray]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    optimizers.path_of(path): np.asarray(jax.device_get(x))
    for path, x in leaves
  }


def _digest_of(batch: Mapping[str, np.ndarray]) -> bytes:
  parts = (np.ascontiguousarray(batch[name]) for name in sorted(batch))
  return digest(*(x.tobytes() for x in parts)).encode()


def _chunks(steps: int, points: list[int]) -> Iterator[tuple[int, int]]:
  """(steps done, steps then done) of parts of at most CHUNK, ending at points.

  The first part is one step, as what is done once is done in it.
  """
  ends = sorted({*points, *range(1, steps, CHUNK), steps})
  return zip([0, *ends[:-1]], ends, strict=True)
