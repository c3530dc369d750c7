"""Convolutions before attention's projections (CvT)."""

from collections.abc import Callable

import flax.linen as nn
import numpy as np

from vit_jax.attention.base import refuse_other_grid
from vit_jax.attention.multihead import Mixer, normalize, project, project_out
from vit_jax.attention.strides import Windows, attend
from vit_jax.shapes import Array, Bool, Float


class ConvProjection(Mixer):
  """Attention with depthwise convolutions before its projections.

  Wu et al. 2021 (CvT), eq. 2 and section 3.3: query, key and value are each
  project(norm(depthwise convolution of x)); those of keys and values have a
  stride, O(N²/stride²). Prefix tokens skip the convolutions. Masked tokens are
  zeros in them.

  Attributes:
    size: of the convolutions.
    stride: of keys and values.
    norm: 'batch' as in the paper: its averages are in the collection
      'batch_stats', mutable in training, and in training examples depend on
      each other; 'layer', or 'none'.
    as_code: divide the logits by √C, not √D, as the authors' code does.
    batch_norm: builds the norm of 'batch' in place of linen's, to call with
      (patches, train); it knows no padding.
    conv_init: of the convolutions.
  """

  family = 'memory'
  published = 'N²/4'
  cost = 'N²/stride²'
  source = 'Wu et al. 2021'

  size: int = 3
  stride: int = 2
  norm: str = 'batch'
  as_code: bool = False
  batch_norm: Callable[..., nn.Module] | None = None
  conv_init: Callable = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B N C'],
    *,
    key_mask: Bool[Array, 'B N'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'B N C']:
    """Applies the layer.

    Raises:
      ValueError: tokens that are not the grid's, an unknown norm, or padding
        with a `batch_norm` of one's own.
    """
    choices = ('batch', 'layer', 'none')
    if self.norm not in choices:
      raise ValueError(f'norm={self.norm!r}; choices: {choices}')
    n, width = x.shape[1:]
    refuse_other_grid(self, n)
    x = x.astype(self.dtype)
    made = {}
    for name, stride in (
      ('query', 1), ('key', self.stride), ('value', self.stride)
    ):  # fmt: skip
      windows = Windows(self.grid, self.prefix, n, stride, self.size)
      prefix, patches, _ = windows.split(x, key_mask)
      patches = windows.depthwise(
        use_bias=False, dtype=self.dtype, kernel_init=self.conv_init,
        name=f'{name}_conv',
      )(patches)  # fmt: skip
      keep = windows.key_mask(key_mask)
      patches = self._norm(f'{name}_norm', windows, patches, keep, train)
      tokens = windows.join(prefix, patches)
      made[name] = project(self, name, tokens, width)
    q, k = normalize(self, made['query'], made['key'])
    if self.as_code:
      q = q * self.num_heads**-0.5
    y = attend(self, q, k, made['value'], keep, train)
    return project_out(self, y, width)

  def _norm(self, name: str, windows: Windows, patches, keep, train: bool):
    fields = {'epsilon': self.epsilon, 'dtype': self.dtype, 'name': name}
    if self.norm == 'layer':
      return nn.LayerNorm(**fields)(patches)
    if self.norm == 'none':
      return patches
    if self.batch_norm is not None:
      if keep is not None:
        raise ValueError('key_mask needs batch_norm=None, which leaves it out')
      return self.batch_norm(**fields)(patches, train)
    if keep is not None:  # padding is no part of the statistics
      keep = keep[:, self.prefix :].reshape(-1, *windows.out, 1)
    # The momentum is that of PyTorch's BatchNorm, which the paper uses.
    norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, **fields)
    return norm(patches, mask=keep)

  def flops(self, n: int, heads: int, width: int) -> float:
    """The convolutions, projections, logits and the weights times V."""
    channels = heads * width
    full, fewer = (
      Windows(self.grid, self.prefix, n, s, self.size)
      for s in (1, self.stride)
    )
    keys = self.prefix + float(np.prod(fewer.out))
    convolutions = full.macs(channels, channels)
    convolutions += 2 * fewer.macs(channels, channels)
    projections = 4.0 * (n + keys) * channels**2
    return projections + 2.0 * convolutions + 4.0 * n * keys * channels

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Logits and weights, and a few [N C] arrays."""
    windows = Windows(self.grid, self.prefix, n, self.stride, self.size)
    keys = self.prefix + float(np.prod(windows.out))
    return 4.0 * heads * (3 * n * keys + 12 * n * width)
