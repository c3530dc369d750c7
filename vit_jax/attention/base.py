"""The contract of every attention, and the projections around it.

An `Attention` mixes values by how queries match keys; static facts are its
fields, arrays its arguments. `MultiHeadDotProductAttention` owns the query,
key, value and output projections, so one parameter tree fits any attention.
"""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.shapes import Array, Bool, Float


class Attention(nn.Module):
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

  A query whose keys are all masked gets zeros.

  Attributes:
    grid: (rows, columns) of the patch tokens; None for a sequence.
    prefix: class, distillation and register tokens before the grid.
    linear_in_values: False where the paper normalises after mixing.
  """

  grid: tuple[int, int] | None = None
  prefix: int = 0

  linear_in_values: ClassVar[bool] = True


OPTIONAL_ARRAYS = (
  'key_mask', 'mask', 'bias', 'positions', 'segments', 'x',
)  # fmt: skip


def honours(kernel: type[nn.Module] | nn.Module, name: str) -> bool:
  """Whether the kernel's `__call__` takes the optional array `name`."""
  call = kernel.__call__ if isinstance(kernel, type) else type(kernel).__call__
  return name in inspect.signature(call).parameters


def _kernels(cls: type = Attention):
  for sub in cls.__subclasses__():
    yield sub
    yield from _kernels(sub)


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
    ValueError: the kernel does not honour an array it was given.
  """
  given = {}
  for name, value in optional.items():
    if name not in OPTIONAL_ARRAYS:
      raise ValueError(
        f'no attention takes an array named {name!r}; '
        f'choices: {", ".join(OPTIONAL_ARRAYS)}'
      )
    if value is None:
      continue
    if honours(kernel, name):
      given[name] = value
    elif name != 'x':
      able = sorted({c.__name__ for c in _kernels() if honours(c, name)})
      raise ValueError(
        f'{type(kernel).__name__} does not honour {name}=; '
        f'these do: {", ".join(able)}'
      )
  return kernel(q, k, v, train=train, **given)


class MultiHeadDotProductAttention(nn.Module):
  """out(attend(query(x_q), key(x_k), value(x_v))), as in flax.linen.

  Parameters are linen's: `query`, `key`, `value` with kernels [C H D], `out`
  with kernel [H D C]; the attention's own parameters live under `attend`.
  Vaswani et al. 2017, section 3.2.2.

  Attributes:
    num_heads: H; must divide the width of the queries.
    attend: class (or partial of it) that builds the `Attention`.
    grid, prefix: the layout of the tokens, handed to the attention.
    use_bias: biases of query, key and value; `out` always has one.
    normalize_qk: LayerNorm over D of queries and keys (Dehghani et al. 2023),
      named `query_ln` and `key_ln`, scales only, as in linen.
    dropout_rate: of the attention weights; refused by kernels without it.
    epsilon: of the query and key norms.
    dtype: of the computation; parameters are float32.
  """

  num_heads: int
  attend: Callable[..., nn.Module]
  grid: tuple[int, int] | None = None
  prefix: int = 0
  use_bias: bool = True
  normalize_qk: bool = False
  dropout_rate: float = 0.0
  epsilon: float = 1e-6
  dtype: Any = jnp.float32
  kernel_init: Callable = nn.initializers.xavier_uniform()

  @nn.compact
  def __call__(
    self,
    inputs_q: Float[Array, 'B N C'],
    inputs_k: Float[Array, 'B M I'] | None = None,
    inputs_v: Float[Array, 'B M J'] | None = None,
    *,
    key_mask: Bool[Array, 'B M'] | None = None,
    mask: Bool[Array, '#B #H N M'] | None = None,
    bias: Float[Array, '#B #H N M'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'B N C']:
    """Attends from `inputs_q` to `inputs_k` (default: itself)."""
    inputs_k = inputs_q if inputs_k is None else inputs_k
    inputs_v = inputs_k if inputs_v is None else inputs_v
    width = inputs_q.shape[-1]
    if width % self.num_heads:
      raise ValueError(
        f'width {width} is not divisible by num_heads={self.num_heads}'
      )
    shape = (self.num_heads, width // self.num_heads)

    def project(name, inputs):
      return nn.DenseGeneral(
        shape, use_bias=self.use_bias, kernel_init=self.kernel_init,
        dtype=self.dtype, name=name,
      )(inputs)  # fmt: skip

    q = project('query', inputs_q)
    k = project('key', inputs_k)
    v = project('value', inputs_v)
    if self.normalize_qk:
      norm = lambda name: nn.LayerNorm(  # noqa: E731
        epsilon=self.epsilon, use_bias=False, dtype=self.dtype, name=name
      )
      q, k = norm('query_ln')(q), norm('key_ln')(k)
    kernel = self._kernel()
    y = attend_with(
      kernel, q, k, v, key_mask=key_mask, mask=mask, bias=bias, x=inputs_q,
      train=train,
    )  # fmt: skip
    return nn.DenseGeneral(
      width, axis=(-2, -1), kernel_init=self.kernel_init, dtype=self.dtype,
      name='out',
    )(y)  # fmt: skip

  def _kernel(self) -> nn.Module:
    cls = getattr(self.attend, 'func', self.attend)
    options = {'grid': self.grid, 'prefix': self.prefix}
    if self.dropout_rate:
      if 'dropout_rate' not in cls.__dataclass_fields__:
        raise ValueError(
          f'{cls.__name__} has no dropout of attention weights; set '
          f'attention_dropout_rate=0 (given {self.dropout_rate})'
        )
      options['dropout_rate'] = self.dropout_rate
    return self.attend(**options, name='attend')
