"""Hugging Face's CvT ↔ ours."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from vit_jax import layers
from vit_jax.pretrained import base
from vit_jax.pretrained.convert import CONV, SAME, Pair, Row, pairs
from vit_jax.pretrained.family import Arrays, HuggingFace
from vit_jax.pretrained.fields import (
  choose,
  must,
  rate,
  ratios,
  several,
  short,
  sides,
  size_of,
)
from vit_jax.pretrained.rows import (
  ATTENTION,
  PARTS,
  attention,
  batch_norm,
  dense,
  embedding,
  mlp,
  norm,
)

EPSILON = 1e-5  # of all its norms, whatever layer_norm_eps says
DEFAULTS = {  # transformers' own, and the size of images, which it never says
  'image_size': 224, 'num_channels': 3, 'patch_sizes': [7, 3, 3],
  'patch_stride': [4, 2, 2], 'patch_padding': [2, 1, 1],
  'embed_dim': [64, 192, 384], 'num_heads': [1, 3, 6], 'depth': [1, 2, 10],
  'mlp_ratio': [4.0, 4.0, 4.0], 'attention_drop_rate': [0.0, 0.0, 0.0],
  'drop_rate': [0.0, 0.0, 0.0], 'drop_path_rate': [0.0, 0.0, 0.1],
  'qkv_bias': [True, True, True], 'cls_token': [False, False, True],
  'qkv_projection_method': ['dw_bn', 'dw_bn', 'dw_bn'],
  'kernel_qkv': [3, 3, 3], 'padding_kv': [1, 1, 1], 'stride_kv': [2, 2, 2],
  'padding_q': [1, 1, 1], 'stride_q': [1, 1, 1],
}  # fmt: skip
RATES = {
  'drop_rate': 'dropout_rate',
  'attention_drop_rate': 'attention_dropout_rate',
  'drop_path_rate': 'drop_path_rate',
}


def read(
  where: str, said: Mapping[str, Any], found: Arrays
) -> tuple[dict[str, Any], int]:
  """See `family.HuggingFace`.

  GELU is transformers' exact one, and the rates of training are those that it
  has for the last stage.
  """
  said = {**DEFAULTS, **said}
  depths = several(where, said, 'depth')
  count = len(depths)
  sizes, strides, kernels, keys = (
    several(where, said, name, count)
    for name in ('patch_sizes', 'patch_stride', 'kernel_qkv', 'stride_kv')
  )
  halves = [kernel // 2 for kernel in kernels]
  padding = [
    (size - stride + 1) // 2
    for size, stride in zip(sizes, strides, strict=True)
  ]
  choose(
    where, said, patch_padding=(padding,), padding_q=(halves,),
    padding_kv=(halves,), stride_q=([1] * count,),
    qkv_projection_method=(['dw_bn'] * count,),
    qkv_bias=([True] * count, [False] * count),
    # transformers fails without a token, and in earlier stages.
    cls_token=([False] * (count - 1) + [True],),
  )  # fmt: skip
  if any(k % 2 == 0 for k in kernels) or not set(keys) <= {1, 2}:
    raise ValueError(
      f'{where}: kernel_qkv={list(kernels)}, stride_kv={list(keys)}: ours are '
      'odd, with strides of 1 or 2'
    )
  rates = {
    ours: rate(where, name, _last(where, said, name, count))
    for name, ours in RATES.items()
  }
  return {
    'name': 'cvt',
    'num_classes': size_of(where, found, 'classifier.weight'),
    'hidden_sizes': several(where, said, 'embed_dim', count, 2**16),
    'depths': depths,
    'num_heads': several(where, said, 'num_heads', count),
    'mlp_ratios': ratios(where, said, 'mlp_ratio', count),
    'patch_sizes': sizes,
    'patch_strides': strides,
    'kernel_sizes': kernels,
    'key_strides': keys,
    'image_size': short(sides(where, 'image_size', said['image_size'])),
    'qkv_bias': said['qkv_bias'][-1],
    'gelu': 'exact',
    'epsilon': EPSILON,
    'feature_layers': tuple(range(count)),
    **rates,
  }, base.bounded(where, 'num_channels', said['num_channels'], 64)


def _last(where: str, said: Mapping[str, Any], name: str, count: int) -> Any:
  value = said[name]
  if not isinstance(value, list | tuple) or len(value) != count:
    raise ValueError(
      f'{where}: {name}={value!r} must be a list of {count} numbers, one a '
      'stage'
    )
  return value[-1]


def write(found: base.Pretrained) -> dict[str, Any]:
  """See `family.HuggingFace`."""
  model = found.model
  count = len(model.depths)
  must(
    model, 'the format huggingface', attention=('conv_projection',),
    gelu=('exact',), epsilon=(EPSILON,),
  )  # fmt: skip
  halves = [kernel // 2 for kernel in model.kernel_sizes]
  if any(k % 2 == 0 for k in model.kernel_sizes) or not (
    set(model.key_strides) <= {1, 2}
  ):
    raise ValueError(
      'the format huggingface has a place for odd kernel_sizes and '
      f'key_strides of 1 or 2; they are {model.kernel_sizes} and '
      f'{model.key_strides}'
    )
  if any(depth <= s for s, depth in enumerate(model.depths)):
    raise ValueError(
      "transformers cannot open a CvT of these depths: stage i's must be more "
      f'than i, counted from 0; they are {model.depths}'
    )
  early = [0.0] * (count - 1)
  return {
    'architectures': ['CvtForImageClassification'],
    'model_type': 'cvt',
    'num_labels': model.num_classes,
    'num_channels': found.channels,
    'patch_sizes': list(model.patch_sizes),
    'patch_stride': list(model.patch_strides),
    'patch_padding': [
      (size - stride + 1) // 2
      for size, stride in zip(
        model.patch_sizes, model.patch_strides, strict=True
      )
    ],
    'embed_dim': list(model.hidden_sizes),
    'num_heads': list(model.num_heads),
    'depth': list(model.depths),
    'mlp_ratio': list(map(float, model.mlp_ratios)),
    'attention_drop_rate': [model.attention_dropout_rate] * count,
    'drop_rate': [model.dropout_rate] * count,
    'drop_path_rate': [*early, model.drop_path_rate],
    'qkv_bias': [model.qkv_bias] * count,
    'cls_token': [False] * (count - 1) + [True],
    'qkv_projection_method': ['dw_bn'] * count,
    'kernel_qkv': list(model.kernel_sizes),
    'padding_kv': halves,
    'stride_kv': list(model.key_strides),
    'padding_q': halves,
    'stride_q': [1] * count,
    # Of no use to transformers; ours reads it.
    'image_size': short(layers.pair(model.image_size)),
  }


def _convolution(theirs: str, ours: str) -> list[Row]:
  """Rows of a depthwise convolution and its BatchNorm."""
  theirs = f'{theirs}.convolution_projection.'
  return [
    (f'{theirs}convolution.weight', f'{ours}_conv/kernel', CONV),
    *batch_norm(f'{theirs}normalization', f'{ours}_norm'),
  ]


def table(model: nn.Module, found: Arrays | None) -> list[Pair]:
  """See `family.HuggingFace`."""
  out, last = [], len(model.depths) - 1
  for s, depth in enumerate(model.depths):
    stage, ours = f'cvt.encoder.stages.{s}.', f'stage_{s}/'
    embed = f'{stage}embedding.convolution_embeddings.'
    rows = [
      *embedding(f'{embed}projection', f'{ours}embedding/projection'),
      *norm(f'{embed}normalization', f'{ours}embedding/norm'),
    ]
    if s == last:
      rows.append((f'{stage}cls_token', f'{ours}cls', SAME))
    theirs, ours = f'{stage}layers.{{i}}.', f'{ours}block_{{i}}/'
    attend = f'{ours}{ATTENTION}'
    own = f'{theirs}attention.attention.'
    for part in PARTS:
      rows += _convolution(
        f'{own}convolution_projection_{part}', f'{attend}/{part}'
      )
    rows += [
      *attention(
        [
          *(f'{own}projection_{part}' for part in PARTS),
          f'{theirs}attention.output.dense',
        ],
        attend, model.num_heads[s], model.qkv_bias,
      ),
      *norm(f'{theirs}layernorm_before', f'{ours}LayerNorm_0'),
      *norm(f'{theirs}layernorm_after', f'{ours}LayerNorm_1'),
      *mlp(f'{theirs}intermediate.dense', f'{theirs}output.dense', ours),
    ]  # fmt: skip
    out += pairs(rows, i=range(depth))
  rows = norm('layernorm', 'encoder_norm')
  if model.num_classes:
    rows += dense('classifier', 'head')
  return out + pairs(rows)


HUGGINGFACE = HuggingFace(
  architectures=('CvtForImageClassification',),
  read=read, table=table, write=write,
)  # fmt: skip
