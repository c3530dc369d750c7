"""The arena: one recipe, many choices, one fair comparison of them."""

from vit_jax.arena.fairness import UnfairError
from vit_jax.arena.probing import probe
from vit_jax.arena.run import arena, compare

__all__ = ['UnfairError', 'arena', 'compare', 'probe']
