"""Exact attentions, and variants that keep the whole N×M map."""

import numpy as np
from scipy import optimize

from attention.oracles.facts import Facts, Limit, rows, softmax


def keep_of(kernel, n, m, key_mask, mask):
  """[1 or H, N, M]: which pairs attend."""
  keep = np.broadcast_to(np.asarray(key_mask) & mask, (1, n, m))
  if 'causal' in kernel.__dataclass_fields__ and kernel.causal:
    keep = keep & np.tri(n, m, m - n, dtype=bool)
  return keep


def softmax_oracle(
  kernel, variables, q, k, v, *, key_mask=True, mask=True, bias=0.0
):
  """Vaswani et al. 2017, eq. 1."""
  keep = keep_of(kernel, len(q), len(k), key_mask, mask)
  return softmax(q, k, v, keep, bias)


def mapped(weights):
  """The oracle of a map: `weights(kernel, params, logits, keep)` times V."""

  def oracle(
    kernel, variables, q, k, v, *, key_mask=True, mask=True, bias=0.0
  ):
    keep = keep_of(kernel, len(q), len(k), key_mask, mask)
    logits = np.einsum('nhd,mhd->hnm', q, k) / np.sqrt(q.shape[-1]) + bias
    keep = np.broadcast_to(keep, logits.shape)
    found = weights(kernel, variables, logits, keep)
    return np.einsum('hnm,mhe->nhe', found, v)

  return oracle


@mapped
def sigmoid_oracle(kernel, variables, logits, keep):
  """Ramapuram et al. 2024, eq. 3, with n the number of kept keys."""
  out = np.zeros_like(logits)
  for h, i, j in zip(*np.nonzero(keep), strict=True):
    n = keep[h, i].sum()
    out[h, i, j] = 1 / (1 + np.exp(np.log(n) - logits[h, i, j]))
  return out


@mapped
def relu_oracle(kernel, variables, logits, keep):
  """Wortsman et al. 2023."""
  out = np.zeros_like(logits)
  for h, i, j in zip(*np.nonzero(keep), strict=True):
    out[h, i, j] = max(logits[h, i, j], 0) / keep[h, i].sum()
  return out


def cosine_oracle(
  kernel, variables, q, k, v, *, key_mask=True, mask=True, bias=0.0
):
  """Liu et al. 2022, eq. 2."""
  keep = keep_of(kernel, len(q), len(k), key_mask, mask)
  q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
  scale = np.exp(np.minimum(variables['params']['log_scale'], np.log(100)))
  logits = scale[:, None, None] * np.einsum('nhd,mhd->hnm', q, k) + bias
  return np.einsum('hnm,mhe->nhe', rows(logits, keep), v)


def lsa_oracle(
  kernel, variables, q, k, v, *, key_mask=True, mask=True, bias=0.0
):
  """Lee et al. 2021, section 3.3."""
  heads, n = q.shape[1], len(q)
  keep = keep_of(kernel, n, n, key_mask, mask)
  keep = np.broadcast_to(keep, (heads, n, n)).copy()
  bias = np.broadcast_to(bias, keep.shape)
  logits = np.zeros(keep.shape)
  for h, i, j in np.ndindex(keep.shape):
    scale = variables['params']['scale'][h]
    logits[h, i, j] = scale * (q[i, h] @ k[j, h]) + bias[h, i, j]
    keep[h, i, j] &= i != j
  return np.einsum('hnm,mhe->nhe', rows(logits, keep), v)


@mapped
def entmax_oracle(kernel, variables, logits, keep):
  """Peters et al. 2019, eq. 10, its threshold by root finding."""
  power = 1 / (kernel.alpha - 1)
  out = np.zeros_like(logits)
  for h, i in np.ndindex(logits.shape[:2]):
    z = logits[h, i][keep[h, i]] / power
    if z.size:
      of = lambda t, z=z: np.maximum(z - t, 0) ** power  # noqa: E731
      low, high = z.max() - 1, z.max()
      threshold = low
      if of(low).sum() > 1:
        threshold = optimize.brentq(
          lambda t, of=of: of(t).sum() - 1, low, high, xtol=1e-14
        )
      out[h, i][keep[h, i]] = of(threshold)
  return out


