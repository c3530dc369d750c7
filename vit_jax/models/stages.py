"""Stages of tokens, perhaps with a class token: what PVT and CvT share."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.models.pyramid import START, Pyramid
from vit_jax.shapes import Array, Float


class Stage(nn.Module):
  """Embedding, class token, positions, blocks, norm: [B Y X I] → [B N C].

  Attributes:
    embedding: builds `embedding`, maps to maps.
    blocks: build the blocks, [B N C] → [B N C], once they know the grid.
    positions: builds `posembed_input`, which adds to the tokens; None: nothing.
    class_token: whether a learned token comes before the grid's.
    norm: builds `norm`, after the blocks; None: nothing.
    dropout_rate: of the tokens before the blocks, in training.
  """

  embedding: Callable[..., nn.Module]
  blocks: Sequence[Callable[..., nn.Module]]
  positions: Callable[..., nn.Module] | None = None
  class_token: bool = False
  norm: Callable[..., nn.Module] | None = None
  dropout_rate: float = 0.0

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B Y X I'], train: bool = False
  ) -> tuple[Float[Array, 'B N C'], Float[Array, 'B y x C']]:
    """The tokens, class token first, and the map that they are without it."""
    x = self.embedding(name='embedding')(x)
    batch, *grid, width = x.shape
    grid, prefix = tuple(grid), int(self.class_token)
    x = x.reshape(batch, -1, width)
    if self.class_token:
      token = self.param('cls', START.token, (1, 1, width)).astype(x.dtype)
      token = jnp.broadcast_to(token, (batch, 1, width))
      x = jnp.concatenate([token, x], axis=1)
    if self.positions is not None:
      x = self.positions(name='posembed_input')(x, grid, prefix)
    x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
    for j, block in enumerate(self.blocks):
      x = block(grid=grid, prefix=prefix, name=f'block_{j}')(x, train)
    if self.norm is not None:
      x = self.norm(name='norm')(x)
    return x, x[:, prefix:].reshape(batch, *grid, width)


class StagesOfTokens(Pyramid):
  """The methods of a model of such stages.

  A subclass has the fields of `Pyramid` and num_heads, mlp_ratios,
  dropout_rate, attention_dropout_rate, qkv_bias, gelu and remat, its attributes
  `steps` and `has_class_token`, and declares what `stage` gives.
  """

  @property
  def all_strides(self) -> tuple[int, ...]:
    """Pixels a cell of each stage's map."""
    return tuple(itertools.accumulate(self.steps, int.__mul__))

  def block_fields(self, stage: int) -> dict[str, Any]:
    """The fields that all blocks of a stage have in common."""
    return {
      'num_heads': self.num_heads[stage],
      'mlp_dim': int(self.hidden_sizes[stage] * self.mlp_ratios[stage]),
      'dropout_rate': self.dropout_rate,
      'attention_dropout_rate': self.attention_dropout_rate,
      'qkv_bias': self.qkv_bias,
      'gelu': self.gelu,
      'epsilon': self.epsilon,
      'dtype': jnp.dtype(self.dtype),
    }

  def blocks(
    self,
    stage: int,
    cls: type[nn.Module],
    own: tuple[str, Callable[..., nn.Module]],
    **fields: Any,
  ) -> list[Callable[..., nn.Module]]:
    """Builders of the blocks of a stage.

    Args:
      stage: its number.
      cls: of the blocks.
      own: the word for the model's own attention, and its layer class here.
      **fields: of the blocks, besides `block_fields`.
    """
    # train is argument 2, counted from self: static under rematerialisation.
    cls = nn.remat(cls, static_argnums=(2,)) if self.remat else cls
    word, layer = own
    rates = self.drop_path_rates()[stage]
    chosen = self.words((word,))
    return [
      functools.partial(
        cls, drop_path_rate=rate,
        attention=functools.partial(
          layer if attention == word else attention, kernel_init=START.kernel
        ),
        **self.block_fields(stage), **fields,
      )
      for rate, attention in zip(rates, chosen, strict=False)
    ]  # fmt: skip

  def stage(self, stage: int, **fields: Any) -> Stage:
    """One of them, of those of its fields that are its own; for `setup`."""
    last = stage == len(self.depths) - 1
    return Stage(
      **fields, class_token=self.has_class_token and last,
      dropout_rate=self.dropout_rate, name=f'stage_{stage}',
    )  # fmt: skip

  def encode(
    self, images: Float[Array, 'B Y X I'], train: bool = False
  ) -> tuple[Float[Array, 'B N C'], tuple[Float[Array, 'B y x c'], ...]]:
    """The last stage's tokens after `encoder_norm`, and the stages' maps."""
    maps = [images]
    for stage in self.stages:
      tokens, grid = stage(maps[-1], train)
      maps.append(grid)
    return self.encoder_norm(tokens), tuple(maps[1:])


def variants(
  names: Sequence[str], rows: dict[str, tuple]
) -> dict[str, dict[str, Any]]:
  """The fields of each row of a table with those columns."""
  return {k: dict(zip(names, row, strict=True)) for k, row in rows.items()}
