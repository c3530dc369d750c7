"""Hugging Face's PVT ↔ ours; also how PVTv2's and CvT's config.json is read."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn

from vit_jax import layers
from vit_jax.pretrained import base, steps, timm_checks
from vit_jax.pretrained.convert import (
  CONV,
  SAME,
  Layout,
  Pair,
  Row,
  heads,
  heads_bias,
  heads_out,
  pairs,
)
from vit_jax.pretrained.family import GELUS, Arrays, HuggingFace
from vit_jax.pretrained.timm_tables import dense, embedding, norm

LARGEST = 2**10  # of a window, a ratio or a number of heads
# PyTorch's convolution of one pixel [out in 1 1] ↔ Dense [in out].
PIXEL = Layout(
  lambda x: (x.reshape(x.shape[:2]).T,), lambda x: (x.T[:, :, None, None],)
)
DEFAULTS = {  # transformers' own
  'image_size': 224, 'num_channels': 3, 'num_encoder_blocks': 4,
  'depths': [2, 2, 2, 2], 'sequence_reduction_ratios': [8, 4, 2, 1],
  'hidden_sizes': [64, 128, 320, 512], 'patch_sizes': [4, 2, 2, 2],
  'strides': [4, 2, 2, 2], 'num_attention_heads': [1, 2, 5, 8],
  'mlp_ratios': [8, 8, 4, 4], 'hidden_act': 'gelu', 'hidden_dropout_prob': 0.0,
  'attention_probs_dropout_prob': 0.0, 'drop_path_rate': 0.0,
  'layer_norm_eps': 1e-6, 'qkv_bias': True,
}  # fmt: skip


def several(
  where: str, said: Mapping[str, Any], name: str, count: int | None = None,
  high: int = LARGEST,
) -> tuple[int, ...]:  # fmt: skip
  """Whole numbers of a config.json, one a stage.

  Raises:
    ValueError: anything else, or not `count` of them.
  """
  value = said[name]
  if not isinstance(value, list | tuple) or count not in (None, len(value)):
    raise ValueError(
      f'{where}: {name}={value!r} must be a list of '
      f'{"" if count is None else f"{count} "}numbers, one a stage'
    )
  return tuple(base.bounded(where, name, n, high) for n in value)


def ratios(
  where: str, said: Mapping[str, Any], name: str, count: int
) -> tuple[float, ...]:
  """Positive numbers of a config.json, one a stage; errors as `several`."""
  value = said[name]
  good = isinstance(value, list | tuple) and len(value) == count
  if not good or not all(steps.number(x) and 0 < x <= LARGEST for x in value):
    raise ValueError(
      f'{where}: {name}={value!r} must be {count} positive numbers up to '
      f'{LARGEST}, one a stage'
    )
  return tuple(value)


def rate(where: str, name: str, value: Any) -> float:
  """A rate of dropout or drop-path; a ValueError if it is none."""
  if not (steps.number(value) and 0 <= value < 1):
    raise ValueError(f'{where}: {name}={value!r} must be a number in [0, 1)')
  return float(value)


def choose(
  where: str, said: Mapping[str, Any], **choices: Sequence[Any]
) -> None:
  """Raises a ValueError on a value that our model cannot follow."""
  for name, known in choices.items():
    # A list in JSON is a tuple in a configuration that is not saved yet.
    value = list(said[name]) if isinstance(said[name], tuple) else said[name]
    if not any(value == x and type(value) is type(x) for x in known):
      raise ValueError(
        f'{where}: {name}={said[name]!r} is not read; choices: '
        f'{", ".join(map(repr, known))}'
      )


def classes(where: str, found: Arrays) -> int:
  """How many the array of the classifier has; 0 without one."""
  name = 'classifier.weight'
  if name not in found:
    return 0
  return timm_checks.shape(where, found, name, 2)[0]


def must(model: nn.Module, form: str, **choices: Sequence[Any]) -> None:
  """Raises a ValueError on a field that a format has no place for."""
  for name, known in choices.items():
    value = getattr(model, name)
    if value not in known:
      raise ValueError(
        f'the format {form} has no place for {name}={value!r} of a '
        f'{type(model).__name__}; choices: {", ".join(map(repr, known))}'
      )


def common(where: str, said: Mapping[str, Any]) -> dict[str, Any]:
  """The fields that PVT and PVTv2 have in common; `said` is over DEFAULTS.

  Raises:
    ValueError: a value that our models cannot follow.
  """
  depths = several(where, said, 'depths')
  count = len(depths)
  choose(
    where, said, num_encoder_blocks=(count,), qkv_bias=(True, False),
    hidden_act=tuple(GELUS),
  )  # fmt: skip
  epsilon = said['layer_norm_eps']
  if not (steps.number(epsilon) and 0 < epsilon < 1):
    raise ValueError(
      f'{where}: layer_norm_eps={epsilon!r} must be a number between 0 and 1'
    )
  return {
    'hidden_sizes': several(where, said, 'hidden_sizes', count, 2**16),
    'depths': depths,
    'num_heads': several(where, said, 'num_attention_heads', count),
    'mlp_ratios': ratios(where, said, 'mlp_ratios', count),
    'dropout_rate': rate(
      where, 'hidden_dropout_prob', said['hidden_dropout_prob']
    ),
    'attention_dropout_rate': rate(
      where, 'attention_probs_dropout_prob',
      said['attention_probs_dropout_prob'],
    ),
    'drop_path_rate': rate(where, 'drop_path_rate', said['drop_path_rate']),
    'feature_layers': tuple(range(count)),
    'qkv_bias': said['qkv_bias'],
    'gelu': GELUS[said['hidden_act']],
    'epsilon': float(epsilon),
    'embedding_epsilon': float(epsilon),
  }  # fmt: skip


def written(found: base.Pretrained) -> dict[str, Any]:
  """The inverse of `common`, and the rest that both have in common.

  Raises:
    ValueError: transformers has no such model.
  """
  model = found.model
  acts = {form: name for name, form in reversed(GELUS.items())}
  must(
    model, 'huggingface', attention=('spatial_reduction',), gelu=tuple(acts),
    embedding_epsilon=(model.epsilon,),
  )  # fmt: skip
  if any(ratio != int(ratio) for ratio in model.mlp_ratios):
    raise ValueError(
      'the format huggingface has a place for whole mlp_ratios; they are '
      f'{model.mlp_ratios}'
    )
  return {
    'num_labels': model.num_classes,
    'num_channels': found.channels,
    'num_encoder_blocks': len(model.depths),
    'depths': list(model.depths),
    'hidden_sizes': list(model.hidden_sizes),
    'num_attention_heads': list(model.num_heads),
    'mlp_ratios': list(map(int, model.mlp_ratios)),
    'hidden_act': acts[model.gelu],
    'hidden_dropout_prob': model.dropout_rate,
    'attention_probs_dropout_prob': model.attention_dropout_rate,
    'drop_path_rate': model.drop_path_rate,
    'layer_norm_eps': model.epsilon,
    'qkv_bias': model.qkv_bias,
  }


def read(
  where: str, said: Mapping[str, Any], found: Arrays
) -> tuple[dict[str, Any], int]:
  """See `family.HuggingFace`."""
  said = {**DEFAULTS, **said}
  fields = common(where, said)
  count = len(fields['depths'])
  # Its position tables are of these steps, whatever the sizes of patches.
  choose(
    where, said, patch_sizes=([4, *[2] * (count - 1)],),
    strides=(list(said['patch_sizes']),),
  )  # fmt: skip
  return {
    'name': 'pvt',
    'num_classes': classes(where, found),
    **fields,
    'reductions': several(where, said, 'sequence_reduction_ratios', count),
    'patch_size': 4,
    'image_size': base.bounded(
      where, 'image_size', said['image_size'], timm_checks.SIDE
    ),
  }, base.bounded(where, 'num_channels', said['num_channels'], 64)


def write(found: base.Pretrained) -> dict[str, Any]:
  """See `family.HuggingFace`."""
  model, bare = found.model, not found.model.num_classes
  height, width = layers.pair(model.image_size)
  must(model, 'huggingface', patch_size=(4,))
  if height != width:
    raise ValueError(
      f'the format huggingface has no place for image_size={height}×{width} '
      'of a PVT, only for a square'
    )
  return {
    'architectures': ['PvtModel' if bare else 'PvtForImageClassification'],
    'model_type': 'pvt',
    **written(found),
    'image_size': height,
    'patch_sizes': list(model.steps),
    'strides': list(model.steps),
    'sequence_reduction_ratios': list(model.reductions),
  }


def prefix(model: nn.Module, found: Arrays | None, name: str) -> str:
  """In front of the names of all but the classifier; bare models have none."""
  if found is None:
    return f'{name}.' if model.num_classes else ''
  return f'{name}.' if any(n.startswith(f'{name}.') for n in found) else ''


def attention(
  names: Sequence[str], ours: str, count: int, bias: bool
) -> list[Row]:
  """Rows of query, key, value and out, which are named `names`."""
  rows = []
  for theirs, part in zip(names, ('query', 'key', 'value'), strict=False):
    rows.append((f'{theirs}.weight', f'{ours}/{part}/kernel', heads(count)))
    if bias:
      rows.append((f'{theirs}.bias', f'{ours}/{part}/bias', heads_bias(count)))
  return [
    *rows,
    (f'{names[3]}.weight', f'{ours}/out/kernel', heads_out(count)),
    (f'{names[3]}.bias', f'{ours}/out/bias', SAME),
  ]


def reduction(conv: str, normed: str, ours: str, linear: bool) -> list[Row]:
  """Rows of what makes fewer keys, a convolution or a Dense, and its norm."""
  layout = PIXEL if linear else CONV
  return [
    (f'{conv}.weight', f'{ours}/reduce/kernel', layout),
    (f'{conv}.bias', f'{ours}/reduce/bias', SAME),
    *norm(normed, f'{ours}/reduce_ln'),
  ]


def table(model: nn.Module, found: Arrays | None) -> list[Pair]:
  """See `family.HuggingFace`."""
  top = prefix(model, found, 'pvt')
  out = []
  for s, depth in enumerate(model.depths):
    theirs, ours = f'{top}encoder.patch_embeddings.{s}.', f'stage_{s}/'
    rows = [
      (
        f'{theirs}position_embeddings', f'{ours}posembed_input/pos_embedding',
        SAME,
      ),
      *embedding(f'{theirs}projection', f'{ours}embedding/projection'),
      *norm(f'{theirs}layer_norm', f'{ours}embedding/norm'),
    ]  # fmt: skip
    if s == len(model.depths) - 1:
      rows.append((f'{theirs}cls_token', f'{ours}cls', SAME))
    theirs, ours = f'{top}encoder.block.{s}.{{i}}.', f'{ours}block_{{i}}/'
    attend = f'{ours}MultiHeadDotProductAttention_0'
    own = f'{theirs}attention.self.'
    rows += [
      *norm(f'{theirs}layer_norm_1', f'{ours}LayerNorm_0'),
      *attention(
        (f'{own}query', f'{own}key', f'{own}value',
         f'{theirs}attention.output.dense'),
        attend, model.num_heads[s], model.qkv_bias,
      ),
      *norm(f'{theirs}layer_norm_2', f'{ours}LayerNorm_1'),
      *dense(f'{theirs}mlp.dense1', f'{ours}MlpBlock_0/Dense_0'),
      *dense(f'{theirs}mlp.dense2', f'{ours}MlpBlock_0/Dense_1'),
    ]  # fmt: skip
    if model.reductions[s] > 1:
      rows += reduction(
        f'{own}sequence_reduction', f'{own}layer_norm', attend, False
      )
    out += pairs(rows, i=range(depth))
  rows = norm(f'{top}encoder.layer_norm', 'encoder_norm')
  if model.num_classes:
    rows += dense('classifier', 'head')
  return out + pairs(rows)


HUGGINGFACE = HuggingFace(
  architectures=('PvtModel', 'PvtForImageClassification'),
  read=read, table=table, write=write,
)  # fmt: skip
