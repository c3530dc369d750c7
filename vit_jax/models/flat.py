"""What models of one grid of tokens share: from images to logits and maps."""

from typing import Any, ClassVar

import flax.linen as nn

from vit_jax import layers
from vit_jax.shapes import Array, Float


class Flat(nn.Module):
  """Images [B Y X C] → logits [B K] by `embed`, `encode` and `head`.

  A subclass has the fields num_classes, patch_size, hidden_size, classifier and
  feature_layers; its `setup` declares `embedding` and `classify`, and it
  defines `encode`. The head here is of encoded tokens that begin with the class
  token.
  """

  # Tokens before the patches in what `encode` collects of blocks.
  prefix: ClassVar[int] = 0
  CLASSIFIERS: ClassVar[tuple[str, ...]] = ('token', 'gap')

  @property
  def stride(self) -> int:
    """Pixels a token."""
    return self.patch_size

  @property
  def strides(self) -> tuple[int, ...]:
    """Pixels a cell of each feature map."""
    return (self.stride,) * len(self.feature_layers)

  @property
  def channels(self) -> tuple[int, ...]:
    """Channels of each feature map."""
    return (self.hidden_size,) * len(self.feature_layers)

  def check_classifier(self) -> None:
    """Raises a ValueError if `classifier` is none of `CLASSIFIERS`."""
    if self.classifier not in self.CLASSIFIERS:
      raise ValueError(
        f'classifier={self.classifier!r}; choices: '
        f'{", ".join(self.CLASSIFIERS)}'
      )

  def __call__(
    self, images: Float[Array, 'B Y X I'], train: bool = False
  ) -> Float[Array, '...']:
    """Logits of images in the model's value range."""
    tokens, grid = self.embed(images, train)
    x, _ = self.encode(tokens, grid, train)
    return self.head(x, train)

  def embed(
    self, images: Float[Array, 'B Y X I'], train: bool = False
  ) -> tuple[Any, tuple[int, int]]:
    """Patches [B N C] without learned positions, and their grid."""
    grid = layers.grid_of(images.shape[1:3], self.patch_size)
    return self.embedding(images), grid

  def head(
    self, x: Float[Array, 'B N C'], train: bool = False
  ) -> Float[Array, '...']:
    """Classifies the class token, or the mean of the patches after it."""
    x = x[:, 0] if self.classifier == 'token' else x[:, 1:].mean(axis=1)
    return self.classify(x) if self.num_classes else x

  def features(
    self, images: Float[Array, 'B Y X I'], train: bool = False
  ) -> tuple[Float[Array, 'B y x C'], ...]:
    """Maps [B rows columns C] of `feature_layers`, after the last norm."""
    tokens, grid = self.embed(images, train)
    _, outputs = self.encode(tokens, grid, train, self.feature_layers)
    return tuple(
      x[:, self.prefix :].reshape(-1, *grid, self.hidden_size)
      for x in outputs
    )
