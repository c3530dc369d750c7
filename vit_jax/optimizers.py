"""Optimisers and schedules from optax, by spec; masks by regex; EMA.

The chain: clip → the optimiser's direction → weight decay on the parameters of
`decay` (→ LAMB's trust ratio) → -learning rate → layer-wise factors. Frozen
parameters leave the chain: no update, no state, no part in the clipped norm.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vit_jax import specs

Params = Any


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """What the training step needs.

  Attributes:
    tx: the gradient transformation; its updates are added to the parameters.
    learning_rate: step → learning rate, for the log.
    ema: decay of the averaged parameters, 0 for none.
  """

  tx: optax.GradientTransformation
  learning_rate: Callable[[Any], Any]
  ema: float = 0.0


# Directions: scale_by_… without learning rate and weight decay.


def sgd(
  momentum: float = 0.9,
  nesterov: bool = False,
  accumulator: str = 'bfloat16',
) -> optax.GradientTransformation:
  """Momentum SGD; a bfloat16 accumulator, as the original ViT fine-tunes."""
  return optax.trace(
    decay=momentum, nesterov=nesterov, accumulator_dtype=accumulator
  )


def adam(
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  accumulator: str = 'float32',
) -> optax.GradientTransformation:
  """Adam (Kingma & Ba 2015); with decoupled weight decay it is AdamW."""
  return optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=accumulator)


def lion(
  b1: float = 0.9, b2: float = 0.99, accumulator: str = 'float32'
) -> optax.GradientTransformation:
  """Lion (Chen et al. 2023): the sign of an interpolated momentum."""
  return optax.scale_by_lion(b1=b1, b2=b2, mu_dtype=accumulator)


def adafactor(
  decay_rate: float = 0.8,
  min_dim_size_to_factor: int = 128,
  clipping: float = 1.0,
  momentum: float = 0.9,
  accumulator: str = 'bfloat16',
) -> optax.GradientTransformation:
  """Adafactor (Shazeer & Stern 2018) with a momentum, as in Zhai et al. 2022.

  Without relative step sizes: the learning rate is the schedule's.
  """
  return optax.chain(
    optax.scale_by_factored_rms(
      decay_rate=decay_rate, min_dim_size_to_factor=min_dim_size_to_factor
    ),
    optax.clip_by_block_rms(clipping),
    optax.ema(momentum, debias=False, accumulator_dtype=accumulator),
  )


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
  'sgd': sgd,
  'adamw': adam,
  'lamb': adam,  # followed by the trust ratio, after the weight decay
  'lion': lion,
  'adafactor': adafactor,
}


# Schedules: progress from the end of the warm-up, (step, steps) → factor.


def cosine(end: float = 0.0) -> Callable:
  """Half a cosine from 1 to `end`."""
  return lambda step, steps: (
    end + (1 - end) * 0.5 * (1 + jnp.cos(jnp.pi * step / steps))
  )


def linear(end: float = 0.0) -> Callable:
  """A line from 1 to `end`."""
  return lambda step, steps: 1 + (end - 1) * step / steps


def constant() -> Callable:
  """1."""
  return lambda step, steps: jnp.ones_like(step)


def rsqrt(timescale: int = 10_000) -> Callable:
  """√(timescale / (timescale + step)), as in Zhai et al. 2022."""
  return lambda step, steps: jnp.sqrt(timescale / (timescale + step))


SCHEDULES: dict[str, Callable[..., Callable]] = {
  'cosine': cosine,
  'linear': linear,
  'constant': constant,
  'rsqrt': rsqrt,
}


def noam(step: Any, width: int, warmup: int) -> Any:
  """width^-½ · min(step^-½, step · warmup^-1.5); Vaswani et al. 2017, eq. 3."""
  step = step + 1
  return width**-0.5 * jnp.minimum(step**-0.5, step * warmup**-1.5)


def shrink(part: int, steps: int) -> int:
  """A warm-up or cool-down of `part` steps, at most a quarter of the run.

  So that the same config does a short trial run; a quarter is the largest
  share in the published recipes this codebase reproduces.
  """
  return min(part, steps // 4)


def build_schedule(
  spec: str,
  learning_rate: float,
  steps: int,
  warmup: int = 0,
  cooldown: int = 0,
) -> Callable[[Any], Any]:
  """The learning rate as a function of the step.

  Args:
    spec: a spec of `SCHEDULES`, or `'noam(width=512)'`, for which
      `learning_rate` is a factor and `warmup` its own parameter.
    learning_rate: the peak.
    steps: of the whole run.
    warmup: steps of linear growth from 0; shrinks with short runs.
    cooldown: steps of linear decay to 0 at the end; shrinks alike.

  Raises:
    ValueError: unknown schedule, negative lengths.
  """
  if min(warmup, cooldown) < 0 or steps < 0:
    raise ValueError(
      f'lengths are counted in steps and not negative; got steps={steps}, '
      f'warmup={warmup}, cooldown={cooldown}'
    )
  warmup, cooldown = shrink(warmup, steps), shrink(cooldown, steps)
  if [found.name for found in specs.parse(spec)] == ['noam']:
    table = {'noam': lambda width: lambda s: noam(s, width, max(warmup, 1))}
    shape = specs.build(spec, table, 'schedule')
  else:
    decay = specs.build(spec, {**SCHEDULES, 'noam': noam}, 'schedule')
    rest = max(steps - warmup, 1)

    def shape(s):
      grow = jnp.minimum(s / warmup, 1.0) if warmup else 1.0
      return grow * decay(jnp.clip(s - warmup, 0, rest), rest)

  def at(step):
    s = jnp.asarray(step, jnp.float32)
    cool = jnp.clip((steps - s) / cooldown, 0.0, 1.0) if cooldown else 1.0
    return learning_rate * cool * shape(s)

  return at


def path_of(path: tuple) -> str:
  """'Transformer/encoderblock_0/…' for a key path of a parameter tree."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def matching(pattern: str, params: Params) -> Any:
  """A tree of booleans: whether `pattern` is found in the parameter's path.

  Raises:
    ValueError: it matches no parameter, or is not a regular expression.
  """
  try:
    found = re.compile(pattern)
  except re.error as e:
    raise ValueError(f'{pattern!r} is not a regular expression: {e}') from None
  mask = jax.tree_util.tree_map_with_path(
    lambda path, _: bool(found.search(path_of(path))), params
  )
  if not any(jax.tree.leaves(mask)):
    paths = [
      path_of(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    raise ValueError(
      f'the pattern {pattern!r} matches no parameter; parameters: '
      + ', '.join(paths[:8])
      + (f', … ({len(paths)} in all)' if len(paths) > 8 else '')
    )
  return mask


def layer_factors(params: Params, decay: float) -> Any:
  """decay^(layers + 1 - i) for each parameter; the heads keep 1.

  i is 0 for what comes before the blocks (a ResNet stem's block1 too), 1 + the
  block's index for the blocks (the first number in the path that follows a name
  ending in 'block_'), and layers + 1 for what comes after them: norm, pooling,
  heads. Blocks of a pyramid, 'stage_1/block_0', are counted through its stages;
  what else a stage has comes with its first block. Clark et al. 2020.

  Raises:
    ValueError: the parameters have no numbered blocks.
  """
  after = re.compile(
    r'(^|/)(encoder_norm|fc_norm|pre_head_layer_norm|pre_logits|sequence_pool'
    r'|head|head_dist|MAPHead_\d+)(/|$)'
  )
  paths = [path_of(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
  places = {p: _place(p) for p in paths if not after.search(p)}
  blocks = {p for p in places.values() if p[1] >= 0}
  if not blocks:
    raise ValueError(
      f'layer_decay={decay} needs numbered blocks (…block_0); there are none '
      f'among {", ".join(paths[:8])}'
    )
  # A block that no parameter has, as of a mean of tokens, counts as well.
  last_of = {s: max(b for at, b in blocks if at == s) for s, _ in blocks}
  first, layers = {}, 0
  for stage in sorted(last_of):
    first[stage], layers = layers, layers + last_of[stage] + 1

  def factor(path, _):
    text = path_of(path)
    if after.search(text):  # first: a head has an MlpBlock_0 too
      return 1.0
    stage, block = places[text]
    if stage in first and (stage >= 0 or block >= 0):
      return decay ** (layers - first[stage] - max(block, 0))
    return decay ** (layers + 1)

  return jax.tree_util.tree_map_with_path(factor, params)


def _place(path: str) -> tuple[int, int]:
  """(stage, block) by the numbers in a parameter's path; -1 without one."""
  stage = re.search(r'(?:^|/)stage_(\d+)/', path)
  block = re.search(r'[bB]lock_(\d+)', path)
  return (int(stage[1]) if stage else -1), (int(block[1]) if block else -1)


def _scale_by_layer(decay: float) -> optax.GradientTransformation:
  def init(params):
    layer_factors(params, decay)  # raises early
    return optax.EmptyState()

  def update(updates, state, params=None):
    factors = layer_factors(updates, decay)
    return jax.tree.map(lambda u, f: u * f, updates, factors), state

  return optax.GradientTransformation(init, update)


def build(
  steps: int,
  *,
  name: str = 'adamw',
  learning_rate: float = 1e-3,
  schedule: str = 'cosine',
  warmup: int = 0,
  cooldown: int = 0,
  weight_decay: float = 0.0,
  decay: str = r'(^|/)kernel$',
  clip: float = 0.0,
  layer_decay: float = 1.0,
  freeze: str = '',
  ema: float = 0.0,
) -> Optimizer:
  """Builds the optimiser of a run.

  Args:
    steps: of the whole run.
    name: a spec of `OPTIMIZERS`: `'adamw(b2=0.95)'`.
    learning_rate: the peak.
    schedule: a spec of `SCHEDULES`, or 'noam(width=…)'.
    warmup: steps of linear growth; shrinks with short runs.
    cooldown: steps of linear decay to 0 at the end; shrinks alike.
    weight_decay: decoupled, multiplied by the learning rate.
    decay: regex of the parameters that decay; default all kernels.
    clip: largest global gradient norm; 0 does not clip.
    layer_decay: factor of the learning rate a block down from the head.
    freeze: regex of parameters that stay as they are; '' freezes none.
    ema: decay of the averaged parameters that evaluation uses; 0 for none.

  Raises:
    ValueError: a value out of range or an unknown name.
  """
  for key, value, low, high in (
    ('learning_rate', learning_rate, 0.0, math.inf),
    ('weight_decay', weight_decay, 0.0, math.inf),
    ('clip', clip, 0.0, math.inf),
    ('layer_decay', layer_decay, 0.0, 1.0),
    ('ema', ema, 0.0, 1.0),
  ):
    if not low <= value <= high or (key == 'ema' and value == 1):
      raise ValueError(f'{key}={value} is not in [{low}, {high}]')
  direction = specs.build(name, OPTIMIZERS, 'optimizer')
  rate = build_schedule(
    schedule, learning_rate, steps, warmup, cooldown
  )
  chain = [optax.clip_by_global_norm(clip)] if clip else []
  chain.append(direction)
  if weight_decay:
    chain.append(
      optax.add_decayed_weights(weight_decay, lambda p: matching(decay, p))
    )
  if specs.parse(name)[0].name == 'lamb':
    chain.append(optax.scale_by_trust_ratio())
  chain.append(optax.scale_by_learning_rate(rate))
  tx = optax.chain(*chain)
  if freeze:
    tx = optax.partition(
      {'train': tx, 'frozen': optax.set_to_zero()},
      lambda p: jax.tree.map(
        lambda hit: 'frozen' if hit else 'train', matching(freeze, p)
      ),
    )
  if layer_decay != 1.0:  # outside, where frozen blocks count as layers
    tx = optax.chain(tx, _scale_by_layer(layer_decay))
  return Optimizer(tx, rate, ema)


def update_ema(average: Params, params: Params, step: Any, decay: float):
  """decay·average + (1 - decay)·params, with a decay that grows at first.

  The decay at a step is min(decay, (1 + step) / (10 + step)), so that a short
  run does not average its initialisation in.
  """
  d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  # In this form, what does not move (a frozen parameter) stays bit for bit.
  return jax.tree.map(lambda a, p: a + (1 - d) * (p - a), average, params)
