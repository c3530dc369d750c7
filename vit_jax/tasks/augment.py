"""Augmentation of whole batches inside the jitted step.

Each entry maps `(batch, rng) → batch`: it reads and writes `image` [B Y X C],
in the model's value range, and, where it mixes, `target` [B K], whose rows keep
their sum. Examples of weight 0 are never mixed into others.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vit_jax.shapes import Array, Bool, Float

Batch = dict[str, Array]


def _positive(name: str, value: float | int) -> None:
  if not value > 0:
    raise ValueError(f'{name}={value} must be positive')


def _probability(name: str, value: float) -> None:
  if not 0.0 <= value <= 1.0:
    raise ValueError(f'{name}={value} is not a probability in [0, 1]')


def _partner(batch: Batch) -> tuple[Array, Array, Array]:
  """The next example's image and target, and whether it counts [B]."""
  image, target, weight = (
    jnp.roll(batch[k], 1, axis=0) for k in ('image', 'target', 'weight')
  )
  return image, target, weight > 0


def _mix_targets(batch: Batch, other: Array, share: Array) -> Array:
  return share[:, None] * batch['target'] + (1 - share[:, None]) * other


@dataclasses.dataclass(frozen=True)
class Mixup:
  """λ·example + (1 - λ)·next example, λ ~ Beta(α, α) once a batch.

  Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization".
  """

  alpha: float = 0.2

  def __post_init__(self):
    _positive('alpha', self.alpha)

  def __call__(self, batch: Batch, rng: jax.Array) -> Batch:
    """Mixes images and targets."""
    share = jax.random.beta(rng, self.alpha, self.alpha)
    image, target, counts = _partner(batch)
    share = jnp.where(counts, share, 1.0)
    s = share[:, None, None, None].astype(image.dtype)
    return {
      **batch,
      'image': s * batch['image'] + (1 - s) * image,
      'target': _mix_targets(batch, target, share),
    }


@dataclasses.dataclass(frozen=True)
class Cutmix:
  """Pastes a box of the next image; labels mix by the area left over.

  The box has area 1 - λ, λ ~ Beta(α, α), before it is cut at the border, and a
  uniform centre. Yun et al. 2019, "CutMix".
  """

  alpha: float = 1.0

  def __post_init__(self):
    _positive('alpha', self.alpha)

  def box(self, batch: Batch, rng: jax.Array) -> Bool[Array, 'B Y X']:
    """The pixels that are the next image's."""
    area, centre = jax.random.split(rng)
    side = jnp.sqrt(1.0 - jax.random.beta(area, self.alpha, self.alpha))
    _, height, width, _ = batch['image'].shape
    box = _box(jax.random.uniform(centre, (1, 2)), side, side, height, width)
    return box & _partner(batch)[2][:, None, None]

  def __call__(self, batch: Batch, rng: jax.Array) -> Batch:
    """Mixes images and targets; by the box `pasted`, if it is drawn already."""
    box = batch['pasted'] if 'pasted' in batch else self.box(batch, rng)
    image, target, _ = _partner(batch)
    share = 1.0 - box.mean((1, 2), dtype=jnp.float32)
    return {
      **batch,
      'image': jnp.where(box[..., None], image, batch['image']),
      'target': _mix_targets(batch, target, share),
    }


@dataclasses.dataclass(frozen=True)
class MixupOrCutmix:
  """CutMix with probability `switch`, else mixup: DeiT's rule, once a batch."""

  mixup: float = 0.8
  cutmix: float = 1.0
  switch: float = 0.5

  def __post_init__(self):
    _positive('mixup', self.mixup)
    _positive('cutmix', self.cutmix)
    _probability('switch', self.switch)

  def __call__(self, batch: Batch, rng: jax.Array) -> Batch:
    """Mixes images and targets."""
    coin, rng = jax.random.split(rng)
    return jax.lax.cond(
      jax.random.bernoulli(coin, self.switch),
      Cutmix(self.cutmix),
      Mixup(self.mixup),
      batch,
      rng,
    )


