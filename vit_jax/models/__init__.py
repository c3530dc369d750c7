"""The tables of models. Each class lists its sizes in `VARIANTS`, by row."""

from typing import Any

import flax.linen as nn

from vit_jax import specs
from vit_jax.models.cait import CaiT
from vit_jax.models.convit import ConViT
from vit_jax.models.cpvt import CPVT
from vit_jax.models.cvt import ConvolutionalVisionTransformer
from vit_jax.models.deepvit import DeepViT
from vit_jax.models.compact import CompactTransformer
from vit_jax.models.deit import DeiT
from vit_jax.models.mixer import MlpMixer
from vit_jax.models.mvit import MViT
from vit_jax.models.pvt import PyramidVisionTransformer
from vit_jax.models.pvt_v2 import PyramidVisionTransformerV2
from vit_jax.models.resnet_classifier import ResNetClassifier
from vit_jax.models.rope import RotaryViT
from vit_jax.models.sequence import PairClassifier, SequenceClassifier
from vit_jax.models.swin import SwinTransformer
from vit_jax.models.tnt import TNT
from vit_jax.models.twins import Twins
from vit_jax.models.vit import VisionTransformer
from vit_jax.models.xcit import XCiT

# Of images [B Y X C].
MODELS: dict[str, type[nn.Module]] = {
  'vit': VisionTransformer,  # Dosovitskiy et al. 2021; hybrids too
  'deit': DeiT,  # Touvron et al. 2021, 2022
  'cpvt': CPVT,  # Chu et al. 2021
  'rope': RotaryViT,  # Heo et al. 2024
  'convit': ConViT,  # d'Ascoli et al. 2021
  'mvit': MViT,  # Li et al. 2022, MViTv2
  'xcit': XCiT,  # El-Nouby et al. 2021
  'deepvit': DeepViT,  # Zhou et al. 2021
  'cait': CaiT,  # Touvron et al. 2021
  'tnt': TNT,  # Han et al. 2021
  'pvt': PyramidVisionTransformer,  # Wang et al. 2021
  'pvt_v2': PyramidVisionTransformerV2,  # Wang et al. 2022
  'cvt': ConvolutionalVisionTransformer,  # Wu et al. 2021
  'mixer': MlpMixer,  # Tolstikhin et al. 2021
  'resnet': ResNetClassifier,  # He et al. 2016
  'compact': CompactTransformer,  # Hassani et al. 2021
  'swin': SwinTransformer,  # Liu et al. 2021
  'twins': Twins,  # Chu et al. 2021
}
# Of tokens [B N], or pairs of documents [B 2 N].
SEQUENCE_MODELS: dict[str, type[nn.Module]] = {
  'pair': PairClassifier,  # Tay et al. 2021, retrieval
  'sequence': SequenceClassifier,  # Vaswani et al. 2017; Tay et al. 2021
}


def build(name: str, variant: str | None = None, **fields: Any) -> nn.Module:
  """Builds a model: `build('vit', variant='B/16', num_classes=10)`.

  Args:
    name: a key of `MODELS` or `SEQUENCE_MODELS`.
    variant: a key of the model's `VARIANTS`; None if `fields` say everything.
    **fields: the model's fields; they override the variant's. Lists, as JSON
      has them, stand for tuples.

  Raises:
    ValueError: unknown name, variant or field, or a field missing.
  """
  cls = specs.lookup(MODELS | SEQUENCE_MODELS, name, 'model')
  specs.check_options(cls, fields, f'the model {name!r}')
  if variant is not None:
    row = specs.lookup(cls.VARIANTS, variant, f'variant of the model {name!r}')
    fields = {**row, **fields}
  fields = {
    k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
  }
  try:
    return cls(**fields)
  except TypeError as e:
    raise ValueError(
      f'cannot build the model {name!r} from {sorted(fields)}: {e}; give a '
      f'variant ({", ".join(cls.VARIANTS)}) or the missing fields'
    ) from e


__all__ = [
  'MODELS', 'SEQUENCE_MODELS', 'CPVT', 'CaiT', 'CompactTransformer',
  'ConvolutionalVisionTransformer', 'DeepViT', 'DeiT', 'MlpMixer',
  'PairClassifier', 'PyramidVisionTransformer', 'PyramidVisionTransformerV2',
  'ResNetClassifier', 'RotaryViT', 'SequenceClassifier', 'SwinTransformer',
  'TNT', 'Twins', 'VisionTransformer', 'build',
]  # fmt: skip
