"""What the architecture names of timm mean.

Widths, depths and patches are read off the arrays. The name tells what arrays
cannot (heads, pooling, GELU) and which optional arrays there should be; the
`model_args` of a config.json override it, as they do in timm.
"""

import dataclasses
import math
import re
from typing import Any

# Heads by the size in the name.
HEADS = {
  'tiny': 3, 'wee': 4, 'little': 5, 'small': 6, 'medium': 8, 'mediumd': 8,
  'betwixt': 10, 'base': 12, 'so150m2': 13, 'so150m': 14, 'large': 16,
  'so400m': 16, 'huge': 16, 'giant': 16, 'gigantic': 16, 'giantopt': 16,
}  # fmt: skip
_SIZE = '|'.join(HEADS)

# The depths of a hybrid's ResNet, by its name in timm.
RESNETS = {
  'r_s16_p8': (),
  'r26_s32': (2, 2, 2, 2),
  'r50_s16': (3, 4, 9),
  'r50_s32': (3, 4, 6, 3),
}
# A Mixer's width and number of blocks: model_args cannot change them there.
MIXERS = {'s': (512, 8), 'b': (768, 12), 'l': (1024, 24)}

KNOWN = {
  'vit': (
    rf'vit_({_SIZE})_patch\d+(_siglip|_plus|_36x1)?(_reg\d+)?(_gap|_map)?'
    r'(_dinov2|_tipsv2)?(_\d+)?(_miil)?|flexivit_(small|base|large)|'
    r'eva_large_patch14_(196|336)|test_vit[23]?'
  ),
  'deit': rf'deit3?_({_SIZE})(_distilled)?_patch\d+_\d+',
  'hybrid': rf'vit_({_SIZE})_({"|".join(RESNETS)})_\d+',
  'mixer': r'mixer_[sbl]\d+_\d+',
}

# What a part of the name changes; of two that match, the later one counts.
RULES = (
  (r'siglip|_map', {'class_token': False, 'global_pool': 'map'}),
  (r'_gap', {'class_token': False, 'global_pool': 'avg'}),
  (r'^eva', {'global_pool': 'avg'}),
  (r'_reg1_|_reg1$', {'reg_tokens': 1, 'no_embed_class': True}),
  (r'_reg4_|_reg4$', {'reg_tokens': 4, 'no_embed_class': True}),
  (r'^deit3|^flexivit', {'no_embed_class': True}),
  (r'so150m', {'no_embed_class': False}),
  (r'_miil|so150m2|(medium|betwixt)_patch16_gap', {'qkv_bias': False}),
  (
    r'dinov2|_plus|_36x1|so150m2|(wee|little|mediumd?|betwixt)_.*_gap',
    {'init_values': 1e-5},
  ),
  (r'^deit3|(medium|betwixt)_patch16_gap', {'init_values': 1e-6}),
  (r'tipsv2', {'init_values': 1.0}),
  (
    r'(base_patch32|so400m_patch16|giantopt_patch16)_siglip|siglip.*_512',
    {'act_layer': 'gelu_tanh'},
  ),
  (r'base_patch16_siglip', {'act_layer': 'gelu'}),
  (r'base_patch16_gap', {'num_heads': 16}),
  (r'_plus', {'num_heads': 14}),
  (r'_distilled', {'distilled': True}),
  (r'^test_vit2?$', {'num_heads': 2}),
  (
    r'^test_vit3$',
    {'num_heads': 3, 'global_pool': 'map', 'pool_include_prefix': True},
  ),
  (
    r'^test_vit[23]$',
    {'class_token': False, 'reg_tokens': 1, 'init_values': 1e-5},
  ),
  (r'^test_vit2$', {'global_pool': 'avg'}),
)  # fmt: skip

# Relatives that are other models, and why.
REFUSED = (
  (r'clip', 'has a norm before its first block'),
  (r'_xp_|pwee|18x2', 'computes its branches side by side'),
  (r'dwee|dlittle', 'has differential attention'),
  (r'_rpn_', 'normalises after its branches'),
  (r'giant_.*(dinov2|tipsv2)', 'has SwiGLU MLPs'),
  (r'intern300m', 'has no norm after its last block'),
  (r'rope|^eva02|^vit_pe_|dinov3', 'rotates queries and keys in another way'),
  (r'relpos|^beit|^samvit', 'has relative positions'),
  (r'resnet\d+d|_mci_', 'has another convolutional stem'),
  (r'^(gmixer|resmlp|gmlp)', 'has other blocks than the Mixer'),
)


