"""Attentions through a memory: compressed, induced, latent or packed keys."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

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


def cells(kernel, n, stride, size):
  """(tokens of the cell, [(place in the window, token)]) of every window.

  A window of a sequence is a window of a grid with one column.
  """
  shape, flat = kernel.grid, kernel.grid is None
  rows, columns = (n - kernel.prefix, 1) if flat else shape
  before = (size - stride + 1) // 2
  across, wide, left = (1, 1, 0) if flat else (stride, size, before)
  inside = lambda r, c: 0 <= r < rows and 0 <= c < columns  # noqa: E731
  token = lambda r, c: kernel.prefix + r * columns + c  # noqa: E731
  found = []
  for r in range(0, rows, stride):
    for c in range(0, columns, across):
      cell = [
        token(r + i, c + j)
        for i, j in np.ndindex(stride, across)
        if inside(r + i, c + j)
      ]
      window = [
        ((i, j), token(r + i - before, c + j - left))
        for i, j in np.ndindex(size, wide)
        if inside(r + i - before, c + j - left)
      ]
      found.append((cell, window))
  return found


def reduced(kernel, x, keep, stride, size, reduce):
  """Prefix tokens and `reduce(window, weights' places)` of every live window.

  Returns the tokens and which of them are keys.
  """
  tokens, live = list(x[: kernel.prefix]), list(keep[: kernel.prefix])
  for cell, window in cells(kernel, len(x), stride, size):
    tokens.append(reduce([(at, x[t]) for at, t in window if keep[t]]))
    live.append(bool(keep[cell].any()))
  return np.stack(tokens), np.asarray(live)


def pooled_oracle(kernel, variables, q, k, v, *, key_mask=True):
  """Fan et al. 2021, eq. 1 and 2, window by window."""
  keep = np.broadcast_to(key_mask, len(k))
  made = []
  for name, x in (('pool_keys', k), ('pool_values', v)):

    def reduce(window, name=name, x=x):
      found = np.stack([t for _, t in window] or [0 * x[0]])
      if kernel.method == 'max':
        return found.max(0)
      if kernel.method == 'average':
        return found.mean(0)
      filters = variables['params'][name]['kernel'][:, :, 0]
      return sum((filters[at] * t for at, t in window), 0 * x[0])

    tokens, live = reduced(
      kernel, x, keep, kernel.stride, kernel.size or kernel.stride, reduce
    )
    made.append(tokens)
  out = softmax(q, *made, live)
  return out + q if kernel.residual else out


def heads_of(params, name, x):
  return np.tensordot(x, params[name]['kernel'], 1) + params[name]['bias']


def layer(params, x, keys, live, values=None):
  """Softmax attention of x to other tokens, with all its projections."""
  q = heads_of(params, 'query', x)
  k = heads_of(params, 'key', keys)
  v = heads_of(params, 'value', keys if values is None else values)
  out = np.tensordot(softmax(q, k, v, live), params['out']['kernel'], 2)
  return out + params['out']['bias']


def spatial_reduction_oracle(kernel, variables, x, *, key_mask=True):
  """Wang et al. 2021, eq. 1 to 3; Wang et al. 2022, section 3.2."""
  params = variables['params']
  keep = np.broadcast_to(key_mask, len(x))
  if kernel.pool:
    rows_, columns = kernel.grid
    tokens, live = [], []
    for i, j in np.ndindex(min(kernel.pool, rows_), min(kernel.pool, columns)):
      spans = [
        range(a * n // p, int(np.ceil((a + 1) * n / p)))
        for a, n, p in (
          (i, rows_, min(kernel.pool, rows_)),
          (j, columns, min(kernel.pool, columns)),
        )
      ]
      cell = [kernel.prefix + r * columns + c for r in spans[0]
              for c in spans[1]]  # fmt: skip
      cell = [t for t in cell if keep[t]]
      live.append(bool(cell))
      tokens.append(x[cell].mean(0) if cell else 0 * x[0])
    made = np.stack(tokens) @ params['reduce']['kernel']
    made = norm(params['reduce_ln'], made + params['reduce']['bias'])
    made = made * (1 + special.erf(made / np.sqrt(2))) / 2
  elif kernel.ratio == 1:
    return layer(params, x, x, keep)
  else:
    filters, bias = params['reduce']['kernel'], params['reduce']['bias']
    made, live = reduced(
      kernel, x, keep, kernel.ratio, kernel.ratio,
      lambda window: sum((t @ filters[at] for at, t in window), bias),
    )  # fmt: skip
    made = norm(params['reduce_ln'], made[kernel.prefix :])
    live = live[kernel.prefix :]
  keys = np.concatenate([x[: kernel.prefix], made])
  live = np.concatenate([keep[: kernel.prefix], live])
  return layer(params, x, keys, live)


def conv_projection_oracle(kernel, variables, x, *, key_mask=True):
  """Wu et al. 2021, eq. 2, in evaluation."""
  params = variables['params']
  keep = np.broadcast_to(key_mask, len(x))
  made = []
  for name in ('query', 'key', 'value'):
    filters = params[f'{name}_conv']['kernel'][:, :, 0]

    def reduce(window, filters=filters):
      return sum((filters[at] * t for at, t in window), 0 * x[0])

    stride = 1 if name == 'query' else kernel.stride
    tokens, live = reduced(kernel, x, keep, stride, kernel.size, reduce)
    patches = tokens[kernel.prefix :]
    if kernel.norm == 'layer':
      patches = norm(params[f'{name}_norm'], patches)
    if kernel.norm == 'batch':
      stats = variables['batch_stats'][f'{name}_norm']
      patches = (patches - stats['mean']) / np.sqrt(stats['var'] + 1e-6)
      patches = patches * params[f'{name}_norm']['scale']
      patches = patches + params[f'{name}_norm']['bias']
    made.append(np.concatenate([x[: kernel.prefix], patches]))
  return layer(params, made[0], made[1], live, made[2])


def positive_variances(variables):
  def change(path, x):
    return abs(x) + 0.5 if path[-1].key == 'var' else x

  return jax.tree.map_with_path(change, variables)


def identity_convolutions(variables):
  def change(path, x):
    if not path[-2].key.endswith('_conv'):
      return x
    return jnp.zeros_like(x).at[1, 1].set(1)

  return jax.tree.map_with_path(change, variables)


def softmax_layer(x, variables):
  return layer(variables['params'], x, x, True)


def fnet_oracle(kernel, variables, x):
  """Lee-Thorp et al. 2022, eq. 3, by the matrices of the two transforms."""
  wave = lambda n: np.exp(  # noqa: E731
    -2j * np.pi * np.outer(np.arange(n), np.arange(n)) / n
  )
  return (wave(len(x)) @ x @ wave(x.shape[1])).real


def average_oracle(kernel, variables, x, *, key_mask=True):
  """Yu et al. 2022, eq. 4, window by window."""
  keep = np.broadcast_to(key_mask, len(x))
  mean = lambda found: np.mean(found, 0) if len(found) else 0 * x[0]  # noqa: E731
  out, _ = reduced(
    kernel, x, keep, 1, kernel.size, lambda w: mean([t for _, t in w])
  )
  out[: kernel.prefix] = mean(x[keep])
  return out - x


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
  'pooled': Facts(
    pooled_oracle,
    cases=(
      "pooled(method='convolution', size=3)",
      'pooled',
      "pooled(method='max', size=3, stride=2)",
      'pooled(stride=3)',
    ),
    row_sum=None,
    limits=(
      Limit('pooled(stride=1)', 'windows of one token are softmax'),
    ),
  ),
  'spatial_reduction': Facts(
    spatial_reduction_oracle,
    cases=(
      'spatial_reduction',
      'spatial_reduction(pool=2)',
      'spatial_reduction(ratio=3)',
    ),
    row_sum=None,
    limits=(
      Limit(
        'spatial_reduction(ratio=1)', 'ratio 1 is softmax',
        equals=softmax_layer,
      ),
    ),
  ),
  'conv_projection': Facts(
    conv_projection_oracle,
    cases=(
      'conv_projection',
      "conv_projection(norm='layer', stride=1)",
      "conv_projection(norm='none', size=5, stride=3)",
    ),
    row_sum=None,
    adjust=positive_variances,
    limits=(
      Limit(
        "conv_projection(stride=1, norm='none')",
        'convolutions with one 1 in the middle are softmax',
        variables=identity_convolutions, equals=softmax_layer,
      ),
    ),
  ),
  'fnet': Facts(
    fnet_oracle,
    cases=('fnet',),
    row_sum=None,
    limits=(
      Limit(
        'fnet', 'one token with one channel that is 1 is in all of them',
        inputs=lambda x: (np.zeros_like(x) + np.eye(1, x.shape[1] * x.shape[2])
                          .reshape(x.shape[1:]),),
        equals=lambda x, variables: np.ones_like(x),
      ),
    ),
  ),
  'average': Facts(
    average_oracle,
    cases=('average', 'average(size=5)'),
    row_sum=None,
    limits=(
      Limit(
        'average(size=7)',
        'a window over the whole grid is the mean of the tokens, less each',
        equals=lambda x, variables: x.mean(0) - x, prefix=0,
      ),
    ),
  ),
}
