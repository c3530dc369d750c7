"""Convolution of each channel by itself, fast on a CPU too."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.shapes import Array, Float

Sides = tuple[int, int]
Padding = tuple[Sides, Sides]  # cells before and after, of rows and of columns


def _ends(shape, size: Sides, strides: Sides) -> tuple[int, int]:
  """Rows and columns of windows in a padded map."""
  rows, columns = (
    (n - w) // s + 1 for n, w, s in zip(shape, size, strides, strict=True)
  )
  return rows, columns


def _shifted(x, size: Sides, strides: Sides):
  """(i, j, entry i, j of every window) of a padded map."""
  rows, columns = _ends(x.shape[1:3], size, strides)
  for i, j in np.ndindex(*size):
    end = (
      x.shape[0], i + (rows - 1) * strides[0] + 1,
      j + (columns - 1) * strides[1] + 1, x.shape[3],
    )  # fmt: skip
    yield i, j, jax.lax.slice(x, (0, i, j, 0), end, (1, *strides, 1))


def _sum(x, kernel, strides: Sides):
  shifted = _shifted(x, kernel.shape[:2], strides)
  return sum(part * kernel[i, j][None, None] for i, j, part in shifted)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise(
  x: Float[Array, 'B Y X C'],
  kernel: Float[Array, 'h w 1 C'],
  strides: Sides = (1, 1),
  padding: Padding = ((1, 1), (1, 1)),
) -> Float[Array, 'B y x C']:
  """out[y, x] = Σ_ij kernel[i, j] · x[s·y + i - before, s·x + j - before].

  `kernel` is that of `nn.Conv(C, (h, w), feature_group_count=C)`, with zeros
  around the map. It is a sum of shifted maps: XLA's grouped convolution of 3×3
  takes 10 to 40 times as long on a CPU. Its gradient by the kernel, left to
  differentiation, reduces every product by itself; here one loop over the rows
  adds up all of them, in a fifth of the time (CPU only). There is no
  forward-mode derivative.
  """
  return _sum(jnp.pad(x, ((0, 0), *padding, (0, 0))), kernel, strides)


def _forward(x, kernel, strides, padding):
  return depthwise(x, kernel, strides, padding), (x, kernel)


def _backward(strides, padding, kept, g):
  x, kernel = kept
  around = [(0, 0, 0)]
  for n, out, w, s, (before, _) in zip(
    x.shape[1:3], g.shape[1:3], kernel.shape[:2], strides, padding, strict=True
  ):
    low = w - 1 - before
    length = (out - 1) * s + 1
    around.append((low, n + w - 1 - low - length, s - 1))
  wide = jax.lax.pad(g, jnp.zeros((), g.dtype), [*around, (0, 0, 0)])
  by_x = _sum(wide, kernel[::-1, ::-1], (1, 1))
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  by_kernel = jax.lax.platform_dependent(
    x, g,
    cpu=functools.partial(_by_rows, kernel.shape, strides),
    default=functools.partial(_at_once, kernel.shape, strides),
  )  # fmt: skip
  return by_x, by_kernel


def _at_once(shape, strides, x, g):
  parts = _shifted(x, shape[:2], strides)
  return jnp.stack([(part * g).sum((0, 1, 2)) for *_, part in parts]).reshape(
    shape
  )


def _by_rows(shape, strides, x, g):
  b, rows, columns, width = g.shape
  high, wide = shape[:2]
  places = list(np.ndindex(high, wide))
  last = (columns - 1) * strides[1] + 1

  def step(row, totals):
    y = jax.lax.dynamic_slice(g, (0, row, 0, 0), (b, 1, columns, width))[:, 0]
    at = (0, row * strides[0], 0, 0)
    window = jax.lax.dynamic_slice(x, at, (b, high, x.shape[2], width))
    return tuple(
      total + window[:, i, j : j + last : strides[1]] * y
      for total, (i, j) in zip(totals, places, strict=True)
    )

  zeros = (jnp.zeros((b, columns, width), g.dtype),) * len(places)
  totals = jax.lax.fori_loop(0, rows, step, zeros)
  return jnp.stack([t.sum((0, 1)) for t in totals]).reshape(shape)


depthwise.defvjp(_forward, _backward)


class DepthwiseConv(nn.Module):
  """Convolves each channel by itself: [B Y X C] → [B y x C].

  Equals `nn.Conv(C, size, strides, padding, feature_group_count=C)`, with its
  parameters, summed in float32; see `depthwise`.

  Attributes:
    size, strides: of the windows, (rows, columns).
    padding: zeros around the map.
  """

  size: Sides
  strides: Sides
  padding: Padding
  use_bias: bool = True
  dtype: Any = jnp.float32
  kernel_init: Callable = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(self, x: Float[Array, 'B Y X C']) -> Float[Array, 'B y x C']:
    """Convolves."""
    width = x.shape[-1]
    kernel = self.param('kernel', self.kernel_init, (*self.size, 1, width))
    x = x.astype(self.dtype).astype(jnp.float32)
    kernel = kernel.astype(self.dtype).astype(jnp.float32)
    out = depthwise(x, kernel, self.strides, self.padding)
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (width,))
      out = out + bias[None, None, None]
    return out.astype(self.dtype)
