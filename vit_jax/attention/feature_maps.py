"""Linear attention over feature maps: at once, causal by chunks, by steps.

Everything here is in float32 and has heads before tokens, [B H N F]: sums over
thousands of keys do not fit half precision.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.attention.base import Attention, refuse_acausal
from vit_jax.shapes import Array, Bool, Float

# A sum of weights below this fades to zero; its square is still a float32.
FLOOR = 1e-18
# The level before the first key: finite, so that differences are.
LOWEST = -1e30


def heads_first(x: Float[Array, 'B N H D']) -> Float[Array, 'B H N D']:
  """Tokens behind heads, in float32."""
  return x.swapaxes(1, 2).astype(jnp.float32)


def refuse_other_width(kernel: nn.Module, q: Array, v: Array) -> None:
  """Raises unless values are as wide as queries, for what mixes channels.

  Raises:
    ValueError: naming both widths.
  """
  if q.shape[-1] != v.shape[-1]:
    raise ValueError(
      f'{type(kernel).__name__} mixes channels, so that values must be as wide '
      f'as queries; got widths {v.shape[-1]} and {q.shape[-1]}'
    )


def all_sums(
  q: Float[Array, 'B H N F'],
  k: Float[Array, 'B H M F'],
  v: Float[Array, 'B H M E'],
) -> tuple[Float[Array, 'B H N E'], Float[Array, 'B H N']]:
  """φ(Q)(φ(K)ᵀ V) and φ(Q)(φ(K)ᵀ 1)."""
  state = jnp.einsum('bhmf,bhme->bhfe', k, v)
  sums = jnp.einsum('bhnf,bhfe->bhne', q, state)
  return sums, jnp.einsum('bhnf,bhf->bhn', q, k.sum(2))


def empty_state(
  batch: int, heads: int, features: int, width: int, *, level: bool = False
) -> Any:
  """Σ φ(k) vᵀ and Σ φ(k) of no key; `level`, if keys have levels."""
  found = {
    'values': jnp.zeros((batch, heads, features, width)),
    'keys': jnp.zeros((batch, heads, features)),
  }
  if level:
    found['level'] = jnp.full((batch, heads), LOWEST)
  return found


def advance(
  state: Any,
  q: Float[Array, 'B H C F'],
  k: Float[Array, 'B H C F'],
  v: Float[Array, 'B H C E'],
  level: Float[Array, 'B H C'] | None = None,
) -> tuple[Any, tuple[Float[Array, 'B H C E'], Float[Array, 'B H C']]]:
  """C tokens of causal attention: the next state, and (sums, total weights).

  Token t weighs key s ≤ t by φ(q_t)·φ(k_s) exp(level_s - level_t). Levels never
  fall, so no power overflows: they are the running maximum of exponents that
  were subtracted from the keys, or minus the logarithm of what gates forget.
  """
  past = jnp.tri(q.shape[2], dtype=bool)[None, None]
  weights = jnp.where(past, jnp.einsum('bhnf,bhmf->bhnm', q, k), 0.0)
  values, keys = state['values'], state['keys']
  found = {}
  if level is not None:
    difference = level[..., None, :] - level[..., None]
    weights *= jnp.exp(jnp.where(past, difference, 0.0))
    last = level[..., -1]
    q = q * jnp.exp(state['level'][..., None] - level)[..., None]
    k = k * jnp.exp(level - last[..., None])[..., None]
    kept = jnp.exp(state['level'] - last)[..., None]
    values, keys = values * kept[..., None], keys * kept
    found['level'] = last
  sums = jnp.einsum('bhnm,bhme->bhne', weights, v)
  sums += jnp.einsum('bhnf,bhfe->bhne', q, state['values'])
  total = weights.sum(-1) + jnp.einsum('bhnf,bhf->bhn', q, state['keys'])
  found['values'] = values + jnp.einsum('bhmf,bhme->bhfe', k, v)
  found['keys'] = keys + k.sum(2)
  return found, (sums, total)


def causal_sums(
  q: Float[Array, 'B H N F'],
  k: Float[Array, 'B H M F'],
  v: Float[Array, 'B H M E'],
  level: Float[Array, 'B H M'] | None = None,
  *,
  chunk: int,
) -> tuple[Float[Array, 'B H N E'], Float[Array, 'B H N']]:
  """`advance` over chunks of tokens, O(N·(chunk + F)·E) time, O(N·F) memory.

  For N ≠ M the last query is aligned with the last key.

  Raises:
    ValueError: chunk is not positive.
  """
  if chunk < 1:
    raise ValueError(f'chunk={chunk}; it is the tokens of a step, at least 1')
  n = q.shape[2]
  length = max(n, k.shape[2])
  chunk = min(chunk, length)
  steps = -(-length // chunk)

  def chunks(x, before=0.0, after='constant'):
    """[B H N …] → [steps B H chunk …], with tokens that weigh nothing."""
    rest = ((0, 0),) * (x.ndim - 3)
    front = ((0, 0), (0, 0), (length - x.shape[2], 0), *rest)
    back = ((0, 0), (0, 0), (0, steps * chunk - length), *rest)
    x = jnp.pad(jnp.pad(x, front, constant_values=before), back, after)
    x = x.reshape(*x.shape[:2], steps, chunk, *x.shape[3:])
    return jnp.moveaxis(x, 2, 0)

  parts = [chunks(q), chunks(k), chunks(v)]
  if level is not None:
    parts.append(chunks(level, LOWEST, 'edge'))
  state = empty_state(
    *q.shape[:2], q.shape[3], v.shape[3], level=level is not None
  )
  _, found = jax.lax.scan(lambda s, xs: advance(s, *xs), state, tuple(parts))
  whole = lambda x: jnp.moveaxis(x, 0, 2).reshape(  # noqa: E731
    *x.shape[1:3], steps * chunk, *x.shape[4:]
  )[:, :, length - n : length]
  return tuple(whole(x) for x in found)


class FeatureAttention(Attention):
  """φ(Q)(φ(K)ᵀ V) / φ(Q)(φ(K)ᵀ 1): what kernels with a feature map share.

  A subclass whose φ is a function of a token alone defines `phi` and
  `phi_count`; one with positions, parameters or levels defines the methods
  that use them.

  Attributes:
    causal: query i sees keys up to i + M - N (aligned bottom-right).
    chunk: tokens a step of the causal form: memory and speed, not results.
  """

  cross = True

  causal: bool = False
  chunk: int = 64

  def phi(self, x: Float[Array, 'B N H D']) -> Float[Array, 'B H N F']:
    """φ(x)."""
    raise NotImplementedError(f'{type(self).__name__} defines no phi')

  def phi_count(self, width: int) -> int:
    """F, for heads of width D."""
    raise NotImplementedError(f'{type(self).__name__} defines no phi_count')

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
    """Attends."""
    return self.attend(self.phi(q), self.phi(k), v, key_mask)

  def init_state(
    self, batch: int, length: int, heads: int, width: int, dtype: Any
  ) -> Any:
    """Sums over the keys so far; `length` and `dtype` change nothing."""
    return self.init_features(batch, heads, self.phi_count(width), width)

  def step(
    self,
    state: Any,
    q: Float[Array, 'B 1 H D'],
    k: Float[Array, 'B 1 H D'],
    v: Float[Array, 'B 1 H D'],
  ) -> tuple[Float[Array, 'B 1 H D'], Any]:
    """One token of decoding, O(F·D)."""
    return self.step_features(state, self.phi(q), self.phi(k), v)

  def flops(self, n: int, heads: int, width: int) -> float:
    """Two products with F×D states, one with their sums."""
    return self.feature_flops(n, heads, self.phi_count(width), width)

  def temporary(self, n: int, heads: int, width: int) -> float:
    """A few [N F] arrays."""
    return self.feature_temporary(n, heads, self.phi_count(width), width)

  def attend(
    self,
    q: Float[Array, 'B H N F'],
    k: Float[Array, 'B H M F'],
    v: Float[Array, 'B M H E'],
    key_mask: Bool[Array, 'B M'] | None = None,
    level: Float[Array, 'B H M'] | None = None,
    floor: float = FLOOR,
  ) -> Float[Array, 'B N H E']:
    """Attends with features; the smallest divisor is `floor`."""
    wide = heads_first(v)
    if key_mask is not None:
      k = jnp.where(key_mask[:, None, :, None], k, 0.0)
    if self.causal:
      sums, total = causal_sums(q, k, wide, level, chunk=self.chunk)
    else:
      sums, total = all_sums(q, k, wide)
    out = sums / jnp.maximum(total, floor)[..., None]
    return out.swapaxes(1, 2).astype(v.dtype)

  def init_features(
    self, batch: int, heads: int, features: int, width: int, **kind: bool
  ) -> Any:
    """The state before the first step: its size does not depend on steps.

    Raises:
      ValueError: the kernel is not causal.
    """
    refuse_acausal(self)
    return empty_state(batch, heads, features, width, **kind)

  def step_features(
    self,
    state: Any,
    q: Float[Array, 'B H 1 F'],
    k: Float[Array, 'B H 1 F'],
    v: Float[Array, 'B 1 H E'],
    level: Float[Array, 'B H 1'] | None = None,
    floor: float = FLOOR,
  ) -> tuple[Float[Array, 'B 1 H E'], Any]:
    """One token of decoding, by its features."""
    state, (sums, total) = advance(state, q, k, heads_first(v), level)
    out = sums / jnp.maximum(total, floor)[..., None]
    return out.swapaxes(1, 2).astype(v.dtype), state

  def feature_flops(
    self, n: int, heads: int, features: int, width: int
  ) -> float:
    """Products of features, their sums and values, for `flops`."""
    found = 4.0 * n * heads * features * width + 2.0 * n * heads * features
    if self.causal:
      chunk = min(self.chunk, n)
      found += 2.0 * n * heads * chunk * (features + width)
    return found

  def feature_temporary(
    self, n: int, heads: int, features: int, width: int
  ) -> float:
    """Features and values, and what a chunk takes, for `temporary`."""
    found = 4.0 * n * (features + width) + 2 * features * width
    if self.causal:
      chunk = min(self.chunk, n)
      found += n * (features + width) + 4 * chunk * chunk
    return 4.0 * heads * found
