"""Step-by-step decoding with a cache of keys and values."""

from typing import Any

import jax.numpy as jnp

from vit_jax.attention.base import Attention, put, refuse_acausal
from vit_jax.shapes import Array, Float


class KeyValueCache(Attention):
  """Decodes in O(length) a step: the new query attends to the cached keys.

  For causal kernels that take M ≠ N and `key_mask`, and in which a row depends
  on nothing but its query and the keys it keeps; exact for those.
  """

  def init_state(
    self, batch: int, length: int, heads: int, width: int, dtype: Any
  ) -> Any:
    """Empty keys and values of `length` steps; raises unless causal."""
    refuse_acausal(self)
    empty = jnp.zeros((batch, length, heads, width), dtype)
    return {'step': jnp.zeros((), jnp.int32), 'k': empty, 'v': empty}

  def step(
    self,
    state: Any,
    q: Float[Array, 'B 1 H D'],
    k: Float[Array, 'B 1 H D'],
    v: Float[Array, 'B 1 H D'],
  ) -> tuple[Float[Array, 'B 1 H D'], Any]:
    """The next row; what the cache does not hold yet is masked."""
    t = state['step']
    k, v = put(state['k'], k, t), put(state['v'], v, t)
    past = jnp.broadcast_to((jnp.arange(k.shape[1]) <= t)[None], k.shape[:2])
    return self(q, k, v, key_mask=past), {'step': t + 1, 'k': k, 'v': v}
