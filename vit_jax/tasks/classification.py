"""Classification by softmax or sigmoid cross-entropy."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from vit_jax import specs
from vit_jax.metrics import Mean, Metric
from vit_jax.shapes import Array, Float
from vit_jax.tasks import diversity as diversities
from vit_jax.tasks.augment import AUGMENTATIONS

LOSSES = ('softmax', 'sigmoid')


def read_by_model(batch: dict[str, Array]) -> Array:
  """Images [B Y X C], or the tokens of sequences [B N]."""
  return batch['tokens'] if 'tokens' in batch else batch['image']


@flax.struct.dataclass
class Classification:
  """One label an example; build it with `classification(...)`.

  softmax: l = -Σ_k c_k y_k log softmax(z)_k
  sigmoid: l = -Σ_k c_k [y_k log σ(z_k) + (1 - y_k) log(1 - σ(z_k))]
  with y = (1 - ε)·one_hot(label) + ε/K, mixed by the batch augmentations, and
  class weights c. The loss of a batch is Σ w l / Σ w (Σ_k c_k y_k); the losses
  of `diversity` are added, each Σ w l / Σ w times its weight.
  """

  class_weights: Float[Array, 'K'] | Any
  num_classes: int = flax.struct.field(pytree_node=False)
  kind: str = flax.struct.field(pytree_node=False)
  label_smoothing: float = flax.struct.field(pytree_node=False)
  augmentations: tuple[Callable, ...] = flax.struct.field(pytree_node=False)
  diversity: tuple[diversities.Loss, ...] = flax.struct.field(
    pytree_node=False, default=()
  )

  def prepare(
    self, batch: dict[str, Array], rng: jax.Array
  ) -> dict[str, Array]:
    """Adds `target` [B K] and `scale` [B], the example's share of the loss.

    With `diversity`, also `share` [B], w / Σ w, and whose the pixels are.
    """
    target = jax.nn.one_hot(batch['label'], self.num_classes)
    target = optax.smooth_labels(target, self.label_smoothing)
    batch = {**batch, 'target': target}
    if 'image' in batch:
      # A skipped image may hold anything: NaN · 0 would reach every gradient.
      counts = batch['weight'][:, None, None, None] != 0
      batch['image'] = jnp.where(counts, batch['image'], 0)
    elif self.augmentations or self.diversity:
      raise ValueError(
        'task.augment and task.diversity are of images, and the data are '
        "sequences: set both to ''"
      )
    for i, augment in enumerate(self.augmentations):
      key = jax.random.fold_in(rng, i)
      if diversities.by_patch(self.diversity):
        batch = diversities.with_sources(batch, augment, key)
      batch = augment(batch, key)
    mass = batch['weight'] * (batch['target'] @ self.class_weights)
    # A batch of nothing but skipped images has no mass and no loss.
    total = mass.sum()
    scale = batch['weight'] / jnp.where(total > 0, total, 1.0)
    if self.diversity:
      total = batch['weight'].sum()
      batch['share'] = batch['weight'] / jnp.where(total > 0, total, 1.0)
    return {**batch, 'scale': scale}

  def loss(
    self, forward: Callable[..., Any], batch: dict[str, Array], rng: jax.Array
  ) -> tuple[Float[Array, ''], dict[str, Metric]]:
    """The micro-batch's share of the loss; loss and accuracy."""
    del rng
    if self.diversity:
      return self._with_diversity(forward, batch)
    logits = forward(read_by_model(batch), train=True)
    return self._labels(logits, batch)

  def _with_diversity(self, forward, batch):
    """The loss with those of `diversity`, all of one run of the model."""
    tokens = forward(batch['image'], train=True, method=functools.partial(
      diversities.answer, by_patch=diversities.by_patch(self.diversity)
    ))  # fmt: skip
    total, found = self._labels(tokens.logits, batch)
    found['labels_loss'] = found['loss']
    for each in self.diversity:
      losses = jnp.where(batch['share'] > 0, each(tokens, batch), 0.0)
      total = total + each.weight * jnp.sum(batch['share'] * losses)
      name = f'{type(each).__name__.lower()}_loss'
      found[name] = Mean.of(losses, batch['weight'])
    # The shares of a batch's losses add up, and so do those of its weight.
    return total, {**found, 'loss': Mean(total, batch['share'].sum())}

  def _labels(self, logits, batch):
    """The share of the labels' loss; loss and accuracy."""
    losses = self._losses(logits, batch['target'], self.class_weights)
    # Without this, a skipped image's NaN would survive multiplication by 0.
    losses = jnp.where(batch['scale'] > 0, losses, 0.0)
    mass = batch['weight'] * (batch['target'] @ self.class_weights)
    hit = logits.argmax(-1) == batch['label']
    return jnp.sum(batch['scale'] * losses), {
      'loss': Mean(jnp.sum(batch['weight'] * losses), jnp.sum(mass)),
      'accuracy': Mean.of(hit, batch['weight']),
    }

  def metrics(
    self, forward: Callable[..., Any], batch: dict[str, Array]
  ) -> dict[str, Metric]:
    """Loss without smoothing or class weights, top-1 and top-5 accuracy."""
    logits = forward(read_by_model(batch), train=False)
    logits = logits.astype(jnp.float32)
    label, weight = batch['label'], batch['weight']
    target = jax.nn.one_hot(label, self.num_classes)
    losses = self._losses(logits, target, jnp.ones(self.num_classes))
    best = jax.lax.top_k(logits, min(5, self.num_classes))[1]
    hits = best == label[:, None]
    return {
      'loss': Mean.of(losses, weight),
      'accuracy': Mean.of(hits[:, 0], weight),
      'accuracy_top5': Mean.of(hits.any(-1), weight),
    }

  def _losses(
    self,
    logits: Float[Array, '...'],  # a wrong shape gets a message below
    target: Float[Array, 'B K'],
    class_weights: Float[Array, 'K'],
  ) -> Float[Array, 'B']:
    """The loss of each example, in float32."""
    logits = logits.astype(jnp.float32)
    if logits.shape != target.shape:
      raise ValueError(
        f'the model gives {logits.shape} logits where the task has '
        f'{target.shape} targets [B K]: set model.classifier to a pooled head '
        'and model.num_classes to the number of classes'
      )
    weights = class_weights[None]
    if self.kind == 'softmax':
      return -jnp.sum(weights * target * jax.nn.log_softmax(logits), axis=-1)
    losses = optax.sigmoid_binary_cross_entropy(logits, target)
    return jnp.sum(weights * losses, axis=-1)


