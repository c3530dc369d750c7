"""Distillation: a student learns from the answers of a trained teacher."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from vit_jax import specs
from vit_jax.metrics import Mean, Metric
from vit_jax.shapes import Array, Float
from vit_jax.tasks.classification import Classification, classification

# Of the variance of a token, as in most LayerNorms.
EPSILON = 1e-6
DTYPES = ('float32', 'bfloat16')


class Weights(NamedTuple):
  """How much each part of the loss counts."""

  labels: float
  soft: float
  hard: float
  features: float


@flax.struct.dataclass
class Distillation:
  """Σ weight · part of the loss; build it with `distillation(...)`.

  For one example, with the student's logits z and the teacher's t, both of
  the same augmented and mixed image:

    labels    the loss of `classification`
    soft      τ² KL(softmax(t/τ) ‖ softmax(z/τ)), Hinton et al. 2015, section 2
    hard      -log softmax(z)_k with k = argmax t, Touvron et al. 2021, eq. 3
    features  the mean of (s - u)² over blocks, tokens and channels, where s and
              u are the tokens that student and teacher have after a block and
              their encoder's last norm, standardised: mean 0 and variance 1
              over the channels of each token

  The last three are means over a batch, Σ w l / Σ w. With `token`, z is of the
  class head in `labels` and of the distillation head in `soft` and `hard`.

  The teacher's variables are leaves, so arguments of the jitted step.
  """

  classification: Classification
  variables: Any  # the teacher's
  teacher: nn.Module = flax.struct.field(pytree_node=False)
  weights: Weights = flax.struct.field(pytree_node=False)
  temperature: float = flax.struct.field(pytree_node=False)
  layers: tuple[int, ...] = flax.struct.field(pytree_node=False)
  teacher_layers: tuple[int, ...] = flax.struct.field(pytree_node=False)
  token: bool = flax.struct.field(pytree_node=False)

  def prepare(
    self, batch: dict[str, Array], rng: jax.Array
  ) -> dict[str, Array]:
    """As `Classification`, and `share` [B], w / Σ w."""
    batch = self.classification.prepare(batch, rng)
    total = batch['weight'].sum()
    # As there: a batch of nothing but skipped images has no loss.
    share = batch['weight'] / jnp.where(total > 0, total, 1.0)
    return {**batch, 'share': share}

  def loss(
    self, forward: Callable[..., Any], batch: dict[str, Array], rng: jax.Array
  ) -> tuple[Float[Array, ''], dict[str, Metric]]:
    """The micro-batch's share of the loss; its parts, accuracy, agreement."""
    image, weight, share = (batch[k] for k in ('image', 'weight', 'share'))
    matched = self.weights.features > 0
    own, told, tokens = forward(
      image, train=True, method=functools.partial(
        _answer, token=self.token, layers=self.layers if matched else None
      ),
    )  # fmt: skip
    taught, targets = self._teach(image, matched)
    told = told.astype(jnp.float32)
    if told.shape != taught.shape:
      raise ValueError(
        f'the student gives {told.shape} logits and the teacher '
        f'{taught.shape}: both must be pooled and of the same classes, [B K]'
      )
    labels, found = self.classification.loss(
      lambda images, *, train: own, batch, rng
    )
    each = {}
    if self.weights.soft:
      each['soft'] = soften(told, taught, self.temperature)
    if self.weights.hard:
      chosen = jax.nn.one_hot(taught.argmax(-1), taught.shape[-1])
      each['hard'] = -jnp.sum(chosen * jax.nn.log_softmax(told), axis=-1)
    if matched:
      each['features'] = _distance(tokens, targets)
    parts = {'labels': labels}
    found['labels_loss'] = found['loss']
    for name, losses in each.items():
      losses = jnp.where(share > 0, losses, 0.0)
      parts[name] = jnp.sum(share * losses)
      found[f'{name}_loss'] = Mean.of(losses, weight)
    total = sum(
      factor * parts[name]
      for name, factor in self.weights._asdict().items()
      if factor
    )
    same = told.argmax(-1) == taught.argmax(-1)
    return total, {
      **found,
      # The shares of a batch's losses add up, and so do those of its weight.
      'loss': Mean(total, share.sum()),
      'agreement': Mean.of(same, weight),
    }

  def metrics(
    self, forward: Callable[..., Any], batch: dict[str, Array]
  ) -> dict[str, Metric]:
    """Those of `Classification`; how often the teacher has the same top-1."""
    logits = forward(batch['image'], train=False)
    found = self.classification.metrics(
      lambda images, *, train: logits, batch
    )
    taught, _ = self._teach(batch['image'], False)
    same = logits.argmax(-1) == taught.argmax(-1)
    return {**found, 'agreement': Mean.of(same, batch['weight'])}

  def _teach(self, images, matched: bool):
    """The teacher's logits in float32, and its tokens to match."""
    layers = (self.teacher_layers or self.layers) if matched else None
    logits, _, tokens = self.teacher.apply(
      self.variables, images, train=False,
      method=functools.partial(_answer, token=False, layers=layers),
    )  # fmt: skip
    logits = logits.astype(jnp.float32)
    return jax.lax.stop_gradient((logits, tokens))


