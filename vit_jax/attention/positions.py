"""Positions inside attention: rotations of queries and keys, or biases.

Each is a module (q, k, positions) → (q, k, bias or None) of one sequence; a
rotation fits every attention, a bias those that honour `bias`.
"""

import functools
from collections.abc import Callable

import flax.linen as nn

from vit_jax import specs
from vit_jax.attention.places import Position
from vit_jax.attention.position_bias import (
  ALiBi,
  DecomposedBias,
  RelativeBias,
  RelativeKeys,
)
from vit_jax.attention.rotary import Rotary, RotaryMixed
from vit_jax.shapes import Array, Float, Int


class Several(Position):
  """One position after another; biases add up."""

  parts: tuple[tuple[str, Callable], ...] = ()

  @nn.compact
  def __call__(
    self,
    q: Float[Array, 'B N H D'],
    k: Float[Array, 'B M H D'],
    positions: Int[Array, 'B N'] | None = None,
  ) -> tuple[Array, Array, Array | None]:
    """Applies the parts in order."""
    bias = None
    for name, part in self.parts:
      q, k, more = part(
        num_heads=self.num_heads, grid=self.grid, prefix=self.prefix,
        name=name,
      )(q, k, positions)  # fmt: skip
      bias = add(bias, more)
    return q, k, bias


def add(
  bias: Float[Array, '...'] | None, more: Float[Array, '...'] | None
) -> Float[Array, '...'] | None:
  """The sum of two biases, of which either may be None."""
  if bias is None or more is None:
    return more if bias is None else bias
  return bias + more


POSITIONS: dict[str, type[Position]] = {
  'rotary': Rotary,  # Su et al. 2021; on a grid Heo et al. 2024 (axial)
  'rotary_mixed': RotaryMixed,  # Heo et al. 2024
  'relative_bias': RelativeBias,  # Liu et al. 2021, Bao et al. 2021; one grid
  'decomposed_bias': DecomposedBias,  # Li et al. 2022 (MViTv2); one grid
  'relative_keys': RelativeKeys,  # Shaw et al. 2018; any length, any grid
  'alibi': ALiBi,  # Press et al. 2021
}


def layer(text: str) -> Callable[..., Position] | None:
  """What `MultiHeadDotProductAttention(position=…)` takes, of a spec.

  Several specs, comma separated, apply in order; none is None.

  Raises:
    ValueError: unknown name or option, or a name that is given twice.
  """
  parts = {}
  for spec in specs.parse(text):
    entry = specs.lookup(POSITIONS, spec.name, 'position')
    specs.check_options(entry, spec.options, f'the position {spec.name!r}')
    if spec.name in parts:
      raise ValueError(f'the position {spec.name!r} is twice in {text!r}')
    parts[spec.name] = functools.partial(entry, **spec.options)
  if len(parts) < 2:
    return next(iter(parts.values()), None)
  return functools.partial(Several, parts=tuple(parts.items()))
