"""The contract of every attention: what it says of itself, takes and refuses.

An `Attention` mixes values by how queries match keys; static facts are its
fields, arrays its arguments. The layers around it are in `multihead.py`.
"""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.shapes import Array, Float


class Described:
  """What every entry of the tables says of itself, for the generated table.

  Attributes:
    family: 'exact', 'fixed pattern', 'combined pattern', 'learned pattern',
      'memory', 'low rank', 'kernel', 'recurrence' or 'optimal transport'.
    published: cost as the paper prints it.
    cost: of this implementation, in the option names of the class.
    source: the paper.
    sequential: sequential steps over the tokens.
    cross: whether M ≠ N is taken.
    equivariant: whether permuting the tokens permutes the outputs.
    linear_in_values: False where the paper normalises after mixing.
    mixes_channels: the values' channels mix or weigh differently, so that E
      must be D and there is no N×M map of the values.
  """

  family: ClassVar[str]
  published: ClassVar[str]
  cost: ClassVar[str]
  source: ClassVar[str]
  sequential: ClassVar[str] = 'O(1)'
  cross: ClassVar[bool] = False
  equivariant: ClassVar[bool] = False
  linear_in_values: ClassVar[bool] = True
  mixes_channels: ClassVar[bool] = False

  def flops(self, n: int, heads: int, width: int) -> float:
    """Declared FLOPs of matrix products, convolutions and FFTs, one example.

    2 a multiply-add, forward, N = M = n tokens, D = E = width; for a `Mixer`
    the projections count too (C = heads · width). Element-wise work, softmax
    and sorts do not count.
    """
    raise NotImplementedError(f'{type(self).__name__} declares no FLOPs')

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Declared bound on the bytes of temporaries, as `flops`, in float32."""
    raise NotImplementedError(f'{type(self).__name__} declares no memory')

  @staticmethod
  def grown(n: int) -> dict[str, Any]:
    """The options with which growth with N is stated; none: the defaults."""
    del n
    return {}


class Attention(Described, nn.Module):
  """Mixes values: q [B N H D], k [B M H D], v [B M H E] → [B N H E].

  A subclass defines `__call__(self, q, k, v, *, train=False)` and takes, as
  further keyword arguments, only the optional arrays that it honours: the
  signature is the capability. They are

    key_mask   Bool[B M]          False keys have no influence at all
    mask       Bool[#B #H N M]    False pairs do not attend
    bias       Float[#B #H N M]   added to the logits, with gradients
    positions  Int[B N]           of the tokens, where not 0…N-1
    segments   Int[B N]           tokens attend within their segment
    x          Float[B N C]       the layer's input (sort nets, synthesizers)

  A query whose keys are all masked gets zeros. A kernel that can be causal has
  a field `causal` (query i sees keys up to i + M - N) and decodes by
  `init_state` and `step`.

  Attributes:
    grid: (rows, columns) of the patch tokens; None for a sequence.
    prefix: class, distillation and register tokens before the grid.
  """

  grid: tuple[int, int] | None = None
  prefix: int = 0

  def init_state(
    self, batch: int, length: int, heads: int, width: int, dtype: Any
  ) -> Any:
    """The state before the first of `length` steps of decoding.

    The default keeps every query, key and value; linear attention's state does
    not grow with `length`.

    Raises:
      ValueError: the kernel is not causal.
    """
    refuse_acausal(self)
    empty = jnp.zeros((batch, length, heads, width), dtype)
    return {'step': jnp.zeros((), jnp.int32), 'q': empty, 'k': empty,
            'v': empty}  # fmt: skip

  def step(
    self,
    state: Any,
    q: Float[Array, 'B 1 H D'],
    k: Float[Array, 'B 1 H D'],
    v: Float[Array, 'B 1 H D'],
  ) -> tuple[Float[Array, 'B 1 H D'], Any]:
    """One step of decoding: the last row of the causal attention so far.

    The default runs the whole causal attention on the history: exact for every
    causal kernel, at the full cost.
    """
    t = state['step']
    q, k, v = (
      put(state[n], x, t) for n, x in (('q', q), ('k', k), ('v', v))
    )
    out = jax.lax.dynamic_slice_in_dim(self(q, k, v), t, 1, axis=1)
    return out, {'step': t + 1, 'q': q, 'k': k, 'v': v}


def put(cache: Array, x: Array, t: Array) -> Array:
  """The cache [B length ...] with x [B 1 ...] written as its token t."""
  return jax.lax.dynamic_update_slice_in_dim(
    cache, x.astype(cache.dtype), t, axis=1
  )


OPTIONAL_ARRAYS = (
  'key_mask', 'mask', 'bias', 'positions', 'segments', 'x',
)  # fmt: skip


def honours(kernel: type[nn.Module] | nn.Module, name: str) -> bool:
  """Whether the kernel's `__call__` takes the optional array `name`."""
  call = kernel.__call__ if isinstance(kernel, type) else type(kernel).__call__
  return name in inspect.signature(call).parameters


def _kernels(cls: type = Described):
  for sub in cls.__subclasses__():
    if hasattr(sub, 'family'):  # what the tables hold, not a common base
      yield sub
    yield from _kernels(sub)


def able(capability: str) -> list[str]:
  """Names of the kernels with an array, a field or a fact, for errors."""
  return sorted({
    c.__name__
    for c in _kernels()
    if honours(c, capability)
    or capability in c.__dataclass_fields__
    or (capability in ('cross', 'equivariant') and getattr(c, capability))
  })


def causal(kernel: nn.Module) -> bool:
  """Whether the kernel is causal as it is built."""
  return bool('causal' in kernel.__dataclass_fields__ and kernel.causal)


def refuse_acausal(kernel: nn.Module) -> None:
  """Raises unless the kernel is causal as it is built.

  Raises:
    ValueError: naming the kernels that can be.
  """
  if not causal(kernel):
    raise ValueError(
      f'{type(kernel).__name__} decodes only with causal=True; kernels with a '
      f'causal form: {", ".join(able("causal"))}'
    )


def refuse_cross(kernel: nn.Module, q: Array, k: Array) -> None:
  """Raises unless N = M.

  Raises:
    ValueError: naming the kernels that take M ≠ N.
  """
  if q.shape[1] != k.shape[1]:
    raise ValueError(
      f'{type(kernel).__name__} attends within one sequence, not from '
      f'{q.shape[1]} queries to {k.shape[1]} keys; these do: '
      f'{", ".join(able("cross"))}'
    )


def refuse_other_grid(kernel: nn.Module, n: int) -> None:
  """Raises unless the kernel's prefix and grid make n tokens.

  Without a grid the tokens after the prefix are a sequence of any length.

  Raises:
    ValueError: naming both numbers.
  """
  if n < kernel.prefix:
    raise ValueError(
      f'{type(kernel).__name__} with prefix={kernel.prefix} takes at least as '
      f'many tokens, not {n}'
    )
  rows, columns = kernel.grid or (1, n - kernel.prefix)
  if kernel.prefix + rows * columns != n:
    raise ValueError(
      f'{type(kernel).__name__} with prefix={kernel.prefix} and grid='
      f'{kernel.grid} takes {kernel.prefix + rows * columns} tokens, not {n}'
    )


def sized_param(
  module: nn.Module, name: str, init: Callable, shape: tuple[int, ...]
) -> Array:
  """A parameter whose shape depends on N; call it inside `nn.compact`.

  Raises:
    ValueError: the parameters were made for another N.
  """
  if module.has_variable('params', name):
    found = module.get_variable('params', name).shape
    if found != shape:
      raise ValueError(
        f'{type(module).__name__} has a learned {name!r} of shape {found} and '
        f'now needs {shape}: its number of tokens is fixed when its parameters '
        'are made; build it anew, or take a kernel without weights sized by '
        'the number of tokens, such as softmax, performer or nystrom'
      )
  return module.param(name, init, shape)


def refuse_arrays(kernel: nn.Module, given: Any) -> None:
  """Raises a ValueError on an array of `given` that `kernel` would ignore."""
  for name in given:
    if not honours(kernel, name):
      raise ValueError(
        f'{type(kernel).__name__} does not honour {name}=; '
        f'these do: {", ".join(able(name))}'
      )


def attend_with(
  kernel: nn.Module,
  q: Float[Array, 'B N H D'],
  k: Float[Array, 'B M H D'],
  v: Float[Array, 'B M H E'],
  *,
  train: bool = False,
  **optional: Any,
) -> Float[Array, 'B N H E']:
  """Calls `kernel` with the optional arrays that are not None.

  `x` is handed to the kernels that take it and to no other; every other array
  says something about the result, so a kernel that would ignore it is refused.

  Raises:
    ValueError: the kernel does not honour an array it was given, or its grid
      does not make N tokens.
  """
  if isinstance(kernel, Attention) and kernel.grid is not None:
    refuse_other_grid(kernel, q.shape[1])
  given = {}
  for name, value in optional.items():
    if name not in OPTIONAL_ARRAYS:
      raise ValueError(
        f'no attention takes an array named {name!r}; '
        f'choices: {", ".join(OPTIONAL_ARRAYS)}'
      )
    if value is None:
      continue
    if name != 'x' or honours(kernel, name):
      given[name] = value
  refuse_arrays(kernel, given)
  return kernel(q, k, v, train=train, **given)
