"""Attention by optimal transport, from the papers, as dense N×N maps."""

import numpy as np

from attention.oracles.facts import Facts, Limit, rows


def sinkhorn(scores, iterations):
  """Sinkhorn & Knopp 1967: columns, rows, columns, …, rows of exp(scores)."""
  p = np.exp(scores - scores.max())
  for _ in range(iterations):
    p = p / p.sum(0, keepdims=True)
    p = p / p.sum(1, keepdims=True)
  return p


def causal_sinkhorn(scores, keep, iterations):
  """Tay et al. 2020, section 3.3: a column's sum ends at the row itself."""
  p = np.exp(scores - scores.max()) * np.tril(keep)
  for _ in range(iterations):
    for i in reversed(range(len(p))):
      for j in range(i + 1):
        p[i, j] /= p[: i + 1, j].sum() or 1.0
    for i in range(len(p)):
      p[i] /= p[i].sum() or 1.0
  return p


def shares_of(kernel, variables, q, k, x, head, places, kept):
  """P of one head; places[u]: the tokens of block u; causal: 0 is null."""
  causal = getattr(kernel, 'causal', False)
  some = [[t for t in block if kept[t]] for block in places]

  def mean(y, u, before=False):
    tokens = some[u]
    if before:
      tokens = [t for t in sum(some[:u], []) + places[u][:1] if kept[t]]
    return y[tokens].mean(0) if tokens else np.zeros(y.shape[-1])

  scores = np.zeros((len(places),) * 2)
  for u in range(len(places)):
    if kernel.sort == 'net':
      hidden = variables['params']['sort_hidden']
      hidden = mean(x, u, causal) @ hidden['kernel'] + hidden['bias']
      scores[u] = np.maximum(hidden, 0) @ variables['params']['sort_out'][
        :, head
      ]
    else:
      asked = mean(q[:, head], u, causal) / np.sqrt(q.shape[-1])
      for v in range(len(places)):
        if causal:
          scores[u, v] = asked @ mean(k[:, head], v - 1) if v else 0.0
        else:
          scores[u, v] = asked @ mean(k[:, head], v)
  full = np.array([bool(block) for block in some])
  if causal:
    columns = np.array([True, *full[:-1]])
    return causal_sinkhorn(
      scores / kernel.temperature, np.outer(full, columns), kernel.iterations
    )
  shares = np.zeros_like(scores)
  if full.any():
    shares[np.ix_(full, full)] = sinkhorn(
      scores[np.ix_(full, full)] / kernel.temperature, kernel.iterations
    )
  return shares


