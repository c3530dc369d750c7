"""DeiT (Touvron et al. 2021) and DeiT-III (Touvron et al. 2022)."""

from typing import Any, ClassVar

from vit_jax.models.initialization import initializers
from vit_jax.models.sizes import fields
from vit_jax.models.vit import VisionTransformer
from vit_jax.shapes import Array, Float


def _variants() -> dict[str, dict[str, Any]]:
  plain = {f'{size}/16': fields(size, 16) for size in ('Ti', 'S', 'B')}
  distilled = {
    f'{name}-distilled': {**row, 'distilled': True}
    for name, row in plain.items()
  }
  third = {
    f'III-{size}/{patch}': {
      **fields(size, patch), 'layer_scale': 1e-4, 'prefix_positions': 0,
      'drop_path_rule': 'uniform',
    }
    for size, patch in (('S', 16), ('B', 16), ('L', 16), ('H', 14))
  }  # fmt: skip
  return {**plain, **distilled, **third}


class DeiT(VisionTransformer):
  """A ViT with exact GELU, truncated normal weights, and maybe a second head.

  logits = (head(class token) + head_dist(distillation token)) / 2 where
  `distilled`: the second token, `dist`, learns from a teacher through a head
  of its own. Touvron et al. 2021, section 4.

  Sizes: `VARIANTS`, 'Ti/16', 'S/16', 'B/16', each '…-distilled' too, and
  DeiT-III's 'III-S/16' to 'III-H/14', with LayerScale, a class token without
  position, and one drop-path rate for all blocks.

  Attributes:
    distilled: whether there is a distillation token, after the class token.
    Others as in `VisionTransformer`.
  """

  gelu: str = 'exact'
  initialization: str = 'truncated'
  position_resize: str = 'bicubic_torch'
  distilled: bool = False

  VARIANTS: ClassVar[dict[str, dict[str, Any]]] = _variants()

  @property
  def prefix(self) -> int:
    """Tokens before the patches."""
    return super().prefix + int(self.distilled)

  def setup(self):
    """Declares the parts; raises a ValueError on a bad field."""
    if self.distilled and (
      self.classifier != 'token' or self.representation_size is not None
    ):
      raise ValueError(
        "distilled=True needs classifier='token' and representation_size=None; "
        f'they are {self.classifier!r} and {self.representation_size}'
      )
    super().setup()
    if self.distilled:
      start = initializers(self.initialization)
      self.dist = self.param('dist', start.token, (1, 1, self.hidden_size))
      if self.num_classes:
        self.classify_dist = self._classifier('head_dist')

  def _prefix_tokens(self) -> list[Float[Array, '1 P C']]:
    tokens = super()._prefix_tokens()
    return (
      [*tokens[:1], self.dist, *tokens[1:]] if self.distilled else tokens
    )

  def heads(
    self, images: Float[Array, 'B Y X I'], train: bool = False
  ) -> tuple[Float[Array, 'B K'], Float[Array, 'B K']]:
    """Logits [B K] of the class token and of the distillation token.

    Raises:
      ValueError: there is no distillation token.
    """
    if not self.distilled:
      raise ValueError('heads are two only with distilled=True')
    tokens, grid = self.embed(images, train)
    x, _ = self.encode(tokens, grid, train)
    return self._both(x)

  def head(
    self, x: Float[Array, 'B N C'], train: bool = False
  ) -> Float[Array, '...']:
    """The mean of both heads' logits, or of both tokens without classes."""
    if not self.distilled:
      return super().head(x, train)
    of_class, of_teacher = self._both(x)
    return (of_class + of_teacher) / 2

  def _both(self, x):
    if self.norm_after_pooling:
      x = self.fc_norm(x)
    if not self.num_classes:
      return x[:, 0], x[:, 1]
    return self.classify(x[:, 0]), self.classify_dist(x[:, 1])
