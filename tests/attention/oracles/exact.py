"""Exact attentions, and variants that keep the whole N×M map."""

import numpy as np

from attention.oracles.facts import Facts, Limit, softmax


def softmax_oracle(
  kernel, variables, q, k, v, *, key_mask=True, mask=True, bias=0.0
):
  """Vaswani et al. 2017, eq. 1."""
  keep = np.broadcast_to(np.asarray(key_mask) & mask, (1, len(q), len(k)))
  if kernel.causal:
    keep = keep & np.tri(len(q), len(k), len(k) - len(q), dtype=bool)
  return softmax(q, k, v, keep, bias)


FACTS = {
  'softmax': Facts(
    softmax_oracle,
    cases=('softmax',),
    causal='softmax(causal=True)',
    limits=(Limit('softmax', 'softmax is itself'),),
  ),
}
