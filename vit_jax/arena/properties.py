"""Checks of what every kernel promises: finite, linear, independent, masked."""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.arena import subject


def finite(s: subject.Subject) -> str:
  """[B N H E] out; finite, and so are all gradients; the values matter."""
  out, params, inputs = s.plain
  if out.shape != s.inputs[-1].shape:
    return f'the output is {out.shape}, expected {s.inputs[-1].shape}'
  for what, tree in (('output', out), ('gradient', (params, inputs))):
    for path, x in jax.tree.leaves_with_path(tree):
      if not np.isfinite(x).all():
        where = jax.tree_util.keystr(path)
        return f'the {what} {where} has values that are not finite'
  if not np.abs(inputs[-1]).max() > 1e-6:
    return 'the gradient by the values is 0: they have no influence'
  return ''


def dtype(s: subject.Subject) -> str:
  """bfloat16 in, bfloat16 out; of a layer, its `dtype`."""
  kernel = s.kernel.clone(dtype=jnp.bfloat16) if s.mixer else s.kernel
  half = lambda x: x.astype(jnp.bfloat16)  # noqa: E731
  out = jax.eval_shape(
    kernel.apply, s.variables, *map(half, s.inputs), **s.arrays
  )
  return '' if out.dtype == jnp.bfloat16 else f'bfloat16 gives {out.dtype}'


def batch(s: subject.Subject) -> str:
  """An example has no influence on the others."""
  changed = tuple(
    jnp.concatenate([x[:1], y[1:]])
    for x, y in zip(s.inputs, s.draw(3), strict=True)
  )
  a, b = (s.run(*x)[0] for x in (s.inputs, changed))
  return subject.differ(b, a, 'an example beside others')


def jit(s: subject.Subject) -> str:
  """Compiled equals uncompiled."""
  return subject.differ(
    s.run(*s.inputs), s.call(s.variables, *s.inputs), 'compiled and not'
  )


def deterministic(s: subject.Subject) -> str:
  """At evaluation no random number is drawn, and twice gives the same."""
  program = str(jax.make_jaxpr(s.call)(s.variables, *s.inputs))
  if 'random_' in program or 'threefry' in program:
    return 'random numbers are drawn at evaluation'
  a, b = (s.call(s.variables, *(x[:1] for x in s.inputs)) for _ in range(2))
  return subject.differ(b, a, 'the same twice', 0.0)


def linear(s: subject.Subject) -> str | None:
  """f(q, k, 2v - w) = 2 f(q, k, v) - f(q, k, w) and f(q, k, 0) = 0."""
  if s.mixer or not s.kernel.linear_in_values:
    return None
  (q, k, v), w = s.inputs, s.draw(1)[2]
  zero = np.abs(s.run(q, k, 0 * v)).max()
  if zero:
    return f'values of zero give up to {zero:.2g}, expected 0'
  return subject.differ(
    s.run(q, k, 2 * v - w), 2 * s.run(q, k, v) - s.run(q, k, w),
    'f(2v - w) and 2 f(v) - f(w)',
  )  # fmt: skip


def row_sums(s: subject.Subject) -> str | None:
  """The rows of the map sum to 1."""
  if not s.promise.sums or s.map is None:
    return None
  sums = s.map.sum(-1)
  if np.abs(sums - 1).max() < 1e-3:
    return ''
  return f'rows sum to {sums.min():.3g} … {sums.max():.3g}, expected 1'


def positive(s: subject.Subject) -> str | None:
  """No weight of the map is negative."""
  if not s.promise.positive or s.map is None:
    return None
  low = s.map.min()
  return '' if low > -1e-6 else f'a weight is {low:.3g}, expected ≥ 0'


def masked_keys(s: subject.Subject) -> str | None:
  """Masked keys have exactly no influence, and no gradient.

  In a layer a masked token is a query too, whose own row may change.
  """
  if not s.masks:
    return None
  mask = np.random.default_rng(4).random((subject.BATCH, s.n)) < 0.7
  mask[0, :], mask[0, [0, 5, -1]] = True, False
  mask[1, :], mask[1, s.n // 2 :] = True, False
  seen = (0,) if s.mixer else (1, 2)
  changed = tuple(
    jnp.where(subject.over(mask, x), x, 100 * y) if i in seen else x
    for i, (x, y) in enumerate(zip(s.inputs, s.draw(1), strict=True))
  )
  rows = mask if s.mixer else np.ones_like(mask)
  given = {'key_mask': jnp.asarray(mask)}
  out, _, grads = s.slopes(s.inputs, given, rows)
  other, _, _ = s.slopes(changed, given, rows)
  out, other = (np.asarray(x)[rows] for x in (out, other))
  wrong = subject.differ(other, out, 'with other masked tokens', 1e-5)
  if wrong:
    return wrong
  leak = max(np.abs(np.asarray(grads[i])[~mask]).max() for i in seen)
  if leak:
    return f'a masked key has a gradient of {leak:.2g}, expected 0'
  if not np.abs(out - np.asarray(s.plain[0])[rows]).max() > 1e-4:
    return 'the mask changes nothing'
  return ''


def empty_rows(s: subject.Subject) -> str | None:
  """A query whose keys are all masked gets zeros; gradients stay finite."""
  if s.mixer or not s.masks:
    return None
  mask = np.ones((subject.BATCH, s.n), bool)
  mask[0] = False
  given = {'key_mask': jnp.asarray(mask)}
  out, _, grads = s.slopes(s.inputs, given, np.ones_like(mask))
  most = np.abs(np.asarray(out)[0]).max()
  if most != 0:
    return f'a query without keys gets up to {most:.2g}, expected 0'
  if not all(np.isfinite(g).all() for g in grads):
    return 'with a query without keys, gradients are not finite'
  return ''
