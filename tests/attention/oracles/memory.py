"""Attentions through a memory: compressed, induced, latent or packed keys."""

import numpy as np

from attention.oracles.facts import Facts, Limit, rows, softmax


def memory_compressed_oracle(kernel, variables, q, k, v, *, key_mask=True):
  """Liu et al. 2018, section 4.2.3: the dense N×U map, key by key."""
  params, stride = variables['params'], kernel.stride
  n, m, heads = len(q), len(k), q.shape[1]
  keep = np.broadcast_to(key_mask, m)
  ends, compressed = [], [[], []]
  for start in range(0, m, stride):
    if not keep[start : start + stride].any():
      continue
    ends.append(start + stride - 1)
    for x, name, out in zip(
      (k, v), ('compress_keys', 'compress_values'), compressed, strict=True
    ):
      by = params[name].reshape(stride, x[0].size, x[0].size)
      made = np.zeros(x[0].size)
      for j in range(start, min(start + stride, m)):
        if keep[j]:
          made += x[j].ravel() @ by[j - start]
      out.append(made.reshape(x[0].shape))
  if kernel.causal:
    ends.insert(0, -m)
    compressed[0].insert(0, np.zeros_like(k[0]))
    compressed[1].insert(0, np.zeros_like(v[0]))
  if not ends:
    return np.zeros((n, heads, v.shape[-1]))
  seen = np.ones((n, len(ends)), bool)
  if kernel.causal:
    seen = np.asarray(ends)[None] <= np.arange(n)[:, None] + m - n
  return softmax(q, *(np.stack(x) for x in compressed), seen)


def perceiver_oracle(kernel, variables, q, k, v, *, key_mask=True):
  """Jaegle et al. 2021, as one N×M map."""
  z = variables['params']['latents'][0]
  scale = np.sqrt(q.shape[-1])
  packing = rows(np.einsum('hld,mhd->hlm', z, k) / scale, key_mask)
  reading = rows(np.einsum('nhd,hld->hnl', q, z) / scale)
  return np.einsum('hnm,mhe->nhe', reading @ packing, v)


def luna_oracle(kernel, variables, q, k, v, *, key_mask=True):
  """Ma et al. 2021, eq. 4 and 5."""
  params = variables['params']
  packed = softmax(params['memory'][0].swapaxes(0, 1), k, v, key_mask)
  keys = packed
  if 'unpack_keys' in params:
    keys = np.einsum('lhe,hed->lhd', packed, params['unpack_keys'])
  return softmax(q, keys, packed)


def norm(params, x):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
  return x * params['scale'] + params['bias']


def mab(params, x, y, key_mask=True):
  """Lee et al. 2019, eq. 6 and 7."""
  attention = params['attention']
  heads = {
    name: np.tensordot(z, attention[name]['kernel'], 1)
    + attention[name]['bias']
    for name, z in (('query', x), ('key', y), ('value', y))
  }
  mixed = softmax(heads['query'], heads['key'], heads['value'], key_mask)
  h = x + np.tensordot(mixed, attention['out']['kernel'], 2)
  h = h + attention['out']['bias']
  h = norm(params['attention_ln'], h) if 'attention_ln' in params else h
  forward = params['feed_forward']
  h = h + np.maximum(h @ forward['kernel'] + forward['bias'], 0)
  return norm(params['feed_forward_ln'], h) if 'attention_ln' in params else h


def isab_oracle(kernel, variables, x, *, key_mask=True):
  """Lee et al. 2019, eq. 9 and 10."""
  params = variables['params']
  induced = mab(params['induce'], params['inducing'], x, key_mask)
  return mab(params['attend'], x, induced)


def without_feed_forward(variables):
  params = {k: dict(v) if hasattr(v, 'keys') else v
            for k, v in variables['params'].items()}  # fmt: skip
  for name in ('induce', 'attend'):
    forward = params[name]['feed_forward']
    params[name]['feed_forward'] = {k: 0 * x for k, x in forward.items()}
  return {'params': params}


def one_point_layer(x, variables):
  """X plus one vector: softmax attention of X to a single key."""
  params = variables['params']
  point = mab(params['induce'], params['inducing'], x)
  attention = params['attend']['attention']
  value = np.tensordot(point, attention['value']['kernel'], 1)
  value = value + attention['value']['bias']
  added = np.tensordot(value, attention['out']['kernel'], 2)
  return x + added + attention['out']['bias']


FACTS = {
  'memory_compressed': Facts(
    memory_compressed_oracle,
    cases=('memory_compressed', 'memory_compressed(stride=5)'),
    causal='memory_compressed(causal=True)',
    row_sum=None,  # the convolution's, and less with the null key
    limits=(
      Limit(
        'memory_compressed(stride=1)', 'one token in a key, unchanged: softmax',
        variables=lambda v: {
          'params': {k: np.eye(len(x)) for k, x in v['params'].items()}
        },
      ),
    ),
  ),
  'perceiver': Facts(
    perceiver_oracle,
    cases=('perceiver(latents=5)', 'perceiver'),
    limits=(
      Limit(
        'perceiver', 'Z = 0 is the mean of the values',
        variables=lambda v: {'params': {'latents': 0 * v['params']['latents']}},
        equals=lambda q, k, v: np.broadcast_to(v.mean(0), v.shape),
      ),
    ),
  ),
  'luna': Facts(
    luna_oracle,
    cases=('luna(length=5)', 'luna'),
    row_sum=None,
    limits=(
      Limit(
        'luna(length=1)', 'one packed token with Z = 0: the mean of the values',
        variables=lambda v: {'params': {'memory': 0 * v['params']['memory']}},
        equals=lambda q, k, v: np.broadcast_to(v.mean(0), v.shape),
      ),
    ),
  ),
  'isab': Facts(
    isab_oracle,
    cases=('isab(inducing=3)', 'isab(inducing=3, norm=False)'),
    row_sum=None,
    limits=(
      Limit(
        'isab(inducing=1, norm=False)',
        'one inducing point adds the same vector to every token',
        variables=without_feed_forward, equals=one_point_layer,
      ),
    ),
  ),
}
