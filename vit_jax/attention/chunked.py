"""Exact softmax attention in linear memory."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.attention.decoding import KeyValueCache
from vit_jax.shapes import Array, Bool, Float

LEAST = jnp.finfo(jnp.float32).min


class Chunked(KeyValueCache):
  """softmax(Q Kᵀ / √D + bias) V, O(N·M) work, O(N + size²) memory.

  Blocks of queries in turn meet blocks of keys; the softmax is rescaled as
  larger logits turn up. Both loops are rematerialised, so the backward pass
  does not hold the map either. Rabe and Staats 2021, section 2; unlike there
  a loop's state is one block of queries'.

  Attributes:
    size: tokens a block, of queries and of keys.
    causal: query i sees keys up to i + M - N; future blocks are masked, not
      skipped.
    dropout_rate: of the attention weights, in training.
  """

  family = 'exact'
  published = 'N²'
  cost = 'N² (memory N·size)'
  source = 'Rabe and Staats 2021'
  sequential = 'O(N²/size²)'
  cross = True
  equivariant = True

  size: int = 128
  causal: bool = False
  dropout_rate: float = 0.0

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
    train: bool = False,
  ) -> Float[Array, 'B N H E']:
    """Attends; raises a ValueError unless size is positive."""
    if self.size < 1:
      raise ValueError(f'size={self.size} is not a positive number of tokens')
    (b, n, h, width), m, dtype = q.shape, k.shape[1], v.dtype
    dropping = train and self.dropout_rate > 0
    rng = self.make_rng('dropout') if dropping else None
    rows, columns = min(self.size, n), min(self.size, m)
    kept = jnp.ones((1, m), bool) if key_mask is None else key_mask
    pairs = jax.tree.map(
      lambda x: _chunks(_chunks(x, 3, columns), 3, rows),
      {'mask': mask, 'bias': bias},
    )
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    keys = (
      _chunks(k, 2, columns), _chunks(v, 2, columns),
      _chunks(kept[:, None, None], 3, columns),
    )  # fmt: skip

    @jax.checkpoint
    def row(args):
      i, q, pairs = args

      @jax.checkpoint
      def add(state, args):
        j, (k, v, keep), pair = args
        largest, total, out = state
        logits = jnp.einsum(
          'bhnd,bhmd->bhnm', q, k, preferred_element_type=jnp.float32
        )
        if pair['bias'] is not None:
          logits = logits + pair['bias'].astype(jnp.float32)
        if pair['mask'] is not None:
          keep = keep & pair['mask']
        if self.causal:
          at = i * rows + jnp.arange(rows) + m - n
          past = j * columns + jnp.arange(columns)[None] <= at[:, None]
          keep = keep & past[None, None]
        logits = jnp.where(keep, logits, LEAST)
        # The largest cancels in the quotient, so its gradient is zero.
        new = jnp.maximum(
          largest, jax.lax.stop_gradient(logits.max(-1, keepdims=True))
        )
        powers = jnp.where(keep, jnp.exp(logits - new), 0.0)
        old = jnp.exp(largest - new)
        total = old * total + powers.sum(-1, keepdims=True)
        if dropping:
          some = jax.random.bernoulli(
            jax.random.fold_in(jax.random.fold_in(rng, i), j),
            1 - self.dropout_rate, powers.shape,
          )  # fmt: skip
          powers = jnp.where(some, powers / (1 - self.dropout_rate), 0.0)
        more = jnp.einsum(
          'bhnm,bhme->bhne', powers.astype(dtype), v,
          preferred_element_type=jnp.float32,
        )  # fmt: skip
        return (new, total, old * out + more), None

      one = jnp.zeros((b, h, rows, 1), jnp.float32)
      start = (
        one + LEAST, one, jnp.zeros((b, h, rows, v.shape[-1]), jnp.float32)
      )
      blocks = jnp.arange(keys[0].shape[0])
      (_, total, out), _ = jax.lax.scan(add, start, (blocks, keys, pairs))
      return (out / jnp.where(total > 0, total, 1.0)).astype(dtype)

    q = _chunks(q * width**-0.5, 2, rows)
    out = jax.lax.map(row, (jnp.arange(q.shape[0]), q, pairs))
    out = jnp.moveaxis(out, 0, 2).reshape(b, h, -1, out.shape[-1])[:, :, :n]
    return out.swapaxes(1, 2)

  def flops(self, n: int, heads: int, width: int) -> float:
    """Q Kᵀ and the weights times V, of whole blocks."""
    whole = -(-n // min(self.size, n)) * min(self.size, n)
    return 4.0 * whole * whole * heads * width

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Padded copies of the arrays, and a block of the map."""
    return 4.0 * heads * (8 * (n + self.size) * width + 4 * self.size**2)


def _chunks(x, axis: int, size: int):
  """Pads an axis with zeros and moves its blocks of `size` to the front."""
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, -x.shape[axis] % size)
  x = jnp.pad(x, widths)
  x = x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :])
  return jnp.moveaxis(x, axis, 0)
