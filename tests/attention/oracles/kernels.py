"""Kernel (linear) attentions, as dense maps of φ(q)·φ(k)."""

import numpy as np
from scipy import special

from attention.oracles.facts import Facts, Limit, rows


def dense(kernel, queries, keys, v, key_mask=True, weigh=None, least=0.0):
  """Σ_j w_ij v_j / Σ_j w_ij with w = φ(q_i)·φ(k_j), by plain loops.

  `weigh(i, j, h)` multiplies w; a divisor below `least` is `least`.
  """
  n, heads, _ = queries.shape
  m = len(keys)
  keep = np.broadcast_to(key_mask, (m,))
  out = np.zeros((n, heads, v.shape[-1]))
  for h in range(heads):
    weights = np.zeros((n, m))
    for i in range(n):
      for j in range(m):
        if keep[j] and not (kernel.causal and j > i + m - n):
          weights[i, j] = queries[i, h] @ keys[j, h]
          if weigh is not None:
            weights[i, j] *= weigh(i, j, h)
    for i in range(n):
      if weights[i].any():
        total = max(weights[i].sum(), least)
        out[i, h] = weights[i] @ v[:, h] / total
  return out


def linear(kernel, variables, q, k, v, *, key_mask=True):
  """Katharopoulos et al. 2020, eq. 7: φ(x) = elu(x) + 1."""
  elu = lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0)))  # noqa: E731
  return dense(kernel, elu(q) + 1, elu(k) + 1, v, key_mask)


def performer(kernel, variables, q, k, v, *, key_mask=True):
  """Choromanski et al. 2021, lemma 1 and section 2.2, with the W given."""
  w = variables['attention_state']['features']

  def phi(x):
    out = np.zeros((*x.shape[:2], len(w)))
    for n, h in np.ndindex(*x.shape[:2]):
      scaled = x[n, h] / x.shape[-1] ** 0.25
      out[n, h] = (
        np.maximum(w @ scaled, 0) + kernel.epsilon
        if kernel.kernel == 'relu'
        else np.exp(w @ scaled - scaled @ scaled / 2)
      )
    return out / np.sqrt(len(w))

  return dense(kernel, phi(q), phi(k), v, key_mask)


def random_features(kernel, variables, q, k, v, *, key_mask=True):
  """Peng et al. 2021, section 3: sines and cosines of unit vectors."""
  w = variables['attention_state']['features']
  sigma = variables['params']['sigma']

  def phi(x):
    out = np.zeros((*x.shape[:2], 2 * len(w)))
    for n, h in np.ndindex(*x.shape[:2]):
      unit = x[n, h] / np.linalg.norm(x[n, h])
      angles = (w * sigma[h]) @ unit
      out[n, h] = np.append(np.sin(angles), np.cos(angles))
    return out / np.sqrt(len(w))

  return dense(
    kernel, phi(q), phi(k), v, key_mask, least=kernel.epsilon
  )


def positive_sigma(tree):
  """Learned scales about one, and projections that spread the angles."""
  return {
    'params': {'sigma': tree['params']['sigma'] + 1},
    'attention_state': {'features': 2 * tree['attention_state']['features']},
  }


def cosformer(kernel, variables, q, k, v, *, key_mask=True, positions=None):
  """Qin et al. 2022, section 3, before the cosine is split."""
  n, m = len(q), len(k)
  length = kernel.length or max(n, m)
  row = np.arange(n) + (m - n if kernel.causal else 0)
  row, column = (row, np.arange(m)) if positions is None else [positions] * 2
  cosine = lambda i, j, h: np.cos(  # noqa: E731
    np.pi * (row[i] - column[j]) / (2 * length)
  )
  relu = lambda x: np.maximum(x, 0)  # noqa: E731
  return dense(kernel, relu(q), relu(k), v, key_mask, cosine)


def some_in_common(q, k, v):
  """Queries and keys share a positive channel: no row of weights is zero."""
  some = lambda x: x.at[..., 0].set(abs(x[..., 0]) + 0.2)  # noqa: E731
  return some(q), some(k), v


def efficient(kernel, variables, q, k, v, *, key_mask=True):
  """Shen et al. 2021, section 3: as an explicit [N M] map."""
  keep = np.broadcast_to(key_mask, (len(k),))
  rows_ = special.softmax(q, axis=-1)  # [N H D]
  columns = rows(k.transpose(1, 2, 0), keep)  # [H D M]
  return np.einsum('nhd,hdm,mhe->nhe', rows_, columns, v)


def equal_keys(q, k, v):
  """Every key is the first key."""
  return q, np.broadcast_to(k[:, :1], k.shape), v


def mean(q, k, v):
  """What any weights that depend on the keys give if the keys are equal."""
  return np.broadcast_to(v.mean(0), (*q.shape[:2], v.shape[-1]))


def mean_limit(spec, note=''):
  """Equal keys, in softmax attention too, give the mean of the values."""
  return Limit(
    spec, f'equal keys: the mean of the values, as softmax{note}',
    inputs=equal_keys, equals=mean,
  )  # fmt: skip


FACTS = {
  'linear': Facts(
    linear,
    cases=('linear', 'linear(causal=True)'),
    causal='linear(causal=True, chunk=4)',
    limits=(mean_limit('linear'),),
  ),
  'performer': Facts(
    performer,
    cases=(
      'performer(features=24)',
      "performer(features=6, kernel='relu')",
      "performer(features=6, kernel='relu', causal=True, chunk=4)",
    ),
    causal='performer(features=24, causal=True, chunk=4)',
    limits=(mean_limit('performer(features=8)'),),
  ),
  'random_features': Facts(
    random_features,
    cases=('random_features(features=24)',),
    causal='random_features(features=24, causal=True, chunk=4)',
    limits=(mean_limit('random_features(features=24)'),),
    adjust=positive_sigma,
  ),
  'cosformer': Facts(
    cosformer,
    # A given length, so that padding does not change the angles.
    cases=('cosformer(length=256)', 'cosformer', 'cosformer(causal=True)'),
    causal='cosformer(causal=True, chunk=4)',
    limits=(
      # Distances far below the length are all alike.
      mean_limit('cosformer(length=100000)', ', at a great length'),
    ),
    inputs=some_in_common,
  ),
  'efficient': Facts(
    efficient,
    cases=('efficient',),
    limits=(mean_limit('efficient'),),
  ),
}