def block_sort(kernel, variables, q, k, v, *, key_mask=None, x=None):
  """Sinkhorn attention and SortCut: every key of a row, one after another.

  A row's keys are (weights over the tokens, log mass); K̂ and V̂ are means of
  keys and values under the same weights.
  """
  n, p = len(q), kernel.prefix
  causal = getattr(kernel, 'causal', False)
  kept = np.ones(n, bool) if key_mask is None else key_mask
  count = kernel.blocks or max(round((n - p) ** 0.5), 1)
  size = max(-(-(n - p) // count), 1)
  places = [
    [t for t in range(p + u * size, p + (u + 1) * size) if t < n]
    for u in range(count)
  ]
  one = np.eye(n)
  out = np.zeros((n, q.shape[1], v.shape[-1]))
  for head in range(q.shape[1]):
    shares = shares_of(kernel, variables, q, k, x, head, places, kept)

    def place(u, shares=shares):
      for i in range(size):
        weights = np.zeros(n)
        for w in range(count):
          source = places[w - 1] if causal else places[w]
          if (w or not causal) and i < len(source) and kept[source[i]]:
            weights[source[i]] += shares[u, w]
        if weights.sum() > 0:
          yield weights / weights.sum(), np.log(weights.sum())

    for t in range(n):
      if t < p:
        seen = [(one[j], 0.0) for j in range(t + 1 if causal else n) if kept[j]]
      else:
        seen = [(one[j], 0.0) for j in range(p) if kept[j]]
        u = (t - p) // size
        if hasattr(kernel, 'keep'):
          full = [w for w in range(count) if kept[places[w]].any()]
          for w in full[: kernel.keep]:
            seen += place(w)
        else:
          seen += place(u)
          seen += [
            (one[j], 0.0)
            for j in places[u]
            if kept[j] and (j <= t or not causal)
          ]
      if not seen:
        continue
      weights, mass = (np.array(y) for y in zip(*seen, strict=True))
      logits = weights @ k[:, head] @ q[t, head] / np.sqrt(q.shape[-1]) + mass
      out[t, head] = rows(logits[None])[0] @ weights @ v[:, head]
  return out


def separated(q, k, v):
  """Means of the four blocks of 3 tokens that a permutation matches."""
  order = [2, 0, 3, 1]
  q, k = 0.3 * q, 0.3 * k
  for u in range(4):
    k[:, 3 * u : 3 * u + 3, :, u] += 3
    q[:, 3 * order[u] : 3 * order[u] + 3, :, u] += 3
  return q, k, v


def sinkformer(
  kernel, variables, q, k, v, *, key_mask=True, mask=True, bias=0.0
):
  """Sander et al. 2022, eq. 4: rows, columns, rows, … of exp(Q Kᵀ / √D)."""
  n = len(q)
  key_mask = np.broadcast_to(key_mask, n)
  keep = np.broadcast_to(key_mask & mask, (1, n, n))
  logits = np.einsum('nhd,mhd->hnm', q, k) / np.sqrt(q.shape[-1]) + bias
  weights = np.exp(logits) * keep
  divide = lambda x, y: np.divide(x, y, out=0 * x, where=y != 0)  # noqa: E731
  for i in range(kernel.iterations):
    if i % 2 == 0:
      weights = divide(weights, weights.sum(2, keepdims=True))
    else:  # padding has no part in the sums
      sums = weights[:, key_mask].sum(1, keepdims=True)
      weights = divide(weights, sums)
  return np.einsum('hnm,mhe->nhe', weights, v)


def plan(scores, a, b, epsilon, iterations):
  """Cuturi 2013, algorithm 1; the last step makes the rows' sums a."""
  kernel = np.exp((scores - scores.max()) / epsilon)
  left = a
  for _ in range(iterations):
    right = b / (kernel.T @ left)
    left = a / (kernel @ right)
  return left[:, None] * kernel * right


def lotformer(kernel, variables, q, k, v, *, key_mask=None):
  """Shahbazi et al. 2025: two plans glued at the pivots, on what is kept."""
  n = len(q)
  kept = np.ones(n, bool) if key_mask is None else key_mask
  out = np.zeros((n, q.shape[1], v.shape[-1]))
  if not kept.any():
    return out
  mass = np.full(kept.sum(), 1 / kept.sum())
  for h in range(q.shape[1]):
    z = variables['params']['pivots'][h]
    sigma = np.exp(variables['params']['masses'][h])
    sigma = sigma / sigma.sum()
    scores = lambda x, h=h, z=z: x[kept, h] @ z.T / np.sqrt(z.shape[-1])  # noqa: E731
    options = kernel.temperature, kernel.iterations
    onto = plan(scores(q), mass, sigma, *options)
    out_of = plan(scores(k).T, sigma, mass, *options)
    glued = onto @ np.diag(1 / sigma) @ out_of
    out[kept, h] = len(mass) * glued @ v[kept, h]
    # A padded query has no mass; its row follows from the pivots' scaling,
    # onto[0] / exp(scores of 0), as any row does.
    for i in np.flatnonzero(~kept):
      score = q[i, h] @ z.T / np.sqrt(z.shape[-1])
      row = onto[0] * np.exp((score - scores(q)[0]) / kernel.temperature)
      out[i, h] = row / row.sum() / sigma @ out_of @ v[kept, h]
  return out


def mean_of_values(q, k, v):
  """Equal weights."""
  return np.broadcast_to(v.mean(0), (len(q), *v.shape[1:]))


FACTS = {
  'sinkformer': Facts(
    sinkformer,
    cases=('sinkformer', 'sinkformer(iterations=7)'),
    limits=(
      Limit(
        'sinkformer(iterations=1)',
        'Sinkformer with one normalisation equals softmax',
      ),
      Limit(
        'sinkformer',
        'Sinkformer of equal keys equals the mean of the values',
        inputs=lambda q, k, v: (q, np.broadcast_to(k[:, :1], k.shape), v),
        equals=mean_of_values,
      ),
    ),
  ),
  'lotformer': Facts(
    lotformer,
    cases=('lotformer(rank=5)', 'lotformer(iterations=2, temperature=0.5)'),
    limits=(
      Limit(
        'lotformer(rank=1)',
        'LOTFormer of one pivot equals the mean of the values',
        equals=mean_of_values,
      ),
    ),
  ),
  'sinkhorn': Facts(
    block_sort,
    cases=(
      'sinkhorn(blocks=4, iterations=3)',
      # The last block is padding only.
      'sinkhorn(blocks=5, sort="net", temperature=0.3, causal=True)',
    ),
    causal='sinkhorn(blocks=5, iterations=3, causal=True)',
    limits=(
      Limit(
        'sinkhorn(blocks=1)',
        'Sinkhorn attention with one block equals softmax: [K; K] as K',
        prefix=0,
      ),
    ),
    noisy=True,  # Gumbel noise on the scores of the blocks
    depends_on_length=True,  # blocks of ⌈N / blocks⌉ tokens
  ),
  'sortcut': Facts(
    block_sort,
    cases=(
      'sortcut(blocks=4, iterations=3)',
      'sortcut(blocks=5, keep=3, sort="net")',
    ),
    limits=(
      Limit(
        'sortcut(blocks=4, keep=4, temperature=0.01)',
        'SortCut that keeps every place of a hard order equals softmax',
        inputs=separated,
        prefix=0,
      ),
    ),
    noisy=True,  # as above
    depends_on_length=True,
  ),
}
