"""Losses that keep the patches of an image apart (Gong et al. 2021).

"Vision Transformers with Patch Diversification", section 4, DiversePatch; the
authors' code computes other things. In all of them h are an image's patches
after a block and the encoder's last norm, N of them, in float32; h¹ after the
first block, hᴸ after the last. The class token and other tokens before the
patches take no part.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import specs
from vit_jax.shapes import Array, Float
from vit_jax.tasks.augment import Cutmix, Erasing, Mixup, MixupOrCutmix

NEEDED = ('embed', 'encode', 'head', 'num_layers', 'prefix')


class Tokens(NamedTuple):
  """What a model says of images.

  Attributes:
    logits: [B K].
    first, last: h¹ and hᴸ, [B N C].
    grid: rows and columns of the patches.
    by_patch: what the head says of each patch, [B N K]; None if nobody asks.
  """

  logits: Array
  first: Float[Array, 'B N C']
  last: Float[Array, 'B N C']
  grid: tuple[int, int]
  by_patch: Array | None


@dataclasses.dataclass(frozen=True)
class Loss:
  """One number an image; counts `weight` times."""

  weight: float = 1.0

  def __post_init__(self):
    if not 0.0 < self.weight < math.inf:
      raise ValueError(
        f'weight={self.weight} of a diversity loss must be positive'
      )

  def __call__(
    self, tokens: Tokens, batch: dict[str, Array]
  ) -> Float[Array, 'B']:
    """The loss of each image."""
    raise NotImplementedError(f'{type(self).__name__} is no loss')


@dataclasses.dataclass(frozen=True)
class Cosine(Loss):
  """1/(N(N-1)) Σ_{i≠j} |cos(hᴸ_i, hᴸ_j)|, small where patches differ."""

  def __call__(
    self, tokens: Tokens, batch: dict[str, Array]
  ) -> Float[Array, 'B']:
    """O(N²·C)."""
    h = tokens.last
    square = jnp.sum(h * h, axis=-1, keepdims=True)
    h = h * jax.lax.rsqrt(jnp.maximum(square, 1e-12))
    count = h.shape[1]
    alike = jnp.abs(jnp.einsum('bnc,bmc->bnm', h, h))
    others = 1.0 - jnp.eye(count)
    return jnp.sum(alike * others[None], axis=(1, 2)) / (count * (count - 1))


@dataclasses.dataclass(frozen=True)
class Contrastive(Loss):
  """-1/N Σ_i log eᵖ/(eᵖ + eⁿ): a patch is to stay what it was, not the others.

  p = h¹_i · hᴸ_i and n = h¹_i · mean_{j≠i} hᴸ_j, without gradients through h¹.
  """

  def __call__(
    self, tokens: Tokens, batch: dict[str, Array]
  ) -> Float[Array, 'B']:
    """O(N·C)."""
    first, last = jax.lax.stop_gradient(tokens.first), tokens.last
    total = last.sum(axis=1, keepdims=True)
    others = (total - last) / (last.shape[1] - 1)
    return jax.nn.softplus(jnp.sum(first * (others - last), -1)).mean(1)


@dataclasses.dataclass(frozen=True)
class Mixing(Loss):
  """-1/N Σ_i Σ_k y_ik log softmax(g(hᴸ_i))_k: each patch knows whose it is.

  With CutMix, y_i are the targets of the two images, by their shares of the
  patch's pixels (the paper's boxes consist of whole patches); otherwise that of
  the image. One head g is shared by the patches; it is the model's own here,
  fed with one patch in place of all tokens, where the authors train a second
  one, which evaluation has no use for. Class weights do not count.
  """

  def __call__(
    self, tokens: Tokens, batch: dict[str, Array]
  ) -> Float[Array, 'B']:
    """O(N·K)."""
    log = jax.nn.log_softmax(tokens.by_patch)
    if 'pasted' not in batch:
      losses = -jnp.einsum('bnk,bk->bn', log, batch['target'])
      return losses.mean(1)
    rows, columns = tokens.grid
    count, height, width = batch['pasted'].shape
    share = batch['pasted'].reshape(
      count, rows, height // rows, columns, width // columns
    )
    share = share.mean((2, 4), dtype=jnp.float32).reshape(count, -1)
    own, other = (
      -jnp.einsum('bnk,bk->bn', log, batch[name])
      for name in ('own_target', 'other_target')
    )
    return ((1 - share) * own + share * other).mean(1)


LOSSES: dict[str, Callable[..., Loss]] = {
  'cosine': Cosine,
  'contrastive': Contrastive,
  'mixing': Mixing,
}


def build(
  text: str, augmentations: tuple[Callable, ...] = ()
) -> tuple[Loss, ...]:
  """The losses of some specs.

  Raises:
    ValueError: an unknown or repeated one, a weight that is not positive, or
      `mixing` with augmentations after which the sources of pixels are unknown.
  """
  losses = specs.build_all(text, LOSSES, 'diversity loss')
  names = [spec.name for spec in specs.parse(text)]
  if len(set(names)) < len(names):
    raise ValueError(f'diversity={text!r} names a loss twice')
  if by_patch(losses):
    _check_order(augmentations)
  return losses


def _check_order(augmentations: tuple[Callable, ...]) -> None:
  seen = False
  for augment in augmentations:
    name = type(augment).__name__.lower()
    if isinstance(augment, MixupOrCutmix):
      raise ValueError(
        "diversity='mixing' follows the patches of cutmix; take augment="
        "'cutmix' in place of mixup_or_cutmix"
      )
    if seen and not isinstance(augment, Erasing):
      late = 'mixed by mixup' if isinstance(augment, Mixup) else 'moved or cut'
      raise ValueError(
        f"diversity='mixing' needs cutmix last but for erasing: after it "
        f'pixels may not be {late} again, as {name} does'
      )
    seen = seen or isinstance(augment, Cutmix)


def by_patch(losses: tuple[Loss, ...]) -> bool:
  """Whether one of them asks for what the head says of each patch."""
  return any(isinstance(loss, Mixing) for loss in losses)


def with_sources(
  batch: dict[str, Array], augment: Callable, rng: jax.Array
) -> dict[str, Array]:
  """The batch with `pasted` [B Y X] and the two targets, before CutMix.

  Any other augmentation leaves it as it is.
  """
  if not isinstance(augment, Cutmix):
    return batch
  return {
    **batch,
    'pasted': augment.box(batch, rng),
    'own_target': batch['target'],
    'other_target': jnp.roll(batch['target'], 1, axis=0),
  }


def answer(
  model: nn.Module, images: Array, train: bool, *, by_patch: bool
) -> Tokens:
  """What a bound model says of images.

  Raises:
    ValueError: a model without blocks of patches, one patch only, or patches
      that were dropped where each is to be classified.
  """
  name = type(model).__name__
  missing = [part for part in NEEDED if not hasattr(model, part)]
  if missing:
    raise ValueError(
      f'{name} has no blocks of patches to keep apart (it lacks '
      f"{', '.join(missing)}); set task.diversity=''"
    )
  # Stems with BatchNorm are told whether this is training.
  more = {'train': train} if 'train' in specs.accepted(model.embed) else {}
  x, grid = model.embed(images, **more)
  x, blocks = model.encode(x, grid, train, (0, model.num_layers - 1))
  first, last = (
    block[:, model.prefix :].astype(jnp.float32) for block in blocks
  )
  if last.shape[1] < 2:
    raise ValueError(
      f'{name} has one patch for an image of {images.shape[1]}×'
      f"{images.shape[2]}: there is nothing to keep apart; set "
      "task.diversity=''"
    )
  logits = model.head(x, train)
  if not by_patch:
    return Tokens(logits, first, last, grid, None)
  if logits.ndim != 2:
    raise ValueError(
      f"diversity='mixing' needs a pooled head, [B K]; {name} gives "
      f'{logits.shape}'
    )
  if last.shape[1] != grid[0] * grid[1]:
    raise ValueError(
      f"diversity='mixing' needs the whole grid of {grid[0]}×{grid[1]} "
      f'patches; {last.shape[1]} are left: set model.patch_dropout_rate=0'
    )
  # An image all of whose tokens are one patch, for each of the patches.
  batch, count, width = last.shape
  alone = jnp.broadcast_to(
    blocks[1][:, model.prefix :].reshape(-1, 1, width),
    (batch * count, model.prefix + 2, width),
  )
  each = model.head(alone, train).astype(jnp.float32)
  return Tokens(logits, first, last, grid, each.reshape(batch, count, -1))
