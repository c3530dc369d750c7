"""Rows of `convert.pairs` for the modules that models share.

`theirs` and `ours` are paths of modules in PyTorch's file and in our variables.
"""

from collections.abc import Sequence

from vit_jax.pretrained.convert import (
  CONV,
  DENSE,
  PIXEL,
  SAME,
  Layout,
  Row,
  fused,
  heads,
  heads_bias,
  heads_out,
)

PARTS = ('query', 'key', 'value')
POSITIONS = 'Transformer/posembed_input/pos_embedding'
ATTENTION = 'MultiHeadDotProductAttention_0'  # within a block


def norm(theirs: str, ours: str) -> list[Row]:
  """Rows of a norm."""
  return [
    (f'{theirs}.weight', f'{ours}/scale', SAME),
    (f'{theirs}.bias', f'{ours}/bias', SAME),
  ]


def batch_norm(theirs: str, ours: str) -> list[Row]:
  """Rows of a BatchNorm: scale, bias and running averages."""
  return [
    *norm(theirs, ours),
    (f'{theirs}.running_mean', f'batch_stats/{ours}/mean', SAME),
    (f'{theirs}.running_var', f'batch_stats/{ours}/var', SAME),
  ]


def dense(theirs: str, ours: str, layout: Layout = DENSE) -> list[Row]:
  """Rows of a linear layer, or of what else has a kernel and a bias."""
  return [
    (f'{theirs}.weight', f'{ours}/kernel', layout),
    (f'{theirs}.bias', f'{ours}/bias', SAME),
  ]


def embedding(theirs: str, ours: str) -> list[Row]:
  """Rows of a convolution with a bias, as a patch embedding."""
  return dense(theirs, ours, CONV)


def mlp(first: str, second: str, block: str) -> list[Row]:
  """Rows of the MLP of a block of ours, from two linear layers."""
  return [
    *dense(first, f'{block}MlpBlock_0/Dense_0'),
    *dense(second, f'{block}MlpBlock_0/Dense_1'),
  ]


def scales(first: str, second: str, block: str) -> list[Row]:
  """Rows of the LayerScales of both branches of a block of ours."""
  return [
    (first, f'{block}LayerScale_0/scale', SAME),
    (second, f'{block}LayerScale_1/scale', SAME),
  ]


def out(theirs: str, ours: str, count: int) -> list[Row]:
  """Rows of the last projection of an attention of `count` heads."""
  return [
    (f'{theirs}.weight', f'{ours}/out/kernel', heads_out(count)),
    (f'{theirs}.bias', f'{ours}/out/bias', SAME),
  ]


def projected(
  theirs: str, ours: str, count: int, bias: bool,
  parts: Sequence[str] = PARTS,
) -> list[Row]:  # fmt: skip
  """Rows of one linear layer that holds `parts`, the projections, in turn."""
  rows = []
  for name, leaf, layout in (
    ('weight', 'kernel', heads(count)), ('bias', 'bias', heads_bias(count))
  ):  # fmt: skip
    if name == 'weight' or bias:
      names = tuple(f'{ours}/{part}/{leaf}' for part in parts)
      layout = fused(layout, len(parts)) if len(parts) > 1 else layout
      rows.append((f'{theirs}.{name}', names, layout))
  return rows


def attention(
  names: Sequence[str], ours: str, count: int, bias: bool
) -> list[Row]:
  """Rows of an attention whose linear layers are four: q, k, v and out."""
  *projections, last = names
  rows = out(last, ours, count)
  for theirs, part in zip(projections, PARTS, strict=True):
    rows += projected(theirs, ours, count, bias, (part,))
  return rows


def reduction(conv: str, normed: str, ours: str, linear: bool) -> list[Row]:
  """Rows of what makes fewer keys, a convolution or a Dense, and its norm."""
  return [
    (f'{conv}.weight', f'{ours}/reduce/kernel', PIXEL if linear else CONV),
    (f'{conv}.bias', f'{ours}/reduce/bias', SAME),
    *norm(normed, f'{ours}/reduce_ln'),
  ]


def timm_block(theirs: str, ours: str, count: int, bias: bool) -> list[Row]:
  """Rows of a block as timm names them: norms, fused attention, MLP."""
  to = f'{ours}{ATTENTION}'
  return [
    *projected(f'{theirs}attn.qkv', to, count, bias),
    *_timm_rest(theirs, ours, count),
  ]


def timm_reduced(theirs: str, ours: str, count: int, bias: bool) -> list[Row]:
  """`timm_block` where fewer keys are attended to; without their `reduction`.

  One linear layer has the query, another one the key and the value.
  """
  to = f'{ours}{ATTENTION}'
  return [
    *projected(f'{theirs}attn.q', to, count, bias, PARTS[:1]),
    *projected(f'{theirs}attn.kv', to, count, bias, PARTS[1:]),
    *_timm_rest(theirs, ours, count),
  ]


def _timm_rest(theirs: str, ours: str, count: int) -> list[Row]:
  """Rows of a block of timm's but for query, key and value."""
  return [
    *norm(f'{theirs}norm1', f'{ours}LayerNorm_0'),
    *out(f'{theirs}attn.proj', f'{ours}{ATTENTION}', count),
    *norm(f'{theirs}norm2', f'{ours}LayerNorm_1'),
    *mlp(f'{theirs}mlp.fc1', f'{theirs}mlp.fc2', ours),
  ]
