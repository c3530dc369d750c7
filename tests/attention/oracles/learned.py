"""Attentions whose pattern follows from the content: hashes and clusters."""

import numpy as np

from attention.oracles.facts import Facts, Limit, rows, softmax


def dense(x, parameters):
  """A projection [N C] → [N H D]."""
  return np.einsum('nc,chd->nhd', x, parameters['kernel']) + parameters['bias']


def out(y, parameters):
  """The output projection [N H D] → [N C]."""
  return np.einsum('nhd,hdc->nc', y, parameters['kernel']) + parameters['bias']


def shared_qk(variables, x, keep):
  """Softmax of q_i·q_j/‖q_j‖/√D over keep [H N N]; self if nothing else."""
  params = variables['params']
  q, v = dense(x, params['query']), dense(x, params['value'])
  k = q / np.linalg.norm(q, axis=-1, keepdims=True)
  logits = np.einsum('nhd,mhd->hnm', q, k) / np.sqrt(q.shape[-1])
  keep = np.broadcast_to(keep, logits.shape).copy()
  for h, i in np.ndindex(keep.shape[:2]):
    if keep[h, i].sum() > 1:  # exp(-1e5) is 0 even in float64
      keep[h, i, i] = False
  return out(np.einsum('hnm,mhe->nhe', rows(logits, keep), v), params['out'])


