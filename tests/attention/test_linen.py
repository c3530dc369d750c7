"""Every attention as the attention_fn of flax.linen's own layer."""

import functools
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import attention
from vit_jax.attention import as_attention_fn


def inputs(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def jittered(model, *args, **kwargs):
  init = functools.partial(model.init, **kwargs)
  shapes = jax.eval_shape(init, jax.random.key(0), *args)
  rng = np.random.default_rng(5)
  return jax.tree.map(
    lambda s: jnp.asarray(0.5 * rng.standard_normal(s.shape), s.dtype), shapes
  )


class Block(nn.Module):
  """Somebody's linen model, with blocks of linen's own attention layer."""

  attention_fn: object = nn.dot_product_attention
  dropout_rate: float = 0.0

  @nn.compact
  def __call__(self, x, mask=None, train=False):
    for _ in range(2):
      y = nn.LayerNorm()(x)
      x = x + nn.MultiHeadDotProductAttention(
        num_heads=2, attention_fn=self.attention_fn,
        dropout_rate=self.dropout_rate, broadcast_dropout=False,
        deterministic=not train,
      )(y, mask=mask)  # fmt: skip
    return x


def test_every_argument_of_linens_function_is_declared():
  # linen filters what a function does not declare, without a word.
  theirs = inspect.signature(nn.dot_product_attention).parameters
  ours = inspect.signature(as_attention_fn('softmax')).parameters
  assert set(theirs) <= set(ours)
  for name, parameter in theirs.items():
    assert ours[name].default == parameter.default, name


def test_softmax_in_a_linen_model_equals_linens_own():
  x = inputs(2, 6, 8)
  rng = np.random.default_rng(1)
  mask = jnp.asarray(rng.random((2, 1, 6, 6)) < 0.7).at[..., 0].set(True)
  ours, theirs = Block(as_attention_fn('softmax')), Block()
  params = jittered(theirs, x)
  assert jax.tree.structure(params) == jax.tree.structure(jittered(ours, x))

  def value_and_gradient(model):
    value = lambda p, x: jnp.sum(model.apply(p, x, mask) ** 2)  # noqa: E731
    return jax.jit(jax.value_and_grad(value, (0, 1)))(params, x)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    value_and_gradient(ours),
    value_and_gradient(theirs),
  )


def test_parameters_and_state_of_the_kernel_are_under_attend():
  x = inputs(2, 6, 8)
  model = Block(as_attention_fn('performer(features=8)'))
  variables = jax.eval_shape(model.init, jax.random.key(0), x)
  model = Block(as_attention_fn('cosine', position='relative_bias'))
  params = jittered(model, x)['params']['MultiHeadDotProductAttention_1']
  assert params['attend']['log_scale'].shape == (2,)
  assert params['position']['table'].shape == (1, 11, 2)
  performer = {
    name
    for collection in variables.values()
    for layer in collection.values()
    for name in layer
  }
  assert 'attend' in performer


def test_the_kernels_parameters_get_gradients():
  x = inputs(2, 6, 8)
  model = Block(as_attention_fn('talking_heads', position='relative_bias'))
  params = jittered(model, x)

  @jax.jit
  def gradient(params):
    return jax.grad(lambda p: jnp.sum(model.apply(p, x) ** 2))(params)

  layer = gradient(params)['params']['MultiHeadDotProductAttention_0']
  for leaf in jax.tree.leaves([layer['attend'], layer['position']]):
    assert np.abs(leaf).max() > 1e-5


def test_a_mask_of_keys_alone_is_honoured_by_kernels_with_a_key_mask():
  x = inputs(2, 6, 8)
  kept = jnp.asarray([[True] * 4 + [False] * 2, [True] * 6])
  # linen's own helper makes it of floats.
  mask = nn.make_attention_mask(jnp.ones((2, 1)), kept)
  assert mask.shape == (2, 1, 1, 6)
  for spec in ('linear', 'softmax'):
    model = Block(as_attention_fn(spec))
    params = jittered(model, x)
    run = jax.jit(model.apply)
    short = run(params, x[:1, :4])
    np.testing.assert_allclose(
      run(params, x, mask)[:1, :4], short, atol=1e-5
    )
    assert np.abs(run(params, x)[:1, :4] - short).max() > 1e-3


def test_batch_axes_are_as_many_as_linen_allows():
  layer = nn.MultiHeadDotProductAttention(
    2, attention_fn=as_attention_fn('softmax')
  )
  theirs = nn.MultiHeadDotProductAttention(2)
  x = inputs(2, 3, 5, 8)
  params = jittered(theirs, x)
  mask = jnp.asarray(np.random.default_rng(2).random((2, 3, 1, 5, 5)) < 0.8)
  mask = mask.at[..., 0].set(True)
  for y, m in (
    (x, None), (x, mask), (x[0, 0], mask[0, 0]), (x, mask[:1, :1]),
    (x, mask[..., :1, :]),
  ):  # fmt: skip
    np.testing.assert_allclose(
      layer.apply(params, y, mask=m), theirs.apply(params, y, mask=m),
      atol=1e-5,
    )  # fmt: skip


