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


def kept(kernel, n, key_mask, mask):
  """Which pairs attend, [H N N]."""
  keep = np.broadcast_to(np.asarray(key_mask) & mask, (1, n, n))
  return keep & np.tri(n, dtype=bool) if kernel.causal else keep


def random_synthesizer_oracle(
  kernel, variables, q, k, v, *, key_mask=True, mask=True
):
  """Tay et al. 2021, sections 3.1.3, 3.1.4 and 3.2."""
  params = variables['params']
  if 'logits' in params:
    logits = params['logits']
  else:
    logits = np.stack(
      [a @ b.T for a, b in zip(params['first'], params['second'], strict=True)]
    )
  if kernel.mixture:
    alpha = 1 / (1 + np.exp(-params['mixture'].item()))
    dots = np.einsum('nhd,mhd->hnm', q, k) / np.sqrt(q.shape[-1])
    logits = alpha * logits + (1 - alpha) * dots
  weights = rows(logits, kept(kernel, len(q), key_mask, mask))
  return np.einsum('hnm,mhe->nhe', weights, v)


def dense(params, name, x):
  """A projection of tokens [N C] to heads [N H D]."""
  return np.tensordot(x, params[name]['kernel'], 1) + params[name]['bias']


def dense_out(params, y):
  """The projection of heads [N H D] to [N C]."""
  return np.tensordot(y, params['out']['kernel'], 2) + params['out']['bias']


