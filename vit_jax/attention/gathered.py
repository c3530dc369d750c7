"""The base of what is computed by blocks of kept pairs."""

from collections.abc import Callable

import flax.linen as nn

from vit_jax.attention import tables
from vit_jax.attention.algebra import Layout, Pattern
from vit_jax.attention.base import Attention, refuse_other_grid
from vit_jax.shapes import Array

ENGINES = ('auto', 'blocks', 'dense')


class Gathered(Attention):
  """Where tokens lie, which engine computes their pairs, and what it costs.

  Attributes:
    dropout_rate: of the attention weights, in training.
    engine: 'blocks' computes blocks of kept pairs, 'dense' all pairs; 'auto'
      is 'blocks' unless its blocks hold half of all pairs or more.
    block: most queries that share a list of keys; 0 chooses it.
  """

  dropout_rate: float = 0.0
  engine: str = 'auto'
  block: int = 0

  # Whether a sequence is taken as the nearly square grid.
  planar = False

  def layout(self, n: int) -> Layout:
    """Where the n tokens lie.

    Raises:
      ValueError: prefix and grid do not make n tokens.
    """
    refuse_other_grid(self, n)
    return Layout.of(n, self.grid, self.prefix, self.planar)

  def any_layout(self, n: int) -> Layout:
    """As `layout`, and for other n than the grid's of a nearly square one."""
    grid = self.grid
    if grid is not None and self.prefix + grid[0] * grid[1] != n:
      grid = None
    planar = self.planar or self.grid is not None
    return Layout.of(n, grid, self.prefix, planar)

  def plan(
    self, pattern: Pattern, query: Layout, key: Layout
  ) -> tuple[tables.Part, ...]:
    """The blocks that are computed.

    Raises:
      ValueError: no such engine.
    """
    if self.engine not in ENGINES:
      raise ValueError(f'engine={self.engine!r}; choices: {", ".join(ENGINES)}')
    dense = tables.whole(pattern, query, key)
    if self.engine == 'dense':
      return dense
    found = tables.plan(pattern, query, key, self.block)
    if self.engine == 'auto' and 2 * tables.pairs(found) >= query.n * key.n:
      return dense
    return found

  def plans(
    self, n: int, heads: int
  ) -> list[tuple[int, tuple[tables.Part, ...]]]:
    """(heads, plan) of everything that is computed for n tokens."""
    raise NotImplementedError

  def drop(self, train: bool) -> Callable[[Array], Array]:
    """Dropout of attention weights."""
    if train and self.dropout_rate > 0:
      return lambda x: nn.Dropout(self.dropout_rate)(x, deterministic=False)
    return lambda x: x

  def flops(self, n: int, heads: int, width: int) -> float:
    """4 · heads · width · the pairs in the blocks, padding included."""
    return 4.0 * width * sum(
      count * tables.pairs(parts) for count, parts in self.plans(n, heads)
    )

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Logits, weights and masks of the blocks, and the gathered keys."""
    total = 0.0
    for count, parts in self.plans(n, heads):
      total += count * (
        3 * tables.pairs(parts) + 3 * width * tables.gathered(parts)
        + (3 + 3 * len(parts)) * n * width
      )  # fmt: skip
    return 4.0 * total
