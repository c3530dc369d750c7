"""Attentions that remember the segments before."""

import jax.numpy as jnp
import numpy as np

from attention.oracles.facts import Facts, Limit, rows, softmax


def dense(x, parameters):
  """A projection [N C] → [N H D]."""
  y = np.einsum('nc,chd->nhd', x, parameters['kernel'])
  return y + parameters['bias'] if 'bias' in parameters else y


def sinusoid(distance, width):
  """Vaswani et al. 2017: sines, then cosines."""
  rates = [10000.0 ** (-2 * t / width) for t in range(width // 2)]
  return np.array(
    [np.sin(distance * r) for r in rates]
    + [np.cos(distance * r) for r in rates]
  )


def relative_attention(params, x, old, keep):
  """Dai et al. 2019, section 3.3, pair by pair; keep [N L + N]."""
  both = np.concatenate([old, x])
  q, k, v = (
    dense(a, params[name])
    for a, name in ((x, 'query'), (both, 'key'), (both, 'value'))
  )
  n, heads, width = q.shape
  logits = np.zeros((heads, n, len(both)))
  for i, j in np.ndindex(n, len(both)):
    distance = i - (j - len(old))
    r = dense(sinusoid(distance, x.shape[1])[None], params['relative'])[0]
    for h in range(heads):
      logits[h, i, j] = (
        (q[i, h] + params['content_bias'][h]) @ k[j, h]
        + (q[i, h] + params['position_bias'][h]) @ r[h]
      ) / np.sqrt(width)
  y = np.einsum('hnm,mhe->nhe', rows(logits, keep), v)
  return (
    np.einsum('nhd,hdc->nc', y, params['out']['kernel']) + params['out']['bias']
  )


def recurrent_oracle(kernel, variables, x, *, key_mask=None):
  """Relative attention over what example 0 of the state holds.

  `adjust` makes every example of the state equal, since an oracle of one
  example does not know which one it is.
  """
  n = len(x)
  there = np.ones(n, bool) if key_mask is None else key_mask
  old = np.zeros((0, x.shape[1]))
  state = variables.get('attention_state', {})
  for name in ('memory', 'compressed'):  # the compressed are the oldest
    if name in state:
      old = np.concatenate([state[name][0], old])
      there = np.concatenate([state[f'{name}_there'][0], there])
  keep = np.broadcast_to(there, (n, len(there)))
  if kernel.causal:
    keep = keep & np.tri(n, len(there), len(old), dtype=bool)
  return relative_attention(variables['params'], x, old, keep)


def same_state(variables):
  """Equal memories in all examples, the first slots empty."""
  state = dict(variables.get('attention_state', {}))
  for name, value in state.items():
    value = jnp.broadcast_to(value[:1], value.shape)
    if name.endswith('_there'):
      value = value.at[:, :1].set(False)
    state[name] = value
  return {**variables, 'attention_state': state} if state else variables


def without_positions(variables):
  """u = v = W_R = 0."""
  params = dict(variables['params'])
  for name in ('content_bias', 'position_bias'):
    params[name] = 0 * params[name]
  params['relative'] = {'kernel': 0 * params['relative']['kernel']}
  return {**variables, 'params': params}


def plain(x, variables):
  """Multi-head softmax attention."""
  params = variables['params']
  y = softmax(*(dense(x, params[name]) for name in ('query', 'key', 'value')))
  return (
    np.einsum('nhd,hdc->nc', y, params['out']['kernel']) + params['out']['bias']
  )


FACTS = {
  'transformer_xl': Facts(
    recurrent_oracle,
    cases=('transformer_xl(memory=5)', 'transformer_xl'),
    causal='transformer_xl(memory=4, causal=True)',
    limits=(
      Limit(
        'transformer_xl', 'u = v = W_R = 0 and no memory: softmax',
        variables=without_positions, equals=plain,
      ),
    ),
    row_sum=None,
    adjust=same_state,
  ),
  'compressive': Facts(
    recurrent_oracle,
    # A convolution's weights matter to the next segment only.
    cases=(
      "compressive(memory=3, compressed=2, compress='mean')",
      'compressive(memory=2, compressed=3, rate=3)',
    ),
    causal='compressive(memory=3, compressed=2, causal=True)',
    limits=(
      Limit(
        'compressive', 'u = v = W_R = 0 and no memory: softmax',
        variables=without_positions, equals=plain,
      ),
    ),
    row_sum=None,
    adjust=same_state,
  ),
}  # fmt: skip
