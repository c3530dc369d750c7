"""Kernels with one fault of public code each, otherwise the right ones."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.attention.algebra import Layout, Pattern, Sized, Tokens
from vit_jax.attention.block_sort import log_of
from vit_jax.attention.linear import Linear
from vit_jax.attention.linformer import Linformer
from vit_jax.attention.local import Window
from vit_jax.attention.performer import Performer
from vit_jax.attention.sinkhorn import Sinkhorn
from vit_jax.attention.synthesizer import DenseSynthesizer
from vit_jax.shapes import Array, Bool, Float, PRNGKeyArray


def draw_unsigned(
  key: PRNGKeyArray, features: int, width: int
) -> Float[Array, 'F D']:
  """As `performer.draw_features`, the signs of R's diagonal left as they come.

  Rows are the transposed Q's, as in that code. Householder's QR decides the
  signs by the matrix itself, so the directions are not Haar distributed and
  E φ(q)·φ(k) ≠ exp(q·k/√D).
  """
  directions, lengths = jax.random.split(key)
  blocks = -(-features // width)
  normal = jax.random.normal(directions, (blocks, width, width))
  rows = jax.lax.map(lambda x: jnp.linalg.qr(x)[0].T, normal)
  squares = jax.random.chisquare(lengths, width, (features, 1))
  return rows.reshape(-1, width)[:features] * jnp.sqrt(squares)


class UnsignedPerformer(Performer):
  """Directions from a QR decomposition as it comes: the kernel is biased.

  Raises:
    ValueError: redraw=True, or orthogonal=False, which has no QR.
  """

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
    """Attends, with features that were drawn wrongly with the parameters."""
    if self.redraw or not self.orthogonal:
      raise ValueError(
        f'redraw={self.redraw}, orthogonal={self.orthogonal}: the fault is in '
        'orthogonal features drawn once; leave redraw=False, orthogonal=True'
      )
    if not self.has_variable('attention_state', 'features'):
      w = draw_unsigned(self.make_rng('params'), self.features, q.shape[-1])
      self.put_variable('attention_state', 'features', w)
    return Performer.__call__.__wrapped__(
      self, q, k, v, key_mask=key_mask, train=train
    )


@dataclasses.dataclass(frozen=True)
class Strides(Sized):
  """Tokens whose places are equal modulo the number of blocks.

  `size` is a block's along each axis, as that of `patterns.Window`.
  """

  def _count(self, layout: Layout) -> int:
    return max(-(-layout.length // self.size ** len(layout.sides)), 1)

  def keep(self, query: Tokens, key: Tokens) -> Any:
    """See `Pattern`."""
    count = self._count(query.layout)
    both = (query.place >= 0) & (key.place >= 0)
    return both & (query.place % count == key.place % count)

  def order(self, tokens: Tokens, block: int) -> np.ndarray:
    """By block."""
    del block
    return tokens.place % self._count(tokens.layout)

  def candidates(self, query: Tokens, key: Layout) -> np.ndarray:
    """The blocks of the queries."""
    count = self._count(key)
    places = np.arange(key.length, dtype=np.int32)
    some = np.isin(places % count, query.place % count)
    return key.prefix + places[some]


class StridedWindow(Window):
  """Reshaped to (block, blocks) instead of (blocks, block): a stride.

  A "window" of the same number of keys is spread over the whole sequence, in
  raster order on a grid.
  """

  def pattern(self) -> Pattern:
    """See `Window`."""
    return Strides(self.size)


class SummedSinkhorn(Sinkhorn):
  """einsum('bskhd,bnhl->bsnhd'): k and l are summed apart from each other.

  As Σ_l P_nl = 1, each place gets the sum of all blocks, Σ_k K_k, whatever the
  order is, and the sort net gets no gradient.
  """

  def _sort(self, q, kv, x, there, *, train, causal=False, places=None):
    if causal:
      raise ValueError('causal=True: the fault is one of the encoder’s form')
    found, _ = super()._sort(q, kv, x, there, train=train, places=places)
    mass = None
    if there is not None:
      kv = jnp.where(there, kv, 0)
      some = log_of(there.any(2, keepdims=True))[..., 0]
      mass = jnp.broadcast_to(jnp.asarray(some), found.shape[:-1])
    return jnp.broadcast_to(kv.sum(2, keepdims=True), found.shape), mass


class KeysForValuesSinkhorn(Sinkhorn):
  """The sorted keys are taken for the sorted values."""

  def _sort(self, q, kv, *args, **options):
    width = q.shape[-1]
    if kv.shape[-1] != 2 * width:
      raise ValueError(
        f'values of width {kv.shape[-1] - width} and keys of {width}: one '
        'stands for the other here, so they must be equal'
      )
    keys = kv[..., :width]
    return super()._sort(q, jnp.concatenate([keys] * 2, -1), *args, **options)


class NoisySinkhorn(Sinkhorn):
  """Gumbel noise moves the scores at evaluation too.

  Where the stream 'gumbel' is, the right kernel has its noise; where it is not,
  the key comes from the bits of the scores, so that every batch has noise of
  its own.
  """

  def _scores(self, *args):
    scores = super()._scores(*args)
    if self.has_rng('gumbel'):
      return scores
    total = scores.sum().astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(total, jnp.uint32)
    key = jax.random.fold_in(jax.random.key(0), bits)
    return scores + jax.random.gumbel(key, scores.shape)


class UnmaskedLinear(Linear):
  """The mask of padding is taken and not used: sums run over padding too."""

  def attend(self, q, k, v, key_mask=None, level=None, **options):
    """See `FeatureAttention`."""
    del key_mask
    return super().attend(q, k, v, None, level, **options)


class UnmaskedLinformer(Linformer):
  """The mask of padding is taken and not used: padding is projected too."""

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
    """Attends to padding as well."""
    del key_mask
    return Linformer.__call__.__wrapped__(self, q, k, v, train=train)


class MixedSynthesizer(DenseSynthesizer):
  """Logits [B N H M] reshaped, not transposed, to [B H N M].

  The logits of token n in head h are used as those of another token in another
  head: row n·H + h of the flat list becomes head ⌊(n·H + h) / N⌋ of token
  (n·H + h) mod N.
  """

  def _logits(self, hidden: Float[Array, 'B H N D'], n: int):
    right = super()._logits(hidden, n)
    return right.swapaxes(1, 2).reshape(right.shape)
