"""Kernel (linear) attentions, as dense maps of φ(q)·φ(k)."""

import dataclasses
import types

import jax
import numpy as np
from scipy import special

from attention.oracles.facts import Facts, Limit, rows, softmax


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


def unit(x, axis):
  """The vectors along the axis, or axes, at length one."""
  return x / np.sqrt((x**2).sum(axis, keepdims=True))


def xca(kernel, variables, q, k, v, *, key_mask=True):
  """El-Nouby et al. 2021, section 3.2: tokens that count, head by head."""
  keep = np.broadcast_to(key_mask, (len(q),))
  out = np.zeros_like(v)
  if not keep.any():
    return out
  for h, inverse in enumerate(variables['params']['temperature']):
    covariance = unit(k[keep, h], 0).T @ unit(q[keep, h], 0)
    out[keep, h] = v[keep, h] @ special.softmax(covariance * inverse, axis=0)
  return out


def channels_attend(q, k, v):
  """Softmax attention whose tokens are the channels and whose D is N."""
  q, k, v = (x.transpose(2, 1, 0) for x in (unit(q, 0), unit(k, 0), v))
  return softmax(q * np.sqrt(q.shape[-1]), k, v).transpose(2, 1, 0)


def hydra(kernel, variables, q, k, v, *, key_mask=True):
  """Bolya et al. 2022: one cosine similarity a channel, as [N M] maps."""
  keep = np.broadcast_to(key_mask, (len(q), len(k)))
  if kernel.causal:
    keep = keep & np.tri(len(q), len(k), len(k) - len(q), dtype=bool)
  q, k = unit(q, (1, 2)), unit(k, (1, 2))
  out = np.zeros((len(q), *v.shape[1:]))
  for h, d in np.ndindex(*v.shape[1:]):
    out[:, h, d] = (np.outer(q[:, h, d], k[:, h, d]) * keep) @ v[:, h, d]
  return out


def hydra_of_equal_keys(q, k, v):
  """A product of two unit vectors and the sum of the values."""
  return unit(q, (1, 2)) * unit(k, (1, 2))[:1] * v.sum(0)


def focused(kernel, variables, q, k, v, *, key_mask=True):
  """Han et al. 2023, section 4, with the convolution as a loop over taps."""
  keep = np.broadcast_to(key_mask, (len(k),))

  def phi(x):
    out = np.zeros_like(x)
    for n, h in np.ndindex(*x.shape[:2]):
      positive = np.maximum(x[n, h], 0)
      power = positive**kernel.p
      if power.any():
        lengths = np.linalg.norm(positive), np.linalg.norm(power)
        out[n, h] = lengths[0] / lengths[1] * power
    return out

  acausal = types.SimpleNamespace(causal=False)
  out = dense(acausal, phi(q), phi(k), v, keep)
  taps = variables['params']['depthwise']['kernel'][:, :, 0]  # [rows columns E]
  rows_, columns = kernel.grid or (1, len(v) - kernel.prefix)
  middle = np.array(taps.shape[:2]) // 2
  for r, c, i, j in np.ndindex(rows_, columns, *taps.shape[:2]):
    y, x = (r, c) + np.array([i, j]) - middle
    token = kernel.prefix + y * columns + x
    if 0 <= y < rows_ and 0 <= x < columns and keep[token]:
      out[kernel.prefix + r * columns + c] += taps[i, j] * v[token]
  return out


def without_convolution(tree):
  """All taps zero."""
  kernel = tree['params']['depthwise']['kernel']
  return {'params': {'depthwise': {'kernel': 0 * kernel}}}


def aft(kernel, variables, q, k, v, *, key_mask=True):
  """Zhai et al. 2021, AFT-simple: a map of softmax weights a channel."""
  keep = np.broadcast_to(key_mask, (len(q), len(k)))
  if kernel.causal:
    keep = keep & np.tri(len(q), len(k), len(k) - len(q), dtype=bool)
  out = np.zeros((len(q), *v.shape[1:]))
  for h, d in np.ndindex(*v.shape[1:]):
    logits = np.broadcast_to(k[:, h, d], (len(q), len(k)))
    out[:, h, d] = special.expit(q[:, h, d]) * (rows(logits, keep) @ v[:, h, d])
  return out


def based(kernel, variables, q, k, v, *, key_mask=True):
  """Arora et al. 2024: exp(s) to the second order, s = q·k/√D."""
  s = np.einsum('nhd,mhd->hnm', q, k) / np.sqrt(q.shape[-1])
  weights = (1 + s + s**2 / 2) * np.broadcast_to(key_mask, (len(k),))
  if kernel.causal:
    weights = weights * np.tri(len(q), len(k), len(k) - len(q))
  total = weights.sum(-1, keepdims=True)
  weights = np.divide(weights, total, where=total > 0, out=0 * weights)
  return np.einsum('hnm,mhe->nhe', weights, v)


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


def orthogonal_normal(variables):
  """Rows are normal(0, I), Choromanski et al. 2021, section 2.4.

  Orthogonal within blocks of D rows, and without a preferred direction: a QR
  decomposition whose signs are not fixed has one.
  """
  w = variables['attention_state']['features']  # [draws F D]
  draws, features, width = w.shape
  error = w.std(0) / np.sqrt(draws)
  assert np.abs(w.mean(0) / error).max() < 5
  np.testing.assert_allclose((w**2).mean(), 1.0, atol=0.02)
  for block in range(features // width):
    rows = w[:, block * width : (block + 1) * width]
    gram = np.einsum('sid,sjd->sij', rows, rows)
    assert np.abs(gram[:, ~np.eye(width, dtype=bool)]).max() < 1e-3


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
    initial=orthogonal_normal,
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
  'xca': Facts(
    xca,
    cases=('xca',),
    limits=(
      Limit(
        'xca', 'softmax attention between the channels, of unit norm',
        variables=lambda tree: {
          'params': {'temperature': 0 * tree['params']['temperature'] + 1}
        },
        equals=channels_attend,
      ),
    ),
    row_sum=None,
    adjust=lambda tree: jax.tree.map(lambda x: x + 2, tree),
  ),
  'hydra': Facts(
    hydra,
    cases=('hydra',),
    causal='hydra(causal=True)',
    limits=(
      Limit(
        'hydra', 'equal keys: a product of unit vectors and of summed values',
        inputs=equal_keys, equals=hydra_of_equal_keys,
      ),
    ),
    row_sum=None,
  ),
  'focused': Facts(
    focused,
    cases=('focused(kernel_size=3)', 'focused(p=2)'),
    limits=(
      dataclasses.replace(
        mean_limit('focused', ', without the convolution'),
        variables=without_convolution,
      ),
    ),
    row_sum=None,
    inputs=some_in_common,
  ),
  'aft': Facts(
    aft,
    cases=('aft',),
    causal='aft(causal=True)',
    limits=(
      Limit(
        'aft', 'equal keys, great queries: the mean of the values, as softmax',
        inputs=lambda q, k, v: equal_keys(0 * q + 40, k, v), equals=mean,
      ),
    ),
    row_sum=None,
  ),
  'based': Facts(
    based,
    cases=('based',),
    causal='based(causal=True, chunk=4)',
    limits=(
      mean_limit('based'),
      Limit(
        'based', 'softmax of small logits, to the second order',
        inputs=lambda q, k, v: (0.1 * q, 0.1 * k, v),
      ),
    ),
  ),
}