@mapped
def talking_oracle(kernel, variables, logits, keep):
  """Shazeer et al. 2020, section 4, with h = h_k = h_v."""
  params = variables['params']
  before, after = params['logits_kernel'], params['weights_kernel']
  mixed = sum(before[h][:, None, None] * logits[h] for h in range(len(logits)))
  weights = rows(mixed, keep)
  return keep * sum(
    after[h][:, None, None] * weights[h] for h in range(len(logits))
  )


@mapped
def reattention_oracle(kernel, variables, logits, keep):
  """Zhou et al. 2021, eq. 3, in evaluation."""
  theta = variables['params']['kernel']
  weights = rows(logits, keep)
  mixed = np.zeros_like(weights)
  for g in range(len(theta)):
    mixed[g] = sum(theta[h, g] * weights[h] for h in range(len(theta)))
    if kernel.norm == 'batch':
      learned = variables['params']['norm']
      running = variables['batch_stats']['norm']
      deviation = np.sqrt(running['var'][g] + 1e-5)
      mixed[g] = (mixed[g] - running['mean'][g]) / deviation
      mixed[g] = mixed[g] * learned['scale'][g] + learned['bias'][g]
  return mixed * keep


def differential_oracle(
  kernel, variables, q, k, v, *, key_mask=True, mask=True, bias=0.0
):
  """Ye et al. 2024, eq. 1 to 3."""
  p, half = variables['params'], q.shape[-1] // 2
  keep = keep_of(kernel, len(q), len(k), key_mask, mask)
  weight = (
    np.exp(np.sum(p['lambda_q1'] * p['lambda_k1']))
    - np.exp(np.sum(p['lambda_q2'] * p['lambda_k2']))
    + kernel.initial
  )
  out = softmax(q[..., :half], k[..., :half], v, keep, bias)
  out = out - weight * softmax(q[..., half:], k[..., half:], v, keep, bias)
  if kernel.normalize:
    out = out / np.sqrt((out**2).mean(-1, keepdims=True) + 1e-5)
    out = out * p['norm']['scale'] * (1 - kernel.initial)
  return out


def gpsa_oracle(kernel, variables, q, k, v, *, key_mask=True, mask=True):
  """d'Ascoli et al. 2021, eq. 7 and 9; prefix tokens attend by content."""
  n, heads = q.shape[:2]
  keep = keep_of(kernel, n, n, key_mask, mask)
  logits = np.einsum('nhd,mhd->hnm', q, k) / np.sqrt(q.shape[-1])
  keep = np.broadcast_to(keep, logits.shape)
  content = rows(logits, keep)
  columns = kernel.grid[1] if kernel.grid else n - kernel.prefix
  kernels, gates = (variables['params'][x] for x in ('positions', 'gate'))
  out = np.zeros_like(content)
  for h, i in np.ndindex(heads, n):
    places = np.full(n, -np.inf)
    for j in range(n):
      if min(i, j) >= kernel.prefix and keep[h, i, j]:
        (r, c), (s, t) = (
          divmod(x - kernel.prefix, columns) for x in (i, j)
        )
        y, x = s - r, t - c
        places[j] = kernels[h] @ [x, y, x * x + y * y]
    gate = 1 / (1 + np.exp(-gates[h])) if i >= kernel.prefix else 0.0
    out[h, i] = (1 - gate) * content[h, i]
    if np.isfinite(places).any():
      powers = np.exp(places - places.max())
      out[h, i] += gate * powers / powers.sum()
    out[h, i] /= out[h, i].sum() or 1.0
  return np.einsum('hnm,mhe->nhe', out, v)


