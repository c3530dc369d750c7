"""What papers promise of an attention, beyond what its class says of itself.

A kernel of one's own states its promises with `check(Mine, promise=…)`; a
subclass of an entry inherits that entry's.
"""

from typing import Any, NamedTuple

import flax.linen as nn

from vit_jax import attention
from vit_jax.attention import axial, patterned


class Promise(NamedTuple):
  """What a map and an output must be.

  Attributes:
    sums: the rows of the map of the values sum to 1.
    positive: no weight is below 0.
    exact: options at which it is softmax(Q Kᵀ / √D) V, whatever its own
      parameters are; None where there are none.
    pattern: which pairs have weight, as `attention.patterns.parse` reads it;
      '{size}' is the field `size`. '' promises nothing.
    normal: path of a variable [features D] whose rows are drawn with mean 0 and
      covariance I, as 'attention_state/features'.
  """

  sums: bool = False
  positive: bool = False
  exact: dict[str, Any] | None = None
  pattern: str = ''
  normal: str = ''


MEAN = Promise(sums=True, positive=True)
ALL = 10**4  # a size that covers any test
FEATURES = 'attention_state/features'


def _mean(**exact: Any) -> Promise:
  return MEAN._replace(exact=exact)


def _mask(pattern: str, **exact: Any) -> Promise:
  return MEAN._replace(pattern=pattern, exact=exact or None)


# Entry → promise; those that are not here promise no more than their class.
# Sources are the entries' own.
_BY_NAME = {
  'softmax': _mean(),
  'chunked': _mean(size=5),
  'sigmoid': Promise(positive=True),
  'relu': Promise(positive=True),
  'cosine': MEAN,
  'entmax': MEAN,
  'gpsa': MEAN,
  'lsa': MEAN,
  'adaptive_span': MEAN,
  'linear': MEAN,
  'performer': MEAN._replace(normal=FEATURES),
  'random_features': Promise(normal=FEATURES),
  'cosformer': Promise(positive=True),  # rows of ReLUs that are all 0 sum to 0
  'efficient': MEAN,
  'based': MEAN,
  'sinkhorn': _mean(blocks=1, prefix=0),
  'sortcut': MEAN,
  'sinkformer': _mean(iterations=1),
  'lotformer': MEAN,
  'synthesizer_random': MEAN,
  'synthesizer_factorized_random': MEAN,
  'perceiver': MEAN,
  'routing': Promise(positive=True),
  'clustered': _mean(clusters=ALL),
  'improved_clustered': _mean(topk=ALL),
  'window': _mask('window(size={size})', size=ALL),
  'sliding': _mask('sliding(size={size})', size=ALL),
  'neighborhood': _mask(
    'neighborhood(size={size})', size=ALL + 1, relative_bias=False
  ),
  'dilated': _mask(
    'dilated(size={size}, dilation={dilation})', size=ALL, dilation=1
  ),
  'image1d': _mask('image1d(size={size}, memory={memory})', size=ALL),
  'image2d': _mask('image2d(size={size}, memory={memory})', size=ALL),
  'swin': _mask(
    'window(size={size}, shift={shift})', size=ALL, relative_bias=False
  ),
  'criss_cross': _mask('row | column'),
  'strided': _mask('band(size={size}) | strided(size={size})', size=ALL),
  'fixed': _mask(
    'chunk(size={size}) | summary(size={size}, count={summary})',
    size=3, summary=3,
  ),
  'longformer': _mean(size=ALL),
  'bigbird': _mean(block=2, random=ALL),
  'pattern': _mean(keep='full'),
  'focal': Promise(exact={'size': ALL, 'pool': ()}),
  'pooled': Promise(exact={'stride': 1}),
}  # fmt: skip
_CLASSES = {attention.ATTENTIONS[name]: p for name, p in _BY_NAME.items()}
_CLASSES |= {patterned.Patterned: MEAN, axial.Axial: MEAN}


def of(kernel: nn.Module) -> Promise:
  """The promise of the nearest entry among the kernel's classes."""
  for cls in type(kernel).__mro__:
    if cls in _CLASSES:
      return _CLASSES[cls]
  return Promise()
