"""CPVT (Chu et al. 2021): DeiT with positions made by convolutions."""

from typing import Any, ClassVar

from vit_jax.models.deit import DeiT
from vit_jax.models.sizes import fields


def _variants() -> dict[str, dict[str, Any]]:
  plain = {f'{size}/16': fields(size, 16) for size in ('Ti', 'S', 'B')}
  pooled = {
    f'{name}-GAP': {**row, 'classifier': 'gap'} for name, row in plain.items()
  }
  return {**plain, **pooled}


class CPVT(DeiT):
  """A DeiT without position table, with a convolution after its first block.

  The convolution is a `ConditionalPosition`, which images of any size get their
  positions from. Chu et al. 2021, "Conditional Positional Encodings for Vision
  Transformers", section 3.

  Sizes: `VARIANTS`, 'Ti/16', 'S/16', 'B/16', and '…-GAP', which classify the
  mean of the patches, after the last norm, without a class token. The paper's
  accuracies beside DeiT's are of convolutions after each of the first five
  blocks, its "0-5": position='conditional(count=5)'.

  Attributes:
    position: as in `VisionTransformer`.
    Others as in `DeiT`; its distillation token has no position either.
  """

  position: str = 'conditional'

  VARIANTS: ClassVar[dict[str, dict[str, Any]]] = _variants()
