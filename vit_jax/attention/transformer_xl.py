"""Transformer-XL: relative positions, and a memory of the segment before."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.attention.multihead import Mixer, normalize, project, project_out
from vit_jax.attention.weights import keep_of, mixed
from vit_jax.shapes import Array, Bool, Float


class TransformerXL(Mixer):
  """Relative attention over memory and segment. Dai et al. 2019, section 3.

  K, V from [stopgrad(memory); x]; the logit of i and j is
  ((q_i + u)·k_j + (q_i + v)·W_R R_{i-j}) / √D with sinusoids R, and u
  (`content_bias`), v (`position_bias`) and W_R (`relative`) learned.
  O(N·(N + memory)).

  The memory is the layer's last `memory` inputs, in the collection
  'attention_state' with a flag for each that is there; it starts empty. Every
  call for which that collection is mutable moves x into it, also in evaluation:
  so one applies the layer to one segment of a sequence after the other. Without
  memory it is attention with relative positions, which is what fits images:
  batches of those do not continue each other.

  Departure: the paper's is causal; without `causal` positions count both ways.

  Attributes:
    memory: inputs that are kept from segment to segment.
    causal: query i sees the memory and the inputs up to i.

  Raises:
    ValueError: the state was made for another batch size.
  """

  family = 'recurrence'
  published = 'N²'
  cost = 'N² + N·memory'
  source = 'Dai et al. 2019'

  memory: int = 0
  causal: bool = False

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B N C'],
    *,
    key_mask: Bool[Array, 'B N'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'B N C']:
    """Attends to what is remembered and to x, then remembers x."""
    n, width = x.shape[1:]
    present = jnp.ones(x.shape[:2], bool) if key_mask is None else key_mask
    memories = self._memories(x)
    old = [jax.lax.stop_gradient(kept.value) for kept, _ in memories]
    both = jnp.concatenate([*(a.astype(x.dtype) for a in old), x], axis=1)
    there = [there.value for _, there in memories]
    seen = jnp.concatenate([*there, present], axis=1)
    q = project(self, 'query', x, width)
    k = project(self, 'key', both, width)
    v = project(self, 'value', both, width)
    q, k = normalize(self, q, k)
    content, position = (
      self.param(name, nn.initializers.zeros, q.shape[2:]).astype(q.dtype)
      for name in ('content_bias', 'position_bias')
    )
    m = k.shape[1]
    last = 0 if self.causal else 1 - n
    distances = jnp.arange(m - 1, last - 1, -1)  # i - j
    r = nn.DenseGeneral(
      q.shape[2:], use_bias=False, kernel_init=self.kernel_init,
      dtype=self.dtype, name='relative',
    )(sinusoids(distances, width))  # fmt: skip
    heads = lambda a: a.swapaxes(1, 2)  # noqa: E731
    q, k, v = heads(q * q.shape[-1] ** -0.5), heads(k), heads(v)
    content, position = (
      (a * q.shape[-1] ** -0.5)[None, :, None] for a in (content, position)
    )
    logits = jnp.einsum(
      'bhnd,bhmd->bhnm', q + content, k, preferred_element_type=jnp.float32
    )
    relative = jnp.einsum(
      'bhnd,thd->bhnt', q + position, r, preferred_element_type=jnp.float32
    )
    logits += shift(relative, n, m)
    keep = keep_of(n, m, causal=self.causal, key_mask=seen)
    drop = nn.Dropout(self.dropout_rate, deterministic=not train)
    out = heads(mixed(logits, v, keep, drop)).astype(v.dtype)
    if memories and self.is_mutable_collection('attention_state'):
      self._remember(memories, x, present, train)
    return project_out(self, out, width)

  def flops(self, n: int, heads: int, width: int) -> float:
    """Projections of x, memory and distances; content, position and values."""
    m = n + self._remembered()
    distances = m if self.causal else m + n - 1
    inner = heads * width
    projections = 2 * n + 2 * m + distances
    return 2.0 * inner * (projections * inner + n * (2 * m + distances))

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Logits, weights, and relative logits before and after the shift."""
    m = n + self._remembered()
    return 4.0 * heads * (n * (2 * m + 2 * (m + n)) + 12 * (m + n) * width)

  def _remembered(self) -> int:
    """Tokens before the segment."""
    return self.memory

  def _slots(self, name: str, x: Array, length: int) -> tuple[Any, Any]:
    """The variables of one memory: inputs [B L C] and whether each is there."""
    shape = (x.shape[0], length, x.shape[2])
    kept = self.variable('attention_state', name, jnp.zeros, shape)
    there = self.variable(
      'attention_state', f'{name}_there', jnp.zeros, shape[:2], bool
    )
    if kept.value.shape != shape:
      raise ValueError(
        f'{type(self).__name__} has a {name} of shape {kept.value.shape} and '
        f'now needs {shape}: its batch size is fixed when its state is made; '
        "make a new 'attention_state' for another batch"
      )
    return kept, there

  def _memories(self, x: Array) -> list[tuple[Any, Any]]:
    """The variables of each memory, the oldest first."""
    return [self._slots('memory', x, self.memory)] if self.memory else []

  def _remember(
    self, memories: list[tuple[Any, Any]], x: Array, present: Array, train: bool
  ) -> None:
    """Moves x into the memories."""
    del train
    self._push(memories[-1], x, present)

  def _push(
    self, memory: tuple[Any, Any], x: Array, present: Array
  ) -> tuple[Array, Array]:
    """Appends x to one memory; what falls out of it, oldest first."""
    kept, there = memory
    n = x.shape[1]
    x = jax.lax.stop_gradient(x).astype(kept.value.dtype)
    x = jnp.concatenate([kept.value, x], axis=1)
    present = jnp.concatenate([there.value, present], axis=1)
    if not self.is_initializing():
      kept.value, there.value = x[:, n:], present[:, n:]
    return x[:, :n], present[:, :n]


def sinusoids(
  positions: Float[Array, 'T'] | Any, width: int
) -> Float[Array, 'T C']:
  """[sin(p·ω), cos(p·ω)], ω_t = 10000^(-2t/C). Vaswani et al. 2017."""
  half = -(-width // 2)
  rates = 10000.0 ** (-jnp.arange(half, dtype=jnp.float32) * 2 / width)
  angles = positions.astype(jnp.float32)[:, None] * rates[None]
  both = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
  return both[:, :width]


def shift(
  x: Float[Array, 'B H N T'], n: int, m: int
) -> Float[Array, 'B H N M']:
  """From distances m - 1 - t in column t to i + m - n - j in column j.

  Read in rows that are one shorter, each row moves by one: Dai et al. 2019,
  appendix B. Distances that are not there come out as zeros or as others'.
  """
  t = m + n - 1
  x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, t + 1 - x.shape[3])))
  x = x.reshape(*x.shape[:2], -1)[..., n - 1 : n - 1 + n * t]
  return x.reshape(*x.shape[:2], n, t)[..., :m]
