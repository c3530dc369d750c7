"""The map of any attention: which token of the values reaches which output.

An attention that is linear in its values is read by giving it unit vectors as
values; whatever else mixes tokens is read by its Jacobian.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.attention.base import Attention, honours
from vit_jax.attention.multihead import Mixer
from vit_jax.shapes import Array, Float


def attention_map(
  kernel: Attention,
  variables: Any,
  q: Float[Array, 'B N H D'],
  k: Float[Array, 'B M H D'],
  **arrays: Any,
) -> Float[Array, 'B H N M']:
  """A with out = A V, by the identity probe: V = I in chunks of D columns.

  Args:
    kernel: linear in its values.
    variables: the kernel's.
    q: queries.
    k: keys.
    **arrays: optional arrays of the kernel: key_mask, bias, x, …

  Raises:
    ValueError: the kernel is not linear in its values, or mixes their channels.
  """
  if not kernel.linear_in_values or kernel.mixes_channels:
    raise ValueError(
      f'{type(kernel).__name__} has no N×M map of its values: it normalises '
      'after mixing, or mixes channels; take `influence` instead'
    )
  batch, _, heads, width = q.shape
  count = k.shape[1]
  chunks = -(-count // width)
  eye = jnp.eye(count, chunks * width, dtype=q.dtype)

  def column(i):
    values = jax.lax.dynamic_slice_in_dim(eye, i * width, width, axis=1)
    values = jnp.broadcast_to(
      values[None, :, None], (batch, count, heads, width)
    )
    return kernel.apply(variables, q, k, values, **arrays)

  found = jax.lax.map(column, jnp.arange(chunks))  # [chunks B N H D]
  found = jnp.moveaxis(found, 0, 3)  # [B N H chunks D]
  found = found.reshape(*found.shape[:3], chunks * width)[..., :count]
  return found.swapaxes(1, 2)


def influence(
  layer: Any, x: Float[Array, 'B N C'], limit: int = 4
) -> Float[Array, 'B N N']:
  """‖∂out_n / ∂x_m‖ of any x → x, over `limit` random directions of out_n.

  Args:
    layer: a function [B N C] → [B N C].
    x: where it is linearised.
    limit: directions; the support is right from 1 with probability one.
  """
  rng = np.random.default_rng(0)
  _, n, width = x.shape
  directions = jnp.asarray(rng.standard_normal((limit, width)), x.dtype)

  def row(out_index):
    def value(x, direction):
      return (layer(x)[:, out_index] @ direction).sum()

    gradient = jax.vmap(jax.grad(value), (None, 0))(x, directions)
    return jnp.sqrt((gradient**2).sum((0, 3)))  # [B M]

  return jnp.moveaxis(jax.lax.map(row, jnp.arange(n)), 0, 1)


def own_variables(variables: Any, path: tuple[str, ...]) -> Any:
  """Those of the submodule at a path; {} of collections that it has not."""

  def below(tree):
    for name in path:
      if name not in tree:
        return {}
      tree = tree[name]
    return tree

  return {name: below(tree) for name, tree in variables.items()}


def support(
  entry: Attention | Mixer, n: int, heads: int = 2, width: int = 8
) -> np.ndarray:
  """Bool[N N]: which token can reach which, at random inputs and parameters.

  The union over the heads. Where an attention chooses by content it is that of
  one draw (seed 0).
  """
  rng = np.random.default_rng(0)
  draw = lambda *s: jnp.asarray(rng.standard_normal(s), jnp.float32)  # noqa: E731
  mixer = isinstance(entry, Mixer)
  x = draw(1, n, heads * width)
  qkv = tuple(draw(1, n, heads, width) for _ in range(3))
  given = {'x': x} if not mixer and honours(entry, 'x') else {}
  inputs = (x,) if mixer else qkv
  shapes = jax.eval_shape(entry.init, jax.random.key(0), *inputs, **given)
  variables = jax.tree.map(
    lambda s: draw(*s.shape).astype(s.dtype) * 0.3, shapes
  )
  if mixer:
    found = jax.jit(
      lambda x: influence(lambda x: entry.apply(variables, x), x, 2)
    )(x)
  elif entry.linear_in_values and not entry.mixes_channels:
    found = jax.jit(
      lambda q, k: attention_map(entry, variables, q, k, **given)
    )(*qkv[:2]).any(axis=1)
  else:
    flat = lambda v: entry.apply(  # noqa: E731
      variables, *qkv[:2], v.reshape(qkv[2].shape), **given
    ).reshape(x.shape)
    found = jax.jit(lambda v: influence(flat, v, 2))(x)
  return np.asarray(found[0] != 0)


def path_length(support: np.ndarray) -> float:
  """The fewest stacked layers after which every token has met every other.

  Args:
    support: Bool[N N], output × input, of one layer.

  Returns:
    1.0 for full attention; inf where no number of layers is enough.
  """
  reach = support | np.eye(len(support), dtype=bool)  # the skip connection
  now, layers = reach, 1
  while not now.all():
    # Boolean product by float matrices; counts stay exact below 2²⁴.
    more = (now.astype(np.float32) @ reach.astype(np.float32)) > 0
    if (more == now).all():
      return float('inf')
    now, layers = more, layers + 1
  return float(layers)
