"""Sparse relatives of softmax: rows with exact zeros."""

import jax
import jax.numpy as jnp

from vit_jax.attention.decoding import KeyValueCache
from vit_jax.attention.dense_map import DenseMap
from vit_jax.shapes import Array, Bool, Float


def entmax(
  logits: Float[Array, '*B M'],
  keep: Bool[Array, '*#B M'] | None = None,
  alpha: float = 1.5,
) -> Float[Array, '*B M']:
  """[(α-1) z - τ]₊^(1/(α-1)) along the last axis, τ such that it sums to 1.

  Exact for α = 1.5 and 2 by sorting: the sort finds the support, on which τ is
  a closed form, so derivatives of every order are right. What `keep` leaves
  out is 0; a row with nothing left is all zeros. Peters et al. 2019, eq. 10
  and algorithm 2; Martins and Astudillo 2016, algorithm 1.
  """
  if keep is None:
    keep = jnp.ones((1,) * (logits.ndim - 1) + logits.shape[-1:], bool)
  z = jnp.where(keep, logits, jnp.finfo(jnp.float32).min)
  z = (alpha - 1) * (z - jax.lax.stop_gradient(z.max(-1, keepdims=True)))
  # τ is at least -1, so nothing at -1 or below is in the support.
  z = jnp.maximum(z, -1.0)
  best = -jnp.sort(-jax.lax.stop_gradient(z), axis=-1)
  count = jnp.arange(1.0, z.shape[-1] + 1).reshape((1,) * (z.ndim - 1) + (-1,))
  mean = best.cumsum(-1) / count
  if alpha == 2:
    threshold = mean - 1 / count
  else:
    spread = (best**2).cumsum(-1) / count - mean**2
    threshold = mean - jnp.sqrt(jnp.maximum(1 / count - spread, 0.0))
  size = jnp.maximum((threshold < best).sum(-1, keepdims=True), 1)
  least = jnp.take_along_axis(best, size - 1, axis=-1)
  inside = (z >= least) & (z > -1.0)
  size = inside.sum(-1, keepdims=True)
  mean = jnp.where(inside, z, 0.0).sum(-1, keepdims=True) / size
  if alpha == 2:
    above = z - mean + 1 / size
  else:
    spread = jnp.where(inside, (z - mean) ** 2, 0.0).sum(-1, keepdims=True)
    above = z - mean + jnp.sqrt(jnp.maximum(1 - spread, 1e-12) / size)
  # A maximum with 0 would share its gradient with those that are just outside.
  above = jnp.where(inside & (above > 0), above, 0.0)
  weights = above if alpha == 2 else above**2
  return jnp.where(keep, weights, 0.0)


class Entmax(KeyValueCache, DenseMap):
  """α-entmax(Q Kᵀ / √D + bias) V, O(N·M log M). Correia et al. 2019.

  Rows have exact zeros. The paper learns α of each head; here it is fixed, to
  the two values whose solution is exact.

  Attributes:
    alpha: 1.5, or 2 (sparsemax); softmax is the limit 1.
    causal: query i sees keys up to i + M - N.
    dropout_rate: of the attention weights, in training.
  """

  family = 'exact'
  cost = 'N² log N'
  published = 'N² log N'
  source = 'Correia et al. 2019'

  alpha: float = 1.5
  causal: bool = False

  def weights(
    self,
    logits: Float[Array, 'B H N M'],
    keep: Bool[Array, '#B #H #N M'] | None,
    train: bool,
  ) -> Float[Array, 'B H N M']:
    """Sparse rows; raises a ValueError for another α."""
    if self.alpha not in (1.5, 2):
      raise ValueError(
        f'entmax is exact for alpha=1.5 and alpha=2 (sparsemax), given '
        f"{self.alpha}; alpha=1 is the attention 'softmax'"
      )
    return entmax(logits, keep, self.alpha)

  def temporary(self, n: int, heads: int, width: int) -> float:
    """The sorted logits and sums along them."""
    return 4.0 * heads * (10 * n * n + 8 * n * width)
