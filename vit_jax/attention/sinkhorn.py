"""Sparse Sinkhorn attention and its SortCut: attention to sorted blocks."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from vit_jax.attention.block_sort import BlockSort, log_of
from vit_jax.shapes import Array, Bool, Float


class Sinkhorn(BlockSort):
  """Y_u = softmax(Q_u [K̂_u; K_u]ᵀ / √D) [V̂_u; V_u], K̂ = (P ⊗ I_b) K, V̂ alike.

  A block attends to itself and to the block that the soft permutation P (see
  `BlockSort`) puts beside it, under one softmax: N·b for that, and N·blocks to
  apply P (blocks²·b·D a head), so N√N at blocks = √N, the default. Tay et al.
  2020, section 3.2, whose b² + (N/b)² counts the memory of one block and of P.

  Causal, section 3.3: place u is asked for by what precedes it, the mean of the
  queries (of x) up to its first token; it takes strictly earlier blocks, or a
  null block without keys, which is all that the first place can take; and
  `balance_causal` sums columns over earlier rows only. The paper also sums keys
  up to a block's first token: the mean of an earlier block is as causal, and
  says what is in it.

  Attributes:
    causal: query i sees keys up to i. Decodes with sort='dot' only.

  Raises:
    ValueError: M ≠ N; a number of tokens other than the grid's; an option out
      of range; sort='net' without x, or with parameters for other blocks.
  """

  family = 'optimal transport'
  published = 'b² + (N/b)²'
  cost = 'N·(N/blocks + blocks)'
  source = 'Tay et al. 2020'

  causal: bool = False

  @nn.compact
  def __call__(
    self,
    q: Float[Array, 'B N H D'],
    k: Float[Array, 'B M H D'],
    v: Float[Array, 'B M H E'],
    *,
    key_mask: Bool[Array, 'B M'] | None = None,
    x: Float[Array, 'B N C'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'B N H E']:
    """Attends; `x` is read with sort='net' only."""
    self._check(q, k)
    q, kv = q.swapaxes(1, 2), jnp.concatenate([k, v], axis=-1).swapaxes(1, 2)
    p, body = self.prefix, q.shape[2] - self.prefix
    blocks, own = self._blocks(q), self._blocks(kv)
    there = self._there(q.shape[2], key_mask)
    beside, mass = self._sort(
      blocks, own, x, there, train=train, causal=self.causal
    )
    shape = blocks.shape[:4]
    first = jnp.broadcast_to(
      kv[:, :, None, :p], (*shape[:3], p, kv.shape[-1])
    )
    if mass is not None:
      local = np.ones((1,) * 5, bool) if there is None else there
      local = local.swapaxes(3, 4)
      if self.causal:
        local = local & np.tri(shape[3], dtype=bool)[None, None, None]
      mass = (mass[..., None, :], log_of(local), self._first(key_mask)[:, None])
      mass = jnp.concatenate(
        [jnp.broadcast_to(m, (*shape, m.shape[-1])) for m in mass], axis=-1
      )
    out = self._attend(
      blocks, jnp.concatenate([beside, own, first], axis=3), mass, train
    )
    out = out.reshape(*shape[:2], -1, out.shape[-1])[:, :, :body]
    return self._with_prefix(out, q, kv, key_mask, train, self.causal)

  def flops(self, n: int, heads: int, width: int) -> float:
    """The order; each token with two blocks and the prefix."""
    blocks, size = self._sizes(n)
    keys = 2 * size + self.prefix
    return (
      self._sort_flops(n, heads, width, blocks)
      + 4.0 * blocks * size * keys * heads * width
    )

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Logits and weights, the keys and values of each block, P."""
    blocks, size = self._sizes(n)
    keys = 2 * size + self.prefix
    each = 3 * size * keys + 5 * keys * width + 8 * blocks
    return 4.0 * heads * blocks * each


class SortCut(BlockSort):
  """softmax(Q K̂[:keep]ᵀ / √D) V̂[:keep]: every query sees the first places.

  O(N·b·keep) with blocks of b = N / blocks tokens: N√N by default. Tay et al.
  2020, section 3.4. P is `BlockSort`'s: with sort='dot' the first places go to
  what the first blocks of queries ask for, with 'net' that is learned. Not
  causal: a place is filled from the whole sequence.

  Attributes:
    keep: how many sorted blocks; more than there are means all of them.

  Raises:
    ValueError: as `Sinkhorn`.
  """

  family = 'optimal transport'
  published = 'N·keep'
  cost = 'N·keep·N/blocks'
  source = 'Tay et al. 2020'

  keep: int = 2

  @nn.compact
  def __call__(
    self,
    q: Float[Array, 'B N H D'],
    k: Float[Array, 'B M H D'],
    v: Float[Array, 'B M H E'],
    *,
    key_mask: Bool[Array, 'B M'] | None = None,
    x: Float[Array, 'B N C'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'B N H E']:
    """Attends; `x` is read with sort='net' only."""
    self._check(q, k)
    if self.keep < 1:
      raise ValueError(f'keep={self.keep} must be 1 or more')
    q, kv = q.swapaxes(1, 2), jnp.concatenate([k, v], axis=-1).swapaxes(1, 2)
    p, (batch, heads, n, _) = self.prefix, q.shape
    places, mass = self._sort(
      self._blocks(q), self._blocks(kv), x, self._there(n, key_mask),
      train=train, places=self.keep,
    )  # fmt: skip
    places = places.reshape(batch, heads, -1, kv.shape[-1])
    if mass is not None:
      mass = mass.reshape(batch, heads, 1, -1)
      first = jnp.broadcast_to(self._first(key_mask), (batch, heads, 1, p))
      mass = jnp.concatenate([mass, first], axis=-1)
    out = self._attend(
      q[:, :, p:], jnp.concatenate([places, kv[:, :, :p]], axis=2), mass, train
    )
    return self._with_prefix(out, q, kv, key_mask, train)

  def flops(self, n: int, heads: int, width: int) -> float:
    """The order; each token with the first places and the prefix."""
    blocks, size = self._sizes(n)
    places = min(self.keep, blocks)
    keys = places * size + self.prefix
    return (
      self._sort_flops(n, heads, width, places)
      + 4.0 * (n - self.prefix) * keys * heads * width
    )

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Logits and weights, a few [N D] arrays, P."""
    blocks, size = self._sizes(n)
    keys = min(self.keep, blocks) * size + self.prefix
    return 4.0 * heads * (3 * n * keys + 8 * n * width + 8 * blocks * blocks)
