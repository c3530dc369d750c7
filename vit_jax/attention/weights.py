"""Masks, and softmax over what they keep: the core of most attentions.

Heads come before tokens here, and everything is in float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vit_jax.shapes import Array, Bool, Float


def logits_of(
  q: Float[Array, '*B N D'],
  k: Float[Array, '*B M D'],
  bias: Float[Array, '...'] | None = None,
) -> Float[Array, '*B N M']:
  """Q Kᵀ / √D + bias."""
  logits = jnp.einsum(
    '...nd,...md->...nm', q * q.shape[-1] ** -0.5, k,
    preferred_element_type=jnp.float32,
  )  # fmt: skip
  return logits if bias is None else logits + bias.astype(jnp.float32)


def keep_of(
  queries: int,
  keys: int,
  *,
  causal: bool = False,
  key_mask: Bool[Array, 'B M'] | None = None,
  mask: Bool[Array, '#B #H N M'] | None = None,
) -> Bool[Array, '#B #H #N M'] | None:
  """The conjunction of all masks, or None if there is none."""
  keep = mask
  if key_mask is not None:
    padding = key_mask[:, None, None, :]
    keep = padding if keep is None else keep & padding
  if causal:
    past = jnp.tri(queries, keys, keys - queries, dtype=bool)[None, None]
    keep = past if keep is None else keep & past
  return keep


def powers_of(
  logits: Float[Array, '...'], keep: Bool[Array, '...'] | None = None
) -> Float[Array, '...']:
  """exp(logits - max) along the last axis: weights before their division.

  What `keep` leaves out is zero; a row with nothing left is all zeros, and its
  gradients are finite.
  """
  if keep is not None:
    # A finite stand-in for -inf keeps gradients finite in rows without a key.
    logits = jnp.where(keep, logits, jnp.finfo(jnp.float32).min)
  # The largest cancels in the quotient, so its gradient is zero.
  largest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
  powers = jnp.exp(logits - largest)
  return powers if keep is None else jnp.where(keep, powers, 0.0)


def softmax_of(
  logits: Float[Array, '...'], keep: Bool[Array, '...'] | None = None
) -> Float[Array, '...']:
  """Softmax along the last axis over what `keep` keeps; empty rows are 0."""
  powers = powers_of(logits, keep)
  total = powers.sum(axis=-1, keepdims=True)
  return powers / jnp.where(total > 0, total, 1.0)


def mixed(
  logits: Float[Array, '*B N M'],
  v: Float[Array, '*B M E'],
  keep: Bool[Array, '...'] | None = None,
  drop: Callable[[Array], Array] = lambda x: x,
) -> Float[Array, '*B N E']:
  """softmax(logits) V over what `keep` keeps; `drop` is dropout of weights."""
  powers = powers_of(logits, keep)
  total = powers.sum(axis=-1, keepdims=True)
  out = jnp.einsum(
    '...nm,...me->...ne', drop(powers).astype(v.dtype), v,
    preferred_element_type=jnp.float32,
  )  # fmt: skip
  # Dividing [N E] sums rather than [N M] weights: the layer on two CPU cores
  # is 1.18 times as fast forward, 1.07 times in training.
  return out / jnp.where(total > 0, total, 1.0)
