"""The families that the formats of timm and Hugging Face share out.

ViT, DeiT, hybrids and Mixer are in the formats' own modules.
"""

import re

from vit_jax.pretrained import (
  cait,
  convit,
  cvt,
  mvit,
  pvt,
  pvt_v2,
  resnet,
  rope,
  swin,
  tnt,
  twins,
  xcit,
)
from vit_jax.pretrained.family import HuggingFace, Timm

# By the name of our model.
TIMM: dict[str, Timm] = {
  'convit': convit.TIMM,
  'mvit': mvit.TIMM,
  'xcit': xcit.TIMM,
  'rope': rope.TIMM,
  'cait': cait.TIMM,
  'tnt': tnt.TIMM,
  'pvt_v2': pvt_v2.TIMM,
  'resnet': resnet.TIMM,
  'swin': swin.TIMM,
  'twins': twins.TIMM,
}
# By model_type; our model has the same name.
HUGGINGFACE: dict[str, HuggingFace] = {
  'pvt': pvt.HUGGINGFACE,
  'pvt_v2': pvt_v2.HUGGINGFACE,
  'cvt': cvt.HUGGINGFACE,
  'resnet': resnet.HUGGINGFACE,
  'swin': swin.HUGGINGFACE,
}


def of_timm(architecture: str) -> Timm | None:
  """The family of an architecture's name; None if no family has it."""
  name = architecture.split('.')[0]
  for family in TIMM.values():
    if re.fullmatch(family.names, name):
      return family
  return None
