"""RoPE-ViT (Heo et al. 2024): positions by rotating queries and keys."""

from typing import Any, ClassVar

from vit_jax.models.sizes import fields
from vit_jax.models.vit import VisionTransformer

ROTATIONS = {'axial': 'rotary', 'mixed': 'rotary_mixed'}


def _variants() -> dict[str, dict[str, Any]]:
  return {
    f'{size}/16-{name}{table}': {
      **fields(size, 16), 'position': f'{"learned, " * bool(table)}{rotation}'
    }
    for size in ('S', 'B', 'L')
    for name, rotation in ROTATIONS.items()
    for table in ('', '-APE')
  }  # fmt: skip


class RotaryViT(VisionTransformer):
  """A ViT whose queries and keys turn by their patch's place in the grid.

  DeiT-III's recipe (exact GELU, LayerScale, truncated normal weights, one
  drop-path rate for all blocks) with `attention.rotary` in every layer: images
  of any size. Heo et al. 2024, "Rotary Position Embedding for Vision
  Transformer", section 3.

  Sizes: `VARIANTS`, S, B and L with patches of 16, 'S/16-axial' (each of the
  two halves of the pairs by one coordinate, at fixed frequencies to the base
  100) and 'S/16-mixed' (all pairs by both, at frequencies learned by layer and
  head); '…-APE' has a learned table besides, without a row for the class token.

  Attributes:
    As in `VisionTransformer`.
  """

  position: str = 'rotary'
  position_resize: str = 'bicubic'
  prefix_positions: int | None = 0
  layer_scale: float | None = 1e-4
  gelu: str = 'exact'
  initialization: str = 'truncated'
  drop_path_rule: str = 'uniform'

  VARIANTS: ClassVar[dict[str, dict[str, Any]]] = _variants()
