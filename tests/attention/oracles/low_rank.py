"""Attentions whose map of the tokens has a low rank, or weights of its own."""

import numpy as np

from attention.oracles.facts import Facts, Limit, rows, softmax


def masked(x, key_mask):
  """Tokens [M …] with zeros where they are masked."""
  keep = np.broadcast_to(key_mask, len(x))
  return x * keep.reshape(-1, *(1,) * (x.ndim - 1))


def linformer_oracle(kernel, variables, q, k, v, *, key_mask=True):
  """Wang et al. 2020, eq. 7, head by head."""
  params = variables['params']
  e = params['project_keys']
  f = e if kernel.share == 'key-value' else params['project_values']
  k, v = masked(k, key_mask), masked(v, key_mask)
  out = np.zeros((*q.shape[:2], v.shape[-1]))
  for h in range(q.shape[1]):
    one = h if kernel.share == 'none' else 0
    logits = q[:, h] @ (e[one] @ k[:, h]).T / np.sqrt(q.shape[-1])
    out[:, h] = rows(logits) @ (f[one] @ v[:, h])
  return out


def identity_projections(variables):
  eye = lambda p: np.broadcast_to(np.eye(p.shape[-1]), p.shape)  # noqa: E731
  return {
    'params': {
      name: eye(p).astype(np.float32)
      for name, p in variables['params'].items()
    }
  }


FACTS = {
  'linformer': Facts(
    linformer_oracle,
    cases=(
      'linformer(rank=5)',
      "linformer(rank=3, share='headwise')",
      "linformer(rank=20, share='key-value')",
    ),
    row_sum=None,  # F's rows have any sum
    fixed_length=True,  # E and F are [rank N]
    limits=(
      Limit(
        'linformer(rank=13)', 'E = F = I is softmax',
        variables=identity_projections, equals=softmax,
      ),
    ),
  ),
}
