"""Attention whose keys and values are fewer than the tokens: vision's ways."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from vit_jax.attention.base import Attention, refuse_cross, refuse_other_grid
from vit_jax.attention.multihead import Mixer, normalize, project, project_out
from vit_jax.attention.strides import Windows, attend, pool_heads
from vit_jax.shapes import Array, Bool, Float


class Pooled(Attention):
  """softmax(Q pool(K)ᵀ / √D) pool(V) (+ Q), O(N·M / stride²).

  Fan et al. 2021 (MViT), eq. 1, 2 and section 3.1 with an unpooled Q; the
  residual is Li et al. 2022 (MViTv2), eq. 4. All heads share the convolution,
  which is depthwise, and have no LayerNorm after it. A window takes the
  unmasked tokens only (zeros for 'convolution').

  Attributes:
    stride: of the windows, in both directions; 1D without a grid.
    size: of the windows; 0 takes the stride: windows do not overlap.
    method: 'average', 'max' or 'convolution' (the paper's default).
    residual: whether to add the queries to the output; needs E = D.
    dropout_rate: of the attention weights, in training.
  """

  family = 'memory'
  published = 'N²/s²'
  cost = 'N²/stride²'
  source = 'Fan et al. 2021'
  linear_in_values = False  # 'max', and the residual

  stride: int = 2
  size: int = 0
  method: str = 'average'
  residual: bool = False
  dropout_rate: float = 0.0

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
    """Attends.

    Raises:
      ValueError: M ≠ N, tokens that are not the grid's, an unknown method, or
        a residual where E ≠ D.
    """
    refuse_cross(self, q, k)
    refuse_other_grid(self, q.shape[1])
    if self.residual and q.shape[-1] != v.shape[-1]:
      raise ValueError(
        f'residual=True adds queries of width {q.shape[-1]} to values of width '
        f'{v.shape[-1]}; they must be equal'
      )
    windows = self._windows(q.shape[1])
    k, v = (
      pool_heads(windows, x, key_mask, self.method, name)
      for name, x in (('pool_keys', k), ('pool_values', v))
    )
    out = attend(self, q, k, v, windows.key_mask(key_mask), train)
    return out + q.astype(out.dtype) if self.residual else out

  def _windows(self, n: int) -> Windows:
    size = self.size or self.stride
    return Windows(self.grid, self.prefix, n, self.stride, size)

  def flops(self, n: int, heads: int, width: int) -> float:
    """The logits, the weights times V, and two convolutions."""
    windows, channels = self._windows(n), heads * width
    keys = self.prefix + float(np.prod(windows.out))
    convolutions = 4.0 * windows.macs(channels, channels)
    convolves = self.method == 'convolution'
    return 4.0 * n * keys * channels + convolves * convolutions

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Logits and weights, and a few [N D] arrays."""
    keys = self.prefix + float(np.prod(self._windows(n).out))
    return 4.0 * heads * (3 * n * keys + 10 * n * width)


class SpatialReduction(Mixer):
  """Attention to keys and values of LN(Conv(x)), O(N²/ratio²).

  Wang et al. 2021 (PVT), eq. 1 to 3: the convolution's kernel and stride are
  `ratio`; with ratio=1 there is neither convolution nor norm. With pool, Wang
  et al. 2022 (PVTv2), section 3.2, "linear SRA": keys and values are of
  GELU(LN(Dense(pooled x))), pooled adaptively to pool × pool cells, O(N·pool²).
  Prefix tokens are keys as they are, beside the reduced grid. Without a grid
  the pooled cells follow from N, so that padding moves them.

  Attributes:
    ratio: the paper's R; `ratio` tokens a key without a grid.
    pool: side of the pooled grid, 7 in PVTv2 (`pool` cells without a grid); 0
      reduces by `ratio`.
    as_code: what the authors' code does where the grid does not fit: tokens in
      no whole ratio × ratio are left out, not filled up with zeros; a grid of
      less than pool × pool still gives that many cells, which overlap.
    reduce_epsilon: of the norm of the reduced tokens; None: epsilon.
    reduce_init: of the convolution or Dense before it; None: kernel_init of the
      convolution, linen's default of the Dense.
  """

  family = 'memory'
  published = 'N²/R²'
  cost = 'N²/ratio²'
  source = 'Wang et al. 2021'

  ratio: int = 2
  pool: int = 0
  as_code: bool = False
  reduce_epsilon: float | None = None
  reduce_init: Callable | None = None

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B N C'],
    *,
    key_mask: Bool[Array, 'B N'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'B N C']:
    """Applies the layer.

    Raises:
      ValueError: tokens that are not the grid's.
    """
    n, width = x.shape[1:]
    refuse_other_grid(self, n)
    x = x.astype(self.dtype)
    q = project(self, 'query', x, width)
    reduced, windows = x, self._windows(n)
    if self.pool:
      prefix, patches, keep = windows.split(x, key_mask)
      patches, keep = _adaptive(patches, keep, self._cells(windows))
      init = {'kernel_init': self.reduce_init} if self.reduce_init else {}
      patches = nn.Dense(width, dtype=self.dtype, name='reduce', **init)(
        patches
      )
      patches = nn.gelu(self._norm(patches), approximate=False)
      reduced = windows.join(prefix, patches)
      if key_mask is not None:
        keep = keep.reshape(key_mask.shape[0], -1)
        key_mask = jnp.concatenate([key_mask[:, : self.prefix], keep], axis=1)
    elif self.ratio > 1:
      prefix, patches, keep = windows.split(x, key_mask)
      convolution = windows.tiles(
        width, dtype=self.dtype, name='reduce',
        kernel_init=self.reduce_init or self.kernel_init,
      )  # fmt: skip
      reduced = windows.join(prefix, self._norm(convolution(patches)))
      key_mask = windows.key_mask(key_mask)
    k = project(self, 'key', reduced, width)
    v = project(self, 'value', reduced, width)
    q, k = normalize(self, q, k)
    return project_out(self, attend(self, q, k, v, key_mask, train), width)

  def _norm(self, x):
    epsilon = self.epsilon
    if self.reduce_epsilon is not None:
      epsilon = self.reduce_epsilon
    return nn.LayerNorm(
      epsilon=epsilon, dtype=self.dtype, name='reduce_ln'
    )(x)

  def _windows(self, n: int) -> Windows:
    # Pooling takes of them only how the tokens lie.
    ratio = 1 if self.pool else self.ratio
    return Windows(
      self.grid, self.prefix, n, ratio, ratio, cover=not self.as_code
    )

  def _cells(self, windows: Windows) -> tuple[int, int]:
    if self.as_code and self.grid is not None:
      return self.pool, self.pool
    rows, columns = (min(self.pool, side) for side in windows.shape)
    return rows, columns

  def flops(self, n: int, heads: int, width: int) -> float:
    """The projections, the reduction, the logits and the weights times V."""
    channels = heads * width
    windows = self._windows(n)
    out, reduction = windows.out, 2.0 * windows.macs(channels, 1)
    if self.pool:
      out = self._cells(windows)
      rows, columns = windows.shape
      reduction = 2.0 * np.prod(out) * channels**2
      reduction += 2.0 * out[0] * columns * channels * (rows + out[1])
    elif self.ratio == 1:
      reduction = 0.0
    keys = self.prefix + float(np.prod(out))
    attention = 4.0 * n * keys * channels
    return 4.0 * (n + keys) * channels**2 + reduction + attention

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Logits and weights, and a few [N C] arrays."""
    windows = self._windows(n)
    out = self._cells(windows) if self.pool else windows.out
    keys = self.prefix + float(np.prod(out))
    return 4.0 * heads * (3 * n * keys + 10 * n * width)


def _adaptive(patches, keep, cells):
  """Means of the cells ⌊i·n/p⌋ … ⌈(i + 1)·n/p⌉ - 1 of rows and columns."""
  members = []
  for n, p in zip(patches.shape[1:3], cells, strict=True):
    first, place = np.arange(p)[:, None], np.arange(n)
    inside = (place >= first * n // p) & (place < -(-(first + 1) * n // p))
    members.append(jnp.asarray(inside, jnp.float32))

  def total(x):
    x = jnp.einsum('pr,brcf->bpcf', members[0], x.astype(jnp.float32))
    return jnp.einsum('qc,bpcf->bpqf', members[1], x)

  count = jnp.einsum('pr,qc->pq', *members)[None, :, :, None]
  if keep is not None:
    count = total(keep)
  out = total(patches) / jnp.maximum(count, 1)
  return out.astype(patches.dtype), None if keep is None else count > 0
