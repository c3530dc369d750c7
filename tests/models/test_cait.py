"""CaiT: blocks of patches, then blocks of the class token alone."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from scipy import special

from vit_jax import models, optimizers
from vit_jax.models.cait import ClassBlock
from vit_jax.models.encoder import Encoder1DBlock

TINY = {
  'patch_size': 4, 'hidden_size': 8, 'num_layers': 2, 'num_heads': 2,
  'mlp_dim': 12, 'image_size': (8, 12), 'num_classes': 5,
}  # fmt: skip


def build(**fields):
  return models.build('cait', **{**TINY, **fields})


def norm(x, p):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
  return x * p['scale'] + p['bias']


def test_a_class_block_changes_the_class_token_by_what_it_sees():
  rng = np.random.default_rng(0)
  block = ClassBlock(12, 2, 0.1)
  c, x = (rng.standard_normal((3, n, 8)).astype(np.float32) for n in (1, 5))
  shapes = jax.eval_shape(block.init, jax.random.key(0), c, x)
  variables = jax.tree.map(
    lambda s: rng.standard_normal(s.shape).astype(np.float32), shapes
  )
  found = jax.jit(block.apply)(variables, c, x)
  p = jax.tree.map(lambda a: a.astype(np.float64), variables['params'])
  a = p['MultiHeadDotProductAttention_0']
  dense = lambda x, p: x @ p['kernel'] + p['bias']  # noqa: E731
  for b in range(3):
    z = norm(np.concatenate([c[b], x[b]]), p['LayerNorm_0'])
    out = a['out']['bias']
    for h in range(2):
      q, k, v = (
        y @ a[n]['kernel'][:, h] + a[n]['bias'][h]
        for n, y in (('query', z[:1]), ('key', z), ('value', z))
      )
      seen = special.softmax(q @ k.T / 2.0, axis=1) @ v
      out = out + seen @ a['out']['kernel'][h]
    y = c[b] + p['LayerScale_0']['scale'] * out
    hidden = dense(norm(y, p['LayerNorm_1']), p['MlpBlock_0']['Dense_0'])
    hidden = hidden * special.ndtr(hidden)  # GELU
    y = y + p['LayerScale_1']['scale'] * dense(
      hidden, p['MlpBlock_0']['Dense_1']
    )
    np.testing.assert_allclose(found[b], y, atol=2e-5)


def test_patches_see_no_class_token_and_pass_the_last_norm():
  model = build()
  rng = np.random.default_rng(1)
  images = jnp.asarray(rng.uniform(-1, 1, (2, 8, 12, 3)), jnp.float32)
  variables = jax.tree.map(
    lambda s: jnp.asarray(rng.standard_normal(s.shape), s.dtype),
    jax.eval_shape(model.init, jax.random.key(0), images),
  )

  @jax.jit
  def run(variables):
    tokens, grid = model.apply(variables, images, method='embed')
    return model.apply(
      variables, tokens, grid, collect=(0, 1), method='encode'
    )

  other = {'params': {**variables['params'], 'cls': jnp.ones((1, 1, 8))}}
  (x, blocks), (y, same) = run(variables), run(other)
  assert x.shape == (2, 7, 8)
  np.testing.assert_array_equal(blocks, same)
  assert np.abs(x[:, 0] - y[:, 0]).max() > 0.1
  np.testing.assert_allclose(x[:, 1:], blocks[-1], atol=1e-6)


def test_drop_path_is_the_same_in_every_block_and_none_in_class_blocks():
  rates, model = [], build(num_layers=3, drop_path_rate=0.3)
  images = jnp.zeros((1, 8, 12, 3))

  def watch(next_fun, args, kwargs, context):
    module = context.module
    if isinstance(module, Encoder1DBlock) and context.method_name == '__call__':
      rates.append(module.drop_path_rate)
    return next_fun(*args, **kwargs)

  with nn.intercept_methods(watch):
    jax.eval_shape(model.init, jax.random.key(0), images)
  assert rates == [0.3] * 3
  assert 'drop_path_rate' not in ClassBlock.__dataclass_fields__


def test_it_starts_as_published():
  model = build(hidden_size=64, mlp_dim=128, num_heads=32)

  @jax.jit
  def some(key):
    params = model.init(key, jnp.zeros((1, 8, 12, 3)))['params']
    block = params['Transformer']['encoderblock_1']
    last = params['class_block_3']
    slot = 'MultiHeadDotProductAttention_0'
    return (
      {
        'cls': params['cls'],
        'positions': params['Transformer']['posembed_input'],
        'query': block[slot]['query']['kernel'],
        'before': block[slot]['attend']['logits_kernel'],
        'after': block[slot]['attend']['weights_kernel'],
        'class query': last[slot]['query']['kernel'],
        'class mlp': last['MlpBlock_0']['Dense_1']['kernel'],
        'head': params['head']['kernel'],
      },
      [
        block[slot]['attend']['logits_bias'], block[slot]['value']['bias'],
        block['MlpBlock_0']['Dense_0']['bias'], last[slot]['out']['bias'],
      ],
      [
        b[f'LayerScale_{i}']['scale'] for b in (block, last) for i in range(2)
      ],
    )  # fmt: skip

  drawn, zeros, scales = some(jax.random.key(0))
  for name, found in drawn.items():
    found = np.concatenate([x.ravel() for x in jax.tree.leaves(found)])
    # Three standard errors of a deviation.
    assert abs(found.std() - 0.02) < 0.02 * 3 / np.sqrt(2 * found.size), name
  assert not any(np.any(x) for x in zeros)
  for scale in scales:
    np.testing.assert_array_equal(scale, np.float32(1e-5))


def test_depth_decides_where_layer_scale_starts():
  starts = {n: row['layer_scale'] for n, row in models.CaiT.VARIANTS.items()}
  assert starts == {
    'XXS24': 1e-5, 'XXS36': 1e-5, 'XS24': 1e-5, 'S24': 1e-5, 'S36': 1e-6,
    'M36': 1e-6, 'M48': 1e-6,
  }  # fmt: skip


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'classifier': 'map'}, "classifier='map'; choices: token, gap"),
    ({'attention': 'talking'}, "'talking'; did you mean 'talking_heads'"),
    (
      {'attention': "talking_heads(start='ones')"},
      "unknown start 'ones'; .*choices: identity, normal, uniform",
    ),
    ({'feature_layers': (2,)}, 'no block 2: the encoder has blocks 0 to 1'),
  ],
)
def test_a_wrong_field_is_an_error_with_the_choices(fields, message):
  images = jax.ShapeDtypeStruct((1, 8, 12, 3), jnp.float32)
  init = functools.partial(build(**fields).init, method='features')
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(init, jax.random.key(0), images)


def test_layer_decay_counts_class_blocks_after_the_trunk():
  images = jax.ShapeDtypeStruct((1, 8, 12, 3), jnp.float32)
  params = jax.eval_shape(build().init, jax.random.key(0), images)['params']
  factors = traverse_util.flatten_dict(
    optimizers.layer_factors(params, 0.5), sep='/'
  )
  found = {
    path: {v for k, v in factors.items() if k.startswith(path)}
    for path in (
      'embedding', 'cls', 'Transformer/posembed_input',
      'Transformer/encoderblock_0', 'Transformer/encoderblock_1',
      'class_block_2', 'class_block_3', 'encoder_norm', 'head',
    )
  }  # fmt: skip
  layers = [0, 0, 0, 1, 2, 3, 4, 5, 5]
  assert list(found.values()) == [{0.5 ** (5 - i)} for i in layers]
