"""Nyströmformer: softmax attention extrapolated from landmarks."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.attention.base import Attention, refuse_cross
from vit_jax.attention.weights import softmax_of
from vit_jax.shapes import Array, Bool, Float, Int


class Nystrom(Attention):
  """F A⁺ B V + conv(V), O(N·landmarks). Xiong et al. 2021, eq. 13 to 15.

  F = softmax(Q K̃ᵀ / √D), A = softmax(Q̃ K̃ᵀ / √D), B = softmax(Q̃ Kᵀ / √D),
  where Q̃ and K̃ are means of segments of equal length, and A⁺ comes from
  Z ← ¼ Z (13 I - A Z (15 I - A Z (7 I - A Z))), Z₀ = Aᵀ / (‖A‖₁ ‖A‖∞).
  Departures: the norms are those of each matrix, not the largest of the batch,
  which makes examples depend on each other. Segments divide the tokens that
  are not masked, as evenly as their number allows, so that padding moves none.
  It is for self-attention: the mask of the keys is that of the queries' means.

  Attributes:
    landmarks: number of segments, at most N.
    iterations: of the inverse; 6 in the paper, 20 for an exact one.
    conv: width of the depthwise convolution of the values, one filter a head
      (odd, 33 in the paper), over all tokens in their order; 0 has none.
  """

  family = 'low rank'
  published = 'N·m'
  cost = 'N·landmarks'
  source = 'Xiong et al. 2021'

  landmarks: int = 64
  iterations: int = 6
  conv: int = 33

  @nn.compact
  def __call__(
    self,
    q: Float[Array, 'B N H D'],
    k: Float[Array, 'B M H D'],
    v: Float[Array, 'B M H E'],
    *,
    key_mask: Bool[Array, 'B M'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'B N H E']:
    """Attends; means, maps and inverse are in float32.

    Raises:
      ValueError: M ≠ N, no landmark, or a convolution of even width.
    """
    refuse_cross(self, q, k)
    if self.landmarks < 1 or (self.conv and self.conv % 2 == 0):
      raise ValueError(
        f'landmarks={self.landmarks} must be at least 1 and conv={self.conv} '
        'odd, or 0 for none'
      )
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    q = q * q.shape[-1] ** -0.5
    if key_mask is not None:
      v = jnp.where(key_mask[:, None, :, None], v, 0)
    count = min(self.landmarks, q.shape[2])
    means, alive = segment_means(jnp.stack([q, k], 1), count, key_mask)
    q_mean, k_mean = means[:, 0], means[:, 1]
    rows = columns = keys = None
    if key_mask is not None:
      rows, columns = alive[:, None, :, None], alive[:, None, None]
      keys = rows & key_mask[:, None, None]

    def softmax(a, b, keep):
      logits = jnp.einsum(
        'bhnd,bhmd->bhnm', a, b, preferred_element_type=jnp.float32
      )
      return softmax_of(logits, keep)

    middle = softmax(
      q_mean, k_mean, None if key_mask is None else rows & columns
    )
    right = softmax(q_mean, k.astype(jnp.float32), keys)
    # The inverse magnifies rounding, so values stay in float32 up to the end.
    out = jnp.einsum('bhmn,bhne->bhme', right, v.astype(jnp.float32))
    out = inverse(middle, self.iterations) @ out
    out = softmax(q.astype(jnp.float32), k_mean, columns) @ out
    if self.conv:
      out = out + self._convolve(v)
    return out.swapaxes(1, 2).astype(v.dtype)

  def _convolve(self, v):
    batch, heads, length, width = v.shape
    kernel = self.param(
      'conv', nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform'),
      (self.conv, heads),
    )  # fmt: skip
    out = jax.lax.conv_general_dilated(
      jnp.moveaxis(v, 3, 1).reshape(-1, heads, length),
      kernel.T[:, None].astype(v.dtype), (1,), 'SAME',
      feature_group_count=heads, dimension_numbers=('NCH', 'OIH', 'NCH'),
    )  # fmt: skip
    return jnp.moveaxis(out.reshape(batch, width, heads, length), 1, 3)

  def flops(self, n: int, heads: int, width: int) -> float:
    """F, B, their products, the means, the inverse and the convolution."""
    m = min(self.landmarks, n)
    tokens = 8 * n * m * width + 4 * m * m * width + 2 * self.conv * n * width
    means = 4 * n * m * width if n % m else 0
    return heads * (tokens + means + 8.0 * m**3 * self.iterations)

  def temporary(self, n: int, heads: int, width: int) -> float:
    """F and B, each as logits and weights, and the inverse's products."""
    m = min(self.landmarks, n)
    return 4.0 * heads * (4 * n * m + 8 * n * width + 8 * m * m)


def segment_means(
  x: Float[Array, 'B ... N D'],
  count: int,
  key_mask: Bool[Array, 'B N'] | None,
  segment: Int[Array, '1 N'] | None = None,
) -> tuple[Float[Array, 'B ... m D'], Bool[Array, 'B m'] | None]:
  """Means of `count` segments of the tokens that are not masked, float32.

  Args:
    x: the tokens.
    count: number of segments, at most N.
    key_mask: tokens that are not masked.
    segment: of every token; by default segments follow each other and divide
      the tokens that are not masked as evenly as can be.

  Returns:
    The means, and which segments have a token (None without a mask): those
    without have zeros.
  """
  length = x.shape[-2]
  x = x.astype(jnp.float32)
  if segment is None and key_mask is None and length % count == 0:
    parts = x.reshape(*x.shape[:-2], count, length // count, x.shape[-1])
    return parts.mean(axis=-2), None
  keep = jnp.ones((1, length), bool) if key_mask is None else key_mask
  if segment is None:
    total = keep.sum(axis=1, keepdims=True)
    segment = (jnp.cumsum(keep, axis=1) - 1) * count // jnp.maximum(total, 1)
  member = segment[:, None] == jnp.arange(count)[None, :, None]
  member &= keep[:, None]
  sizes = member.sum(axis=-1)
  weights = member / jnp.maximum(sizes, 1)[..., None]
  weights = jnp.broadcast_to(weights, (x.shape[0], count, length))
  if key_mask is not None:  # 0 · inf would be NaN
    shape = (x.shape[0], *(1,) * (x.ndim - 3), length, 1)
    x = jnp.where(keep.reshape(shape), x, 0)
  means = jnp.einsum('bmn,b...nd->b...md', weights, x)
  return means, None if key_mask is None else sizes > 0


def inverse(
  a: Float[Array, '... m m'], iterations: int
) -> Float[Array, '... m m']:
  """Pseudo-inverse by the third-order iteration; rows of zeros stay zeros."""
  eye = jnp.eye(a.shape[-1])
  eye = eye.reshape((1,) * (a.ndim - 2) + eye.shape)
  norms = [
    jnp.abs(a).sum(axis, keepdims=True).max((-2, -1), keepdims=True)
    for axis in (-2, -1)
  ]
  norm = norms[0] * norms[1]

  def step(z, _):
    az = a @ z
    return 0.25 * z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az))), None

  first = a.swapaxes(-2, -1) / jnp.where(norm > 0, norm, 1.0)
  return jax.lax.scan(step, first, length=iterations)[0]
