"""How far another attention is from the exact one, block by block."""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import models
from vit_jax.pretrained import base
from vit_jax.shapes import Array, Float

BLOCK = re.compile(
  r'Transformer/encoderblock_(\d+)(/MultiHeadDotProductAttention_0)?'
)


def layer_errors(
  exact: base.Pretrained,
  swapped: base.Pretrained,
  images: Float[Array, 'B Y X C'] | Float[np.ndarray, 'B Y X C'],
  batch_size: int = 32,
) -> list[dict[str, float]]:
  """Relative errors of another attention, one dict a block.

  With a_l the attention layer of block l (its projections included), x_l what
  the exact model feeds it, and y_l the block's output; a'_l and y'_l are those
  of the swapped model:

    local        ‖a'_l(x_l) - a_l(x_l)‖ / ‖a_l(x_l)‖
    accumulated  ‖y'_l - y_l‖ / ‖y_l‖

  Local errors say what the kernel alone does to an input that the weights
  know; accumulated ones what has become of it after l + 1 swapped blocks. The
  latter have the residual stream in their divisor, so they may be smaller.
  ‖·‖² is the sum of squares over images, tokens and channels.

  Args:
    exact: a loaded ViT.
    swapped: the same with another attention: `load(path, attention=…)`.
    images: in the models' value range.
    batch_size: images at a time; the result does not depend on it.

  Returns:
    {'layer': l, 'local': …, 'accumulated': …} for l = 0, 1, ….

  Raises:
    ValueError: not two ViTs of the same depth and width, or no images.
  """
  for found in (exact, swapped):
    if not isinstance(found.model, models.VisionTransformer):
      raise ValueError(
        'layer errors are of the blocks of a VisionTransformer, not of '
        f'{type(found.model).__name__}'
      )
  for field in ('num_layers', 'hidden_size', 'patch_size', 'prefix'):
    ours, theirs = (getattr(f.model, field) for f in (exact, swapped))
    if ours != theirs:
      raise ValueError(
        f'the exact model has {field}={ours} and the swapped one {theirs}: '
        'only their attention may differ'
      )
  if not len(images):
    raise ValueError('images is empty: there is nothing to compare')

  @jax.jit
  def squares(variables, other, images):
    """Σ of squares, [2 2 L]: differences and norms, local and whole."""
    x, a, y = _watch(exact.model, variables, images)
    _, _, whole = _watch(swapped.model, other, images)
    _, fed, _ = _watch(swapped.model, other, images, x)
    pairs = ((fed, a), (whole, y))
    return jnp.stack([
      jnp.stack([
        jnp.stack([_square(p - q) for p, q in zip(ours, theirs, strict=True)]),
        jnp.stack([_square(q) for q in theirs]),
      ])
      for ours, theirs in pairs
    ])  # fmt: skip

  total = sum(
    np.asarray(
      squares(
        exact.variables, swapped.variables, images[i : i + batch_size]
      ),
      np.float64,
    )
    for i in range(0, len(images), batch_size)
  )
  local, accumulated = np.sqrt(total[:, 0] / total[:, 1])
  return [
    {'layer': i, 'local': float(a), 'accumulated': float(b)}
    for i, (a, b) in enumerate(zip(local, accumulated, strict=True))
  ]


def _square(x: Array) -> Float[Array, '']:
  x = x.astype(jnp.float32)
  return jnp.sum(x * x)


def _watch(
  model: nn.Module,
  variables: dict[str, Any],
  images: Array,
  fed: list[Array] | None = None,
) -> tuple[list[Array], list[Array], list[Array]]:
  """Inputs and outputs of every attention, and the blocks' outputs.

  With `fed`, block l's attention gets `fed[l]` instead of its own input.
  """
  count = model.num_layers
  inputs, outputs, blocks = ([None] * count for _ in range(3))

  def intercept(next_fun, args, kwargs, context):
    at = None
    if context.method_name == '__call__':
      at = BLOCK.fullmatch('/'.join(context.module.path))
    if at is None:
      return next_fun(*args, **kwargs)
    index, attention = int(at[1]), at[2]
    if not attention:
      blocks[index] = next_fun(*args, **kwargs)
      return blocks[index]
    if fed is not None:
      args = (fed[index], *args[1:])
    inputs[index] = args[0]
    outputs[index] = next_fun(*args, **kwargs)
    return outputs[index]

  # Rematerialised blocks are traced on their own: nothing may leave them.
  model = model.clone(remat=False)
  with nn.intercept_methods(intercept):
    model.apply(variables, images, train=False)
  return inputs, outputs, blocks
