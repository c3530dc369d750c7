"""The contract over both tables; specs; the projections around a kernel."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import contract
from attention.contract import B, D, H, N, arrays
from attention.oracles import FACTS
from vit_jax import attention

ENTRIES = sorted(attention.ATTENTIONS | attention.MIXERS)


@pytest.fixture(scope='module', params=ENTRIES)
def built(request):
  yield contract.Built(request.param)
  jax.clear_caches()  # compiled programs of 64 entries take gigabytes


def test_every_entry_has_an_oracle_and_a_limit():
  assert set(FACTS) == set(ENTRIES)
  assert all(facts.limits for facts in FACTS.values())
  assert not set(attention.ATTENTIONS) & set(attention.MIXERS)


# Operation by operation, every entry takes seconds: CI compares them, and with
# XLA's optimisations, among which a fault once was. A thousand draws with
# dropout are CI's too.
SLOW = ('check_jit', 'check_dropout')


@pytest.mark.parametrize(
  'check', [
    pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW))
    for name in sorted(contract.CHECKS)
  ],
)  # fmt: skip
def test_contract(built, check):
  contract.CHECKS[check](built)


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
