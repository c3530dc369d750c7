"""Checks of what reaches what, what is equal to what, and what it costs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import flops
from vit_jax.arena import subject
from vit_jax.attention import base, patterns

LENGTH = 1024  # at which FLOPs are counted: lower orders hardly count
SLACK = 0.15  # of counted FLOPs from declared ones
DRAWS = 200  # of random features


def causal(s: subject.Subject) -> str | None:
  """In the causal form no output depends on a later input.

  By the Jacobian with respect to the layer's input, and, since that misses what
  leaks through sorting and choosing, by other futures.
  """
  if 'causal' not in s.kernel.__dataclass_fields__:
    return None
  s = s.other(causal=True)
  width = subject.HEADS * subject.WIDTH
  kernels = subject.normal(7, (3, width, width)) / width**0.5

  def layer(x):
    if s.mixer:
      return s.call(s.variables, x)
    shape = (*x.shape[:2], subject.HEADS, subject.WIDTH)
    given = {'x': x} if 'x' in s.arrays else {}
    out = s.call(s.variables, *((x @ w).reshape(shape) for w in kernels),
                 **given)  # fmt: skip
    return out.reshape(x.shape)

  shape = (subject.BATCH, s.n, width)
  weights = subject.normal(8, (width,))
  x = jnp.broadcast_to(subject.normal(5, shape)[:1], shape)
  moved = jax.jit(jax.jacrev(lambda x: (layer(x) @ weights)[0]))(x[:1])
  later = np.triu(np.ones((s.n, s.n), bool), 1)
  leaks = (np.abs(moved[:, 0]).max(-1) > 0) & later
  if leaks.any():
    i, j = np.argwhere(leaks)[0]
    return f'output {i} depends on input {j}, by the Jacobian'
  cuts = np.linspace(1, s.n - 1, subject.BATCH).round().astype(int)
  past = np.arange(s.n) < cuts[:, None]
  run = jax.jit(layer)
  other = jnp.where(past[..., None], x, 3 * subject.normal(6, shape))
  out, other = (np.asarray(run(a))[past] for a in (x, other))
  return subject.differ(other, out, 'with another future')


def support(s: subject.Subject) -> str | None:
  """The weights that are not 0 are those of the declared patterns."""
  if s.map is None:
    return None
  found = (s.map != 0).any(0)  # [H N N]
  kernel, declared = s.kernel, []
  text = s.promise.pattern
  if text:
    text = text.format_map(
      {k: getattr(kernel, k) for k in kernel.__dataclass_fields__}
    )
    if 'per_head' in kernel.__dataclass_fields__ and kernel.per_head:
      text = tuple(text.split(' | '))  # heads take turns
    mask = patterns.mask(
      patterns.parse(text), s.n, kernel.grid, kernel.prefix
    )
    if base.causal(kernel):
      mask = mask & np.tri(s.n, dtype=bool)
    declared.append(mask)
  if hasattr(kernel, 'support'):
    declared.append(kernel.support(s.n))
  for mask in declared:
    mask = mask if mask.ndim == 3 else mask[None]
    mask = mask[np.arange(len(found)) % len(mask)]
    more, less = int((found & ~mask).sum()), int((mask & ~found).sum())
    if more or less:
      return (
        f'{more} pairs outside of the declared pattern have weight, {less} '
        f'inside have none, of {int(mask.sum())}'
      )
  return '' if declared else None


def equivariant(s: subject.Subject) -> str | None:
  """Permuting the tokens permutes the outputs."""
  if not s.kernel.equivariant:
    return None
  s = s.other(grid=None, prefix=0)
  order = np.random.default_rng(8).permutation(s.n)
  given = {k: x[:, order] for k, x in s.arrays.items()}
  return subject.differ(
    s.run(*(x[:, order] for x in s.inputs), **given),
    s.run(*s.inputs)[:, order], 'tokens permuted before and after',
  )  # fmt: skip


def exact(s: subject.Subject) -> str | None:
  """At the options where it is softmax attention, it is."""
  if s.promise.exact is None:
    return None
  s = s.other(**s.promise.exact)
  q, k, v = (np.asarray(x, np.float64) for x in s.inputs)
  logits = np.einsum('bnhd,bmhd->bhnm', q, k) / np.sqrt(q.shape[-1])
  if base.causal(s.kernel):
    logits = np.where(np.tri(s.n, dtype=bool), logits, -np.inf)
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  return subject.differ(
    s.run(*s.inputs), np.einsum('bhnm,bmhe->bnhe', weights, v),
    f'with {s.promise.exact} and exact softmax attention',
  )  # fmt: skip


def features(s: subject.Subject) -> str | None:
  """Random features are drawn with mean 0 and covariance I."""
  if not s.promise.normal:
    return None

  def draw(key):
    found = s.kernel.init(key, *(x[:1] for x in s.inputs))
    for name in s.promise.normal.split('/'):
      found = found[name]
    rows = found.reshape(-1, found.shape[-1])
    return rows.mean(0), rows.T @ rows / len(rows)

  keys = jax.random.split(jax.random.key(1), DRAWS)
  found = jax.jit(functools.partial(jax.lax.map, draw))(keys)
  for what, x, expected in zip(
    ('mean', 'covariance'), found, (0, np.eye(subject.WIDTH)), strict=True
  ):
    x = np.asarray(x, np.float64)
    away = np.abs(x.mean(0) - expected) / (x.std(0) / DRAWS**0.5)
    if away.max() > 6:
      return (
        f'the {what} of the random features is {away.max():.0f} standard '
        'errors from that of a standard normal'
      )
  return ''


def work(s: subject.Subject) -> str | None:
  """Counted FLOPs are the declared ones, within 15 %, at 1024 tokens."""
  if type(s.kernel).flops is base.Described.flops:
    return None
  fields = s.kernel.__dataclass_fields__
  kernel = s.kernel.clone(grid=None, prefix=0)
  kernel = kernel.clone(**{
    k: v
    for k, v in kernel.grown(LENGTH).items()
    if getattr(kernel, k) == fields[k].default
  })
  heads, width = subject.HEADS, 16
  shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)  # noqa: E731
  inputs = (shape(1, LENGTH, heads, width),) * 3
  if s.mixer:
    inputs = (shape(1, LENGTH, heads * width),)
  given = {k: shape(1, LENGTH, heads * width) for k in s.arrays}
  init = functools.partial(kernel.init, jax.random.key(0))
  variables = jax.eval_shape(init, *inputs, **given)
  counted = flops.count(kernel.apply, variables, *inputs, **given)
  declared = kernel.flops(LENGTH, heads, width)
  if abs(counted - declared) <= SLACK * declared:
    return ''
  return f'{counted:.3g} FLOPs counted, {declared:.3g} declared'
