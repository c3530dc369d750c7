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


def nystrom_oracle(kernel, variables, q, k, v, *, key_mask=True):
  """Xiong et al. 2021, eq. 13 to 15, of the tokens that are not masked.

  The masked tokens are cut out: what remains of their rows is the query.
  """
  keep = np.broadcast_to(key_mask, len(k))
  kept_q, kept_k = q[keep], k[keep]
  values = masked(v, keep)
  out = np.zeros((*q.shape[:2], v.shape[-1]))
  if keep.any():
    segments = np.arange(len(kept_k)) * min(kernel.landmarks, len(kept_k))
    segments //= len(kept_k)
    for h in range(q.shape[1]):
      q_mean, k_mean = (
        np.stack(
          [x[segments == s, h].mean(0) for s in range(segments.max() + 1)]
        )
        for x in (kept_q, kept_k)
      )
      scale = q.shape[-1] ** -0.5
      a = rows(scale * q_mean @ k_mean.T)
      eye = np.eye(len(a))
      z = a.T / np.linalg.norm(a, 1) / np.linalg.norm(a, np.inf)
      for _ in range(kernel.iterations):
        z = z @ (13 * eye - a @ z @ (15 * eye - a @ z @ (7 * eye - a @ z))) / 4
      f = rows(scale * q[:, h] @ k_mean.T)
      b = rows(scale * q_mean @ kept_k[:, h].T)
      out[:, h] = f @ z @ b @ v[keep, h]
  if kernel.conv:
    filters, half = variables['params']['conv'], kernel.conv // 2
    for n in range(len(v)):
      for m in range(max(0, n - half), min(len(v), n + half + 1)):
        out[n] += filters[m - n + half][:, None] * values[m]
  return out


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
  'nystrom': Facts(
    nystrom_oracle,
    cases=(
      'nystrom(landmarks=4, conv=3)',
      'nystrom(landmarks=13, conv=0, iterations=3)',
      'nystrom',
    ),
    row_sum=None,  # the convolution adds its filter's sum
    limits=(
      Limit(
        'nystrom(landmarks=13, conv=0, iterations=20)',
        'N landmarks and a converged inverse are softmax',
        # Keys near their queries: a well-conditioned map in float32.
        inputs=lambda q, k, v: (q, 2 * q + 0.1 * k, v),
      ),
    ),
  ),
}
