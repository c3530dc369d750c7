"""Local attention with global tokens: Longformer and ETC."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.attention import patterns
from vit_jax.attention.algebra import Layout, Pattern, Tokens
from vit_jax.attention.patterned import Patterned
from vit_jax.attention.weights import softmax_of
from vit_jax.shapes import Array, Bool, Float, Int


def _globals(kernel: Any) -> int:
  """Global tokens after the prefix; without a prefix, one unless said."""
  if kernel.count is not None:
    return kernel.count
  return 0 if kernel.prefix else 1


def _with_globals(kernel: Any, pattern: Pattern) -> Pattern:
  count = _globals(kernel)
  return pattern | patterns.Global(count) if count else pattern


class Longformer(Patterned):
  """Softmax over a sliding window and global tokens, O(N·(size² + globals)).

  Global tokens see and are seen by all: the prefix, and the first `count`
  tokens after it. The window is a square on a grid, as in Zhang et al. 2021,
  and of `size` in a sequence. Beltagy et al. 2020, section 3.1.

  Attributes:
    size: tokens along each side of the window.
    count: global tokens after the prefix; None: none, but one without a prefix.
    global_projections: the rows of global tokens are softmax(Q' K'ᵀ / √D) V'
      with projections of x of their own, `query_global`, `key_global` and
      `value_global`; so they do not depend on v.
  """

  family = 'combined pattern'
  published = 'N·(size + globals)'
  cost = 'N·(size² + globals)'
  source = 'Beltagy et al. 2020'

  size: int = 15
  count: int | None = None
  global_projections: bool = False

  # The rows of global tokens are not a function of v if they have their own.
  linear_in_values = property(lambda self: not self.global_projections)

  def pattern(self) -> Pattern:
    """A window and the global tokens."""
    return _with_globals(self, patterns.Sliding(self.size))

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
    segments: Int[Array, 'B N'] | None = None,
    x: Float[Array, 'B N C'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'B N H E']:
    """Attends; `x` is needed for global projections only.

    Raises:
      ValueError: global_projections without x.
    """
    out = self.attend(
      q, k, v, self.patterns(), train, key_mask=key_mask, mask=mask, bias=bias,
      segments=segments,
    )  # fmt: skip
    if not self.global_projections:
      return out
    if x is None:
      raise ValueError(
        "global_projections=True projects the layer's input: give x, or take "
        'global_projections=False'
      )
    g, n = min(self.prefix + _globals(self), q.shape[1]), q.shape[1]
    keep = jnp.ones((1, 1, g, n), bool)
    if self.causal:
      keep &= jnp.tri(g, n, dtype=bool)[None, None]
    if key_mask is not None:
      keep &= key_mask[:, None, None]
    if mask is not None:
      keep &= mask[:, :, :g]
    if segments is not None:
      keep &= (segments[:, :g, None] == segments[:, None])[:, None]
    rows = self._global_rows(
      x, q, v, keep, 0.0 if bias is None else bias[:, :, :g], train
    )
    return jnp.concatenate([rows, out[:, g:]], axis=1)

  def _global_rows(self, x, q, v, keep, bias, train: bool):
    project = lambda name, inputs, like: nn.DenseGeneral(  # noqa: E731
      like.shape[2:], dtype=like.dtype, name=name
    )(inputs)
    q = project('query_global', x[:, : keep.shape[2]], q)
    k, v = project('key_global', x, q), project('value_global', x, v)
    logits = jnp.einsum(
      'bghd,bmhd->bhgm', q * q.shape[-1] ** -0.5, k,
      preferred_element_type=jnp.float32,
    )  # fmt: skip
    weights = self.drop(train)(softmax_of(logits + bias, keep))
    out = jnp.einsum(
      'bhgm,bmhe->bghe', weights.astype(v.dtype), v,
      preferred_element_type=jnp.float32,
    )  # fmt: skip
    return out.astype(v.dtype)

  def flops(self, n: int, heads: int, width: int) -> float:
    """As every pattern's, and the global rows' projections and products."""
    found = super().flops(n, heads, width)
    if self.global_projections:
      g, c = min(self.prefix + _globals(self), n), heads * width
      found += 4 * n * c * c + 2 * g * c * c + 4 * g * n * c
    return found

  def temporary(self, n: int, heads: int, width: int) -> float:
    """As every pattern's, and the global rows' keys, values and weights."""
    found = super().temporary(n, heads, width)
    if self.global_projections:
      g = min(self.prefix + _globals(self), n)
      found += 4 * n * heads * (4 * width + 3 * g)
    return found

  def init_state(
    self, batch: int, length: int, heads: int, width: int, dtype: Any
  ) -> Any:
    """An empty cache of keys and values.

    Raises:
      ValueError: global_projections, as a step has no x.
    """
    if self.global_projections:
      raise ValueError(
        'decoding has no x to project: take global_projections=False'
      )
    return super().init_state(batch, length, heads, width, dtype)


class ETC(Patterned):
  """One softmax over local and global tokens, biased by relation, O(N·radius).

  Keys are those at most `radius` places away, in raster order, and the global
  tokens, which see and are seen by all: the prefix, and the first `count`
  tokens after it. A learned bias depends on the offset i - j between local
  tokens, clipped to ±`clip`, or on which of the two are global. The paper adds
  a vector to the key in place of a bias to the logit, and has more labels, for
  structured inputs. Ainslie et al. 2020, sections 3.1 and 3.2.

  Attributes:
    radius: local tokens to each side.
    clip: the largest offset with a label of its own.
    count: global tokens after the prefix; None: none, but one without a prefix.
  """

  family = 'combined pattern'
  published = 'N·(radius + globals) + globals²'
  cost = 'N·(radius + globals)'
  source = 'Ainslie et al. 2020'

  radius: int = 16
  clip: int = 12
  count: int | None = None

  def pattern(self) -> Pattern:
    """A band and the global tokens."""
    return _with_globals(self, patterns.Band(self.radius + 1))

  def relative(
    self, heads: int, layout: Layout
  ) -> Callable[[Tokens, Tokens], Array]:
    """2·clip + 1 offsets; then local to global, global to local and both."""
    count = _globals(self)
    labels = 2 * self.clip + 4
    table = self.table('relative_bias', (labels, heads))

    def bias(query: Tokens, key: Tokens) -> Array:
      # Arithmetic in place of `where`, for NumPy's arrays and JAX's alike.
      offset = (query.place - key.place).clip(-self.clip, self.clip)
      a, b = query.place < count, key.place < count
      relation = labels - 4 + b + 2 * a
      either = a | b
      label = either * relation + (~either) * (offset + self.clip)
      return jnp.take(table.T, label, axis=1, mode='clip')

    return bias
