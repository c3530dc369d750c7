"""The difference of two softmax maps."""

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.attention.decoding import KeyValueCache
from vit_jax.attention.dense_map import mix
from vit_jax.attention.weights import keep_of, softmax_of
from vit_jax.shapes import Array, Bool, Float


class Differential(KeyValueCache):
  """norm((A₁ - λ A₂) V) (1 - λ₀), O(N·M). Ye et al. 2024, eq. 1 to 3.

  A₁ and A₂ are softmax(Q Kᵀ / √(D/2)) of the two halves of each head's D;
  λ = exp(λ_q1·λ_k1) - exp(λ_q2·λ_k2) + λ₀ is shared by the heads; norm is an
  RMSNorm of each head (the paper's GroupNorm). Rows of the map sum to 1 - λ.

  Attributes:
    initial: λ₀; the paper's layer l has 0.8 - 0.6 exp(-0.3 (l - 1)).
    normalize: False leaves norm and (1 - λ₀) out.
    causal: query i sees keys up to i + M - N.
  """

  family = 'exact'
  published = 'N²'
  cost = 'N²'
  source = 'Ye et al. 2024'
  cross = True
  equivariant = True
  linear_in_values = False

  initial: float = 0.8
  normalize: bool = True
  causal: bool = False

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
    """Attends; `bias` is added to the logits of both maps.

    Raises:
      ValueError: D is odd.
    """
    width = q.shape[-1]
    if width % 2:
      raise ValueError(
        f'differential attention splits a head in halves; its width {width} '
        'is odd'
      )
    keep = keep_of(
      q.shape[1], k.shape[1], causal=self.causal, key_mask=key_mask, mask=mask
    )
    draw = lambda name: self.param(  # noqa: E731
      name, nn.initializers.normal(0.1), (width // 2,)
    )
    first, second = (
      jnp.exp(draw(f'lambda_q{i}') @ draw(f'lambda_k{i}')) for i in (1, 2)
    )
    maps = []
    for part in (slice(None, width // 2), slice(width // 2, None)):
      logits = jnp.einsum(
        'bhnd,bhmd->bhnm',
        q[..., part].swapaxes(1, 2) * (width // 2) ** -0.5,
        k[..., part].swapaxes(1, 2),
        preferred_element_type=jnp.float32,
      )
      if bias is not None:
        logits = logits + bias.astype(jnp.float32)
      maps.append(softmax_of(logits, keep))
    out = mix(maps[0] - (first - second + self.initial) * maps[1], v)
    if self.normalize:
      norm = nn.RMSNorm(epsilon=1e-5, name='norm')
      out = norm(out.astype(jnp.float32)) * (1 - self.initial)
    return out.astype(v.dtype)

  def flops(self, n: int, heads: int, width: int) -> float:
    """Two products with half the width each, and the weights times V."""
    return 4.0 * n * n * heads * width

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Logits and weights of both maps, and a few [N D] arrays."""
    return 4.0 * heads * (6 * n * n + 8 * n * width)