def test_linens_own_decoding_runs_with_ours():
  x = inputs(2, 5, 8)
  ours, theirs = (
    nn.MultiHeadDotProductAttention(2, attention_fn=fn, decode=True)
    for fn in (as_attention_fn('softmax'), nn.dot_product_attention)
  )
  variables = jittered(theirs, x)
  empty = jax.tree.map(jnp.zeros_like, variables['cache'])
  caches = [empty, empty]
  for t in range(3):
    outs = []
    for i, model in enumerate((ours, theirs)):
      out, changed = model.apply(
        {'params': variables['params'], 'cache': caches[i]},
        x[:, t : t + 1], mutable=['cache'],
      )  # fmt: skip
      caches[i] = changed['cache']
      outs.append(out)
    np.testing.assert_allclose(*outs, atol=1e-5)


def test_dropout_is_of_the_key_that_the_layer_was_given():
  x = inputs(2, 6, 8)
  layer = nn.MultiHeadDotProductAttention(
    2, attention_fn=as_attention_fn('softmax'), dropout_rate=0.5,
    broadcast_dropout=False,
  )  # fmt: skip
  params = jittered(layer, x, deterministic=True)
  run = jax.jit(
    lambda key, **kw: layer.apply(
      params, x, deterministic=False, dropout_rng=key, **kw
    )
  )
  first, again = run(jax.random.key(1)), run(jax.random.key(1))
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - run(jax.random.key(2))).max() > 1e-3
  # The layer's own stream does not matter beside it.
  same = run(jax.random.key(1), rngs={'dropout': jax.random.key(7)})
  np.testing.assert_array_equal(first, same)
  # Without one the layer draws from its stream, and evaluation is exact.
  model = Block(as_attention_fn('softmax'), dropout_rate=0.5)
  params = jittered(model, x)
  rngs = {'dropout': jax.random.key(1)}
  drawn = model.apply(params, x, train=True, rngs=rngs)
  exact = model.apply(params, x)
  assert np.abs(drawn - exact).max() > 1e-3
  np.testing.assert_allclose(exact, Block().apply(params, x), atol=1e-5)


def test_training_mode_can_be_set_where_linen_has_no_dropout():
  x = inputs(2, 6, 8)
  run = lambda **kw: jax.eval_shape(  # noqa: E731
    functools.partial(
      Block(as_attention_fn('reattention', **kw)).init_with_output,
    ),
    jax.random.key(0), x,
  )  # fmt: skip
  variables = run()[1]
  assert 'batch_stats' in variables
  model = Block(as_attention_fn('reattention', train=True))
  variables = jax.tree.map(lambda s: jnp.ones(s.shape), variables)
  _, changed = model.apply(variables, x, mutable=['batch_stats'])
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max() > 1e-3,
    changed['batch_stats'], variables['batch_stats'],
  )  # fmt: skip
  assert all(jax.tree.leaves(moved))


def test_half_precision_is_linens():
  x = inputs(2, 6, 8)
  for fn in (as_attention_fn('softmax'), nn.dot_product_attention):
    layer = nn.MultiHeadDotProductAttention(
      2, attention_fn=fn, dtype=jnp.bfloat16
    )
    out, _ = jax.eval_shape(layer.init_with_output, jax.random.key(0), x)
    assert out.dtype == jnp.bfloat16


@pytest.mark.parametrize(
  ('spec', 'fields', 'given', 'message'),
  [
    ('linear', {}, {'mask': jnp.ones((1, 1, 5, 5), bool)},
     'Linear does not honour mask=; these do: .*Softmax'),
    ('linear', {'dropout_rate': 0.1}, {},
     r'Linear has no dropout .*0\.1.*these have: .*Softmax'),
    ('softmax', {'dropout_rate': 0.1},
     {'deterministic': False, 'dropout_rng': jax.random.key(0)},
     'broadcast_dropout=False'),
    ('softmax', {'precision': jax.lax.Precision.HIGHEST}, {},
     'precision=.* no effect'),
    ('softmax', {}, {'sow_weights': True}, r'sow_weights=True.*probe'),
    ('softmax',
     {'qk_attn_weights_einsum_cls': lambda: jnp.einsum,
      'attn_weights_value_einsum_cls': lambda: jnp.einsum}, {},
     'qk_attn_weights_einsum='),
  ],
)  # fmt: skip
def test_what_the_kernel_cannot_honour_is_an_error(
  spec, fields, given, message
):
  layer = nn.MultiHeadDotProductAttention(
    2, attention_fn=as_attention_fn(spec), **{'deterministic': True, **fields}
  )
  if 'deterministic' in given:
    layer = layer.clone(deterministic=None)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(
      lambda x: layer.init(jax.random.key(0), x, **given), inputs(1, 5, 8)
    )


def test_a_bias_is_refused_by_kernels_without_logits():
  class Biased(nn.Module):
    @nn.compact
    def __call__(self, x, spec):
      return as_attention_fn(spec)(x, x, x, bias=jnp.zeros((1, 1, 5, 5)))

  x = inputs(1, 5, 2, 4)
  run = lambda spec: jax.eval_shape(  # noqa: E731
    lambda x: Biased().init_with_output(jax.random.key(0), x, spec)[0], x
  )
  assert run('softmax').shape == x.shape
  with pytest.raises(ValueError, match='not honour bias=; these do: .*Softmax'):
    run('linear')


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    (sorted(attention.MIXERS)[0], 'a whole layer x → x'),
    ('softmaxx', "did you mean 'softmax'"),
    ('softmax(size=3)', "no option 'size'"),
    ('softmax, linear', 'expected one attention, got 2'),
    ('gated', "Gated reads its layer's input, which flax.linen does not"),
  ],
)
def test_a_spec_that_cannot_be_an_attention_fn_is_an_error(spec, message):
  with pytest.raises(ValueError, match=message):
    as_attention_fn(spec)