def soften(
  logits: Float[Array, 'B K'],
  taught: Float[Array, 'B K'],
  temperature: float = 1.0,
) -> Float[Array, 'B']:
  """τ² KL(softmax(taught/τ) ‖ softmax(logits/τ)) of each example.

  τ² keeps the size of the gradient, which the temperature divides by τ².
  Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2.
  """
  ours = jax.nn.log_softmax(logits / temperature)
  theirs = jax.nn.log_softmax(taught / temperature)
  return temperature**2 * jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1)


def _answer(
  model: nn.Module,
  images: Array,
  train: bool,
  *,
  token: bool,
  layers: tuple[int, ...] | None,
):
  """What a bound model says: logits, those for the teacher, tokens.

  The tokens are pairs (prefix, patches) of the blocks `layers`, () for all.
  """
  name = type(model).__name__
  if token and not hasattr(model, 'heads'):
    raise ValueError(
      f'token=True needs a student with a distillation token; {name} has none'
    )
  if layers is None:
    if token:
      own, told = model.heads(images, train)
    else:
      own = told = model(images, train)
    return own, told, ()
  if not (hasattr(model, 'embed') and hasattr(model, 'encode')):
    raise ValueError(
      f'{name} has no blocks of tokens to match; set task.features=0'
    )
  # Stems with BatchNorm are told whether this is training.
  more = {'train': train} if 'train' in specs.accepted(model.embed) else {}
  x, grid = model.embed(images, **more)
  layers = layers or tuple(range(model.num_layers))
  x, blocks = model.encode(x, grid, train, layers)
  tokens = tuple((b[:, : model.prefix], b[:, model.prefix :]) for b in blocks)
  own = model.head(x, train)
  return own, own, tokens


def _distance(ours, theirs) -> Float[Array, 'B']:
  """Mean squared difference of the standardised tokens of all blocks."""
  if len(ours) != len(theirs):
    raise ValueError(
      f'the student has {len(ours)} blocks to match and the teacher '
      f'{len(theirs)}: say which with task.layers and task.teacher_layers'
    )
  total = 0.0
  for (prefix, patches), (their_prefix, their_patches) in zip(
    ours, theirs, strict=True
  ):
    if patches.shape != their_patches.shape:
      raise ValueError(
        f"the student's patches are {patches.shape} and the teacher's "
        f'{their_patches.shape} [B N C]: features match only where they agree'
      )
    # A distillation token, or registers, may be only one's: left out then.
    if prefix.shape == their_prefix.shape:
      patches = jnp.concatenate([prefix, patches], axis=1)
      their_patches = jnp.concatenate([their_prefix, their_patches], axis=1)
    gap = _standardise(patches) - _standardise(their_patches)
    total = total + jnp.mean(gap * gap, axis=(1, 2))
  return total / len(ours)


