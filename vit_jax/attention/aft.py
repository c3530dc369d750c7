"""Attention-free transformer: a softmax over the keys of each channel."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.attention.base import Attention, refuse_acausal
from vit_jax.attention.feature_maps import LOWEST, refuse_other_width
from vit_jax.attention.weights import softmax_of
from vit_jax.shapes import Array, Bool, Float


class AFT(Attention):
  """σ(q_i) ⊙ Σ_j softmax_j(k_j) ⊙ v_j, a channel at a time, O(N·D).

  AFT-simple: Zhai et al. 2021, section 3.2. The causal form keeps a running
  softmax a channel, whose maximum no later key enters.

  Attributes:
    causal: query i sees keys up to i + M - N (aligned bottom-right).
  """

  family = 'kernel'
  published = 'N·D'
  cost = 'N·D'
  source = 'Zhai et al. 2021'
  cross = True
  equivariant = True
  mixes_channels = True

  causal: bool = False

  @nn.compact
  def __call__(
    self,
    q: Float[Array, 'B N H D'],
    k: Float[Array, 'B M H D'],
    v: Float[Array, 'B M H E'],
    *,
    key_mask: Bool[Array, 'B M'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'B N H E']:
    """Attends.

    Raises:
      ValueError: E ≠ D.
    """
    refuse_other_width(self, q, v)
    n, m, dtype = q.shape[1], k.shape[1], v.dtype
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    gate = jax.nn.sigmoid(q)
    keep = None if key_mask is None else key_mask[:, None, None]
    if not self.causal:
      weights = softmax_of(jnp.moveaxis(k, 1, -1), keep)
      mixed = jnp.einsum('bhdm,bmhd->bhd', weights, v)[:, None]
      return (gate * mixed).astype(dtype)
    one = jnp.ones_like(k)
    if key_mask is not None:
      keep = key_mask[..., None, None]
      k, one = jnp.where(keep, k, LOWEST), jnp.where(keep, one, 0.0)
    _, sums, total = jax.lax.associative_scan(
      _join, (k, v * one, one), axis=1
    )
    # A query before every key has none; one with keys has a total of 1 or more.
    mixed = sums / jnp.maximum(total, 1.0)
    mixed = jnp.pad(mixed, ((0, 0), (max(n - m, 0), 0), (0, 0), (0, 0)))
    return (gate * mixed[:, -n:]).astype(dtype)

  def init_state(
    self, batch: int, length: int, heads: int, width: int, dtype: Any
  ) -> Any:
    """The softmax over no key; `length` and `dtype` change nothing."""
    refuse_acausal(self)
    zero = jnp.zeros((batch, 1, heads, width))
    return zero + LOWEST, zero, zero

  def step(
    self,
    state: Any,
    q: Float[Array, 'B 1 H D'],
    k: Float[Array, 'B 1 H D'],
    v: Float[Array, 'B 1 H D'],
  ) -> tuple[Float[Array, 'B 1 H D'], Any]:
    """One token of decoding, O(D)."""
    wide = k.astype(jnp.float32)
    state = _join(state, (wide, v.astype(jnp.float32), jnp.ones_like(wide)))
    out = jax.nn.sigmoid(q.astype(jnp.float32)) * state[1] / state[2]
    return out.astype(v.dtype), state

  def flops(self, n: int, heads: int, width: int) -> float:
    """The sum of weighted values; the causal form has no matrix product."""
    return 2.0 * n * heads * width

  def temporary(self, n: int, heads: int, width: int) -> float:
    """A few [N D] arrays, and in the causal form the levels of its tree."""
    return 4.0 * heads * n * width * (12 if self.causal else 3)


def _join(left, right):
  """Softmaxes over two runs of keys, as (maximum, Σ v exp, Σ exp)."""
  largest = jnp.maximum(left[0], right[0])
  largest = jax.lax.stop_gradient(largest)
  powers = jnp.exp(left[0] - largest), jnp.exp(right[0] - largest)
  return largest, *(
    x * powers[0] + y * powers[1]
    for x, y in zip(left[1:], right[1:], strict=True)
  )
