"""MViTv2's block (Li et al. 2022): attention that pools what it reads."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from vit_jax import layers
from vit_jax.attention.base import attend_with
from vit_jax.attention.depthwise import depthwise
from vit_jax.attention.multihead import project, project_out
from vit_jax.models.initialization import TORCH
from vit_jax.models.pyramid import START
from vit_jax.shapes import Array, Float, Int


def strided(grid: tuple[int, int], stride: int) -> tuple[int, int]:
  """Rows and columns after a convolution or pooling 3×3 with that stride."""
  return -(-grid[0] // stride), -(-grid[1] // stride)


def most(x: Float[Array, 'B Y X C'], stride: int) -> Float[Array, 'B y x C']:
  """The maximum of the 3×3 window around every stride-th cell."""
  rows, columns = strided(x.shape[1:3], stride)
  around = ((0, 0), (1, 1), (1, 1), (0, 0))
  x = jnp.pad(x, around, constant_values=-jnp.inf)
  out = None
  for i, j in np.ndindex(3, 3):
    down = slice(i, i + stride * (rows - 1) + 1, stride)
    right = slice(j, j + stride * (columns - 1) + 1, stride)
    part = x[:, down, right]
    out = part if out is None else jnp.maximum(out, part)
  return out


class Pooling(nn.Module):
  """LN(depthwise 3×3 convolution) on the grid: [B N H D] → [B M H D].

  The heads share both; prefix tokens skip the convolution. Li et al. 2022,
  section 3.1. The kernel starts as PyTorch's, which the authors' code
  leaves it to.
  """

  grid: tuple[int, int]
  prefix: int = 0
  stride: int = 1
  epsilon: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'B N H D']) -> Float[Array, 'B M H D']:
    """Pools the tokens."""
    batch, _, heads, width = x.shape
    kernel = self.param('kernel', TORCH, (3, 3, 1, width)).astype(x.dtype)
    cells = x[:, self.prefix :].reshape(batch, *self.grid, heads * width)
    pooled = depthwise(
      cells, jnp.tile(kernel, heads), (self.stride, self.stride)
    ).reshape(batch, -1, heads, width)
    if self.prefix:
      pooled = jnp.concatenate([x[:, : self.prefix], pooled], axis=1)
    return nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype)(pooled)


def offsets(queries: int, keys: int) -> Int[np.ndarray, 'q k']:
  """Places, in a table of 2·max(q, k) - 1, of the offsets along one axis.

  Both lie evenly along max(q, k) cells; the offset is rounded down.
  """
  most = max(queries, keys)
  query, key = np.ogrid[:queries, :keys]
  late = keys - 1 - key
  return (query * most * keys + late * most * queries) // (queries * keys)


class Decomposed(nn.Module):
  """bias_ij = q_i·R_row[row_i - row_j] + q_i·R_column[…]: [B H N M].

  Li et al. 2022, eq. 4, without the division by √D of eq. 3, as in the authors'
  code. The heads share the tables; pairs with prefix tokens have no bias. The
  tables `row` and `column` are for `table_grid` and resized for another grid,
  linearly, as timm does when it loads weights.

  Attributes:
    grids: (rows, columns) of queries and of keys.
    table_grids: the same in images of the model's `image_size`.
    resize: see `layers.resize_positions`.
  """

  grids: tuple[tuple[int, int], tuple[int, int]]
  table_grids: tuple[tuple[int, int], tuple[int, int]]
  prefix: int = 0
  resize: str = 'bilinear_torch'

  @nn.compact
  def __call__(self, q: Float[Array, 'B N H D']) -> Float[Array, 'B H N M']:
    """The bias, in float32."""
    batch, _, heads, width = q.shape
    (rows, columns), keys = self.grids
    cells = q[:, self.prefix :].reshape(batch, rows, columns, heads, width)
    row, column = (
      self._along(axis, name, width).astype(q.dtype)
      for axis, name in enumerate(('row', 'column'))
    )
    row = jnp.einsum(
      'byxhd,ykd->bhyxk', cells, row, preferred_element_type=jnp.float32
    )
    column = jnp.einsum(
      'byxhd,xkd->bhyxk', cells, column, preferred_element_type=jnp.float32
    )
    bias = row[..., :, None] + column[..., None, :]
    bias = bias.reshape(batch, heads, rows * columns, keys[0] * keys[1])
    before = (self.prefix, 0)
    return jnp.pad(bias, ((0, 0), (0, 0), before, before))

  def _along(self, axis: int, name: str, width: int) -> Float[Array, 'q k D']:
    queries, keys = (grid[axis] for grid in self.grids)
    length = 2 * max(grid[axis] for grid in self.table_grids) - 1
    table = self.param(name, START.positions, (length, width))
    new = 2 * max(queries, keys) - 1
    table = layers.resize_positions(
      table[None], (length, 1), (new, 1), self.resize
    )
    return table[0][offsets(queries, keys)]


class PooledAttention(nn.Module):
  """out(softmax(Q Kᵀ / √D + bias) V + Q), Q, K, V pooled: [B N I] → [B M C].

  Each of Q, K, V is LN(pool(x W)). Li et al. 2022, section 3.1 and eq. 3 to 5.
  timm's form, which adds Q to prefix tokens too.

  Attributes:
    features: C.
    attend: builds the `Attention`; it must take M ≠ N, and a bias if
      `relative` is on.
    grid, prefix: of the tokens that come in.
    table_grid: that grid in images of the model's `image_size`.
    stride, key_stride: of the pooling of Q, and of K and V.
    relative: whether there is the bias of `Decomposed`.
    resize: see `Decomposed`.
    use_bias: biases of query, key and value.
  """

  features: int
  num_heads: int
  attend: Callable[..., nn.Module]
  grid: tuple[int, int]
  table_grid: tuple[int, int]
  prefix: int = 0
  stride: int = 1
  key_stride: int = 1
  relative: bool = True
  resize: str = 'bilinear_torch'
  use_bias: bool = True
  epsilon: float = 1e-6
  dtype: Any = jnp.float32
  kernel_init: Callable = START.kernel

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B N I'], train: bool = False
  ) -> Float[Array, 'B M C']:
    """Applies the layer."""
    strides = {
      'query': self.stride, 'key': self.key_stride, 'value': self.key_stride
    }  # fmt: skip
    q, k, v = (
      Pooling(
        self.grid, self.prefix, stride, self.epsilon, self.dtype,
        name=f'{name}_pool',
      )(project(self, name, x, self.features))
      for name, stride in strides.items()
    )  # fmt: skip
    both = (self.stride, self.key_stride)
    grids = tuple(strided(self.grid, stride) for stride in both)
    bias = None
    if self.relative:
      tables = tuple(strided(self.table_grid, stride) for stride in both)
      bias = Decomposed(
        grids, tables, self.prefix, self.resize, name='position'
      )(q)
    kernel = self.attend(
      grid=grids[0] if grids[0] == grids[1] else None, prefix=self.prefix,
      name='attend',
    )  # fmt: skip
    y = attend_with(kernel, q, k, v, bias=bias, x=x, train=train)
    return project_out(self, y + q, self.features)


class MViTBlock(nn.Module):
  """y = skip + attention(norm(x)), y + MLP(norm(y)); [B N I] → [B M C].

  skip is x, or Dense(norm(x)) where C ≠ I, and where the queries have a stride
  the maximum over 3×3 cells with that stride. Li et al. 2022, section 3.1.

  Attributes:
    mlp_dim: hidden units.
    drop_path_rate: of both branches, in training.
    Others as in `PooledAttention`.
  """

  features: int
  num_heads: int
  mlp_dim: int
  attend: Callable[..., nn.Module]
  grid: tuple[int, int]
  table_grid: tuple[int, int]
  prefix: int = 0
  stride: int = 1
  key_stride: int = 1
  relative: bool = True
  resize: str = 'bilinear_torch'
  qkv_bias: bool = True
  drop_path_rate: float = 0.0
  gelu: str = 'exact'
  epsilon: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B N I'], train: bool = False
  ) -> Float[Array, 'B M C']:
    """Applies the block; positional `train` so that nn.remat can fix it."""
    drop = layers.DropPath(self.drop_path_rate)
    y = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype)(x)
    if x.shape[-1] != self.features:
      x = nn.Dense(
        self.features, kernel_init=START.kernel, dtype=self.dtype, name='skip'
      )(y)
    y = PooledAttention(
      self.features, self.num_heads, self.attend, self.grid, self.table_grid,
      self.prefix, self.stride, self.key_stride, self.relative, self.resize,
      self.qkv_bias, self.epsilon, self.dtype,
      name='MultiHeadDotProductAttention_0',
    )(y, train)  # fmt: skip
    x = self._pooled(x) + drop(y, train)
    y = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype)(x)
    y = layers.MlpBlock(
      self.mlp_dim, 0.0, self.gelu, self.dtype, START.kernel, START.bias
    )(y, train)
    return x + drop(y, train)

  def _pooled(self, x):
    if self.stride == 1:
      return x
    cells = x[:, self.prefix :].reshape(-1, *self.grid, self.features)
    pooled = most(cells, self.stride)
    pooled = pooled.reshape(x.shape[0], -1, self.features)
    return jnp.concatenate([x[:, : self.prefix], pooled], axis=1)
