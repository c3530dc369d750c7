"""The base of the attentions that are softmax over a pattern's pairs."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.attention import blocks
from vit_jax.attention.algebra import Layout, Pattern, PerHead, Tokens, mask
from vit_jax.attention.base import (
  Attention,
  refuse_cross,
  refuse_other_grid,
  softmax_of,
)
from vit_jax.attention.patterns import Causal, Prefix
from vit_jax.shapes import Array, Bool, Float, Int

ENGINES = ('auto', 'blocks', 'dense')


class Patterned(Attention):
  """softmax(Q Kᵀ / √D + bias) V over the pairs that `pattern()` keeps.

  Prefix tokens see and are seen by all. A subclass defines `pattern`, and
  `relative` if it has a learned bias of positions. Work and memory go with the
  kept pairs, not with N².

  Attributes:
    causal: query i sees of the pattern only keys up to i.
    dropout_rate: of the attention weights, in training.
    engine: 'blocks' computes blocks of kept pairs, 'dense' all pairs; 'auto'
      is 'blocks' unless its blocks hold half of all pairs or more.
    block: most queries that share a list of keys; 0 chooses it.
  """

  causal: bool = False
  dropout_rate: float = 0.0
  engine: str = 'auto'
  block: int = 0

  # Whether a sequence is taken as the nearly square grid.
  planar = False

  def pattern(self) -> Pattern | PerHead:
    """Which keys a query keeps, apart from prefix and causality."""
    raise NotImplementedError

  def relative(
    self, heads: int, layout: Layout
  ) -> Callable[[Tokens, Tokens], Array] | None:
    """A learned bias: (query, key) → Float[H, *pairs]; None without one.

    Its parameters are made by `self.table`.
    """
    del heads, layout

  def table(self, name: str, shape: tuple[int, ...]) -> Array:
    """A parameter of `relative`; also outside of the compact `__call__`."""
    if self.has_variable('params', name):
      return self.get_variable('params', name)
    # Swin's initialiser of its relative bias.
    return self.param(name, nn.initializers.truncated_normal(0.02), shape)

  @nn.compact
  def __call__(
    self,
    q: Float[Array, 'B N H D'],
    k: Float[Array, 'B M H D'],
    v: Float[Array, 'B M H E'],
    *,
    key_mask: Bool[Array, 'B M'] | None = None,
    mask: Bool[Array, '#B #H N M'] | None = None,
    bias: Float[Array, '#B #H N M'] | None = None,
    segments: Int[Array, 'B N'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'B N H E']:
    """Attends; logits and softmax are in float32 whatever the inputs are."""
    return self.attend(
      q, k, v, self.patterns(), train, key_mask=key_mask, mask=mask, bias=bias,
      segments=segments,
    )  # fmt: skip

  def attend(
    self, q: Array, k: Array, v: Array, patterns: tuple[Pattern, ...],
    train: bool, **arrays: Array | None,
  ) -> Float[Array, 'B N H E']:  # fmt: skip
    """Attends over the given patterns, head h over `patterns[h % len]`.

    Call it inside the `nn.compact` of `__call__`; `**arrays` are those of
    `blocks.Arrays`.
    """
    refuse_cross(self, q, k)
    layout = self.layout(q.shape[1])
    heads = q.shape[2]
    relative = self.relative(heads, layout)
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    order, found = [], []
    for i, pattern in enumerate(patterns[:heads]):
      of = slice(i, None, len(patterns))
      given = dict(arrays)
      for name in ('mask', 'bias'):
        if given.get(name) is not None and given[name].shape[1] > 1:
          given[name] = given[name][:, of]
      if relative is not None:
        given['relative'] = lambda a, b, of=of: relative(a, b)[of]
      given = blocks.Arrays(**given)
      found.append(
        blocks.attend(
          q[:, of],
          [(p, k[:, of], v[:, of], given) for p in self.plan(pattern, layout)],
          self.drop(train),
        )
      )
      order += range(heads)[of]
    out = found[0]
    if len(found) > 1:
      out = jnp.concatenate(found, axis=1)[:, np.argsort(order)]
    return out.swapaxes(1, 2)

  def drop(self, train: bool) -> Callable[[Array], Array]:
    """Dropout of attention weights."""
    if train and self.dropout_rate > 0:
      return lambda x: nn.Dropout(self.dropout_rate)(x, deterministic=False)
    return lambda x: x

  def layout(self, n: int) -> Layout:
    """Where the n tokens lie.

    Raises:
      ValueError: prefix and grid do not make n tokens.
    """
    refuse_other_grid(self, n)
    return Layout.of(n, self.grid, self.prefix, self.planar)

  def complete(self, pattern: Pattern) -> Pattern:
    """The pattern with prefix and causality."""
    if self.prefix:
      pattern = pattern | Prefix()
    return pattern & Causal() if self.causal else pattern

  def patterns(self) -> tuple[Pattern, ...]:
    """The complete patterns, of head h the h-th, modulo their number."""
    found = self.pattern()
    found = found.patterns if isinstance(found, PerHead) else (found,)
    return tuple(map(self.complete, found))

  def plan(self, pattern: Pattern, layout: Layout) -> tuple[blocks.Part, ...]:
    """The blocks that are computed.

    Raises:
      ValueError: no such engine.
    """
    if self.engine not in ENGINES:
      raise ValueError(f'engine={self.engine!r}; choices: {", ".join(ENGINES)}')
    dense = blocks.whole(pattern, layout, layout)
    if self.engine == 'dense':
      return dense
    found = blocks.plan(pattern, layout, layout, self.block)
    if self.engine == 'auto' and 2 * blocks.pairs(found) >= layout.n**2:
      return dense
    return found

  def plans(
    self, n: int, heads: int
  ) -> list[tuple[int, tuple[blocks.Part, ...]]]:
    """(heads, plan) of every pattern; at another n on a nearly square grid."""
    grid, patterns = self.grid, self.patterns()
    if grid is not None and self.prefix + grid[0] * grid[1] != n:
      grid = None
    layout = Layout.of(n, grid, self.prefix, self.planar or bool(self.grid))
    return [
      (len(range(heads)[i :: len(patterns)]), self.plan(pattern, layout))
      for i, pattern in enumerate(patterns[:heads])
    ]

  def support(self, n: int) -> np.ndarray:
    """Which pairs are kept, Bool[N N], or Bool[P N N] of several patterns."""
    layout = self.layout(n)
    grid = (layout.rows, layout.columns) if self.grid else None
    found = [
      mask(p, n, grid, self.prefix, self.planar) for p in self.patterns()
    ]
    return found[0] if len(found) == 1 else np.stack(found)

  def flops(self, n: int, heads: int, width: int) -> float:
    """4 · heads · width · the pairs in the blocks, padding included."""
    return 4.0 * width * sum(
      count * blocks.pairs(parts) for count, parts in self.plans(n, heads)
    )

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Logits, weights and masks of the blocks, and the gathered keys."""
    total = 0.0
    for count, parts in self.plans(n, heads):
      total += count * (
        4 * blocks.pairs(parts) + 4 * width * blocks.gathered(parts)
        + (4 + 4 * len(parts)) * n * width
      )  # fmt: skip
    return 4.0 * total

  def init_state(
    self, batch: int, length: int, heads: int, width: int, dtype: Any
  ) -> Any:
    """An empty cache of keys and values."""
    state = super().init_state(batch, length, heads, width, dtype)
    return {name: state[name] for name in ('step', 'k', 'v')}

  def step(
    self,
    state: Any,
    q: Float[Array, 'B 1 H D'],
    k: Float[Array, 'B 1 H D'],
    v: Float[Array, 'B 1 H D'],
  ) -> tuple[Float[Array, 'B 1 H D'], Any]:
    """One row of the pattern over the cached keys, O(length)."""
    t = state['step']
    k, v = (put(state[name], x, t) for name, x in (('k', k), ('v', v)))
    out = self.row(q, k, v, t, self.patterns())
    return out, {'step': t + 1, 'k': k, 'v': v}

  def row(
    self, q: Array, k: Array, v: Array, t: Array, patterns: tuple[Pattern, ...]
  ) -> Float[Array, 'B 1 H D']:
    """Attends from the token of index t to `length` keys."""
    heads, layout = q.shape[2], self.layout(k.shape[1])
    query = layout.tokens(t[None, None])
    key = layout.tokens(jnp.arange(layout.n)[None])
    keep = [
      jnp.broadcast_to(p.keep(query, key), (1, layout.n)) for p in patterns
    ]
    keep = jnp.stack(keep)[np.arange(heads) % len(patterns)]
    logits = jnp.einsum(
      'bnhd,bmhd->bhnm', q * q.shape[-1] ** -0.5, k,
      preferred_element_type=jnp.float32,
    )  # fmt: skip
    relative = self.relative(heads, layout)
    if relative is not None:
      logits += relative(query, key).astype(jnp.float32)[None]
    weights = softmax_of(logits, keep[None])
    out = jnp.einsum(
      'bhnm,bmhe->bnhe', weights.astype(v.dtype), v,
      preferred_element_type=jnp.float32,
    )  # fmt: skip
    return out.astype(v.dtype)


def put(cache: Array, x: Array, t: Array) -> Array:
  """The cache with x written as its token t."""
  return jax.lax.dynamic_update_slice_in_dim(
    cache, x.astype(cache.dtype), t, axis=1
  )


def offset_bias(
  table: Float[Array, 'L H'], size: int
) -> Callable[[Tokens, Tokens], Array]:
  """A bias by the offset query - key along each axis, as in Swin.

  L = (2·size - 1) ** axes; offsets of `size` or more, and pairs with a prefix
  token, have none.
  """

  def bias(query: Tokens, key: Tokens) -> Array:
    index, near = 0, (query.place >= 0) & (key.place >= 0)
    for a, b in zip(query.axes, key.axes, strict=True):
      near &= abs(a - b) < size
      index = index * (2 * size - 1) + a - b + size - 1
    found = jnp.take(table.T, index, axis=1, mode='clip')
    return jnp.where(near[None], found, 0)

  return bias
