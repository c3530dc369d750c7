"""Sparse attention: unions of patterns, and any expression of the algebra."""

from vit_jax.attention import patterns
from vit_jax.attention.algebra import Pattern, PerHead
from vit_jax.attention.patterned import Patterned


class Strided(Patterned):
  """Softmax over |i - j| < size or (i - j) mod size = 0, O(N·(size + N/size)).

  Places are counted in raster order, prefix aside. Child et al. 2019, section
  4.2, a merged head; there causal, here also not.

  Attributes:
    size: the stride; None for the paper's choice, the columns of the grid, √N
      in a sequence.
    per_head: whether heads take turns with the two patterns, not their union.
  """

  family = 'combined pattern'
  published = 'N·√N'
  cost = 'N·(size + N/size)'
  source = 'Child et al. 2019'

  size: int | None = None
  per_head: bool = False

  def pattern(self) -> Pattern | PerHead:
    """A band and a comb."""
    return _merged(
      self.per_head, patterns.Band(self.size), patterns.Strided(self.size)
    )


class Fixed(Patterned):
  """Softmax over own chunk and summaries, O(N·(size + summary·N/size)).

  ⌊i/size⌋ = ⌊j/size⌋ or j mod size ≥ size - summary, in raster order, prefix
  aside. Child et al. 2019, section 4.2, a merged head; there causal, here also
  not.

  Attributes:
    size: length of a chunk; None for the columns of the grid, √N in a sequence.
    summary: the last tokens of every chunk, which all queries see.
    per_head: whether heads take turns with the two patterns, not their union.
  """

  family = 'combined pattern'
  published = 'N·√N'
  cost = 'N·(size + summary·N/size)'
  source = 'Child et al. 2019'

  size: int | None = None
  summary: int = 1
  per_head: bool = False

  def pattern(self) -> Pattern | PerHead:
    """Chunks and their ends."""
    return _merged(
      self.per_head, patterns.Chunk(self.size),
      patterns.Summary(self.size, self.summary),
    )  # fmt: skip


def _merged(per_head: bool, a: Pattern, b: Pattern) -> Pattern | PerHead:
  return PerHead((a, b)) if per_head else a | b


class CrissCross(Patterned):
  """One softmax over the query's row and column, O(N·√N).

  On a grid of rows × columns, O(N·(rows + columns)). A sequence is laid out as
  the nearly square grid, so its neighbours depend on N. Huang et al. 2019,
  eq. 1 and 2.
  """

  family = 'fixed pattern'
  published = 'N·√N'
  cost = 'N·√N'
  source = 'Huang et al. 2019'

  planar = True

  def pattern(self) -> Pattern:
    """Row and column."""
    return patterns.Row() | patterns.Column()


class BigBird(Patterned):
  """Softmax over end, neighbouring and random blocks, O(N·block·(5 + random)).

  Block u of `block` tokens sees the first and the last block, u - 1, u, u + 1
  and `random` others; tokens of the end blocks see all. In raster order, prefix
  aside. Zaheer et al. 2020, section 2 and appendix D. The random blocks are
  drawn once from `seed`, for all heads; so they, and the last block, depend on
  N. The paper has no causal form; here it is the past of the pattern.

  Attributes:
    block: tokens of a block, which share a list of keys.
    random: blocks that are neither ends nor neighbours.
    seed: of the random blocks.
  """

  family = 'combined pattern'
  published = 'N'
  cost = 'N·block·(5 + random)'
  source = 'Zaheer et al. 2020'

  block: int = 16
  random: int = 3
  seed: int = 0

  def pattern(self) -> Pattern:
    """Neighbouring, end and random blocks."""
    found = patterns.Blocks(self.block) | patterns.Ends(self.block)
    if self.random:
      found = found | patterns.Random(self.block, self.random, self.seed)
    return found


class AnyPattern(Patterned):
  """Softmax over the pairs of any expression of patterns; O(their number).

  `pattern(keep='sliding(size=9) | strided(size=4)')`: names and options are
  those of `vit_jax.attention.patterns.PATTERNS`, joined by &, | and ~.

  Attributes:
    keep: the expression; several, head h takes the h-th, modulo their number.
  """

  family = 'combined pattern'
  published = 'kept pairs'
  cost = 'kept pairs'
  source = 'any of the fixed patterns, combined'

  keep: str | tuple[str, ...] = 'sliding(size=7)'

  def pattern(self) -> Pattern | PerHead:
    """As it is written."""
    return patterns.parse(self.keep)
