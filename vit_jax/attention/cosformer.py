"""cosFormer: linear attention that fades with distance as a cosine."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.attention.feature_maps import FeatureAttention, heads_first
from vit_jax.shapes import Array, Bool, Float, Int


class CosFormer(FeatureAttention):
  """Weights relu(q_i)·relu(k_j) cos(π(i - j)/2L), normalised, O(N·D²).

  cos(a - b) = cos a cos b + sin a sin b makes it linear attention with features
  [relu(x) cos, relu(x) sin]. Qin et al. 2022, section 3.

  With `length=None`, L = max(N, M), as in the paper, so that padding changes
  the angles; a given `length` does not depend on padding. A query whose every
  weight is zero gets zeros. As keys align with the last query in the causal
  form, query i is at position i + M - N there, and at i without it.

  Attributes:
    length: L: positions are below it.
    causal, chunk: as in `FeatureAttention`.
  """

  family = 'kernel'
  published = 'N·D²'
  cost = 'N·D²'
  source = 'Qin et al. 2022'

  length: int | None = None

  @nn.compact
  def __call__(
    self,
    q: Float[Array, 'B N H D'],
    k: Float[Array, 'B M H D'],
    v: Float[Array, 'B M H E'],
    *,
    key_mask: Bool[Array, 'B M'] | None = None,
    positions: Int[Array, 'B N'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'B N H E']:
    """Attends; positions are of queries and of keys, and need `length`.

    Raises:
      ValueError: more tokens than `length`; positions without `length`, or
        with M ≠ N.
    """
    n, m = q.shape[1], k.shape[1]
    length = self._length(max(n, m))
    at = jnp.arange(n)[None] + (m - n if self.causal else 0)
    key_at = jnp.arange(m)[None]
    if positions is not None:
      if self.length is None or n != m:
        raise ValueError(
          f'CosFormer takes positions with length= (given {self.length}) and '
          f'as many queries as keys (given {n} and {m})'
        )
      at = key_at = positions
    q, k = _map(q, at, length), _map(k, key_at, length)
    return self.attend(q, k, v, key_mask)

  def _length(self, tokens: int) -> int:
    if self.length is not None and self.length < tokens:
      raise ValueError(
        f'CosFormer with length={self.length} takes at most as many tokens, '
        f'not {tokens}'
      )
    return self.length or tokens

  def init_state(
    self, batch: int, length: int, heads: int, width: int, dtype: Any
  ) -> Any:
    """Sums over the keys so far, the position and L."""
    return {
      'memory': self.init_features(batch, heads, 2 * width, width),
      'position': jnp.zeros((), jnp.int32),
      'length': jnp.asarray(self._length(length), jnp.int32),
    }

  def step(
    self,
    state: Any,
    q: Float[Array, 'B 1 H D'],
    k: Float[Array, 'B 1 H D'],
    v: Float[Array, 'B 1 H D'],
  ) -> tuple[Float[Array, 'B 1 H D'], Any]:
    """One token of decoding, O(D²)."""
    at, length = state['position'], state['length']
    q, k = (_map(x, at[None, None], length) for x in (q, k))
    out, memory = self.step_features(state['memory'], q, k, v)
    return out, {'memory': memory, 'position': at + 1, 'length': length}

  def flops(self, n: int, heads: int, width: int) -> float:
    """Two products with 2D×D states, one with their sums."""
    return self.feature_flops(n, heads, 2 * width, width)

  def temporary(self, n: int, heads: int, width: int) -> float:
    """A few [N 2D] arrays."""
    return self.feature_temporary(n, heads, 2 * width, width)


def _map(x, positions, length):
  """relu(x) times cosine and sine of the position: [B H N 2D]."""
  angles = (0.5 * jnp.pi / length) * positions[:, None, :, None]
  x = jax.nn.relu(heads_first(x))
  return jnp.concatenate([x * jnp.cos(angles), x * jnp.sin(angles)], axis=-1)