@dataclasses.dataclass(frozen=True)
class Defaults:
  """What timm builds for a name where model_args say nothing.

  Attributes:
    family: 'vit', 'deit', 'hybrid' or 'mixer'.
    init_values: the initial LayerScale, None for none.
    distilled: whether there is a distillation token with a head of its own.
    resnet: depths of a hybrid's stages; None without one.
    Others as timm's arguments.
  """

  family: str
  num_heads: int = 12
  global_pool: str = 'token'
  act_layer: str = 'gelu'
  class_token: bool = True
  reg_tokens: int = 0
  no_embed_class: bool = False
  qkv_bias: bool = True
  qk_norm: bool = False
  pos_embed: str = 'learn'
  init_values: float | None = None
  pool_include_prefix: bool = False
  distilled: bool = False
  resnet: tuple[int, ...] | None = None


def defaults(where: str, architecture: str) -> Defaults:
  """What an architecture's name means; a tag after a dot is left aside.

  Raises:
    ValueError: it is none of `KNOWN`.
  """
  name = architecture.split('.')[0]
  refused = [why for part, why in REFUSED if re.search(part, name)]
  matches = {f: re.fullmatch(p, name) for f, p in KNOWN.items()}
  matches = {f: m for f, m in matches.items() if m and not refused}
  if not matches:
    why = f': it {refused[0]}' if refused else ''
    raise ValueError(
      f'{where}: architecture={architecture!r} is no model of ours{why}; of '
      "timm's, these are: vit_SIZE_patchN…, deit…, deit3…, flexivit_SIZE, "
      'eva_large_patch14_N, vit_SIZE_{r_s16_p8,r26_s32,r50_s16,r50_s32}_N and '
      'mixer_SIZE_N'
    )
  ((family, found),) = matches.items()
  if family == 'mixer':
    return Defaults(family, global_pool='avg', class_token=False)
  size = name.split('_')[1]
  fields: dict[str, Any] = {'num_heads': HEADS[size]} if size in HEADS else {}
  for part, changes in RULES:
    if re.search(part, name):
      fields |= changes
  if family == 'hybrid':
    fields['resnet'] = RESNETS[found[2]]
  return Defaults(family, **fields)


# Plain names to write under: (kind, width, patch size) of those that timm has.
PLAIN = (
  *(('vit', 'tiny', 192, p) for p in (16,)),
  *(('vit', 'small', 384, p) for p in (8, 16, 32)),
  *(('vit', 'base', 768, p) for p in (8, 16, 32)),
  *(('vit', 'large', 1024, p) for p in (14, 16, 32)),
  ('vit', 'huge', 1280, 14),
  ('vit', 'giant', 1408, 14),
  ('vit', 'gigantic', 1664, 14),
  ('deit', 'tiny', 192, 16),
  ('deit', 'small', 384, 16),
  ('deit', 'base', 768, 16),
  ('deit3', 'small', 384, 16),
  ('deit3', 'medium', 512, 16),
  ('deit3', 'base', 768, 16),
  ('deit3', 'large', 1024, 16),
  ('deit3', 'huge', 1280, 14),
)
HYBRIDS = (
  ('tiny', 192, 'r_s16_p8'),
  ('small', 384, 'r26_s32'),
  ('base', 768, 'r26_s32'),
  ('base', 768, 'r50_s16'),
  ('large', 1024, 'r50_s32'),
)


def nearest(kind: str, width: int, patch_size: int, distilled: bool) -> str:
  """The name of timm's nearest model of a kind: 'vit', 'deit' or 'deit3'.

  It has another width or patch size if its model_args say so.
  """
  rows = [r for r in PLAIN if r[0] == kind]
  _, size, _, patch = min(
    rows, key=lambda r: (abs(math.log(r[2] / width)), abs(r[3] - patch_size))
  )
  token = '_distilled' * distilled
  return f'{kind}_{size}{token}_patch{patch}_224'


def hybrid(width: int, resnet: tuple[int, ...]) -> str:
  """The name of timm's nearest hybrid with that ResNet.

  Raises:
    ValueError: it has none.
  """
  rows = [r for r in HYBRIDS if RESNETS[r[2]] == resnet]
  if not rows:
    choices = ', '.join(map(str, RESNETS.values()))
    raise ValueError(
      f'timm has no hybrid with resnet={resnet}; its depths: {choices}'
    )
  size, _, stem = min(rows, key=lambda r: abs(math.log(r[1] / width)))
  return f'vit_{size}_{stem}_224'


def mixer(width: int, depth: int, patch_size: int) -> str:
  """The name of timm's Mixer of these sizes.

  Raises:
    ValueError: it has none.
  """
  for size, sizes in MIXERS.items():
    if sizes == (width, depth) and patch_size in (16, 32):
      return f'mixer_{size}{patch_size}_224'
  raise ValueError(
    f'timm has no Mixer of width {width}, {depth} blocks and patches of '
    f'{patch_size}; its (width, blocks): {", ".join(map(str, MIXERS.values()))}'
    ', patches of 16 or 32'
  )
