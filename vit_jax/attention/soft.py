"""SOFT: attention with a Gaussian kernel instead of a softmax."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.attention.base import refuse_other_grid
from vit_jax.attention.multihead import Mixer, project, project_out
from vit_jax.attention.nystrom import segment_means
from vit_jax.shapes import Array, Bool, Float


class Soft(Mixer):
  """C A⁺ Cᵀ V, O(N·landmarks). Lu et al. 2021, eq. 4, 8 and 10.

  C = κ(Q, Q̃), A = κ(Q̃, Q̃), κ(q, q') = exp(-‖q - q'‖² / 2√D): queries are the
  keys, so there is no projection `key`; rows are not normalised. Landmarks Q̃
  are means over the cells of an adaptive pooling of the grid (without a grid,
  over segments of the tokens that are not masked); a prefix token is a landmark
  of its own. A⁺ comes from Z ← 2Z - Z A Z, Z₀ = A / ‖A‖₁²; the paper's
  2 / ‖A‖₁² maps a matrix with equal row sums, such as one landmark, to 0.

  Attributes:
    landmarks: number of cells, rounded down to a square on a grid.
    iterations: of the inverse.
  """

  family = 'low rank'
  published = 'N·m'
  cost = 'N·landmarks'
  source = 'Lu et al. 2021'

  landmarks: int = 49
  iterations: int = 20

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B N C'],
    *,
    key_mask: Bool[Array, 'B N'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'B N C']:
    """Applies the layer; kernels and inverse are in float32.

    Raises:
      ValueError: normalize_qk or dropout_rate, or tokens that are not the
        grid's.
    """
    self.refuse_fields('normalize_qk', 'dropout_rate')
    refuse_other_grid(self, x.shape[1])
    width = x.shape[-1]
    q, v = (
      project(self, name, x, width).swapaxes(1, 2).astype(jnp.float32)
      for name in ('query', 'value')
    )
    q = q * q.shape[-1] ** -0.25
    segment, count = self._cells(x.shape[1])
    means, alive = segment_means(q, count, key_mask, segment)
    if key_mask is not None:
      v = jnp.where(key_mask[:, None, :, None], v, 0)
    wide, middle = _gaussian(q, means), _gaussian(means, means)
    if alive is not None:
      columns = alive[:, None, None]
      wide = jnp.where(columns, wide, 0)
      middle = jnp.where(columns & alive[:, None, :, None], middle, 0)
    y = jnp.einsum('bhnm,bhnd->bhmd', wide, v)
    y = wide @ (_inverse(middle, self.iterations) @ y)
    return project_out(self, y.swapaxes(1, 2).astype(self.dtype), width)

  def _cells(self, n: int):
    if self.grid is None:
      return None, min(self.landmarks, n)
    side = math.isqrt(self.landmarks)
    rows, columns = (min(side, s) for s in self.grid)
    row, column = np.indices(self.grid).reshape(2, -1)
    cell = row * rows // self.grid[0] * columns
    cell = self.prefix + cell + column * columns // self.grid[1]
    segment = np.concatenate([np.arange(self.prefix), cell])[None]
    return jnp.asarray(segment), self.prefix + rows * columns

  def flops(self, n: int, heads: int, width: int) -> float:
    """Three projections, the means, the kernels, products and the inverse."""
    channels = heads * width
    _, m = self._cells(n)
    means = 2.0 * n * m * channels if self.grid or n % m else 0.0
    inner = heads * (4.0 * m * m * width + 4.0 * m**3 * self.iterations)
    return n * channels * (6.0 * channels + 6.0 * m) + means + inner

  def temporary(self, n: int, heads: int, width: int) -> float:
    """The kernels, a few [N C] arrays and the inverse's products."""
    m = self._cells(n)[1]
    return 4.0 * heads * (3 * n * m + 8 * n * width + 6 * m * m)


def _gaussian(a, b):
  squares = (a**2).sum(-1)[..., None] + (b**2).sum(-1)[..., None, :]
  return jnp.exp(jnp.einsum('bhnd,bhmd->bhnm', a, b) - squares / 2)


def _inverse(a, iterations: int):
  norm = jnp.abs(a).sum(axis=-1, keepdims=True).max(axis=-2, keepdims=True)

  def step(z, _):
    return 2 * z - z @ (a @ z), None

  first = a / jnp.where(norm > 0, norm, 1.0) ** 2
  return jax.lax.scan(step, first, length=iterations)[0]
