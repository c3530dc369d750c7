"""The contract of every entry of both tables, as functions that assert.

They are functions, not tests, because `tests/attention/planted` calls them on
deliberately wrong kernels, each of which must fail at least one.

Arrays are changed and compared as NumPy's: each operation of JAX outside of the
compiled call would be a program of its own, for every entry again.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention.oracles import FACTS
from vit_jax import attention, specs
from vit_jax.attention import base

B, H, D = 2, 2, 4
C = H * D
GRID, PREFIX = (3, 4), 1
N = PREFIX + GRID[0] * GRID[1]


def arrays(n=N, m=None, width=D, seed=0, dtype=jnp.float32, batch=B):
  """q [B N H D], k [B M H D], v [B M H E]."""
  rng = np.random.default_rng(seed)
  m = n if m is None else m
  return tuple(
    jnp.asarray(rng.standard_normal((batch, length, H, e)), dtype)
    for length, e in ((n, D), (m, D), (m, width))
  )


def jitter(shapes, adjust=lambda x: x, seed=9):
  """Random variables of the shapes, without compiling the initialisers."""
  rng = np.random.default_rng(seed)
  return adjust(
    jax.tree.map(
      lambda s: jnp.asarray(0.3 * rng.standard_normal(s.shape), s.dtype), shapes
    )
  )


def wide(tree):
  """The tree's arrays as NumPy, floats in float64."""
  return jax.tree.map(
    lambda x: np.asarray(x, np.float64)
    if jnp.issubdtype(x.dtype, jnp.floating)
    else np.asarray(x),
    tree,
  )


