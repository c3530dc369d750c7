"""Every attention inside flax's own attention layer."""

import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.core.scope import LazyRng
from flax.linen.dtypes import promote_dtype

from vit_jax.attention.base import able, attend_with, honours
from vit_jax.attention.positions import add
from vit_jax.shapes import Array, Bool, Float


def adapt(
  build: Callable[..., nn.Module],
  position: Callable[..., nn.Module] | None,
  train: bool | None,
) -> Callable[..., Array]:
  """An `attention_fn` of what builds a kernel and, maybe, a position.

  It declares every argument that linen's layers may pass: linen leaves out,
  without a word, those that a function has not.

  Raises:
    ValueError: the kernel needs the layer's input, which linen does not pass.
  """
  cls = getattr(build, 'func', build)
  x = inspect.signature(cls.__call__).parameters.get('x')
  if x is not None and x.default is inspect.Parameter.empty:
    raise ValueError(
      f"{cls.__name__} reads its layer's input, which flax.linen does not hand "
      'to an attention_fn; use vit_jax.attention.MultiHeadDotProductAttention'
    )

  def attention_fn(
    query: Float[Array, '*B N H D'],
    key: Float[Array, '*B M H D'],
    value: Float[Array, '*B M H E'],
    bias: Array | None = None,
    mask: Array | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: Any = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: Any = None,
    precision: Any = None,
    module: nn.Module | None = None,
    force_fp32_for_softmax: bool = False,
    einsum_dot_general: Callable | None = None,
    qk_attn_weights_einsum: Callable | None = None,
    attn_weights_value_einsum: Callable | None = None,
  ) -> Float[Array, '*B N H E']:
    """As `flax.linen.dot_product_attention`, which has the arguments' meaning.

    Raises:
      ValueError: an argument that the kernel cannot honour.
    """
    del force_fp32_for_softmax  # ours always is in float32
    for name, given in (
      ('precision', precision), ('einsum_dot_general', einsum_dot_general),
      ('qk_attn_weights_einsum', qk_attn_weights_einsum),
      ('attn_weights_value_einsum', attn_weights_value_einsum),
    ):  # fmt: skip
      if given is not None:
        raise ValueError(
          f'{cls.__name__} does its own matrix products, so {name}={given!r} '
          'would have no effect; for a precision there is '
          'jax.default_matmul_precision'
        )
    if module is not None:
      raise ValueError(
        f'{cls.__name__} sows no attention weights (sow_weights=True); any '
        "attention's map is read by vit_jax.attention.probe"
      )
    options, dropping = {}, dropout_rate > 0 and not deterministic
    if dropout_rate:
      if 'dropout_rate' not in cls.__dataclass_fields__:
        raise ValueError(
          f'{cls.__name__} has no dropout of attention weights '
          f'(dropout_rate={dropout_rate}); these have: '
          f'{", ".join(able("dropout_rate"))}'
        )
      options['dropout_rate'] = dropout_rate
    if dropping and broadcast_dropout:
      raise ValueError(
        f'{cls.__name__} drops weights of each example and head alone; give '
        'the layer broadcast_dropout=False'
      )
    q, k, v = promote_dtype(query, key, value, dtype=dtype)
    batch = q.shape[:-3]
    q, k, v = (x.reshape(-1, *x.shape[-3:]) for x in (q, k, v))
    heads, pairs = q.shape[2], (q.shape[1], k.shape[1])
    kernel = build(**options, name='attend')
    arrays = {'bias': None if bias is None else _pairs(bias, batch, pairs)}
    if mask is not None:
      arrays |= _masks(cls, mask.astype(bool), batch, pairs)
    if position is not None:
      q, k, more = position(
        num_heads=heads, grid=kernel.grid, prefix=kernel.prefix,
        name='position',
      )(q, k)  # fmt: skip
      arrays['bias'] = add(arrays['bias'], more)
    if dropping and dropout_rng is not None:
      # The key that linen was given, or drew, replaces the kernel's stream.
      kernel.scope.rngs['dropout'] = LazyRng.create(dropout_rng)
      kernel.scope.rng_counters['dropout'] = 0
    mode = not deterministic if train is None else train
    out = attend_with(kernel, q, k, v, train=mode, **arrays)
    return out.reshape(*batch, *out.shape[1:])

  return attention_fn


def _pairs(x, batch, pairs) -> Array:
  """[#B #H N M] of an array that broadcasts against [*batch H N M]."""
  x = x.reshape((1,) * (len(batch) + 3 - x.ndim) + x.shape)
  if any(size != 1 for size in x.shape[: len(batch)]):
    x = jnp.broadcast_to(x, (*batch, *x.shape[len(batch) :]))
  x = x.reshape(-1, *x.shape[len(batch) :])
  return jnp.broadcast_to(x, (*x.shape[:2], *pairs))


def _masks(
  cls: type, mask: Bool[Array, '...'], batch, pairs
) -> dict[str, Array]:
  """As `key_mask` if it hides keys alone and that is honoured, or `mask`."""
  alone = mask.shape[-2:-1] in ((), (1,)) and mask.shape[-3:-2] in ((), (1,))
  if not (alone and honours(cls, 'key_mask')):
    return {'mask': _pairs(mask, batch, pairs)}
  rows = _pairs(mask, batch, (1, pairs[1]))[:, 0, 0]
  count = 1
  for size in batch:
    count *= size
  return {'key_mask': jnp.broadcast_to(rows, (count, pairs[1]))}
