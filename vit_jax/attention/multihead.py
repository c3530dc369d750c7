"""Layers around an attention: the projections, and whole layers x → x.

`MultiHeadDotProductAttention` owns the query, key, value and output
projections, so one parameter tree fits any attention. A `Mixer` is a layer of
its own, for what does not fit between those projections.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.attention.base import Described, attend_with
from vit_jax.attention.positions import add
from vit_jax.shapes import Array, Bool, Float, Int


def project(
  layer: nn.Module,
  name: str,
  inputs: Float[Array, 'B N C'],
  width: int,
  kernel_init: Callable | None = None,
) -> Float[Array, 'B N H D']:
  """One of a layer's named projections, to H heads of D = width / H.

  Call it inside the layer's `nn.compact`; `layer` has the fields of `Mixer`.
  Its kernel starts as `kernel_init`, by default the layer's.

  Raises:
    ValueError: num_heads does not divide the width.
  """
  if width % layer.num_heads:
    raise ValueError(
      f'width {width} is not divisible by num_heads={layer.num_heads}'
    )
  return nn.DenseGeneral(
    (layer.num_heads, width // layer.num_heads), use_bias=layer.use_bias,
    kernel_init=kernel_init or layer.kernel_init, dtype=layer.dtype, name=name,
  )(inputs)  # fmt: skip


def normalize(
  layer: nn.Module,
  q: Float[Array, 'B N H D'],
  k: Float[Array, 'B M H D'],
  bias: bool = False,
) -> tuple[Float[Array, 'B N H D'], Float[Array, 'B M H D']]:
  """`query_ln` and `key_ln` of a layer, if it has `normalize_qk`.

  Raises:
    ValueError: `bias` without these norms.
  """
  if bias and not layer.normalize_qk:
    raise ValueError('normalize_bias=True needs normalize_qk=True')
  if not layer.normalize_qk:
    return q, k
  norm = lambda name: nn.LayerNorm(  # noqa: E731
    epsilon=layer.epsilon, use_bias=bias, dtype=layer.dtype, name=name
  )
  return norm('query_ln')(q), norm('key_ln')(k)


def project_out(
  layer: nn.Module, y: Float[Array, 'B N H D'], width: int
) -> Float[Array, 'B N C']:
  """The projection `out` of a layer, from heads to its width."""
  return nn.DenseGeneral(
    width, axis=(-2, -1), kernel_init=layer.kernel_init, dtype=layer.dtype,
    name='out',
  )(y)  # fmt: skip


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
    normalize_bias: whether these norms have biases too, as timm's.
    dropout_rate: of the attention weights; refused by kernels without it.
    epsilon: of the query and key norms.
    dtype: of the computation; parameters are float32.
    position: builds a `positions.Position`, named `position`, that changes
      queries and keys and may give a bias; see `positions.layer`.
    value_init: of the kernel of `value`, as [C H·D]; None: kernel_init.
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
  position: Callable[..., nn.Module] | None = None
  normalize_bias: bool = False
  value_init: Callable | None = None

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
    positions: Int[Array, 'B N'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'B N C']:
    """Attends from `inputs_q` to `inputs_k` (default: itself).

    `positions` go to `position` if there is one, else to the attention.
    """
    inputs_k = inputs_q if inputs_k is None else inputs_k
    inputs_v = inputs_k if inputs_v is None else inputs_v
    width = inputs_q.shape[-1]
    q = project(self, 'query', inputs_q, width)
    k = project(self, 'key', inputs_k, width)
    v = project(self, 'value', inputs_v, width, self.value_init)
    q, k = normalize(self, q, k, self.normalize_bias)
    if self.position is not None:
      q, k, more = self.position(
        num_heads=self.num_heads, grid=self.grid, prefix=self.prefix,
        name='position',
      )(q, k, positions)  # fmt: skip
      bias, positions = add(bias, more), None
    y = attend_with(
      self._kernel(), q, k, v, key_mask=key_mask, mask=mask, bias=bias,
      positions=positions, x=inputs_q, train=train,
    )  # fmt: skip
    return project_out(self, y, width)

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


class Projected(nn.Module):
  """The fields of a layer with projections of its own.

  Attributes:
    As in `MultiHeadDotProductAttention`.
  """

  num_heads: int = 1
  grid: tuple[int, int] | None = None
  prefix: int = 0
  use_bias: bool = True
  normalize_qk: bool = False
  dropout_rate: float = 0.0
  epsilon: float = 1e-6
  dtype: Any = jnp.float32
  kernel_init: Callable = nn.initializers.xavier_uniform()


class Mixer(Described, Projected):
  """A whole layer x → x, [B N C] → [B N C], with its own projections.

  A subclass defines `__call__(self, x, *, train=False)` and takes, as further
  keyword arguments, the optional arrays that it honours, as an `Attention`
  does. Projections that mean the same have the names that they have in
  `MultiHeadDotProductAttention`: `query`, `key`, `value`, `out`. A field that
  a subclass cannot honour (normalize_qk, dropout_rate) it refuses with
  `refuse_fields`.
  """

  def refuse_fields(self, *names: str) -> None:
    """Raises if a field that this layer cannot honour is set.

    Raises:
      ValueError: naming the field and its value.
    """
    for name in names:
      if getattr(self, name):
        raise ValueError(
          f'{type(self).__name__} has no {name}; leave it at '
          f'{type(self).__dataclass_fields__[name].default!r} '
          f'(given {getattr(self, name)!r})'
        )