def dense_synthesizer_oracle(kernel, variables, x, *, key_mask=True, mask=True):
  """Tay et al. 2021, sections 3.1.1 and 3.1.2, entry by entry."""
  params = variables['params']
  n = len(x)
  hidden = np.maximum(dense(params, 'query', x), 0)

  def predict(name, i, h):
    return hidden[i, h] @ params[f'{name}_kernel'][h] + (
      params[f'{name}_bias'][h, 0]
    )

  logits = np.zeros((hidden.shape[1], n, n))
  for h, i in np.ndindex(*logits.shape[:2]):
    if 'logits_kernel' in params:
      logits[h, i] = predict('logits', i, h)
      continue
    a, b = predict('first', i, h), predict('second', i, h)
    for j in range(n):
      logits[h, i, j] = a[j % len(a)] * b[j // len(a)]
  weights = rows(logits, kept(kernel, n, key_mask, mask))
  values = dense(params, 'value', x)
  return dense_out(params, np.einsum('hnm,mhd->nhd', weights, values))


def zeros_of(*names):
  """Sets the named parameters to zero."""

  def change(variables):
    found = dict(variables['params'])
    for name in names:
      found[name] = 0 * found[name]
    return {'params': found}

  return change


def mean_of_values(q, k, v):
  return np.broadcast_to(v.mean(0), v.shape)


def mean_layer(x, variables):
  """The layer whose every weight is 1 / N."""
  values = dense(variables['params'], 'value', x).mean(0)
  return dense_out(variables['params'], np.stack([values] * len(x)))


def gaussian(a, b):
  """exp(-‖a - b‖² / 2√D) of every pair."""
  return np.exp(
    -((a[:, None] - b[None]) ** 2).sum(-1) / 2 / np.sqrt(a.shape[-1])
  )


def soft_oracle(kernel, variables, x, *, key_mask=True):
  """Lu et al. 2021, eq. 8 and 10, of the tokens that are not masked."""
  params = variables['params']
  q, v = dense(params, 'query', x), dense(params, 'value', x)
  keep = np.broadcast_to(key_mask, len(x))
  if kernel.grid is None:
    segment = np.zeros(len(x), int)
    count = min(kernel.landmarks, keep.sum())
    segment[keep] = np.arange(keep.sum()) * count // keep.sum()
    segments = [segment == s for s in range(count)]
  else:
    segments = [np.arange(len(x)) == i for i in range(kernel.prefix)]
    side = int(np.sqrt(kernel.landmarks))
    parts = [
      [np.arange(size) * min(side, size) // size == p for p in range(side)]
      for size in kernel.grid
    ]
    for row in parts[0]:
      for column in parts[1]:
        cell = np.concatenate(
          [np.zeros(kernel.prefix, bool), np.outer(row, column).ravel()]
        )
        segments.append(cell)
  segments = [s & keep for s in segments if (s & keep).any()]
  y = np.zeros_like(q)
  for h in range(q.shape[1]):
    landmarks = np.stack([q[s, h].mean(0) for s in segments])
    a = gaussian(landmarks, landmarks)
    z = a / np.linalg.norm(a, 1) ** 2
    for _ in range(kernel.iterations):
      z = 2 * z - z @ a @ z
    c = gaussian(q[:, h], landmarks)
    y[:, h] = c @ z @ c[keep].T @ v[keep, h]
  return dense_out(params, y)


def gaussian_layer(x, variables):
  """The layer with the whole Gaussian kernel."""
  params = variables['params']
  q, v = dense(params, 'query', x), dense(params, 'value', x)
  heads = [gaussian(q[:, h], q[:, h]) @ v[:, h] for h in range(q.shape[1])]
  return dense_out(params, np.stack(heads, 1))


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
  'synthesizer_random': Facts(
    random_synthesizer_oracle,
    # The mixture first: without it no gradient reaches queries and keys.
    cases=('synthesizer_random(mixture=True)', 'synthesizer_random'),
    causal='synthesizer_random(mixture=True, causal=True)',
    fixed_length=True,  # R is [N N]
    limits=(
      Limit(
        'synthesizer_random', 'R = 0 is the mean of the values',
        variables=zeros_of('logits'), equals=mean_of_values,
      ),
      Limit(
        'synthesizer_random(mixture=True)', 'α = 0 is softmax',
        variables=lambda v: {
          'params': {**v['params'], 'mixture': np.full((1, 1, 1, 1), -1e3)}
        },
      ),
    ),
  ),
  'synthesizer_factorized_random': Facts(
    random_synthesizer_oracle,
    cases=(
      'synthesizer_factorized_random(rank=3, mixture=True)',
      'synthesizer_factorized_random',
    ),
    causal='synthesizer_factorized_random(mixture=True, causal=True)',
    fixed_length=True,  # R₁ and R₂ are [N rank]
    limits=(
      Limit(
        'synthesizer_factorized_random', 'R₁ = 0 is the mean of the values',
        variables=zeros_of('first'), equals=mean_of_values,
      ),
    ),
  ),
  'synthesizer_dense': Facts(
    dense_synthesizer_oracle,
    cases=('synthesizer_dense',),
    causal='synthesizer_dense(causal=True)',
    row_sum=None,
    fixed_length=True,  # W₂ predicts N logits
    limits=(
      Limit(
        'synthesizer_dense', 'W₂ = 0 is the mean of the values',
        variables=zeros_of('logits_kernel', 'logits_bias'), equals=mean_layer,
      ),
    ),
  ),
  'synthesizer_factorized_dense': Facts(
    dense_synthesizer_oracle,
    cases=(
      'synthesizer_factorized_dense(factor=3)',
      'synthesizer_factorized_dense',
    ),
    causal='synthesizer_factorized_dense(causal=True)',
    row_sum=None,
    fixed_length=True,  # A and B follow from N
    limits=(
      Limit(
        'synthesizer_factorized_dense', 'W₃ = 0 is the mean of the values',
        variables=zeros_of('second_kernel', 'second_bias'), equals=mean_layer,
      ),
    ),
  ),
  'soft': Facts(
    soft_oracle,
    cases=('soft(landmarks=4)', 'soft(landmarks=9, iterations=5)'),
    row_sum=None,
    # Landmarks far apart: finite differences of an inverse in float32 need a
    # well-conditioned matrix.
    inputs=lambda x: (2 * x,),
    limits=(
      Limit(
        'soft(landmarks=13, iterations=30)',
        'N landmarks and a converged inverse are the Gaussian kernel',
        equals=gaussian_layer, grid=None, prefix=0,
      ),
    ),
  ),
}