class Built:
  """An entry at one spec, its variables, and one compiled call.

  Attributes:
    mixer: whether it is x → x; then `inputs` are (x,), else (q, k, v).
    batch: examples in `inputs`.
  """

  batch = B

  def __init__(self, name, spec=None, facts=None, table=None, **layout):
    self.name = name
    self.facts = FACTS[name] if facts is None else facts
    self.spec = self.facts.cases[0] if spec is None else spec
    (parsed,) = specs.parse(self.spec)
    both = attention.ATTENTIONS | attention.MIXERS if table is None else table
    cls = both[parsed.name]
    self.mixer = issubclass(cls, attention.Mixer)
    self.layout = {'grid': GRID, 'prefix': PREFIX, **layout}
    options = {**parsed.options, **self.layout}
    if self.mixer:
      options['num_heads'] = H
    specs.check_options(cls, parsed.options, parsed.name)
    self.kernel = cls(**options)
    self._variables, self._cases = {}, {}
    self._run = jax.jit(self.kernel.apply)
    self._slopes = jax.jit(self._gradients)

  def case(self, spec=None, **layout):
    """The entry at another spec or layout; made, and so compiled, once."""
    spec = self.spec if spec is None else spec
    layout = {**self.layout, **layout}
    if (spec, layout) == (self.spec, self.layout):
      return self
    key = spec, layout['grid'], layout['prefix']
    if key not in self._cases:
      table = {self.name: type(self.kernel)}
      self._cases[key] = Built(self.name, spec, self.facts, table, **layout)
    return self._cases[key]

  def inputs(self, n=N, seed=0, width=D, dtype=jnp.float32):
    """The arrays that the contract runs on, as NumPy's."""
    if self.mixer:
      rng = np.random.default_rng(seed)
      found = (jnp.asarray(rng.standard_normal((self.batch, n, C)), dtype),)
    else:
      found = arrays(n, None, width, seed, dtype, self.batch)
    return jax.device_get(self.facts.inputs(*found))

  def x(self, n=N):
    """The layer's input, where a kernel takes it."""
    rng = np.random.default_rng(77)
    with jax.ensure_compile_time_eval():
      return jnp.asarray(rng.standard_normal((self.batch, n, C)), jnp.float32)

  def extras(self, n):
    """`x`, if the kernel takes it: no kernel is tested without."""
    takes = not self.mixer and base.honours(self.kernel, 'x')
    return {'x': self.x(n)} if takes else {}

  def variables(self, *inputs):
    """Jittered; the same at each N and E unless shapes depend on them."""
    n = inputs[0].shape[1]
    key = n, inputs[-1].shape[-1]
    if key not in self._variables:
      like = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs]
      with jax.ensure_compile_time_eval():  # `call` may be traced
        shapes = jax.eval_shape(
          functools.partial(self.kernel.init, jax.random.key(0)),
          *like, **self.extras(n),
        )  # fmt: skip
        self._variables[key] = jitter(shapes, self.facts.adjust)
    return self._variables[key]

  def call(self, *inputs, **optional):
    """The entry's output, with its jittered variables."""
    given = {**self.extras(inputs[0].shape[1]), **optional}
    return self.kernel.apply(self.variables(*inputs), *inputs, **given)

  def run(self, *inputs, variables=None, **optional):
    """As `call`, compiled; with other variables, if given."""
    given = {**self.extras(inputs[0].shape[1]), **optional}
    variables = self.variables(*inputs) if variables is None else variables
    return np.asarray(self._run(variables, *inputs, **given))

  def slopes(self, *inputs, rows=None, **optional):
    """out, and gradients of Σ out·weights: by params, inputs and arrays.

    The last are those of `optional` that are floats, by name; `rows` Bool[B N]
    leaves tokens of the output out of the sum.
    """
    scale = weights(inputs[-1].shape)
    if rows is not None:
      scale = scale * rows.reshape(*rows.shape, *(1,) * (scale.ndim - 2))
    given = {**self.extras(inputs[0].shape[1]), **optional}
    floats = {k: x for k, x in given.items() if x.dtype == jnp.float32}
    rest = {k: x for k, x in given.items() if k not in floats}
    rest_of = dict(self.variables(*inputs))
    params = {'params': rest_of.pop('params')} if 'params' in rest_of else {}
    return jax.device_get(
      self._slopes(params, inputs, floats, rest_of, rest, scale)
    )

  def _gradients(self, params, inputs, floats, variables, given, scale):
    def value(params, inputs, floats):
      out = self.kernel.apply(
        {**variables, **params}, *inputs, **floats, **given
      )
      return jnp.sum(out * scale), out

    grads, out = jax.grad(value, (0, 1, 2), has_aux=True)(
      params, inputs, floats
    )
    return out, *grads

  def honours(self, array):
    """Whether it takes the optional array."""
    return base.honours(self.kernel, array)

  def given(self, **arrays):
    """These of the arrays that it takes, and all others as if absent.

    Always the same arrays of the same shapes: one compiled function serves.
    """
    neutral = {
      'key_mask': np.ones((B, N), bool),
      'mask': np.ones((B, 1, N, N), bool),
      'bias': np.zeros((1, H, N, N), np.float32),
      'segments': np.zeros((B, N), np.int32),
    }
    assert set(arrays) <= set(neutral)
    return {
      name: array
      for name, array in {**neutral, **arrays}.items()
      if self.honours(name)
    }

  def oracle(self, inputs, variables=None, **optional):
    """The dense oracle's output for the batch, in float64."""
    variables = self.variables(*inputs) if variables is None else variables
    variables = wide(variables)
    optional = {**self.extras(inputs[0].shape[1]), **optional}
    outs = []
    for b in range(B):
      one = {
        name: wide(x[min(b, x.shape[0] - 1)]) for name, x in optional.items()
      }
      outs.append(
        self.facts.oracle(
          self.kernel, variables, *(wide(i[b]) for i in inputs), **one
        )
      )
    return np.stack(outs)


def weights(shape):
  """Fixed random numbers, one an element of an output."""
  return np.random.default_rng(12).standard_normal(shape).astype(np.float32)


MASK = np.ones((B, N), bool)
MASK[0, [0, 5, 12]] = MASK[1, 6:] = False