def reformer_oracle(kernel, variables, x, *, key_mask=None):
  """Kitaev et al. 2020, eq. 9 and appendix A; in loops, over the union."""
  n = len(x)
  key_mask = np.ones(n, bool) if key_mask is None else key_mask
  q = dense(x, variables['params']['query'])
  factors = kernel.buckets
  if isinstance(factors, int):
    factors = (factors,)
  factors = tuple(b for b in factors if b > 1)
  heads, width = q.shape[1:]
  rotations = np.random.default_rng(kernel.seed).standard_normal(
    (kernel.rounds, heads, width, sum(factors) // 2)
  )
  keep = np.zeros((heads, n, n), bool)
  for r in range(kernel.rounds):
    for h in range(heads):
      buckets = []
      for i in range(n):
        found, begin = (), 0
        for b in factors:
          e = q[i, h] @ rotations[r, h, :, begin : begin + b // 2]
          found += (int(np.argmax(np.concatenate([e, -e]))),)
          begin += b // 2
        buckets.append(found)
      order = sorted(
        range(n), key=lambda i, b=buckets: (not key_mask[i], b[i], i)
      )
      chunk = {i: s // kernel.chunk for s, i in enumerate(order)}
      for i, j in np.ndindex(n, n):
        if buckets[i] != buckets[j] or not (key_mask[i] and key_mask[j]):
          continue
        if kernel.causal:  # it and the last `chunk` tokens of its bucket
          between = [t for t in range(j, i) if buckets[t] == buckets[i]
                     and key_mask[t]]  # fmt: skip
          keep[h, i, j] |= j <= i and len(between) <= kernel.chunk
        else:
          keep[h, i, j] |= chunk[i] - chunk[j] in (0, 1)
  return shared_qk(variables, x, keep)


def all_others(x, variables):
  """Shared-QK full attention, normalised and self-demoted."""
  return shared_qk(variables, x, np.ones((1, len(x), len(x)), bool))


def layer_norm(x, epsilon=1e-6):
  """Without scale and bias."""
  centred = x - x.mean(-1, keepdims=True)
  return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)


def routing_oracle(kernel, variables, q, k, v, *, key_mask=None):
  """Roy et al. 2021, algorithm 1: one centroid after the other, densely."""
  n, heads = q.shape[:2]
  key_mask = np.ones(n, bool) if key_mask is None else key_mask
  q, k = layer_norm(q), layer_norm(k)
  centroids = variables['attention_state']['centroids']
  centroids = centroids / np.linalg.norm(centroids, axis=-1, keepdims=True)
  w = kernel.window or int(np.ceil(n / kernel.clusters))
  maps = np.zeros((heads, n, n))
  counts = np.zeros((heads, n, 1))
  real = np.flatnonzero(key_mask)
  for h in range(heads):
    for c, centroid in enumerate(centroids[h]):
      keep = np.zeros((1, n, n), bool)
      if kernel.causal:
        mine = [i for i in real
                if np.argmax(centroids[h] @ q[i, h]) == c]  # fmt: skip
        for place, i in enumerate(mine):
          keep[0, i, mine[max(0, place - w + 1) : place + 1]] = True
      else:
        asks, answers = (
          real[np.argsort(-x[real, h] @ centroid)[:w]] for x in (q, k)
        )
        keep[0][np.ix_(asks, answers)] = True
      logits = (q[:, h] @ k[:, h].T / np.sqrt(q.shape[-1]))[None]
      maps[h] += rows(logits, keep)[0]
      counts[h, :, 0] += keep[0].any(-1)
  return np.einsum('hnm,mhe->nhe', maps / np.maximum(counts, 1), v)


def hamming_clusters(kernel, q, real):
  """K-means on codes of queries [N D], one token after the other."""
  n, width = q.shape
  planes = np.random.default_rng(kernel.seed).standard_normal(
    (width + 1, kernel.bits)
  )
  codes = [[x @ p[:-1] + p[-1] > 0 for p in planes.T] for x in q]
  count = min(kernel.clusters, n)
  centers = [codes[real[c * len(real) // count]] for c in range(count)]

  def assign():
    return [
      int(np.argmin([sum(a != b for a, b in zip(code, center, strict=True))
                     for center in centers]))
      for code in codes
    ]  # fmt: skip

  for _ in range(kernel.iterations):
    found = assign()
    for c in range(count):
      mine = [codes[i] for i in real if found[i] == c]
      if mine:
        centers[c] = [2 * sum(b) > len(mine) for b in zip(*mine, strict=True)]
  return assign()


def clustered_oracle(kernel, variables, q, k, v, *, key_mask=None):
  """Vyas et al. 2020, eq. 3-6; eq. 7-10 where there is a topk."""
  n, m, heads = len(q), len(k), q.shape[1]
  key_mask = np.ones(m, bool) if key_mask is None else key_mask
  real = np.flatnonzero(key_mask) if n == m else np.arange(n)
  maps = np.zeros((heads, n, m))
  for h in range(heads):
    cluster = np.array(hamming_clusters(kernel, q[:, h], real))
    for i in range(n):
      mine = [j for j in real if cluster[j] == cluster[i]]
      center = q[mine, h].mean(0) if mine else np.zeros(q.shape[-1])
      scale = np.sqrt(q.shape[-1])
      row = rows(k[:, h] @ center / scale, key_mask)
      if hasattr(kernel, 'topk'):
        top = np.argsort(-np.where(key_mask, row, -1))[: kernel.topk]
        top = [j for j in top if key_mask[j]]
        logits = k[top, h] @ q[i, h] / scale
        row[top] = row[top].sum() * rows(logits)
      maps[h, i] = row
  return np.einsum('hnm,mhe->nhe', maps, v)


FACTS = {
  'reformer': Facts(
    reformer_oracle,
    cases=(
      'reformer(buckets=4, chunk=3, rounds=2)',
      'reformer(buckets=(2, 4), chunk=2, rounds=3, seed=1)',
    ),
    causal='reformer(buckets=2, chunk=2, rounds=2, causal=True)',
    limits=(
      Limit(
        'reformer(buckets=1, chunk=13)',
        'one bucket in one chunk: shared-QK, normalised, self-demoted softmax',
        equals=all_others,
      ),
    ),
    row_sum=None,
    discrete=True,  # hashes and sorts
    noisy=True,  # training draws new rotations
  ),
  'routing': Facts(
    routing_oracle,
    cases=('routing(clusters=3, window=5)', 'routing(clusters=4)'),
    causal='routing(clusters=2, window=3, causal=True)',
    limits=(
      Limit(
        'routing(clusters=1)',
        'one centroid takes all: softmax of layer-normalised q and k',
        equals=lambda q, k, v: softmax(layer_norm(q), layer_norm(k), v),
      ),
      Limit(
        'routing(clusters=3, window=13)',
        'every centroid takes all: the same',
        equals=lambda q, k, v: softmax(layer_norm(q), layer_norm(k), v),
      ),
    ),
    row_sum=None,  # 1, or 0 where no centroid took the query
    discrete=True,  # chooses the top-w tokens
  ),
  'clustered': Facts(
    clustered_oracle,
    cases=('clustered(clusters=4, bits=35)', 'clustered(iterations=2)'),
    limits=(Limit('clustered(clusters=13)', 'a cluster for each query'),),
    discrete=True,  # assigns queries to clusters
    noisy=True,  # training draws new planes
  ),
  'improved_clustered': Facts(
    clustered_oracle,
    cases=('improved_clustered(clusters=3, topk=5)',),
    limits=(
      Limit('improved_clustered(clusters=2)', 'topk is every key'),
      Limit('improved_clustered(topk=1)', 'a cluster for each query'),
    ),
    discrete=True,  # assigns queries to clusters
    noisy=True,  # training draws new planes
  ),
}
