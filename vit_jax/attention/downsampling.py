"""Layers that change the number of tokens; they are beside the tables.

Each returns the new tokens with what the next layer has to know of them: a
grid, a mask, or sizes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.attention.base import refuse_other_grid
from vit_jax.attention.multihead import (
  Projected,
  normalize,
  project,
  project_out,
)
from vit_jax.attention.set_transformer import MultiheadAttentionBlock
from vit_jax.attention.strides import Windows, attend, pool_heads
from vit_jax.shapes import Array, Bool, Float, Int


class Shorter(NamedTuple):
  """Fewer tokens: the prefix, then ⌈rows / stride⌉ × ⌈columns / stride⌉.

  Attributes:
    x: the layer's output [B U C].
    skip: the pooled input [B U C], what a residual connection adds.
    key_mask: which tokens are made of an unmasked one; None without a mask.
    grid: of the new tokens; None for a sequence of ⌈length / stride⌉.
  """

  x: Array
  skip: Array
  key_mask: Array | None
  grid: tuple[int, int] | None


class Downsampling(Projected):
  """What the layers that pool queries share."""

  def _pool(
    self, x, key_mask, stride: int, size: int, method: str
  ) -> tuple[Array, Windows]:
    windows = Windows(self.grid, self.prefix, x.shape[1], stride, size)
    prefix, patches, keep = windows.split(x, key_mask)
    return windows.join(prefix, windows.pool(patches, keep, method)), windows

  def _shorter(self, x, skip, key_mask, windows: Windows) -> Shorter:
    grid = None if self.grid is None else windows.out
    return Shorter(x, skip, windows.key_mask(key_mask), grid)


class FunnelAttention(Downsampling):
  """softmax(Q Kᵀ / √D) V with Q of pooled x, O(N²/stride²). Dai et al. 2020.

  Eq. 2 and 3: only the queries are pooled, by means (`method='average'`) of the
  unmasked tokens of windows that do not overlap; keys and values are of all
  tokens. The residual connection adds the pooled x, `skip`.

  Attributes:
    stride: of the pooling; in both directions of the grid.
    method: 'average' or 'max'.
  """

  stride: int = 2
  method: str = 'average'

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B N C'],
    *,
    key_mask: Bool[Array, 'B N'] | None = None,
    train: bool = False,
  ) -> Shorter:
    """Applies the layer.

    Raises:
      ValueError: tokens that are not the grid's, or an unknown method.
    """
    refuse_other_grid(self, x.shape[1])
    width = x.shape[-1]
    pooled, windows = self._pool(
      x, key_mask, self.stride, self.stride, self.method
    )
    q = project(self, 'query', pooled, width)
    k = project(self, 'key', x, width)
    v = project(self, 'value', x, width)
    q, k = normalize(self, q, k)
    y = project_out(self, attend(self, q, k, v, key_mask, train), width)
    return self._shorter(y, pooled, key_mask, windows)


class PoolingAttention(Downsampling):
  """softmax(Q' K'ᵀ / √D) V' + Q', each LN(pool(·)). Fan et al. 2021, eq. 1, 2.

  O(N² / (stride² · key_stride²)). The residual is Li et al. 2022, eq. 4.
  The heads share the depthwise convolution and the LayerNorm; windows are at
  least as large as their stride, so that none leaves out tokens between them.
  `skip` is the maximum of the windows of x.

  Attributes:
    stride: of the queries, so of the output.
    key_stride: of keys and values.
    size: of the windows.
    method: 'convolution', 'average' or 'max'.
    residual: whether to add the pooled queries.
  """

  stride: int = 2
  key_stride: int = 2
  size: int = 3
  method: str = 'convolution'
  residual: bool = True

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B N C'],
    *,
    key_mask: Bool[Array, 'B N'] | None = None,
    train: bool = False,
  ) -> Shorter:
    """Applies the layer.

    Raises:
      ValueError: tokens that are not the grid's, or an unknown method.
    """
    n, width = x.shape[1:]
    refuse_other_grid(self, n)
    made, masks = {}, {}
    for name, stride in (
      ('query', self.stride), ('key', self.key_stride),
      ('value', self.key_stride),
    ):  # fmt: skip
      windows = Windows(
        self.grid, self.prefix, n, stride, max(self.size, stride)
      )
      tokens = pool_heads(
        windows, project(self, name, x, width), key_mask, self.method,
        f'pool_{name}',
      )  # fmt: skip
      made[name] = nn.LayerNorm(
        epsilon=self.epsilon, dtype=self.dtype, name=f'pool_{name}_ln'
      )(tokens)
      masks[name] = windows.key_mask(key_mask)
    q, k = normalize(self, made['query'], made['key'])
    y = attend(self, q, k, made['value'], masks['key'], train)
    y = project_out(self, y + q if self.residual else y, width)
    skip, windows = self._pool(
      x, key_mask, self.stride, max(self.size, self.stride), 'max'
    )
    return self._shorter(y, skip, key_mask, windows)


class PoolingByAttention(nn.Module):
  """PMA: MAB(S, rFF(x)), S learned [seeds C], O(N·seeds). Lee et al. 2019.

  Eq. 11, with `MultiheadAttentionBlock` as MAB and one Dense with a ReLU as
  rFF.

  Attributes:
    seeds: the number of tokens of the output; the paper's k.
    Others as in `MultiheadAttentionBlock`.
  """

  num_heads: int = 1
  seeds: int = 1
  norm: bool = True
  epsilon: float = 1e-6
  dtype: Any = jnp.float32
  kernel_init: Callable = nn.initializers.xavier_uniform()

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B N C'],
    *,
    key_mask: Bool[Array, 'B N'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'B S C']:
    """Pools the tokens; all masked, the seeds alone make the output."""
    width = x.shape[-1]
    seeds = self.param(
      'seeds', nn.initializers.xavier_uniform(), (self.seeds, width)
    )
    seeds = jnp.broadcast_to(seeds[None], (x.shape[0], *seeds.shape))
    y = nn.Dense(
      width, dtype=self.dtype, kernel_init=self.kernel_init,
      name='feed_forward',
    )(x)  # fmt: skip
    return MultiheadAttentionBlock(
      self.num_heads, self.norm, epsilon=self.epsilon, dtype=self.dtype,
      kernel_init=self.kernel_init, name='pool',
    )(seeds.astype(self.dtype), nn.relu(y), key_mask=key_mask, train=train)


class Merged(NamedTuple):
  """Tokens after a merge, in the order in which they were.

  Attributes:
    x: [B N-r C]; a token made of masked ones is zeros.
    sizes: [B N-r], how many unmasked tokens are in each.
    origin: [B N], in which of them every token went, to undo it by
      `take_along_axis`.
  """

  x: Array
  sizes: Array
  origin: Array


class TokenMerging(nn.Module):
  """Merges the r pairs of tokens with the most similar keys. Bolya et al. 2023.

  Section 3, "bipartite soft matching": tokens at even places choose the token
  at an odd place with the largest cosine of the keys' means over the heads; the
  r best choices are merged, as means weighted by size. The next attention adds
  log size to its logits, `size_bias`. Prefix tokens do not merge. Masked tokens
  have size 0, merge first, and never are what an unmasked one merges into while
  it has another choice. O(N²·D/4) for the choice, without a parameter.
  Departure: the tokens stay in their order, so the prefix stays first.

  Attributes:
    merge: r, at most half of the tokens after the prefix.
    prefix: tokens that do not merge, at the front.
  """

  merge: int = 8
  prefix: int = 0

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B N C'],
    keys: Float[Array, 'B N H D'],
    *,
    sizes: Float[Array, 'B N'] | None = None,
    key_mask: Bool[Array, 'B N'] | None = None,
  ) -> Merged:
    """Merges tokens; `sizes` are those of the merge before.

    Raises:
      ValueError: more merges than the tokens allow.
    """
    n, most = x.shape[1], (x.shape[1] - self.prefix) // 2
    if not 0 <= self.merge <= most:
      raise ValueError(
        f'merge={self.merge} must be from 0 to {most}, half of the {n} tokens '
        f'after prefix={self.prefix}'
      )
    if sizes is None:
      sizes = jnp.ones(x.shape[:2])
    if key_mask is not None:
      sizes = jnp.where(key_mask, sizes, 0)
    if self.merge == 0:
      place = jnp.broadcast_to(jnp.arange(n)[None], x.shape[:2])
      return Merged(x, sizes, place)
    origin = self._match(keys, sizes > 0)
    total = _sum_into(origin, sizes, n - self.merge)
    by = sizes[..., None]  # where it is 0, x may be infinite
    weighed = jnp.where(by > 0, x.astype(jnp.float32) * by, 0)
    out = _sum_into(origin, weighed, n - self.merge)
    out = out / jnp.where(total > 0, total, 1.0)[..., None]
    return Merged(out.astype(x.dtype), total, origin)

  def _match(
    self, keys: Float[Array, 'B N H D'], keep: Bool[Array, 'B N']
  ) -> Int[Array, 'B N']:
    batch, n = keep.shape
    metric = keys.astype(jnp.float32).mean(axis=2)
    norm = jnp.linalg.norm(metric, axis=-1, keepdims=True)
    metric = metric / jnp.maximum(norm, 1e-12)  # only against 0 / 0
    even, odd = slice(0, n, 2), slice(1, n, 2)
    scores = jnp.einsum('bnd,bmd->bnm', metric[:, even], metric[:, odd])
    # A cosine is between -1 and 1: masked tokens go first, and come last.
    scores = jnp.where(keep[:, None, odd], scores, -2.0)
    scores = jnp.where(keep[:, even, None], scores, 2.0)
    place = jnp.arange(n)
    fixed = (place[even, None] < self.prefix) | (place[None, odd] < self.prefix)
    scores = jnp.where(fixed[None], -jnp.inf, scores)
    _, chosen = jax.lax.top_k(scores.max(axis=-1), self.merge)
    rows = jnp.arange(batch)[:, None]
    partner = 2 * scores.argmax(axis=-1)[rows, chosen] + 1
    target = jnp.broadcast_to(place[None], keep.shape)
    target = target.at[rows, 2 * chosen].set(partner)
    stays = target == place[None]
    return (jnp.cumsum(stays, axis=1) - 1)[rows, target]


def _sum_into(origin, x, count: int):
  add = lambda o, x: jax.ops.segment_sum(x, o, num_segments=count)  # noqa: E731
  return jax.vmap(add)(origin, x)


def size_bias(
  sizes: Float[Array, 'B M'], queries: int
) -> tuple[Float[Array, 'B 1 N M'], Bool[Array, 'B M']]:
  """The bias log size and the key mask size > 0 of proportional attention."""
  keep = sizes > 0
  bias = jnp.log(jnp.where(keep, sizes, 1.0))[:, None, None]
  shape = (sizes.shape[0], 1, queries, sizes.shape[1])
  return jnp.broadcast_to(bias, shape), keep
