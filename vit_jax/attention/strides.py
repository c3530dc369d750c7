"""Windows that stride over the tokens: pooling and convolution on the grid.

Without a grid they slide over the sequence, as wide as a grid's window has
rows. The prefix tokens are left as they are.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.attention.depthwise import DepthwiseConv, Padding, Sides
from vit_jax.attention.weights import logits_of, mixed
from vit_jax.shapes import Array, Bool, Float


class TileConv(nn.Module):
  """Convolution whose windows are its strides: [B Y X C] → [B y x F].

  Equals `nn.Conv(features, size, size, padding)`, with its parameters, as one
  matrix product. Negative padding leaves cells out.
  """

  features: int
  size: Sides
  padding: Padding
  dtype: Any = jnp.float32
  kernel_init: Callable = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(self, x: Float[Array, 'B Y X C']) -> Float[Array, 'B y x F']:
    """Convolves."""
    rows, columns = self.size
    channels = x.shape[-1]
    kernel = self.param(
      'kernel', self.kernel_init, (rows, columns, channels, self.features)
    )
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    x = x.astype(self.dtype)
    around = [(0, 0), *self.padding, (0, 0)]
    zero = jnp.zeros((), x.dtype)
    x = jax.lax.pad(x, zero, [(low, high, 0) for low, high in around])
    b, height, width, _ = x.shape
    x = x.reshape(
      b, height // rows, rows, width // columns, columns, channels
    ).swapaxes(2, 3)
    x = x.reshape(*x.shape[:3], rows * columns * channels)
    kernel = kernel.reshape(-1, self.features).astype(self.dtype)
    return x @ kernel + bias.astype(self.dtype)[None, None, None]


class Windows:
  """Windows of size ≥ stride over a grid, one for each cell of stride × stride.

  A window is centred on its cell, as far as the numbers are even; beyond the
  border there is nothing. A cell without an unmasked token has no window, so
  padding adds none. With cover=False neither has a cell that reaches over the
  border.

  Attributes:
    shape: (rows, columns) of the tokens; (N, 1) for a sequence.
    size, stride: of the windows, (rows, columns); (·, 1) for a sequence.
    out: (rows, columns) of the windows.
  """

  def __init__(
    self, grid, prefix: int, n: int, stride: int, size: int, cover: bool = True
  ):
    """Of `n` tokens, with `grid` and `prefix` as in `Attention`.

    Raises:
      ValueError: a stride below 1, a size below the stride, or no window.
    """
    if not 1 <= stride <= size:
      raise ValueError(
        f'stride={stride} must be at least 1 and at most the size {size}'
      )
    self.prefix = prefix
    self.shape = (n - prefix, 1) if grid is None else grid
    sides = (1, 0) if grid is None else (1, 1)
    self.stride, self.size = ([s if i else 1 for i in sides]
                              for s in (stride, size))  # fmt: skip
    self.out = tuple(
      -(-n // s) if cover else n // s
      for n, s in zip(self.shape, self.stride, strict=True)
    )
    if not cover and not all(self.out):
      raise ValueError(
        f'a grid of {self.shape[0]}×{self.shape[1]} tokens has no whole cell '
        f'of {self.stride[0]}×{self.stride[1]}'
      )
    self.padding = []
    for n, out, s, w in zip(
      self.shape, self.out, self.stride, self.size, strict=True
    ):
      before = (w - s + 1) // 2
      after = (out - 1) * s + w - before - n
      self.padding.append((before, after if w == s else max(0, after)))

  def split(
    self, x: Float[Array, 'B N F'], key_mask: Bool[Array, 'B N'] | None
  ) -> tuple[Array, Array, Array | None]:
    """The prefix tokens, the grid [B rows columns F], its mask [B … 1].

    Masked tokens of the grid are zeros.
    """
    patches, keep = x[:, self.prefix :], None
    if key_mask is not None:
      keep = key_mask[:, self.prefix :].reshape(-1, *self.shape, 1)
    patches = patches.reshape(-1, *self.shape, x.shape[-1])
    if keep is not None:
      patches = jnp.where(keep, patches, 0)
    return x[:, : self.prefix], patches, keep

  def join(self, prefix: Array, patches: Array) -> Float[Array, 'B U F']:
    """The prefix tokens and the windows [B rows columns F] in one sequence."""
    flat = patches.reshape(patches.shape[0], -1, patches.shape[-1])
    return jnp.concatenate([prefix, flat], axis=1)

  def key_mask(
    self, key_mask: Bool[Array, 'B N'] | None
  ) -> Bool[Array, 'B U'] | None:
    """Which of the joined tokens come from an unmasked one."""
    if key_mask is None:
      return None
    fill = [
      (0, out * s - n)
      for n, out, s in zip(self.shape, self.out, self.stride, strict=True)
    ]
    cells = key_mask[:, self.prefix :].reshape(-1, *self.shape)
    around = [(0, 0, 0), *((low, high, 0) for low, high in fill)]
    cells = jax.lax.pad(cells, jnp.zeros((), bool), around).reshape(
      -1, self.out[0], self.stride[0], self.out[1], self.stride[1]
    )
    cells = cells.any((2, 4)).reshape(key_mask.shape[0], -1)
    return jnp.concatenate([key_mask[:, : self.prefix], cells], axis=1)

  def depthwise(self, **fields) -> DepthwiseConv:
    """A convolution of each channel, to call on [B rows columns F]."""
    return DepthwiseConv(
      tuple(self.size), tuple(self.stride), tuple(self.padding), **fields
    )

  def tiles(self, features: int, **fields) -> TileConv:
    """A convolution of windows that do not overlap, size = stride."""
    assert self.size == self.stride
    return TileConv(
      features, tuple(self.size), tuple(self.padding), **fields
    )

  def pool(self, patches: Array, keep: Array | None, method: str) -> Array:
    """The 'average' or 'max' of each window's unmasked tokens.

    Raises:
      ValueError: unknown method.
    """
    if method not in ('average', 'max'):
      raise ValueError(f"method={method!r}; choices: ('average', 'max')")
    if keep is None:
      keep = jnp.ones((1, *self.shape, 1), bool)
    x = patches.astype(jnp.float32)
    slide = lambda x, init, by: jax.lax.reduce_window(  # noqa: E731
      x, init, by, (1, *self.size, 1), (1, *self.stride, 1),
      ((0, 0), *self.padding, (0, 0)),
    )  # fmt: skip
    count = slide(keep.astype(jnp.float32), 0.0, jax.lax.add)
    if method == 'average':
      x = slide(jnp.where(keep, x, 0), 0.0, jax.lax.add)
      x = x / jnp.maximum(count, 1)
    else:
      x = slide(jnp.where(keep, x, -jnp.inf), -jnp.inf, jax.lax.max)
      x = jnp.where(count > 0, x, 0)
    return x.astype(patches.dtype)

  def macs(self, channels: int, groups: int) -> float:
    """Multiply-adds of such a convolution with as many features out as in."""
    each = np.prod(self.size) * channels * channels / groups
    return float(np.prod(self.out) * each)


def pool_heads(
  windows: Windows,
  x: Float[Array, 'B N H D'],
  key_mask: Bool[Array, 'B N'] | None,
  method: str,
  name: str,
) -> Float[Array, 'B U H D']:
  """Pools tokens of heads; call it inside `nn.compact`.

  Raises:
    ValueError: unknown method.
  """
  choices = ('average', 'max', 'convolution')
  if method not in choices:
    raise ValueError(f'method={method!r}; choices: {choices}')
  batch, n, heads, width = x.shape
  if method == 'convolution':  # the heads share it: they are examples to it
    x = x.swapaxes(1, 2).reshape(batch * heads, n, width)
    if key_mask is not None:
      key_mask = jnp.repeat(key_mask, heads, axis=0)
    prefix, patches, _ = windows.split(x, key_mask)
    patches = windows.depthwise(
      use_bias=False, dtype=x.dtype, name=name
    )(patches)
    out = windows.join(prefix, patches)
    return out.reshape(batch, heads, -1, width).swapaxes(1, 2)
  flat = x.reshape(batch, n, heads * width)
  prefix, patches, keep = windows.split(flat, key_mask)
  out = windows.join(prefix, windows.pool(patches, keep, method))
  return out.reshape(batch, -1, heads, width)


def attend(
  layer: nn.Module,
  q: Float[Array, 'B N H D'],
  k: Float[Array, 'B M H D'],
  v: Float[Array, 'B M H E'],
  key_mask: Bool[Array, 'B M'] | None,
  train: bool,
) -> Float[Array, 'B N H E']:
  """Softmax attention with the layer's `dropout_rate`."""
  q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
  keep = None if key_mask is None else key_mask[:, None, None]
  drop = nn.Dropout(layer.dropout_rate, deterministic=not train)
  out = mixed(logits_of(q, k), v, keep, drop)
  return out.swapaxes(1, 2).astype(v.dtype)
