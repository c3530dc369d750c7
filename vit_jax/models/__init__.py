"""The table of models. Each class lists its sizes in `VARIANTS`, row by row."""

from typing import Any

import flax.linen as nn

from vit_jax import specs
from vit_jax.models.deit import DeiT
from vit_jax.models.mixer import MlpMixer
from vit_jax.models.vit import VisionTransformer

MODELS: dict[str, type[nn.Module]] = {
  'vit': VisionTransformer,  # Dosovitskiy et al. 2021; hybrids too
  'deit': DeiT,  # Touvron et al. 2021, 2022
  'mixer': MlpMixer,  # Tolstikhin et al. 2021
}


def build(name: str, variant: str | None = None, **fields: Any) -> nn.Module:
  """Builds a model: `build('vit', variant='B/16', num_classes=10)`.

  Args:
    name: a key of `MODELS`.
    variant: a key of the model's `VARIANTS`; None if `fields` say everything.
    **fields: the model's fields; they override the variant's. Lists, as JSON
      has them, stand for tuples.

  Raises:
    ValueError: unknown name, variant or field, or a field missing.
  """
  cls = specs.lookup(MODELS, name, 'model')
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


__all__ = ['MODELS', 'DeiT', 'MlpMixer', 'VisionTransformer', 'build']
