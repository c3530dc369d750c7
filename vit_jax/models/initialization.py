"""How a Transformer's parameters start: as the original's, or as DeiT's."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn

from vit_jax import specs


class Initializers(NamedTuple):
  """Of each kind of parameter; other biases start at 0, scales at 1.

  Attributes:
    kernel: of attention and MLP, and the probe of attention pooling.
    bias: of the MLP.
    patches: kernel of the patch embedding.
    positions: the learned table.
    token: class and distillation tokens.
    register: register tokens.
    dense: kernel of the layer before the head.
    head: kernel of the head.
  """

  kernel: Callable
  bias: Callable
  patches: Callable
  positions: Callable
  token: Callable
  register: Callable
  dense: Callable
  head: Callable


ZEROS, LECUN = nn.initializers.zeros, nn.initializers.lecun_normal()
NORMAL = nn.initializers.normal(stddev=0.02)
# Standard deviation .02 once it is cut at two of the uncut one's, as in
# `jax.nn.initializers.variance_scaling`. DeiT's code cuts at ±2, a hundred of
# them, which keeps .02 as well.
TRUNCATED = nn.initializers.truncated_normal(stddev=0.02 / 0.87962566103423978)

# What PyTorch gives a convolution, uniform in ±1 / √(inputs of an output), for
# code that leaves its own to it. Biases start at 0 here, there like kernels.
TORCH = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
# He et al. 2015, eq. 14: variance 2 / (rows · columns · outputs); and the same
# of a depthwise 3×3, whose groups have one output each.
HE = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
HE_DEPTHWISE = nn.initializers.normal(stddev=(2 / 9) ** 0.5)

INITIALIZATIONS = {
  # Dosovitskiy et al. 2021, the code; registers as Darcet et al. 2023.
  'original': Initializers(
    kernel=nn.initializers.xavier_uniform(),
    bias=nn.initializers.normal(stddev=1e-6),
    patches=LECUN, positions=NORMAL, token=ZEROS, register=NORMAL,
    dense=LECUN, head=ZEROS,
  ),
  # Touvron et al. 2021, section 5; its code leaves the patch embedding to
  # PyTorch, whose uniform distribution deviates by .0208 at 16×16×3 pixels.
  'truncated': Initializers(
    kernel=TRUNCATED, bias=ZEROS, patches=TRUNCATED, positions=TRUNCATED,
    token=TRUNCATED, register=TRUNCATED, dense=TRUNCATED, head=TRUNCATED,
  ),
}  # fmt: skip


def initializers(name: str) -> Initializers:
  """The entry of `INITIALIZATIONS`.

  Raises:
    ValueError: there is none of that name.
  """
  return specs.lookup(INITIALIZATIONS, name, 'initialization')
