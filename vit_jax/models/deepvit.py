"""DeepViT: towards deeper Vision Transformers (Zhou et al. 2021)."""

from typing import Any, ClassVar

from vit_jax.models.vit import VisionTransformer


class DeepViT(VisionTransformer):
  """A ViT whose maps are regenerated: Norm(Θᵀ softmax(Q Kᵀ / √D)) V.

  Θ mixes the heads' maps, which would otherwise grow alike with the depth;
  see `ReAttention`, here with the bias and the start of the authors' code.
  Zhou et al. 2021, eq. 3.

  Its BatchNorm has running averages: train with `mutable=['batch_stats']`.

  Sizes: `VARIANTS`, '16', '24', '32' by the number of blocks; 12 heads of 32
  channels and MLPs of 3 times the width.

  Attributes:
    As in `VisionTransformer`.
  """

  attention: str = "reattention(use_bias=True, start='uniform')"
  gelu: str = 'exact'
  initialization: str = 'truncated'
  position_resize: str = 'bicubic_torch'

  VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
    str(count): {
      'patch_size': 16, 'hidden_size': 384, 'num_layers': count,
      'num_heads': 12, 'mlp_dim': 1152,
    }
    for count in (16, 24, 32)
  }  # fmt: skip
