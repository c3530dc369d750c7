"""Patterns with the mistakes of public code."""

import dataclasses

from vit_jax.attention import patterns
from vit_jax.attention.algebra import Pattern
from vit_jax.attention.local import Window
from vit_jax.attention.swin import Swin


@dataclasses.dataclass(frozen=True)
class Rolled(Pattern):
  """Windows of the rolled grid, with those that wrap around in one piece."""

  size: int
  shift: int

  def keep(self, query, key):
    """See `Pattern`."""
    same = (query.place >= 0) & (key.place >= 0)
    for a, b, side in zip(
      query.axes, key.axes, query.layout.sides, strict=True
    ):
      shift = self.shift if self.size < side else 0
      same &= (a - shift) % side // self.size == (b - shift) % side // self.size
    return same


class ShiftMaskLeftOut(Swin):
  """Tokens of opposite borders of the picture see each other."""

  def pattern(self):
    """See `Swin`."""
    return Rolled(self.size, self.shift)


@dataclasses.dataclass(frozen=True)
class PrefixKeys(Pattern):
  """All see the prefix; the prefix sees only itself."""

  def keep(self, query, key):
    """See `Pattern`."""
    return (key.place < 0) & (query.place == query.place)


class PrefixRowDropped(Window):
  """The class token is seen, and sees nothing."""

  def complete(self, pattern):
    """See `Patterned`."""
    return (pattern & ~patterns.Prefix()) | PrefixKeys()