def classification(
  num_classes: int,
  loss: str = 'softmax',
  label_smoothing: float = 0.0,
  class_weights: Sequence[float] = (),
  augment: str = '',
  diversity: str = '',
) -> Classification:
  """Builds the task.

  Args:
    num_classes: K.
    loss: 'softmax' or 'sigmoid' (the sum over classes of binary losses).
    label_smoothing: ε in [0, 1).
    class_weights: K positive numbers; () weighs all classes alike.
    augment: specs of `tasks.augment.AUGMENTATIONS`, applied to whole batches
      on the device: `'flip, mixup(alpha=0.2)'`.
    diversity: specs of `tasks.diversity.LOSSES`, which keep the patches of an
      image apart: `'cosine(weight=0.5), contrastive, mixing'`.

  Raises:
    ValueError: a value out of range, naming it.
  """
  if loss not in LOSSES:
    raise ValueError(f'loss={loss!r}; choices: {", ".join(LOSSES)}')
  if not 0.0 <= label_smoothing < 1.0:
    raise ValueError(f'label_smoothing={label_smoothing} is not in [0, 1)')
  weights = tuple(class_weights) or (1.0,) * num_classes
  if len(weights) != num_classes or min(weights) <= 0:
    raise ValueError(
      f'class_weights must be {num_classes} positive numbers, one a class; '
      f'got {weights}'
    )
  if loss == 'sigmoid' and 'mixing' in [s.name for s in specs.parse(diversity)]:
    raise ValueError(
      "diversity='mixing' is of softmax probabilities, which loss='sigmoid' "
      "has not; take loss='softmax'"
    )
  augmentations = specs.build_all(augment, AUGMENTATIONS, 'batch augmentation')
  return Classification(
    jnp.asarray(weights, jnp.float32),
    num_classes,
    loss,
    label_smoothing,
    augmentations,
    diversities.build(diversity, augmentations),
  )
