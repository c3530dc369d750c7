"""Twins (Chu et al. 2021): pyramids of local and of sub-sampled attention."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from vit_jax import layers
from vit_jax.attention.multihead import Mixer, project, project_out
from vit_jax.attention.reduction import SpatialReduction
from vit_jax.attention.strides import attend
from vit_jax.models.conditional import ConditionalPosition
from vit_jax.models.encoder import Encoder1DBlock
from vit_jax.models.initialization import HE
from vit_jax.models.pyramid import START, PatchNorm, Stage, StagesOfMaps
from vit_jax.models.windows import Windows
from vit_jax.shapes import Array, Float

LOCAL, GLOBAL = 'lsa', 'gsa'  # the words for the published attentions


class LocallyGrouped(Mixer):
  """softmax(Q Kᵀ / √D) V inside windows, O(N·size²): the paper's LSA.

  Zeros fill the grid up to whole windows before the projections, at the bottom
  and at the right, and are attended to; a grid of less than one window too.
  Chu et al. 2021, section 3.2; padding as in the code.

  Attributes:
    size: tokens along each side of a window.
  """

  size: int = 7

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B N C'], *, train: bool = False
  ) -> Float[Array, 'B N C']:
    """Applies the layer; `grid` must be given."""
    self.refuse_fields('normalize_qk')
    windows, width = Windows(self.grid, (self.size, self.size)), x.shape[-1]
    x = windows.split(x.astype(self.dtype))
    q, k, v = (
      project(self, name, x, width) for name in ('query', 'key', 'value')
    )
    x = project_out(self, attend(self, q, k, v, None, train), width)
    return windows.join(x)


class Twins(StagesOfMaps):
  """Twins-SVT and Twins-PCPVT: images [B Y X C] → logits [B K].

  Every stage embeds patches, has blocks, and after its first block a
  convolution that tells positions (`ConditionalPosition`). Blocks of SVT attend
  by turns inside windows and to a map `reductions` times as coarse, those of
  PCPVT always do the latter. Chu et al. 2021, "Twins", sections 3.1 and 3.2.
  Sizes: `VARIANTS`.

  Images of any size that patches cover are taken, rectangular too: multiples of
  patch_size · 2^(stages - 1). timm's leave out the pixels that are left over.

  Attributes:
    num_classes: K; 0 gives the pooled features.
    hidden_sizes, depths, num_heads, mlp_ratios: of each stage.
    reductions: of each stage, for 'gsa'; tokens in no whole cell are left out.
    window_size: tokens along each side of a window, for 'lsa'.
    patch_size: pixels of the first stage's patches; those after it are of 2×2.
    image_size: pixels, one number or (height, width).
    attention: specs that the blocks of a stage take by turns: 'lsa' and 'gsa',
      the published ones, or any of `vit_jax.attention` over the whole grid.
    drop_path_rate: of the last block; it grows linearly from 0 at the first.
    epsilon: of the norms of blocks and of the last norm.
    embedding_epsilon: of the norms after patch embeddings and in 'gsa'.
    feature_layers: stages whose maps `features` returns; None for all.
    remat: recompute each block in the backward pass, to save memory.
    dtype: of the computation, 'float32' or 'bfloat16'; parameters are float32.
  """

  num_classes: int
  hidden_sizes: tuple[int, ...]
  depths: tuple[int, ...]
  num_heads: tuple[int, ...]
  mlp_ratios: tuple[float, ...] = (4, 4, 4, 4)
  reductions: tuple[int, ...] = (8, 4, 2, 1)
  window_size: int = 7
  patch_size: int = 4
  image_size: int | tuple[int, int] = 224
  attention: str | Callable[..., nn.Module] = f'{LOCAL}, {GLOBAL}'
  gelu: str = 'exact'
  epsilon: float = 1e-6
  embedding_epsilon: float = 1e-5
  drop_path_rate: float = 0.0
  feature_layers: tuple[int, ...] | None = (0, 1, 2, 3)
  remat: bool = False
  dtype: Any = 'float32'

  VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
    **{
      f'SVT-{size}': {
        'hidden_sizes': tuple(width * 2**s for s in range(4)),
        'depths': depths,
        'num_heads': tuple(width * 2**s // 32 for s in range(4)),
      }
      for size, width, depths in (
        ('S',  64, (2, 2, 10, 4)),
        ('B',  96, (2, 2, 18, 2)),
        ('L', 128, (2, 2, 18, 2)),
      )
    },
    **{
      f'PCPVT-{size}': {
        'hidden_sizes': (64, 128, 320, 512),
        'depths': depths,
        'num_heads': (1, 2, 5, 8),
        'mlp_ratios': (8, 8, 4, 4),
        'attention': GLOBAL,
      }
      for size, depths in (
        ('S', (3, 4, 6, 3)), ('B', (3, 4, 18, 3)), ('L', (3, 8, 27, 3))
      )
    },
  }  # fmt: skip

  def setup(self):
    """Declares the parts; raises a ValueError on a bad field."""
    self.check_lengths('num_heads', 'mlp_ratios', 'reductions')
    if self.window_size < 1:
      raise ValueError(f'window_size={self.window_size} must be positive')
    self._check_size(layers.pair(self.image_size))
    self.declare([self._stage(s) for s in range(len(self.depths))])

  def _check_size(self, size: tuple[int, int]) -> None:
    layers.grid_of(size, self.all_strides[-1])

  def _stage(self, s: int) -> Stage:
    dtype, width = jnp.dtype(self.dtype), self.hidden_sizes[s]
    own = {
      LOCAL: functools.partial(LocallyGrouped, size=self.window_size),
      GLOBAL: functools.partial(
        SpatialReduction, ratio=self.reductions[s], as_code=True,
        reduce_epsilon=self.embedding_epsilon, reduce_init=HE,
      ),
    }  # fmt: skip
    block = (
      nn.remat(Encoder1DBlock, static_argnums=(2,))
      if self.remat
      else Encoder1DBlock
    )
    blocks = [
      functools.partial(
        block, mlp_dim=int(self.mlp_ratios[s] * width),
        num_heads=self.num_heads[s],
        attention=functools.partial(
          own[word] if isinstance(word, str) else word,
          kernel_init=START.kernel,
        ),
        drop_path_rate=rate, gelu=self.gelu, epsilon=self.epsilon, dtype=dtype,
        initialization='truncated',
      )
      for word, rate in zip(
        self.words(tuple(own)), self.drop_path_rates()[s], strict=False
      )
    ]  # fmt: skip
    embedding = functools.partial(
      PatchNorm, width, 2 if s else self.patch_size, self.embedding_epsilon,
      dtype, HE,
    )  # fmt: skip
    position = functools.partial(ConditionalPosition, dtype=dtype)
    return Stage(embedding, blocks, position, name=f'stage_{s}')

  def encode(
    self, images: Float[Array, 'B Y X I'], train: bool = False
  ) -> tuple[Float[Array, 'B y x C'], tuple[Float[Array, 'B _ _ _'], ...]]:
    """The last map, before `encoder_norm`, and the maps of all stages.

    Raises:
      ValueError: patches do not cover the images.
    """
    self._check_size(images.shape[1:3])
    return super().encode(images, train)
