"""Perceiver: tokens attend to a few latents, and the latents to the tokens."""

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.attention.base import Attention, softmax_of
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
    # (jaxlib 0.10.2) gets a fused product with a broadcast operand wrong.
    scale = q.shape[-1] ** -0.5
    to_latents = product('hld,bhmd->bhlm', z * scale, k)
    keep = None if key_mask is None else key_mask[:, None, None]
    packed = mixed(softmax_of(to_latents, keep), v, drop)
    to_tokens = product('bhnd,hld->bhnl', q * scale, z)
    return mixed(softmax_of(to_tokens), packed, drop).swapaxes(1, 2)

  def flops(self, n: int, heads: int, width: int) -> float:
    """Two logits and two products with values."""
    return 8.0 * n * self.latents * heads * width

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Logits and weights, and a few [N D] arrays."""
    return 4.0 * heads * n * (3 * self.latents + 6 * width)


def product(
  spec: str, a: Float[Array, '...'], b: Float[Array, '...']
) -> Float[Array, 'B H _ _']:
  """Logits in float32."""
  return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def mixed(
  weights: Float[Array, 'B H N M'],
  v: Float[Array, 'B H M E'],
  drop: nn.Module,
) -> Float[Array, 'B H N E']:
  """Values mixed by weights, after dropout of the weights."""
  return jnp.einsum('bhnm,bhme->bhne', drop(weights).astype(v.dtype), v)


def attend(
  q: Float[Array, 'B H N D'],
  k: Float[Array, 'B H M D'],
  v: Float[Array, 'B H M E'],
  key_mask: Bool[Array, 'B M'] | None,
  drop: nn.Module,
) -> Float[Array, 'B H N E']:
  """Softmax attention with heads before tokens and a dropout of weights."""
  logits = jnp.einsum(
    'bhnd,bhmd->bhnm', q * q.shape[-1] ** -0.5, k,
    preferred_element_type=jnp.float32,
  )  # fmt: skip
  keep = None if key_mask is None else key_mask[:, None, None]
  weights = drop(softmax_of(logits, keep))
  return jnp.einsum('bhnm,bhme->bhne', weights.astype(v.dtype), v)
