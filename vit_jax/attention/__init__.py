"""Tables of every attention: any of them fits any model by one word.

`ATTENTIONS` keep the number of tokens and take q, k and v; `MIXERS` are whole
x → x layers. One namespace: a model's `attention=` takes either.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from vit_jax import specs
from vit_jax.attention import positions
from vit_jax.attention.adaptive_span import AdaptiveSpan
from vit_jax.attention.aft import AFT
from vit_jax.attention.axial import Axial
from vit_jax.attention.base import Attention, attend_with
from vit_jax.attention.based import Based
from vit_jax.attention.chunked import Chunked
from vit_jax.attention.clustered import Clustered, ImprovedClustered
from vit_jax.attention.compressive import Compressive
from vit_jax.attention.conv_projection import ConvProjection
from vit_jax.attention.cosformer import CosFormer
from vit_jax.attention.cosine import Cosine
from vit_jax.attention.differential import Differential
from vit_jax.attention.downsampling import (
  FunnelAttention,
  PoolingAttention,
  PoolingByAttention,
  TokenMerging,
)
from vit_jax.attention.efficient import Efficient
from vit_jax.attention.entmax import Entmax
from vit_jax.attention.focal import Focal
from vit_jax.attention.focused import Focused
from vit_jax.attention.fourier import Average, Fourier
from vit_jax.attention.gated import Gated
from vit_jax.attention.gpsa import GPSA
from vit_jax.attention.heads import ReAttention, TalkingHeads
from vit_jax.attention.hydra import Hydra
from vit_jax.attention.linear import Linear
from vit_jax.attention.linen import adapt
from vit_jax.attention.linformer import Linformer
from vit_jax.attention.local import (
  Dilated,
  Image1D,
  Image2D,
  Neighborhood,
  Sliding,
  Window,
)
from vit_jax.attention.longformer import ETC, Longformer
from vit_jax.attention.lsa import LSA
from vit_jax.attention.luna import Luna
from vit_jax.attention.memory_compressed import MemoryCompressed
from vit_jax.attention.multihead import Mixer, MultiHeadDotProductAttention
from vit_jax.attention.nystrom import Nystrom
from vit_jax.attention.optimal import LOTFormer, Sinkformer
from vit_jax.attention.perceiver import Perceiver
from vit_jax.attention.performer import Performer
from vit_jax.attention.pointwise import ReLU, Sigmoid
from vit_jax.attention.random_features import RandomFeatures
from vit_jax.attention.reduction import Pooled, SpatialReduction
from vit_jax.attention.reformer import Reformer
from vit_jax.attention.routing import Routing
from vit_jax.attention.set_transformer import InducedSetAttention
from vit_jax.attention.sinkhorn import Sinkhorn, SortCut
from vit_jax.attention.soft import Soft
from vit_jax.attention.softmax import Softmax
from vit_jax.attention.sparse import (
  AnyPattern,
  BigBird,
  CrissCross,
  Fixed,
  Strided,
)
from vit_jax.attention.swin import Swin
from vit_jax.attention.synthesizer import (
  DenseSynthesizer,
  FactorizedDense,
  FactorizedRandom,
  RandomSynthesizer,
)
from vit_jax.attention.transformer_xl import TransformerXL
from vit_jax.attention.xca import XCA

ATTENTIONS: dict[str, type[Attention]] = {
  'softmax': Softmax,  # O(N²), exact; Vaswani et al. 2017
  'chunked': Chunked,  # O(N²), memory O(N·size), exact; Rabe and Staats 2021
  'sigmoid': Sigmoid,  # O(N²); Ramapuram et al. 2024
  'relu': ReLU,  # O(N²); Wortsman et al. 2023
  'cosine': Cosine,  # O(N²); Liu et al. 2022
  'entmax': Entmax,  # O(N² log N); Correia et al. 2019
  'talking_heads': TalkingHeads,  # O(N²); Shazeer et al. 2020
  'reattention': ReAttention,  # O(N²); Zhou et al. 2021
  'differential': Differential,  # O(N²); Ye et al. 2024
  'gpsa': GPSA,  # O(N²); d'Ascoli et al. 2021
  'lsa': LSA,  # O(N²); Lee et al. 2021
  'adaptive_span': AdaptiveSpan,  # O(N²); Sukhbaatar et al. 2019
  'gated': Gated,  # O(N²); Qiu et al. 2025
  'linear': Linear,  # O(N·D²); Katharopoulos et al. 2020
  'linformer': Linformer,  # O(N·rank); Wang et al. 2020
  'nystrom': Nystrom,  # O(N·landmarks); Xiong et al. 2021
  'performer': Performer,  # O(N·features·D); Choromanski et al. 2021
  'sinkhorn': Sinkhorn,  # O(N·(N/blocks + blocks)); Tay et al. 2020
  'sortcut': SortCut,  # O(N·keep·N/blocks); Tay et al. 2020
  'sinkformer': Sinkformer,  # O(N²·iterations); Sander et al. 2022
  'lotformer': LOTFormer,  # O(N·rank·iterations); Shahbazi et al. 2025
  'synthesizer_random': RandomSynthesizer,  # O(N²); Tay et al. 2021
  'synthesizer_factorized_random': FactorizedRandom,  # O(N²); Tay et al. 2021
  'window': Window,  # O(N·size²); Liu et al. 2021
  'sliding': Sliding,  # O(N·size²); Ramachandran et al. 2019
  'neighborhood': Neighborhood,  # O(N·size²); Hassani et al. 2023
  'dilated': Dilated,  # O(N·size²); Beltagy et al. 2020
  'image1d': Image1D,  # O(N·(size + memory)); Parmar et al. 2018
  'image2d': Image2D,  # O(N·(size + memory)²); Parmar et al. 2018
  'swin': Swin,  # O(N·size²); Liu et al. 2021
  'axial': Axial,  # O(N·√N); Ho et al. 2019
  'criss_cross': CrissCross,  # O(N·√N); Huang et al. 2019
  'focal': Focal,  # O(N·(size² + cells)); Yang et al. 2021
  'strided': Strided,  # O(N·(size + N/size)); Child et al. 2019
  'fixed': Fixed,  # O(N·(size + summary·N/size)); Child et al. 2019
  'longformer': Longformer,  # O(N·(size² + globals)); Beltagy et al. 2020
  'etc': ETC,  # O(N·(radius + globals)); Ainslie et al. 2020
  'bigbird': BigBird,  # O(N·block·(5 + random)); Zaheer et al. 2020
  'pattern': AnyPattern,  # O(kept pairs); any expression of patterns
  'random_features': RandomFeatures,  # O(N·features·D); Peng et al. 2021
  'cosformer': CosFormer,  # O(N·D²); Qin et al. 2022
  'efficient': Efficient,  # O(N·D²); Shen et al. 2021
  'memory_compressed': MemoryCompressed,  # O(N²/stride); Liu et al. 2018
  'perceiver': Perceiver,  # O(N·latents); Jaegle et al. 2021
  'luna': Luna,  # O(N·length); Ma et al. 2021
  'routing': Routing,  # O(N·clusters + clusters·window²); Roy et al. 2021
  'clustered': Clustered,  # O(N·clusters); Vyas et al. 2020
  'improved_clustered': ImprovedClustered,  # O(N·(C + topk)); Vyas et al. 2020
  'xca': XCA,  # O(N·D²); El-Nouby et al. 2021
  'hydra': Hydra,  # O(N·D); Bolya et al. 2022
  'focused': Focused,  # O(N·(D² + kernel_size²·D)); Han et al. 2023
  'aft': AFT,  # O(N·D); Zhai et al. 2021
  'based': Based,  # O(N·D³); Arora et al. 2024
  'pooled': Pooled,  # O(N²/stride²); Fan et al. 2021
}

MIXERS: dict[str, type[Mixer]] = {
  'reformer': Reformer,  # O(rounds·N·chunk); Kitaev et al. 2020
  'transformer_xl': TransformerXL,  # O(N²); Dai et al. 2019
  'compressive': Compressive,  # O(N²); Rae et al. 2020
  'synthesizer_dense': DenseSynthesizer,  # O(N²); Tay et al. 2021
  'synthesizer_factorized_dense': FactorizedDense,  # O(N²); Tay et al. 2021
  'soft': Soft,  # O(N·landmarks); Lu et al. 2021
  'isab': InducedSetAttention,  # O(N·inducing); Lee et al. 2019
  'spatial_reduction': SpatialReduction,  # O(N²/ratio²); Wang et al. 2021
  'conv_projection': ConvProjection,  # O(N²/stride²); Wu et al. 2021
  'fnet': Fourier,  # O(N·log N); Lee-Thorp et al. 2022
  'average': Average,  # O(N·size²); Yu et al. 2022
}


def build(
  spec: str,
  *,
  grid: tuple[int, int] | None = None,
  prefix: int = 0,
  **fields: Any,
) -> Attention | Mixer:
  """Builds one attention for q [B N H D], k [B M H D], v [B M H E].

  A name of `MIXERS` builds its whole layer for x [B N C]; give it num_heads.

  Args:
    spec: `'softmax(causal=True)'`; names are the keys of the two tables.
    grid: (rows, columns) of the patch tokens; None for a sequence.
    prefix: tokens before the grid.
    **fields: further fields of the attention's class.

  Raises:
    ValueError: unknown name or option, or no causal form.
  """
  for found in specs.parse(spec):
    _refuse_causal(found)
  return specs.build(
    spec, ATTENTIONS | MIXERS, 'attention', grid=grid, prefix=prefix, **fields
  )


def _refuse_causal(spec: specs.Spec) -> None:
  both = ATTENTIONS | MIXERS
  entry = specs.lookup(both, spec.name, 'attention')
  if 'causal' not in spec.options or _is_causal(entry):
    return
  able = sorted(name for name, entry in both.items() if _is_causal(entry))
  raise ValueError(
    f'the attention {spec.name!r} has no causal form; these do: '
    f'{", ".join(able)}'
  )


def _is_causal(entry: type[nn.Module]) -> bool:
  return 'causal' in entry.__dataclass_fields__


def layer(attention: str | Callable[..., nn.Module]) -> Callable:
  """The layer class of one spec: what an encoder block instantiates.

  A callable is returned as it is, so that a notebook may pass
  `partial(MultiHeadDotProductAttention, attend=Mine)` unregistered.
  """
  if callable(attention):
    return attention
  (spec,) = specs.parse(attention)
  both = ATTENTIONS | MIXERS
  _refuse_causal(spec)
  entry = specs.lookup(both, spec.name, 'attention')
  specs.check_options(entry, spec.options, f'the attention {spec.name!r}')
  if spec.name in MIXERS:
    return functools.partial(entry, **spec.options)
  return functools.partial(
    MultiHeadDotProductAttention,
    attend=functools.partial(entry, **spec.options),
  )


def layers(
  attention: str | Callable[..., nn.Module], count: int
) -> list[Callable]:
  """`count` layer classes: the given specs, repeated over the depth.

  Raises:
    ValueError: no spec, more specs than layers, unknown name or option.
  """
  if callable(attention):
    return [attention] * count
  found = specs.parse(attention)
  if not found or len(found) > count:
    raise ValueError(
      f'attention={attention!r} holds {len(found)} specs for {count} layers; '
      f'give 1 to {count}'
    )
  built = [layer(str(spec)) for spec in found]
  return list(itertools.islice(itertools.cycle(built), count))


def positioned(
  layer: Callable[..., nn.Module], position: str
) -> Callable[..., nn.Module]:
  """The layer class with positions inside its attention.

  Args:
    layer: builds a layer; see `layer`.
    position: specs of `positions.POSITIONS`; '' changes nothing.

  Raises:
    ValueError: unknown spec, or a layer without a place for it.
  """
  place = positions.layer(position)
  if place is None:
    return layer
  if 'position' not in specs.accepted(layer):
    name = getattr(layer, 'func', layer).__name__
    raise ValueError(
      f'{name} is a whole layer without queries and keys that position='
      f'{position!r} could act on; these have: {", ".join(sorted(ATTENTIONS))}'
    )
  return functools.partial(layer, position=place)


def as_attention_fn(
  spec: str,
  *,
  grid: tuple[int, int] | None = None,
  prefix: int = 0,
  position: str = '',
  train: bool | None = None,
) -> Callable:
  """The attention as `attention_fn` of flax.linen's own attention layer.

  `nn.MultiHeadDotProductAttention(8, attention_fn=as_attention_fn('linear'))`;
  the kernel's parameters are under `attend` of that layer, those of a position
  under `position`. What the kernel cannot honour (a bias, a full mask, dropout,
  a precision) is a ValueError when the layer is called.

  Args:
    spec: one of `ATTENTIONS`.
    grid: (rows, columns) of the patch tokens; None for a sequence.
    prefix: tokens before the grid.
    position: positions inside the attention, as in `positioned`.
    train: the kernel's mode. By default what linen says, and linen says
      deterministic whenever its own dropout_rate is 0: set it to True in
      training for kernels with state or noise of their own.

  Raises:
    ValueError: unknown name or option, a mixer, or a kernel that reads what
      linen does not pass.
  """
  build(spec)  # raises on a wrong spec
  (found,) = specs.parse(spec)
  if found.name in MIXERS:
    raise ValueError(
      f'{found.name!r} is a whole layer x → x with its own projections, '
      'and an attention_fn gets queries, keys and values; use '
      f'vit_jax.attention.build({spec!r}, num_heads=…) instead of the layer'
    )
  entry = functools.partial(
    ATTENTIONS[found.name], grid=grid, prefix=prefix, **found.options
  )
  return adapt(entry, positions.layer(position), train)


__all__ = [
  'ATTENTIONS', 'MIXERS', 'Attention', 'FunnelAttention', 'Mixer',
  'MultiHeadDotProductAttention', 'PoolingAttention', 'PoolingByAttention',
  'Softmax', 'TokenMerging', 'as_attention_fn', 'attend_with', 'build', 'layer',
  'layers', 'positioned', 'positions',
]  # fmt: skip