def check_shapes(built):
  """Any N, with the default options too; dtype in = dtype out."""
  for n, grid, prefix in (
    (1, None, 0), (16, None, 0), (16, (4, 4), 0), (30, None, 0),
    (30, (5, 6), 0), (197, (14, 14), 1),
  ):  # fmt: skip
    for spec in {specs.parse(built.spec)[0].name, built.spec}:
      other = built.case(spec, grid=grid, prefix=prefix)
      for dtype in (jnp.float32, jnp.bfloat16)[: 2 if n == 30 else 1]:
        inputs = other.inputs(n, width=D, dtype=dtype)
        out, _ = jax.eval_shape(
          functools.partial(other.kernel.init_with_output, jax.random.key(0)),
          *inputs, **other.extras(n),
        )  # fmt: skip
        assert out.shape == inputs[-1].shape, (spec, n, out.shape)
        if not built.mixer:  # a layer has a dtype of its own
          assert out.dtype == dtype, (spec, n, out.dtype)


def check_cross(built):
  """M ≠ N gives [B N H E], or an error that names who can."""
  if built.mixer:
    return
  q, k, v = arrays(5, 9, width=6)
  kernel = built.kernel.clone(grid=None, prefix=0)
  run = functools.partial(kernel.init_with_output, jax.random.key(0))
  if built.kernel.cross:
    if built.kernel.mixes_channels:
      v = v[..., :D]
    out, _ = jax.eval_shape(run, q, k, v, **built.extras(5))
    assert out.shape == (B, 5, H, v.shape[-1])
    return
  with pytest.raises(ValueError, match='5 queries to 9 keys.*Softmax'):
    jax.eval_shape(run, q, k, v, **built.extras(5))


def check_jit(built):
  """jit = no jit, in a batch of 8: from there on XLA has been wrong."""
  table = {built.name: type(built.kernel)}
  built = Built(built.name, built.spec, built.facts, table, **built.layout)
  built.batch = 8
  inputs = built.inputs()
  np.testing.assert_allclose(
    built.run(*inputs), built.call(*map(jnp.asarray, inputs)), atol=1e-5
  )


