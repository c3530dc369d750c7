"""What a model's field `position` says."""

from typing import NamedTuple

from vit_jax import attention as attentions
from vit_jax import specs

POSITIONS = ('learned', 'sincos2d', 'sincos1d', 'none')  # added to the tokens


class Positions(NamedTuple):
  """What a model's `position` says.

  Attributes:
    added: one of `POSITIONS`.
    conditional: how many `ConditionalPosition`s there are.
    inside: specs of `vit_jax.attention.positions`.
  """

  added: str
  conditional: int
  inside: str


def split_position(text: str) -> Positions:
  """'learned, rotary' → ('learned', 0, 'rotary').

  Raises:
    ValueError: an unknown spec or option, or several that are added.
  """
  found = specs.parse(text)
  inside = attentions.positions.POSITIONS
  rest = [str(s) for s in found if s.name in inside]
  added = [str(s) for s in found if s.name not in (*inside, 'conditional')]
  counts = [
    specs.build(s, {'conditional': _count}, 'position')
    for s in found
    if s.name == 'conditional'
  ]
  known = set(added) <= set(POSITIONS)
  if not found or not known or len(added) > 1 or len(counts) > 1:
    raise ValueError(
      f'position={text!r}; choices: {", ".join(POSITIONS)}; and after a comma '
      f'or alone, conditional(count), and inside attention: {", ".join(inside)}'
    )
  return Positions((added or ['none'])[0], sum(counts), ', '.join(rest))


def _count(count: int = 1) -> int:
  """The option of 'conditional'."""
  if not isinstance(count, int) or count < 1:
    raise ValueError(f'conditional(count={count!r}) must be 1, 2, 3, …')
  return count
