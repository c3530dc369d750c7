"""vit_jax: Vision Transformers in JAX, with any attention in any model.

Submodules load on first use, so `import vit_jax` costs nothing:
`vit_jax.models.build(...)`, `vit_jax.attention.build(...)`.
"""

import importlib

__version__ = '0.1.0'

_SUBMODULES = (
  'attention',
  'benchmark',
  'checkpoints',
  'data',
  'evaluate',
  'layers',
  'metrics',
  'models',
  'optimizers',
  'plots',
  'predict',
  'pretrained',
  'sharding',
  'smoothing',
  'specs',
  'tasks',
  'train',
  'transport',
  'writers',
)


def __getattr__(name: str):
  if name in _SUBMODULES:
    return importlib.import_module(f'vit_jax.{name}')
  raise AttributeError(
    f'vit_jax has no {name!r}; it has {", ".join(_SUBMODULES)}'
  )


def __dir__():
  return sorted([*globals(), *_SUBMODULES])
