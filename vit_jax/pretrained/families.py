"""The families that the formats of timm and Hugging Face share out.

ViT, DeiT, hybrids and Mixer are in the formats' own modules.
"""

import re

from vit_jax.pretrained.family import HuggingFace, Timm

# By the name of our model.
TIMM: dict[str, Timm] = {}
# By model_type; our model has the same name.
HUGGINGFACE: dict[str, HuggingFace] = {}


def of_timm(architecture: str) -> Timm | None:
  """The family of an architecture's name; None if no family has it."""
  name = architecture.split('.')[0]
  for family in TIMM.values():
    if re.fullmatch(family.names, name):
      return family
  return None
