"""Kernel (linear) attentions, as dense maps of φ(q)·φ(k)."""

import numpy as np

from attention.oracles.facts import Facts, Limit


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
}