@dataclasses.dataclass(frozen=True)
class Erasing:
  """Fills a random rectangle of an image with Gaussian noise N(0, 1).

  Zhong et al. 2020, "Random Erasing"; noise a pixel, as DeiT uses it.

  Attributes:
    probability: of erasing, for each example.
    area_min, area_max: share of the image.
    ratio: the aspect ratio is log-uniform in [ratio, 1/ratio].
  """

  probability: float = 0.25
  area_min: float = 0.02
  area_max: float = 1 / 3
  ratio: float = 0.3

  def __post_init__(self):
    _probability('probability', self.probability)
    _positive('ratio', self.ratio)
    if not 0 < self.area_min <= self.area_max <= 1:
      raise ValueError(
        f'areas must satisfy 0 < area_min <= area_max <= 1; got '
        f'{self.area_min} and {self.area_max}'
      )

  def __call__(self, batch: Batch, rng: jax.Array) -> Batch:
    """Erases; targets are unchanged."""
    image = batch['image']
    count, height, width, _ = image.shape
    keys = jax.random.split(rng, 5)
    area = jax.random.uniform(
      keys[0], (count,), minval=self.area_min, maxval=self.area_max
    )
    ratio = jnp.exp(
      jnp.log(self.ratio)
      * jax.random.uniform(keys[1], (count,), minval=-1, maxval=1)
    )
    # In units of the sides; clipped, so that a flat box still fits.
    rows = jnp.clip(jnp.sqrt(area * ratio), 0.0, 1.0)
    columns = jnp.clip(jnp.sqrt(area / ratio), 0.0, 1.0)
    sides = jnp.stack([rows, columns], axis=1)
    # Whole inside the image, unlike CutMix's box.
    at = sides / 2 + (1 - sides) * jax.random.uniform(keys[2], (count, 2))
    box = _box(at, rows, columns, height, width)
    erase = jax.random.bernoulli(keys[3], self.probability, (count,))
    noise = jax.random.normal(keys[4], image.shape, image.dtype)
    where = (box & erase[:, None, None])[..., None]
    return {**batch, 'image': jnp.where(where, noise, image)}


@dataclasses.dataclass(frozen=True)
class Flip:
  """Mirrors left and right with probability ½ an example."""

  def __call__(self, batch: Batch, rng: jax.Array) -> Batch:
    """Flips; targets are unchanged."""
    image = batch['image']
    coin = jax.random.bernoulli(rng, 0.5, (len(image), 1, 1, 1))
    return {**batch, 'image': jnp.where(coin, image[:, :, ::-1], image)}


@dataclasses.dataclass(frozen=True)
class PadCrop:
  """Shifts an image by up to `padding` pixels, edges reflected.

  The crop of the padded image, as in He et al. 2016 for CIFAR.
  """

  padding: int = 4

  def __post_init__(self):
    _positive('padding', self.padding)

  def __call__(self, batch: Batch, rng: jax.Array) -> Batch:
    """Shifts; targets are unchanged."""
    image, p = batch['image'], self.padding
    padded = jnp.pad(image, ((0, 0), (p, p), (p, p), (0, 0)), mode='reflect')
    start = jax.random.randint(rng, (len(image), 2), 0, 2 * p + 1)
    crop = lambda x, at: jax.lax.dynamic_slice(  # noqa: E731
      x, (at[0], at[1], 0), image.shape[1:]
    )
    return {**batch, 'image': jax.vmap(crop)(padded, start)}


def _box(
  centre: Float[Array, 'b 2'], rows, columns, height: int, width: int
) -> Array:
  """Pixels inside boxes given in units of the sides: Bool[b Y X]."""
  inside = []
  for axis, (side, count) in enumerate(((rows, height), (columns, width))):
    side = jnp.broadcast_to(side, centre.shape[:1])
    low = jnp.round((centre[:, axis] - side / 2) * count)[:, None]
    high = jnp.round((centre[:, axis] + side / 2) * count)[:, None]
    at = jnp.arange(count)[None]
    inside.append((at >= low) & (at < high))
  return inside[0][:, :, None] & inside[1][:, None, :]


AUGMENTATIONS: dict[str, Callable[..., Callable]] = {
  'mixup': Mixup,  # Zhang et al. 2018
  'cutmix': Cutmix,  # Yun et al. 2019
  'mixup_or_cutmix': MixupOrCutmix,  # DeiT's alternation
  'erasing': Erasing,  # Zhong et al. 2020
  'flip': Flip,
  'pad_crop': PadCrop,  # He et al. 2016
}