def check_oracle(built):
  """Every case equals the paper's formula in float64, masks and biases too.

  The values are the unit vectors, D at a time, so the output is the map of the
  values: its support and its row sums are compared, not one product with it.
  """
  rng = np.random.default_rng(3)
  mask = rng.random((B, 1, N, N)) < 0.7
  mask[..., np.arange(N), np.arange(N)] = True
  bias = np.float32(rng.standard_normal((1, H, N, N)))
  arrays_ = (
    {'key_mask': MASK},
    {'mask': mask, 'bias': bias},
    {'segments': np.int32(np.arange(N)[None] // 5 + [[0], [2]])},
  )
  for spec in (*built.facts.cases, built.facts.causal):
    if spec is None:
      continue
    case = built.case(spec)
    probed = not (
      case.mixer or case.kernel.mixes_channels
    ) and case.kernel.linear_in_values  # fmt: skip
    inputs = case.inputs()
    variables = case.variables(*inputs)
    eye = np.eye(N, -(-N // D) * D, dtype=np.float32)
    whole = inputs
    if probed:
      whole = (*inputs[:2], np.tile(eye[:, None], (B, 1, H, 1)))

    def found(given, case=case, inputs=inputs, probed=probed, whole=whole):
      if case is built and given:  # compiled for other checks too
        run = lambda *a: case.slopes(*a, **given)[0]  # noqa: E731
      else:
        run = lambda *a: case.run(*a, **given)  # noqa: E731
      if not probed:
        return run(*inputs)
      chunks = np.split(whole[2], whole[2].shape[-1] // D, axis=-1)
      return np.concatenate([run(*inputs[:2], v) for v in chunks], -1)

    some = [
      {name: x for name, x in one.items() if case.honours(name)}
      for one in arrays_
    ]
    some = [one for one in some if one]
    if case is built or not some:
      some = [{}, *some]
    for one in some:
      out = found(case.given(**one) if one else {})
      label = f'{spec} {list(one)}'
      np.testing.assert_allclose(
        out, case.oracle(whole, variables, **one), atol=case.facts.atol,
        err_msg=label,
      )  # fmt: skip
      if built.facts.row_sum is not None and not one:
        np.testing.assert_allclose(
          out.sum(-1), built.facts.row_sum, atol=1e-5, err_msg=label
        )


def check_limits(built):
  """What equals what: each stated limit, at its own inputs and parameters."""
  assert built.facts.limits
  for limit in built.facts.limits:
    case = built.case(limit.spec, grid=limit.grid, prefix=limit.prefix)
    n = N
    if limit.grid is not None:
      n = limit.prefix + limit.grid[0] * limit.grid[1]
    inputs = tuple(
      np.asarray(x, np.float32) for x in limit.inputs(*case.inputs(n))
    )
    variables = limit.variables(case.variables(*inputs))
    out = case.run(*inputs, variables=variables)
    for b in range(B):
      one = [wide(x[b]) for x in inputs]
      if case.mixer:
        one.append(wide(variables))
      np.testing.assert_allclose(
        out[b], limit.equals(*one), atol=limit.atol, err_msg=limit.note
      )


def check_linear(built):
  """f(q, k, 2v - w) = 2 f(q, k, v) - f(q, k, w), f(q, k, 0) = 0."""
  if built.mixer or not built.kernel.linear_in_values:
    return
  q, k, v = built.inputs()
  _, _, w = built.inputs(seed=1)
  np.testing.assert_allclose(
    built.run(q, k, 2 * v - w),
    2 * built.run(q, k, v) - built.run(q, k, w),
    atol=2e-5,
  )
  assert not np.any(built.run(q, k, 0 * v))


def check_gradients(built):
  """Finite, reaching every input, and equal to finite differences."""
  inputs = built.inputs()
  _, _, grads, _ = built.slopes(*inputs)
  for gradient in grads:
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 1e-4
  if built.facts.discrete:
    return
  rng = np.random.default_rng(2)
  value = lambda *a: np.sum(  # noqa: E731
    np.float64(built.run(*a)) * weights(inputs[-1].shape)
  )
  for _ in range(3):
    step = [
      np.asarray(rng.standard_normal(x.shape) * 5e-3, x.dtype) for x in inputs
    ]
    up, down = (
      value(*(x + sign * d for x, d in zip(inputs, step, strict=True)))
      for sign in (1, -1)
    )
    slope = sum(
      np.sum(np.float64(g) * np.float64(d))
      for g, d in zip(grads, step, strict=True)
    )
    np.testing.assert_allclose((up - down) / 2, slope, rtol=3e-2, atol=2e-3)


def check_parameters_have_gradients(built):
  """Every parameter of the entry matters to its output."""
  _, params, _, _ = built.slopes(*built.inputs())
  for path, g in jax.tree.leaves_with_path(params):
    where = jax.tree_util.keystr(path)
    assert np.isfinite(g).all(), where
    # A key's bias shifts every logit of a row alike.
    assert "['key']['bias']" in where or np.abs(g).max() > 1e-6, where


def check_bias(built):
  """A bias has gradients; one that is the same for all keys has no effect."""
  if not built.honours('bias'):
    return
  inputs = built.inputs()
  bias = np.random.default_rng(6).standard_normal((1, H, N, N))
  given = built.given(bias=np.float32(bias))
  gradient = built.slopes(*inputs, **given)[3]['bias']
  assert np.isfinite(gradient).all()
  assert np.abs(gradient).max() > 1e-4


def check_batch(built):
  """An example does not influence the others."""
  inputs = built.inputs()
  out = built.run(*inputs)
  rng = np.random.default_rng(4)

  def moved(x):
    x = np.array(x)
    x[1] += rng.standard_normal(x.shape[1:])
    return x

  other = built.run(*map(moved, inputs))
  np.testing.assert_allclose(out[0], other[0], atol=1e-6)
  assert np.abs(out[1] - other[1]).max() > 1e-3


def check_evaluation_is_deterministic(built):
  """No random number is drawn outside training."""
  assert 'random' not in str(jax.make_jaxpr(built.call)(*built.inputs()))


def check_training(built):
  """It runs with train=True; random streams are asked for by name."""
  inputs = built.inputs()
  names = ('dropout', 'params', 'gumbel', 'features', 'hash')
  rngs = {n: jax.random.key(i) for i, n in enumerate(names)}
  variables = built.variables(*inputs)
  mutable = [c for c in variables if c != 'params']
  out = jax.eval_shape(
    functools.partial(
      built.kernel.apply, train=True, rngs=rngs, mutable=mutable
    ),
    variables, *inputs, **built.extras(N),
  )[0]  # fmt: skip
  assert out.shape == built.run(*inputs).shape


def check_dropout(built):
  """In training only, and unbiased, where the entry has dropout of weights."""
  if 'dropout_rate' not in built.kernel.__dataclass_fields__ or built.mixer:
    return
  inputs = built.inputs()
  variables, extras = built.variables(*inputs), built.extras(N)
  kernel = built.kernel.clone(dropout_rate=0.3)
  exact = built.run(*inputs)

  @jax.jit
  def draws(keys, *inputs):
    one = lambda key: kernel.apply(  # noqa: E731
      variables, *inputs, train=True, rngs=key, **extras,
      mutable=[c for c in variables if c != 'params'],
    )[0]  # fmt: skip
    return jax.vmap(one)(keys)

  found = np.asarray(draws(jax.random.split(jax.random.key(0), 1000), *inputs))
  error = found.std(0) / np.sqrt(1000)
  assert error.max() > 1e-4, 'nothing was dropped'
  if not built.facts.noisy:
    assert np.abs((found.mean(0) - exact) / (error + 1e-4)).max() < 6
  jaxprs = {
    str(jax.make_jaxpr(k.apply)(variables, *inputs, **extras))
    for k in (kernel, built.kernel)
  }
  assert len(jaxprs) == 1, 'evaluation depends on dropout_rate'


def check_masked_keys(built):
  """Masked keys have exactly no influence, on gradients too.

  In a mixer a masked token is also a query, whose own row may change.
  """
  if not built.honours('key_mask'):
    return
  inputs, others = built.inputs(), built.inputs(seed=1)
  seen = (0,) if built.mixer else (1, 2)

  def swap(i):
    keep = MASK.reshape(*MASK.shape, *(1,) * (inputs[i].ndim - 2))
    return np.where(keep, inputs[i], np.float32(1e2) * others[i])

  changed = tuple(swap(i) if i in seen else x for i, x in enumerate(inputs))
  # In a mixer a masked token is a query too: its own row may change.
  rows = MASK if built.mixer else np.ones_like(MASK)
  given = built.given(key_mask=MASK)
  (out, _, grads, _), (other, _, other_grads, _) = (
    built.slopes(*x, rows=rows, **given) for x in (inputs, changed)
  )
  difference = np.abs(out - built.run(*inputs))
  assert difference[rows].max() > 1e-3
  np.testing.assert_allclose(out[rows], other[rows], atol=1e-6)
  for i, (a, b) in enumerate(zip(grads, other_grads, strict=True)):
    assert np.isfinite(a).all()
    np.testing.assert_allclose(a, b, atol=1e-5)
    if i in seen:
      assert not np.any(np.asarray(a)[~MASK])
      assert np.abs(np.asarray(a)[MASK]).max() > 1e-5


def check_padding(built):
  """Tokens appended behind masked keys change nothing."""
  if not built.honours('key_mask'):
    return
  case = built.case(grid=None, prefix=0)
  inputs = case.inputs()
  pad = lambda x, value: np.pad(  # noqa: E731
    x, ((0, 0), (0, 3), *((0, 0),) * (x.ndim - 2)), constant_values=value
  )
  mask = np.tile(np.arange(N + 3) < N, (B, 1))
  extras = {name: pad(x, 7.0) for name, x in case.extras(N).items()}
  run = functools.partial(
    case._run, case.variables(*inputs), *(pad(x, 7.0) for x in inputs),
    key_mask=mask, **extras,
  )  # fmt: skip
  if built.facts.fixed_length:  # its parameters are made for one N
    with pytest.raises(ValueError, match='number of tokens is fixed'):
      run()
  elif built.facts.depends_on_length:
    assert np.isfinite(run()).all()
  else:
    np.testing.assert_allclose(
      np.asarray(run())[:, :N], case.run(*inputs), atol=1e-5
    )


def check_empty_rows(built):
  """A query without a key gets zeros, and gradients stay finite."""
  if built.mixer:
    return
  by_example = np.arange(B) > 0
  rows = np.arange(N) != 3
  for array, given, empty in (
    ('key_mask', by_example[:, None].repeat(N, 1), ~by_example[:, None]),
    ('mask', np.tile(rows[None, None, :, None], (B, 1, 1, N)), ~rows[None]),
  ):
    if not built.honours(array):
      continue
    empty = np.broadcast_to(empty, (B, N))
    out, _, grads, _ = built.slopes(
      *built.inputs(), **built.given(**{array: given})
    )
    if not built.facts.null_key:
      assert not np.any(np.asarray(out)[empty]), array
    assert np.abs(np.asarray(out)[~empty]).max() > 0
    for gradient in grads:
      assert np.isfinite(gradient).all(), array


class Layer(nn.Module):
  """The entry as a layer of x, which is what causality is about."""

  kernel: nn.Module

  @nn.compact
  def __call__(self, x):
    """Projects, attends and returns [B N C]."""
    if isinstance(self.kernel, attention.Mixer):
      return self.kernel(x)
    heads = lambda name: nn.DenseGeneral((H, D), name=name)(x)  # noqa: E731
    extras = {'x': x} if base.honours(self.kernel, 'x') else {}
    out = self.kernel(heads('query'), heads('key'), heads('value'), **extras)
    return out.reshape(*x.shape[:2], -1)


def check_causality(built):
  """No output depends on a later input: by Jacobian, and by other futures.

  The Jacobian misses what leaks through sorting, hashing and choosing; other
  futures do not.
  """
  if built.facts.causal is None:
    assert 'causal' not in built.kernel.__dataclass_fields__
    return
  case = built.case(built.facts.causal)
  assert base.causal(case.kernel)
  layer = Layer(case.kernel)
  rng = np.random.default_rng(5)
  x = np.float32(rng.standard_normal((1, N, C)))
  shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
  variables = jitter(shapes, seed=6)
  if 'params' in variables and 'kernel' in variables['params']:
    inner = {c: v['kernel'] for c, v in variables.items() if 'kernel' in v}
    inner = built.facts.adjust(inner)
    variables = {
      c: {**v, 'kernel': inner[c]} if c in inner else v
      for c, v in variables.items()
    }

  @jax.jit
  def run_and_jacobian(x):
    sums = lambda x: layer.apply(variables, x).sum((0, 2))  # noqa: E731
    return layer.apply(variables, x), jax.jacrev(sums)(x)

  run = lambda x: np.asarray(run_and_jacobian(x)[0])  # noqa: E731
  out, jacobian = jax.device_get(run_and_jacobian(x))
  moved = np.abs(jacobian[:, 0]).max(-1)  # [N N]
  future = np.triu(np.ones((N, N), bool), 1)
  assert moved[future].max() == 0, np.argwhere((moved > 0) & future)
  for t in range(1, N):
    other = np.float32(3 * rng.standard_normal((1, N, C)))
    other[:, :t] = x[:, :t]
    np.testing.assert_allclose(
      run(other)[:, :t], out[:, :t], atol=1e-5, err_msg=f'{t=}'
    )
  assert np.abs(run(np.roll(x, 1, 1)) - out).max() > 1e-3


def check_decoding(built):
  """Step by step equals all at once, for the causal form."""
  if built.facts.causal is None or built.mixer:
    return
  case = built.case(built.facts.causal)
  if case.extras(N):  # a kernel that reads x decodes with its layer
    return
  q, k, v = case.inputs()
  variables = case.variables(q, k, v)
  state = case.kernel.apply(
    variables, B, N, H, D, jnp.float32, method='init_state'
  )

  @jax.jit
  def steps(state):
    def one(state, qkv):
      out, state = case.kernel.apply(
        variables, state, *(x[:, None] for x in qkv), method='step'
      )
      return state, out[:, 0]

    rows = tuple(jnp.moveaxis(x, 1, 0) for x in (q, k, v))
    return jnp.moveaxis(jax.lax.scan(one, state, rows)[1], 0, 1)

  whole = case.run(q, k, v, **case.given())
  np.testing.assert_allclose(steps(state), whole, atol=2e-5)


def check_equivariance(built):
  """Permuting the tokens permutes the outputs, where declared."""
  if not built.kernel.equivariant:
    return
  case = built.case(grid=None, prefix=0)
  inputs = case.inputs()
  order = np.random.default_rng(8).permutation(N)
  np.testing.assert_allclose(
    case.run(*(x[:, order] for x in inputs)),
    case.run(*inputs)[:, order],
    atol=1e-5,
  )


def check_bfloat16(built):
  """bfloat16 inputs: logits and normalisation are in float32."""
  if built.mixer:
    return
  inputs = built.inputs(dtype=jnp.bfloat16)
  out = built.run(*inputs)
  exact = built.run(*(x.astype(np.float32) for x in inputs))
  scale = np.abs(exact).max()
  np.testing.assert_allclose(
    out.astype(np.float32), exact, atol=0.03 * float(scale)
  )


def check_refusals(built):
  """An optional array that is not honoured raises and names who does."""
  given = {
    'key_mask': jnp.ones((B, N), bool),
    'mask': jnp.ones((1, 1, N, N), bool),
    'bias': jnp.zeros((1, H, N, N)),
    'segments': jnp.zeros((B, N), int),
  }
  if built.mixer:
    return
  inputs = built.inputs()
  variables = built.variables(*inputs)
  for name, array in given.items():
    run = lambda *a, name=name, array=array: attention.attend_with(  # noqa: E731
      built.kernel.clone(parent=None).bind(variables), *a,
      **{**built.extras(N), name: array},
    )  # fmt: skip
    if built.honours(name):
      assert jax.eval_shape(run, *inputs).shape == inputs[2].shape
      continue
    with pytest.raises(ValueError, match=f'not honour {name}=; these do: '):
      jax.eval_shape(run, *inputs)


def check_grid(built):
  """A grid that does not make N tokens is refused, or makes no difference."""
  inputs = built.inputs(N - 1)
  try:
    out, _ = jax.eval_shape(
      functools.partial(built.kernel.init_with_output, jax.random.key(0)),
      *inputs, **built.extras(N - 1),
    )  # fmt: skip
  except ValueError as error:
    message = str(error)
  else:
    free, other = built.case(grid=None), built
    jaxprs = {
      str(jax.make_jaxpr(case.call)(*inputs)) for case in (free, other)
    }
    assert len(jaxprs) == 1, 'a wrong grid makes a difference'
    return
  assert f'takes {N} tokens, not {N - 1}' in message, message


def check_initial(built):
  """What is drawn at random is distributed as the paper says."""
  if built.facts.initial is None:
    return
  inputs = built.inputs()
  keys = jax.random.split(jax.random.key(0), 4000)
  init = jax.vmap(built.kernel.init, (0, *(None for _ in inputs)))
  built.facts.initial(wide(jax.jit(init)(keys, *inputs)))


def check_described(built):
  """It says what the generated table needs."""
  for name in ('family', 'published', 'cost', 'source', 'sequential'):
    assert getattr(type(built.kernel), name)
  assert built.kernel.flops(64, H, D) > 0
  assert built.kernel.temporary(64, H, D) > 0


CHECKS = {
  name: check
  for name, check in globals().items()
  if name.startswith('check_')
}