def span_oracle(
  kernel, variables, q, k, v, *, key_mask=True, mask=True, bias=0.0
):
  """Sukhbaatar et al. 2019, eq. 5 and 6."""
  n, columns = len(q), kernel.grid[1] if kernel.grid else None
  keep = keep_of(kernel, n, n, key_mask, mask)
  logits = np.einsum('nhd,mhd->hnm', q, k) / np.sqrt(q.shape[-1]) + bias
  spans = np.clip(variables['params']['span'], 0, 1) * kernel.longest
  soft = np.zeros_like(logits)
  for h, i, j in np.ndindex(soft.shape):
    a, b = i - kernel.prefix, j - kernel.prefix
    if min(a, b) < 0:
      distance = 0
    elif columns:
      distance = max(
        abs(a // columns - b // columns), abs(a % columns - b % columns)
      )
    else:
      distance = abs(a - b)
    soft[h, i, j] = np.clip(
      (kernel.ramp + spans[h] - distance) / kernel.ramp, 0, 1
    )
  weights = np.where(keep, soft * np.exp(logits), 0)
  total = weights.sum(-1, keepdims=True)
  weights = weights / np.where(total > 0, total, 1)
  return np.einsum('hnm,mhe->nhe', weights, v)


def gated_oracle(
  kernel, variables, q, k, v, *, x, key_mask=True, mask=True, bias=0.0
):
  """σ(X W) ⊙ softmax attention."""
  out = softmax_oracle(
    kernel, variables, q, k, v, key_mask=key_mask, mask=mask, bias=bias
  )
  gate = variables['params']['gate']
  gate = np.einsum('nc,che->nhe', x, gate['kernel']) + gate['bias']
  return out / (1 + np.exp(-gate))


def set_params(**values):
  """A limit's parameters: each named one filled with its value."""

  def change(variables):
    params = dict(variables['params'])
    for name, value in values.items():
      params[name] = np.broadcast_to(value, params[name].shape).astype('f')
    return {**variables, 'params': params}

  return change


def positive_variance(variables):
  """Running variances are positive."""
  if 'batch_stats' not in variables:
    return variables
  norm = variables['batch_stats']['norm']
  norm = {**norm, 'var': abs(norm['var']) + 0.5}
  return {**variables, 'batch_stats': {'norm': norm}}


def inside_unit(variables):
  """Spans lie strictly between 0 and 1, where they have gradients."""
  span = abs(variables['params']['span']) / 4 + 0.1
  return {'params': {'span': span}}


def open_gate(variables):
  """A gate that lets everything through."""
  gate = {
    name: 0 * x + 100 * (name == 'bias')
    for name, x in variables['params']['gate'].items()
  }
  return {'params': {**variables['params'], 'gate': gate}}


def units(q, k, v):
  """Unit queries and keys."""
  length = lambda x: np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
  return q / length(q), k / length(k), v


def equal_keys(q, k, v):
  """Every key is the first."""
  return q, np.broadcast_to(k[:, :1], k.shape), v


def mean(q, k, v):
  """The mean of the values."""
  return np.broadcast_to(v.mean(0, keepdims=True), v.shape)


FACTS = {
  'softmax': Facts(
    softmax_oracle,
    cases=('softmax',),
    causal='softmax(causal=True)',
    limits=(Limit('softmax', 'softmax is itself'),),
  ),
  'chunked': Facts(
    softmax_oracle,
    cases=('chunked(size=5)', 'chunked'),
    causal='chunked(size=4, causal=True)',
    limits=(Limit('chunked(size=3)', 'chunks of any size are softmax'),),
  ),
  'sigmoid': Facts(
    sigmoid_oracle,
    cases=('sigmoid',),
    causal='sigmoid(causal=True)',
    row_sum=None,
    limits=(
      Limit(
        'sigmoid', 'queries of zero: the sum of the values over N + 1',
        inputs=lambda q, k, v: (0 * q, k, v),
        equals=lambda q, k, v: mean(q, k, v) * len(v) / (len(v) + 1),
      ),
    ),
  ),
  'relu': Facts(
    relu_oracle,
    cases=('relu',),
    causal='relu(causal=True)',
    row_sum=None,
    limits=(
      Limit(
        'relu', 'positive queries and keys: Q (Kᵀ V) / (N √D)',
        inputs=lambda q, k, v: (abs(q), abs(k), v),
        equals=lambda q, k, v: np.einsum(
          'nhd,hde->nhe', q, np.einsum('mhd,mhe->hde', k, v)
        ) / (len(v) * np.sqrt(q.shape[-1])),
      ),
    ),
  ),
  'cosine': Facts(
    cosine_oracle,
    cases=('cosine',),
    causal='cosine(causal=True)',
    limits=(
      Limit(
        'cosine', 'unit queries and keys, scale 1/√D: softmax', inputs=units,
        variables=set_params(log_scale=np.log(0.5)),
      ),
    ),
  ),
  'entmax': Facts(
    entmax_oracle,
    cases=('entmax', 'entmax(alpha=2)'),
    causal='entmax(causal=True)',
    limits=(
      Limit(
        'entmax', 'equal keys: the mean of the values', inputs=equal_keys,
        equals=mean,
      ),
      Limit(
        'entmax(alpha=2)', 'equal keys: the mean of the values',
        inputs=equal_keys, equals=mean,
      ),
    ),
  ),
  'talking_heads': Facts(
    talking_oracle,
    cases=('talking_heads',),
    causal='talking_heads(causal=True)',
    row_sum=None,
    limits=(
      Limit(
        'talking_heads', 'P = I: softmax',
        variables=set_params(logits_kernel=np.eye(2), weights_kernel=np.eye(2)),
      ),
    ),
  ),
  'reattention': Facts(
    reattention_oracle,
    cases=('reattention', "reattention(norm='none')"),
    row_sum=None,
    adjust=positive_variance,
    noisy=True,  # BatchNorm: over the batch in training, running in evaluation
    limits=(
      Limit(
        "reattention(norm='none')", 'Θ = I without the norm: softmax',
        variables=set_params(kernel=np.eye(2)),
      ),
    ),
  ),
  'differential': Facts(
    differential_oracle,
    cases=('differential', 'differential(normalize=False, initial=0.3)'),
    causal='differential(causal=True)',
    row_sum=None,
    limits=(
      Limit(
        'differential(normalize=False, initial=0)',
        'λ = 0 before the norm: softmax of the first halves',
        variables=set_params(lambda_q1=0, lambda_q2=0),
        equals=lambda q, k, v: softmax(q[..., :2], k[..., :2], v),
      ),
    ),
  ),
  'gpsa': Facts(
    gpsa_oracle,
    cases=('gpsa',),
    limits=(
      Limit(
        'gpsa', 'gates closed to positions: softmax',
        variables=set_params(gate=-100),
      ),
      Limit(
        'gpsa', 'gates closed to content, no position: mean of the values',
        variables=set_params(gate=100, positions=0), prefix=0, equals=mean,
      ),
    ),
  ),
  'lsa': Facts(
    lsa_oracle,
    cases=('lsa',),
    limits=(
      Limit(
        'lsa', 'τ = √D: softmax over the other tokens',
        variables=set_params(scale=0.5),
        equals=lambda q, k, v: softmax(q, k, v, ~np.eye(len(q), dtype=bool)),
      ),
      Limit(
        'lsa', 'τ = ∞: the mean of the other values',
        variables=set_params(scale=0),
        equals=lambda q, k, v: (len(v) * mean(q, k, v) - v) / (len(v) - 1),
      ),
    ),
  ),
  'adaptive_span': Facts(
    span_oracle,
    cases=('adaptive_span(longest=4, ramp=2)',),
    causal='adaptive_span(longest=6, ramp=1.5, causal=True)',
    adjust=inside_unit,
    limits=(
      Limit(
        'adaptive_span', 'the longest spans: softmax',
        variables=set_params(span=1),
      ),
    ),
  ),
  'gated': Facts(
    gated_oracle,
    cases=('gated',),
    causal='gated(causal=True)',
    row_sum=None,
    limits=(Limit('gated', 'gates open: softmax', variables=open_gate),),
  ),
}
