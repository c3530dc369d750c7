"""The base of the attentions that are softmax over a pattern's pairs."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from vit_jax.attention import blocks, tables
from vit_jax.attention.algebra import Layout, Pattern, PerHead, Tokens
from vit_jax.attention.base import put, refuse_cross
from vit_jax.attention.gathered import Gathered
from vit_jax.attention.patterns import Causal, Prefix, kept
from vit_jax.attention.weights import softmax_of
from vit_jax.shapes import Array, Bool, Float, Int


class Patterned(Gathered):
  """softmax(Q Kᵀ / √D + bias) V over the pairs that `pattern()` keeps.

  Prefix tokens see and are seen by all. A subclass defines `pattern`, and
  `relative` if it has a learned bias of positions. Work and memory go with the
  kept pairs, not with N².

  Attributes:
    causal: query i sees of the pattern only keys up to i.
  """

  causal: bool = False

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
      order += range(heads)[of]
      given = blocks.Arrays(**arrays).of_heads(of, relative)
      parts = self.plan(pattern, layout, layout)
      parts = [(part, k[:, of], v[:, of], given) for part in parts]
      found.append(blocks.attend(q[:, of], parts, self.drop(train)))
    out = found[0]
    if len(found) > 1:
      out = jnp.concatenate(found, axis=1)[:, np.argsort(order)]
    return out.swapaxes(1, 2)

  def complete(self, pattern: Pattern) -> Pattern:
    """The pattern with prefix and causality."""
    if self.prefix:
      pattern = pattern | Prefix()
    return pattern & Causal() if self.causal else pattern

  def patterns(self) -> tuple[Pattern, ...]:
    """The complete patterns, of head h the h-th, modulo their number."""
    found = self.pattern()
    some = found.patterns if isinstance(found, PerHead) else (found,)
    return tuple(map(self.complete, some))

  def plans(
    self, n: int, heads: int
  ) -> list[tuple[int, tuple[tables.Part, ...]]]:
    """(heads, plan) of every pattern."""
    layout, patterns = self.any_layout(n), self.patterns()
    counts = [len(range(heads)[i :: len(patterns)]) for i in range(heads)]
    found = [self.plan(p, layout, layout) for p in patterns[:heads]]
    return list(zip(counts, found, strict=False))

  def support(self, n: int) -> np.ndarray:
    """Which pairs are kept, Bool[N N], or Bool[P N N] of several patterns."""
    layout = self.layout(n)
    found = [kept(p, layout) for p in self.patterns()]
    return found[0] if len(found) == 1 else np.stack(found)

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
