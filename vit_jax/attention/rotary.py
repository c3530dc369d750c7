"""Rotations of queries and keys, after which logits depend on offsets."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.attention.places import Position, places
from vit_jax.shapes import Array, Float, Int


def rotate(
  angle: Float[Array, '#B N #H P'], *inputs: Float[Array, 'B N H D']
) -> tuple[Float[Array, 'B N H D'], ...]:
  """Rotates the P = D/2 pairs of neighbouring channels, in float32.

  (x, y) becomes (x cos - y sin, y cos + x sin). The barrier keeps XLA from
  computing sines anew for every example and head, 2 to 5 times as long on a
  CPU; pairs stay together, which it is fastest with.
  """
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  cos, sin = jax.lax.optimization_barrier(
    (jnp.stack([cos, cos], axis=-1), jnp.stack([-sin, sin], axis=-1))
  )
  turned = []
  for x in inputs:
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    y = pairs * cos + pairs[..., ::-1] * sin
    turned.append(y.reshape(x.shape).astype(x.dtype))
  return tuple(turned)


class Rotary(Position):
  """Rotates q and k, so that logits depend on offsets. Su et al. 2021, eq. 34.

  Pair i turns by place · base^(-2i/D); on a grid the first half of the pairs
  by the column and the second by the row, at base^(-4i/D) (Heo et al. 2024,
  eq. 8). Prefix tokens are not rotated.

  Attributes:
    base: None is 10000 for a sequence and 100 on a grid, as in the papers.
  """

  base: float | None = None

  @nn.compact
  def __call__(
    self,
    q: Float[Array, 'B N H D'],
    k: Float[Array, 'B M H D'],
    positions: Int[Array, 'B N'] | None = None,
  ) -> tuple[Array, Array, None]:
    """Rotates; raises a ValueError unless pairs divide D."""
    self.check(q, k)
    width, axes = q.shape[-1], 1 if self.grid is None else 2
    if width % (2 * axes):
      raise ValueError(
        f'rotary needs a head width divisible by {2 * axes} '
        f'{"on a grid" if axes == 2 else "on a sequence"}; it is {width}'
      )
    base = self.base
    if base is None:
      base = 1e4 if axes == 1 else 1e2
    count = width // (2 * axes)
    speed = base ** (-jnp.arange(count, dtype=jnp.float32) / count)
    row, column, patch = places(self, q.shape[1], positions)
    angle = jnp.concatenate(
      [
        x[..., None].astype(jnp.float32) * speed[None, None]
        for x in (column, row)[:axes]
      ],
      axis=-1,
    )
    angle = jnp.where(patch[..., None], angle, 0.0)[:, :, None]
    return *rotate(angle, q, k), None


class RotaryMixed(Position):
  """Rotates by x ω_x + y ω_y, ω learned by head. Heo et al. 2024, eq. 9.

  `frequencies` [2 H D/2] start at base^(-4i/D) in two orthogonal directions,
  which are random by head. Prefix tokens are not rotated.

  Attributes:
    base: of the initial frequencies.
  """

  base: float = 10.0

  @nn.compact
  def __call__(
    self,
    q: Float[Array, 'B N H D'],
    k: Float[Array, 'B M H D'],
    positions: Int[Array, 'B N'] | None = None,
  ) -> tuple[Array, Array, None]:
    """Rotates; raises a ValueError without a grid, or unless 4 divides D."""
    self.check(q, k)
    width = q.shape[-1]
    if self.grid is None or width % 4:
      raise ValueError(
        'rotary_mixed needs a grid and a head width divisible by 4; they are '
        f'{self.grid} and {width}; for sequences there is rotary'
      )

    def initial(key, shape):
      speed = self.base ** (-jnp.arange(width // 4) / (width // 4))
      turn = jax.random.uniform(key, (shape[1], 1), maxval=2 * math.pi)
      turn = jnp.concatenate([turn, turn + math.pi / 2], axis=1)
      direction = jnp.stack([jnp.cos(turn), jnp.sin(turn)])[..., None]
      return (direction * speed[None, None, None]).reshape(shape)

    x, y = self.param('frequencies', initial, (2, q.shape[2], width // 2))
    row, column, patch = (
      z[:, :, None, None].astype(jnp.float32)
      for z in places(self, q.shape[1], positions)
    )
    angle = patch * (column * x[None, None] + row * y[None, None])
    return *rotate(angle, q, k), None