def _standardise(x: Float[Array, 'B N C']) -> Float[Array, 'B N C']:
  x = x.astype(jnp.float32)
  x = x - x.mean(-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + EPSILON)


def distillation(
  num_classes: int,
  teacher: Any = None,
  labels: float = 0.0,
  soft: float = 1.0,
  hard: float = 0.0,
  features: float = 0.0,
  temperature: float = 1.0,
  layers: Sequence[int] = (),
  teacher_layers: Sequence[int] = (),
  token: bool = False,
  teacher_dtype: str | None = None,
  loss: str = 'softmax',
  label_smoothing: float = 0.0,
  class_weights: Sequence[float] = (),
  augment: str = '',
) -> Distillation:
  """Builds the task.

  DeiT's is token=True with labels=½ and hard=½, or with labels=.9, soft=.1 and
  temperature=3. Its paper, as here, divides the soft loss by B, its code by
  B·K.

  Args:
    num_classes: K, of student and teacher.
    teacher: a loaded model, as `pretrained.load` returns it; in a config, its
      path.
    labels: weight of the labels' loss.
    soft: weight of the teacher's probabilities.
    hard: weight of the teacher's decisions.
    features: weight of the features.
    temperature: τ of `soft`.
    layers: blocks whose features are matched, negative from the end; () for
      all.
    teacher_layers: the teacher's blocks for them, () for the same.
    token: the student's class head learns the labels and its distillation
      head the teacher; it has a method `heads` that gives both logits.
    teacher_dtype: of the teacher's computation; None leaves it.
    loss: of the labels, as in `classification`.
    label_smoothing: as in `classification`; the teacher's are not smoothed.
    class_weights: as in `classification`, of the labels' loss.
    augment: as in `classification`.

  Raises:
    ValueError: a value out of range, or a teacher of other classes.
  """
  if not hasattr(teacher, 'variables'):
    raise ValueError(
      f'teacher={teacher!r} must be a loaded model, pretrained.load(path); in '
      'a config, config.task.teacher is its path'
    )
  weights = Weights(labels, soft, hard, features)
  for name, value in weights._asdict().items():
    if not 0.0 <= value < math.inf:
      raise ValueError(f'{name}={value} must be a finite weight of at least 0')
  if not (soft or hard or features):
    raise ValueError(
      'nothing of the teacher counts: set soft, hard or features above 0, or '
      "take the task 'classification'"
    )
  if token and not (soft or hard):
    raise ValueError(
      'token=True has a head that learns by soft or hard; both are 0'
    )
  if token and features:
    raise ValueError(
      f'token=True with features={features}: features are matched in models '
      'with one head; set one of them to 0'
    )
  if not 0.0 < temperature < math.inf:
    raise ValueError(f'temperature={temperature} must be positive')
  if soft and loss == 'sigmoid':
    raise ValueError(
      "soft compares softmax probabilities, which loss='sigmoid' has not; set "
      'soft=0 and hard or features above 0'
    )
  if teacher_layers and len(teacher_layers) != len(layers):
    raise ValueError(
      f'teacher_layers={tuple(teacher_layers)} must be as many as layers='
      f'{tuple(layers)}'
    )
  if teacher_dtype not in (None, *DTYPES):
    raise ValueError(
      f'teacher_dtype={teacher_dtype!r}; choices: None, {", ".join(DTYPES)}'
    )
  model = teacher.model
  if model.num_classes != num_classes:
    raise ValueError(
      f'the teacher has {model.num_classes} classes and the student '
      f'{num_classes}'
    )
  return Distillation(
    classification(
      num_classes, loss, label_smoothing, class_weights, augment
    ),
    teacher.variables,
    model.clone(dtype=teacher_dtype) if teacher_dtype else model,
    weights,
    temperature,
    tuple(layers),
    tuple(teacher_layers),
    token,
  )
