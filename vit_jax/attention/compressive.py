"""Compressive Transformer: what falls out of the memory is kept, compressed."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.attention.transformer_xl import TransformerXL
from vit_jax.attention.weights import softmax_of
from vit_jax.shapes import Array

COMPRESSIONS = ('conv', 'mean', 'max')


class Compressive(TransformerXL):
  """Transformer-XL over [compressed; memory; x]. Rae et al. 2020, section 3.

  Each call that may change 'attention_state' moves x into the memory, and of
  the inputs that fall out of it each `rate` in a row, f_c(old), into the
  compressed memory, whose oldest are forgotten. Positions count the slots, as
  in the paper: a compressed one counts once. O(N·(N + memory + compressed)).

  f_c learns only to keep what attention reads, from the loss of the paper's
  algorithm 2 with every other parameter held fixed: the mean square of
  attend(x, old) - attend(x, f_c(old)), by content alone. It is sown as
  'compression' into the collection 'losses', in training if that is mutable;
  add it to the loss. The mean, not the paper's sum, so that its weight does not
  depend on the batch. If `rate` does not divide what falls out, its first
  group is smaller; absent inputs are left out (zeros in the convolution).

  Attributes:
    compressed: slots of the compressed memory.
    rate: c, inputs in one slot; 3 or 4 in the paper.
    compress: f_c: 'conv' (kernel and stride c, the paper's best), 'mean' or
      'max'.

  Raises:
    ValueError: compressed without memory, rate below 1, an unknown f_c;
      normalize_qk, which the loss would have to repeat.
  """

  published = 'N²'
  cost = 'N² + N·(memory + compressed)'
  source = 'Rae et al. 2020'

  compressed: int = 0
  rate: int = 4
  compress: str = 'conv'

  def _remembered(self) -> int:
    return self.memory + self.compressed

  def _memories(self, x: Array) -> list[tuple[Any, Any]]:
    self.refuse_fields('normalize_qk')
    if self.compress not in COMPRESSIONS:
      raise ValueError(
        f'compress={self.compress!r}; choices: {", ".join(COMPRESSIONS)}'
      )
    if self.rate < 1 or (self.compressed and not self.memory):
      raise ValueError(
        f'rate={self.rate} must be at least 1, and compressed='
        f'{self.compressed} needs a memory, not memory={self.memory}: it takes '
        'what falls out of that'
      )
    found = super()._memories(x)
    if self.compressed:
      found.insert(0, self._slots('compressed', x, self.compressed))
    return found

  def _remember(
    self, memories: list[tuple[Any, Any]], x: Array, present: Array, train: bool
  ) -> None:
    old, there = self._push(memories[-1], x, present)
    if not self.compressed:
      return
    new, some = self._compress(old, there)
    self._push(memories[0], new, some)
    if (
      train
      and self.is_mutable_collection('losses')
      and not self.is_initializing()
    ):
      x = jax.lax.stop_gradient(x)
      apart = self._read(x, old, there) - self._read(x, new, some)
      square = (apart.astype(jnp.float32) ** 2).mean(axis=(2, 3))
      count = jnp.maximum(present.sum(), 1)
      self.sow('losses', 'compression', (square * present).sum() / count)

  def _compress(self, old: Array, there: Array) -> tuple[Array, Array]:
    """f_c over groups of `rate`: [B N C] → [B ⌈N / rate⌉ C]."""
    ahead = -old.shape[1] % self.rate
    there = jnp.pad(there, ((0, 0), (ahead, 0)))
    old = jnp.pad(old, ((0, 0), (ahead, 0), (0, 0)))
    there = there.reshape(len(there), -1, self.rate)
    old = old.reshape(*there.shape, -1)
    some, here = there.any(axis=-1), there[..., None]
    zeroed = jnp.where(here, old, 0.0)
    if self.compress == 'conv':
      return nn.DenseGeneral(
        old.shape[-1], axis=(-2, -1), kernel_init=self.kernel_init,
        dtype=self.dtype, name='compress',
      )(zeroed), some  # fmt: skip
    if self.compress == 'mean':
      return zeroed.sum(axis=2) / jnp.maximum(here.sum(axis=2), 1), some
    largest = jnp.where(here, old, jnp.finfo(old.dtype).min).max(axis=2)
    return jnp.where(some[..., None], largest, 0.0), some

  def _read(self, x: Array, old: Array, there: Array) -> Array:
    """attend(x, old) by content, through the projections held fixed."""
    fixed = jax.lax.stop_gradient(self.variables['params'])

    def project(name, inputs):
      y = jnp.einsum(
        'bnc,chd->bhnd', inputs.astype(self.dtype),
        fixed[name]['kernel'].astype(self.dtype),
      )  # fmt: skip
      if not self.use_bias:
        return y
      return y + fixed[name]['bias'].astype(self.dtype)[None, :, None]

    q, k, v = project('query', x), project('key', old), project('value', old)
    logits = jnp.einsum(
      'bhnd,bhmd->bhnm', q * q.shape[-1] ** -0.5, k,
      preferred_element_type=jnp.float32,
    )  # fmt: skip
    weights = softmax_of(logits, there[:, None, None]).astype(v.dtype)
    return jnp.einsum('bhnm,bhmd->bnhd', weights, v)
