"""The contract of every attention in the table, at its default options."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import special

from vit_jax import attention
from vit_jax.attention import base

B, H, D = 2, 2, 4
GRID, PREFIX = (3, 4), 1
N = PREFIX + GRID[0] * GRID[1]


@dataclasses.dataclass(frozen=True)
class Facts:
  """What the paper says of an attention.

  Attributes:
    equals_softmax: the spec at which it equals exact softmax attention.
    row_sum: of its map of the values; None where rows have no fixed sum.
    dense: q, k [N D] → its map [N M] in float64.
  """

  equals_softmax: str
  row_sum: float | None
  dense: object


def dense_softmax(q, k):
  return special.softmax(q @ k.T / np.sqrt(q.shape[-1]), axis=-1)


FACTS = {
  'softmax': Facts('softmax', 1.0, dense_softmax),
}


def arrays(n=N, m=None, width=D, batch=B, seed=0, dtype=jnp.float32):
  rng = np.random.default_rng(seed)
  m = n if m is None else m
  return tuple(
    jnp.asarray(rng.standard_normal((batch, length, H, e)), dtype)
    for length, e in ((n, D), (m, D), (m, width))
  )


def parameters(kernel, *qkv):
  """Jittered parameters, without compiling the initialisers."""
  shapes = jax.eval_shape(kernel.init, jax.random.key(0), *qkv)
  rng = np.random.default_rng(9)
  return jax.tree.map(
    lambda s: jnp.asarray(0.3 * rng.standard_normal(s.shape), s.dtype), shapes
  )


class Built:
  """An attention of the table, its parameters, and one compiled call."""

  def __init__(self, name):
    self.name, self.facts = name, FACTS[name]
    self.kernel = attention.build(name, grid=GRID, prefix=PREFIX)
    self.params = parameters(self.kernel, *arrays())
    self.call = functools.partial(self.kernel.apply, self.params)
    self.run = jax.jit(self.call)

  def skip_unless_honours(self, array):
    if not base.honours(self.kernel, array):
      pytest.skip(f'{self.name} does not honour {array}')


@pytest.fixture(scope='module', params=sorted(attention.ATTENTIONS))
def built(request):
  return Built(request.param)


def test_every_attention_has_its_facts_stated():
  assert set(FACTS) == set(attention.ATTENTIONS)


def test_the_output_has_the_queries_length_and_the_values_width(built):
  q, k, v = arrays(width=6)
  assert built.run(q, k, v).shape == (B, N, H, 6)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_the_dtype_that_goes_in_comes_out(built, dtype):
  out = jax.eval_shape(built.call, *arrays(dtype=dtype))
  assert out.dtype == dtype


def test_jit_equals_no_jit(built):
  q, k, v = arrays()
  np.testing.assert_allclose(built.run(q, k, v), built.call(q, k, v), atol=1e-6)


def test_the_limit_equals_softmax(built):
  kernel = attention.build(
    built.facts.equals_softmax, grid=GRID, prefix=PREFIX
  )
  q, k, v = arrays()
  exact = np.stack([
    [dense_softmax(q[b, :, h], k[b, :, h]) @ v[b, :, h] for h in range(H)]
    for b in range(B)
  ]).swapaxes(1, 2)
  out = kernel.apply(parameters(kernel, q, k, v), q, k, v)
  np.testing.assert_allclose(out, exact, atol=1e-5)


def test_the_identity_probe_equals_the_dense_map_in_float64(built):
  q, k, _ = arrays()
  eye = jnp.broadcast_to(jnp.eye(N)[None, :, None], (B, N, H, N))
  found = np.asarray(built.run(q, k, eye))  # [B N H M]
  if built.facts.row_sum is not None:
    np.testing.assert_allclose(found.sum(-1), built.facts.row_sum, atol=1e-6)
  wide = lambda x: np.asarray(x, np.float64)  # noqa: E731
  for b in range(B):
    for h in range(H):
      np.testing.assert_allclose(
        found[b, :, h],
        built.facts.dense(wide(q[b, :, h]), wide(k[b, :, h])),
        atol=1e-6,
      )


def test_the_output_is_linear_in_the_values(built):
  if not built.kernel.linear_in_values:
    pytest.skip('declared as not linear')
  q, k, v = arrays()
  _, _, w = arrays(seed=1)
  np.testing.assert_allclose(
    built.run(q, k, 2 * v - w),
    2 * built.run(q, k, v) - built.run(q, k, w),
    atol=1e-5,
  )
  assert not np.any(built.run(q, k, 0 * v))


def test_gradients_are_finite_and_reach_queries_keys_and_values(built):
  qkv = arrays()
  value = lambda *qkv: jnp.sum(built.call(*qkv) ** 2)  # noqa: E731
  for gradient in jax.jit(jax.grad(value, argnums=(0, 1, 2)))(*qkv):
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 1e-4


def test_gradients_equal_finite_differences(built):
  check_grads(built.run, arrays(), order=1, modes='rev', atol=2e-2, rtol=2e-2)


def test_an_example_does_not_influence_the_others(built):
  q, k, v = arrays()
  out = built.run(q, k, v)
  other = built.run(*(x.at[1].add(1.0) for x in (q, k, v)))
  np.testing.assert_array_equal(out[0], other[0])
  assert np.abs(out[1] - other[1]).max() > 1e-3


def test_one_token_attends_to_itself(built):
  q, k, v = arrays(n=1)
  kernel = attention.build(built.name)
  out = kernel.apply(parameters(kernel, q, k, v), q, k, v)
  np.testing.assert_allclose(out, v, atol=1e-6)


@pytest.mark.parametrize('length', [2, 7, 16])
def test_default_options_take_any_length(built, length):
  qkv = arrays(n=length)
  kernel = attention.build(built.name)
  out = jax.eval_shape(
    lambda *a: kernel.init_with_output(jax.random.key(0), *a)[0], *qkv
  )
  assert out.shape == (B, length, H, D)


def test_evaluation_needs_no_randomness(built):
  with jax.checking_leaks():
    jaxpr = str(jax.make_jaxpr(built.call)(*arrays()))
  assert 'random' not in jaxpr


MASK = np.ones((B, N), bool)
MASK[0, [0, 5, 12]] = MASK[1, 6:] = False


def test_masked_keys_have_exactly_no_influence(built):
  built.skip_unless_honours('key_mask')
  q, k, v = arrays()
  _, other_k, other_v = arrays(seed=1)
  mask = jnp.asarray(MASK)
  keep = mask[:, :, None, None]

  @jax.jit
  def run(q, k, v):
    call = lambda *a: jnp.sum(built.call(*a, key_mask=mask) ** 2)  # noqa: E731
    return built.call(q, k, v, key_mask=mask), jax.grad(call, (0, 1, 2))(
      q, k, v
    )

  out, gradients = run(q, k, v)
  changed, changed_gradients = run(
    q, jnp.where(keep, k, 1e4 * other_k), jnp.where(keep, v, 1e4 * other_v)
  )
  np.testing.assert_array_equal(out, changed)
  for a, b in zip(gradients, changed_gradients, strict=True):
    np.testing.assert_array_equal(a, b)
    assert np.isfinite(a).all()
  for gradient in gradients[1:]:
    assert not np.any(np.asarray(gradient)[~MASK])
    assert np.abs(np.asarray(gradient)[MASK]).min(-1).max() > 1e-5
  assert np.abs(out - built.run(q, k, v)).max() > 1e-3


def test_padding_with_masked_keys_changes_nothing(built):
  built.skip_unless_honours('key_mask')
  q, k, v = arrays()
  kernel = attention.build(built.name)
  params = parameters(kernel, q, k, v)
  pad = lambda x: jnp.pad(  # noqa: E731
    x, ((0, 0), (0, 3), (0, 0), (0, 0)), constant_values=7.0
  )
  mask = jnp.broadcast_to((jnp.arange(N + 3) < N)[None], (B, N + 3))
  np.testing.assert_allclose(
    kernel.apply(params, pad(q), pad(k), pad(v), key_mask=mask)[:, :N],
    kernel.apply(params, q, k, v),
    atol=1e-6,
  )


@pytest.mark.parametrize('array', ['key_mask', 'mask'])
def test_queries_without_a_key_get_zeros_and_finite_gradients(built, array):
  built.skip_unless_honours(array)
  q, k, v = arrays()
  if array == 'key_mask':
    mask = jnp.asarray(MASK & np.array([[False], [True]]))
    empty = np.zeros((B, N), bool)
    empty[0] = True
  else:
    mask = np.ones((1, 1, N, N), bool)
    mask[..., 3, :] = False
    mask, empty = jnp.asarray(mask), np.arange(N)[None].repeat(B, 0) == 3

  @jax.jit
  def run(q, k, v):
    def value(q, k, v):
      out = built.call(q, k, v, **{array: mask})
      return jnp.sum((out + 1) ** 2), out

    return jax.grad(value, (0, 1, 2), has_aux=True)(q, k, v)

  gradients, out = run(q, k, v)
  assert not np.any(np.asarray(out)[empty])
  assert np.abs(np.asarray(out)[~empty]).min() > 0
  for gradient in gradients:
    assert np.isfinite(gradient).all()
  assert not np.any(np.asarray(gradients[0])[empty])


def test_a_mask_of_pairs_keeps_exactly_its_pairs(built):
  built.skip_unless_honours('mask')
  q, k, _ = arrays()
  rng = np.random.default_rng(3)
  mask = rng.random((B, 1, N, N)) < 0.5
  eye = jnp.broadcast_to(jnp.eye(N)[None, :, None], (B, N, H, N))
  found = built.run(q, k, eye, mask=jnp.asarray(mask)).swapaxes(1, 2)
  np.testing.assert_array_equal(
    np.asarray(found) > 0, np.broadcast_to(mask, found.shape)
  )


def test_a_bias_is_added_to_the_logits_with_gradients(built):
  built.skip_unless_honours('bias')
  q, k, v = arrays()
  rng = np.random.default_rng(4)
  bias = jnp.asarray(rng.standard_normal((1, H, N, N)), jnp.float32)
  # A bias that is the same for all keys shifts every row: nothing changes.
  np.testing.assert_allclose(
    built.run(q, k, v, bias=bias[..., :1] * jnp.ones((1, 1, 1, N))),
    built.run(q, k, v),
    atol=1e-5,
  )
  check_grads(
    jax.jit(lambda bias: built.call(q, k, v, bias=bias)), (bias,),
    order=1, modes='rev', atol=2e-2, rtol=2e-2,
  )  # fmt: skip


@pytest.mark.parametrize('array', base.OPTIONAL_ARRAYS)
def test_an_array_that_is_not_honoured_raises_and_names_who_does(built, array):
  q, k, v = arrays()
  given = {
    'key_mask': jnp.ones((B, N), bool),
    'mask': jnp.ones((1, 1, N, N), bool),
    'bias': jnp.zeros((1, H, N, N)),
    'positions': jnp.zeros((B, N), int),
    'segments': jnp.zeros((B, N), int),
    'x': jnp.zeros((B, N, 8)),
  }

  def call(q, k, v):
    kernel = built.kernel.clone(parent=None)
    bound = kernel.bind(built.params)
    return attention.attend_with(bound, q, k, v, **{array: given[array]})

  if base.honours(built.kernel, array) or array == 'x':
    assert jax.eval_shape(call, q, k, v).shape == (B, N, H, D)
  else:
    with pytest.raises(ValueError, match=f'does not honour {array}=; these do'):
      call(q, k, v)


class Plain(attention.Attention):
  """An attention that honours no array: the mean of the values."""

  @nn.compact
  def __call__(self, q, k, v, *, train=False):
    return jnp.broadcast_to(
      v.mean(axis=1, keepdims=True), (*q.shape[:3], v.shape[-1])
    )


@pytest.mark.parametrize('array', ['key_mask', 'mask', 'bias', 'segments'])
def test_a_kernel_that_would_ignore_an_array_refuses_it(array):
  q, k, v = arrays()
  able = '.*Softmax' if array in ('key_mask', 'mask', 'bias') else ''
  with pytest.raises(
    ValueError, match=f'Plain does not honour {array}=; these do: {able}'
  ):
    attention.attend_with(Plain(), q, k, v, **{array: jnp.ones(1)})


def test_an_array_that_no_attention_knows_is_refused():
  with pytest.raises(ValueError, match="'maks'; choices: key_mask, mask, bias"):
    attention.attend_with(Plain(), *arrays(), maks=None)


def test_an_absent_array_is_not_refused():
  out = attention.attend_with(
    Plain().bind({}), *arrays(), mask=None, segments=None
  )
  assert out.shape == (B, N, H, D)


# Specs.


def test_layers_repeat_the_specs_over_the_depth():
  found = attention.layers('softmax, softmax(causal=True)', 5)
  assert [f.keywords['attend'].keywords for f in found] == [
    {}, {'causal': True}, {}, {'causal': True}, {},
  ]  # fmt: skip
  assert all(
    f.func is attention.MultiHeadDotProductAttention
    and f.keywords['attend'].func is attention.Softmax
    for f in found
  )


def test_layers_take_a_class_for_all_layers():
  assert attention.layers(Plain, 3) == [Plain] * 3


@pytest.mark.parametrize('spec', ['', 'softmax, softmax, softmax'])
def test_layers_need_one_to_as_many_specs_as_there_are(spec):
  with pytest.raises(ValueError, match='for 2 layers; give 1 to 2'):
    attention.layers(spec, 2)


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('sofmax', "unknown attention 'sofmax'; did you mean 'softmax'"),
    ('softmax(casual=True)', "'casual'.*did you mean 'causal'"),
    ('softmax(parent=None)', "no option 'parent'"),
    ('softmax(True)', 'write the options'),
  ],
)
def test_a_wrong_spec_names_the_choices(spec, message):
  with pytest.raises(ValueError, match=message):
    attention.build(spec)
  with pytest.raises(ValueError, match=message):
    attention.layers(spec, 1)


def test_build_sets_the_layout_and_the_options():
  kernel = attention.build('softmax(causal=True)', grid=(2, 3), prefix=4)
  assert isinstance(kernel, attention.Softmax)
  assert (kernel.causal, kernel.grid, kernel.prefix) == (True, (2, 3), 4)


# The projections around every attention.


def random_like(shapes, seed=5):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda s: jnp.asarray(0.5 * rng.standard_normal(s.shape), s.dtype), shapes
  )


@pytest.mark.parametrize('normalize', [False, True])
def test_the_projections_equal_linens_with_the_same_parameters(normalize):
  rng = np.random.default_rng(6)
  x, y = (
    jnp.asarray(rng.standard_normal(s), jnp.float32)
    for s in ((2, 5, 12), (2, 7, 8))
  )
  ours = attention.MultiHeadDotProductAttention(
    3, attention.Softmax, normalize_qk=normalize
  )
  linen = nn.MultiHeadDotProductAttention(3, normalize_qk=normalize)
  mask = jnp.asarray(rng.random((2, 1, 5, 7)) < 0.7).at[..., 0].set(True)
  shapes = jax.eval_shape(linen.init, jax.random.key(0), x, y)
  assert jax.tree.map(lambda s: s.shape, shapes) == jax.tree.map(
    lambda s: s.shape, jax.eval_shape(ours.init, jax.random.key(0), x, y)
  )
  params = random_like(shapes)
  np.testing.assert_allclose(
    ours.apply(params, x, y, mask=mask),
    linen.apply(params, x, y, mask=mask),
    atol=1e-5,
  )


def test_without_biases_only_the_output_keeps_one():
  layer = attention.MultiHeadDotProductAttention(
    2, attention.Softmax, use_bias=False
  )
  shapes = jax.eval_shape(
    layer.init, jax.random.key(0), jnp.zeros((1, 3, 8))
  )['params']
  assert {k for k, v in shapes.items() if 'bias' in v} == {'out'}


def test_a_width_that_heads_do_not_divide_is_an_error():
  layer = attention.MultiHeadDotProductAttention(3, attention.Softmax)
  with pytest.raises(ValueError, match='width 8 .*num_heads=3'):
    layer.init(jax.random.key(0), jnp.zeros((1, 3, 8)))


def test_dropout_of_weights_is_refused_by_a_kernel_without_it():
  layer = attention.MultiHeadDotProductAttention(2, Plain, dropout_rate=0.1)
  with pytest.raises(ValueError, match=r'Plain has no dropout.*given 0\.1'):
    layer.init(jax.random.key(0), jnp.zeros((1, 3, 8)))


def test_the_kernel_gets_the_layout_and_the_layers_input():
  seen = {}

  class Curious(attention.Attention):
    @nn.compact
    def __call__(self, q, k, v, *, x, train=False):
      seen.update(grid=self.grid, prefix=self.prefix, x=x, train=train)
      self.param('own', nn.initializers.zeros, (1,))
      return v

  layer = attention.MultiHeadDotProductAttention(
    2, Curious, grid=(1, 2), prefix=1
  )
  x = jnp.ones((1, 3, 8))
  variables = layer.init(jax.random.key(0), x, train=True)
  assert (seen['grid'], seen['prefix'], seen['train']) == ((1, 2), 1, True)
  assert seen['x'] is x
  assert list(variables['params']['attend']) == ['own']
