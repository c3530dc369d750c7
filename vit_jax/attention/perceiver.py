"""Perceiver: tokens attend to a few latents, and the latents to the tokens."""

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.attention.base import Attention
from vit_jax.attention.weights import mixed
from vit_jax.shapes import Array, Bool, Float


class Perceiver(Attention):
  """softmax(Q Zᵀ / √D) softmax(Z Kᵀ / √D) V, O((N + M)·latents).

  Jaegle et al. 2021, "Perceiver", section 3.1, and 2022, "Perceiver IO",
  section 3.1: the cross-attention that encodes and the one that decodes, with
  learned latents Z in every head. Departure: what decoding compares queries to
  is Z, where the paper's are keys made of latents that went through a deep
  transformer: that belongs in a model. So the map is linear, of rank `latents`.

  Attributes:
    latents: number of latents.
    dropout_rate: of both weights, in training.
  """

  family = 'memory'
  published = 'N·m'
  cost = 'N·latents'
  source = 'Jaegle et al. 2021'
  cross = True
  equivariant = True

  latents: int = 64
  dropout_rate: float = 0.0

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
    # Deviation 1 gives the logits unit variance; the paper's 0.02 suits
    # latents that are projected before they meet keys.
    z = self.param(
      'latents', nn.initializers.normal(1.0),
      (1, q.shape[2], self.latents, q.shape[3]),
    )[0].astype(k.dtype)  # fmt: skip
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    drop = nn.Dropout(self.dropout_rate, deterministic=not train)
    # One Z for all examples, never broadcast over them: XLA's CPU compiler
    # (jaxlib 0.10.2) gets two products with one broadcast array wrong.
    scores = lambda x: jnp.einsum(  # noqa: E731
      'bhnd,hld->bhnl', x * x.shape[-1] ** -0.5, z,
      preferred_element_type=jnp.float32,
    )  # fmt: skip
    keep = None if key_mask is None else key_mask[:, None, None]
    packed = mixed(scores(k).swapaxes(2, 3), v, keep, drop).astype(v.dtype)
    out = mixed(scores(q), packed, drop=drop)
    return out.swapaxes(1, 2).astype(v.dtype)

  def flops(self, n: int, heads: int, width: int) -> float:
    """Two logits and two products with values."""
    return 8.0 * n * self.latents * heads * width

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Logits and weights, and a few [N D] arrays."""
    return 4.0 * heads * n * (3 * self.latents + 6 * width)
