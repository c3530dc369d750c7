"""A kernel on small random inputs, for the checks of its properties."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import attention
from vit_jax.arena import promises
from vit_jax.attention import base, probe

HEADS, WIDTH = 2, 8
GRID, PREFIX = (8, 9), 1  # unequal sides: a transposition shows
BATCH = 8  # XLA compiles batches of 8 and more otherwise than smaller ones
# Of float32 sums in another order, relative to the largest value.
ROUNDING = 1e-4


class Subject:
  """A kernel on small random inputs, with calls that are compiled once.

  Parameters are those of its initialisers and a little noise, so that none is
  exactly 0 or 1; other variables are as they are drawn.

  Attributes:
    kernel: the attention, or the layer x → x.
    mixer: whether it is a layer; then `inputs` are (x,), else (q, k, v).
    promise: what is required beyond what the class says.
  """

  def __init__(self, kernel: nn.Module, promise: promises.Promise):
    self.kernel, self.promise = kernel, promise
    self.mixer = isinstance(kernel, attention.Mixer)
    grid, prefix = kernel.grid, kernel.prefix
    self.n = prefix + (grid or GRID)[0] * (grid or GRID)[1]
    self.inputs = self.draw(0)
    self.arrays = {}
    if not self.mixer and base.honours(kernel, 'x'):
      self.arrays['x'] = normal(5, (BATCH, self.n, HEADS * WIDTH))
    self.masks = {}
    if base.honours(kernel, 'key_mask'):
      self.masks['key_mask'] = jnp.ones((BATCH, self.n), bool)
    self.variables = self._initial()
    self.run = jax.jit(functools.partial(self.call, self.variables))
    self.slopes = jax.jit(self._slopes)

  def draw(self, seed: int) -> tuple[jax.Array, ...]:
    """(x,) or (q, k, v), standard normal."""
    if self.mixer:
      return (normal(seed, (BATCH, self.n, HEADS * WIDTH)),)
    shape = (BATCH, self.n, HEADS, WIDTH)
    return tuple(normal((seed, i), shape) for i in range(3))

  def _initial(self) -> Any:
    init = functools.partial(self.kernel.init, jax.random.key(0))
    found = jax.jit(init)(*self.inputs, **self.arrays)
    rng = np.random.default_rng(9)
    noisy = lambda x: (  # noqa: E731
      x + jnp.asarray(0.1 * rng.standard_normal(x.shape), x.dtype)
      if jnp.issubdtype(x.dtype, jnp.floating) else x
    )  # fmt: skip
    if 'params' in found:
      found = {**found, 'params': jax.tree.map(noisy, found['params'])}
    return found

  def call(self, variables: Any, *inputs: Any, **more: Any) -> jax.Array:
    """The output for a part of the batch, or all of it."""
    given = {k: x[: len(inputs[0])] for k, x in self.arrays.items()}
    return self.kernel.apply(variables, *inputs, **{**given, **more})

  def _slopes(self, inputs, masks, rows):
    """out, and gradients of Σ out · weights by params and by inputs."""
    weights = normal(12, inputs[-1].shape)
    rest = dict(self.variables)
    params = rest.pop('params') if 'params' in rest else {}

    def value(params, inputs):
      variables = {**rest, 'params': params} if params else rest
      out = self.call(variables, *inputs, **masks)
      return jnp.sum(jnp.where(over(rows, out), out * weights, 0)), out

    (_, out), grads = jax.value_and_grad(value, (0, 1), has_aux=True)(
      params, inputs
    )
    return out, *grads

  @functools.cached_property
  def plain(self) -> tuple[Any, Any, Any]:
    """`slopes` of the inputs as they are."""
    return self.slopes(self.inputs, self.masks, np.ones((BATCH, self.n), bool))

  @functools.cached_property
  def map(self) -> np.ndarray | None:
    """The map of the values [2 H N N], where there is one."""
    kernel = self.kernel
    if self.mixer or not kernel.linear_in_values or kernel.mixes_channels:
      return None
    given = {k: x[:2] for k, x in self.arrays.items()}
    found = jax.jit(functools.partial(probe.attention_map, kernel))(
      self.variables, *(x[:2] for x in self.inputs[:2]), **given
    )
    return np.asarray(found, np.float64)

  def other(self, **fields: Any) -> 'Subject':
    """The kernel with other fields."""
    return Subject(self.kernel.clone(**fields), self.promise)


def normal(seed: Any, shape: tuple[int, ...]) -> jax.Array:
  """Numbers that depend on nothing but the seed."""
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def over(rows: Any, x: jax.Array) -> Any:
  """Bool[B N] with as many axes as x [B N …]."""
  return rows.reshape(*rows.shape, *(1,) * (x.ndim - 2))


def differ(found: Any, expected: Any, what: str, tol: float = ROUNDING) -> str:
  """'' or by how much two arrays differ."""
  found, expected = (np.asarray(x, np.float64) for x in (found, expected))
  if not np.isfinite(found).all():
    return f'{what}: not finite'
  size = max(1.0, np.abs(expected).max())
  most = np.abs(found - expected).max() / size
  if most <= tol:
    return ''
  return f'{what}: they differ by {most:.2g} of the largest; at most {tol:.0e}'
