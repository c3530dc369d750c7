"""ConViT: where the class token joins, how it starts, what it refuses."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from vit_jax import layers, models
from vit_jax.pretrained import convit as folders

TINY = {
  'patch_size': 4, 'hidden_size': 8, 'num_layers': 2, 'num_heads': 4,
  'mlp_dim': 12, 'num_class_layers': 1, 'image_size': 12, 'num_classes': 3,
}  # fmt: skip
SLOT = 'MultiHeadDotProductAttention_0'


def build(**fields):
  return models.build('convit', **{**TINY, **fields})


def shapes_of(model):
  images = jax.ShapeDtypeStruct((1, 12, 12, 3), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), images)['params']


def jittered(shapes):
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda s: jnp.asarray(0.5 * rng.standard_normal(s.shape), s.dtype), shapes
  )


def test_the_class_token_joins_after_the_local_blocks():
  model = build(feature_layers=(0, 1, 2))
  params = jittered(shapes_of(model))
  rng = np.random.default_rng(1)
  images = jnp.asarray(rng.standard_normal((1, 12, 16, 3)), jnp.float32)

  @jax.jit
  def run(params):
    variables = {'params': params}
    maps = model.apply(variables, images, method='features')
    return maps, model.apply(variables, images)

  maps, logits = run(params)
  assert [m.shape for m in maps] == [(1, 3, 4, 8)] * 3
  other, changed = run({**params, 'cls': -params['cls']})
  same = [np.array_equal(a, b) for a, b in zip(maps, other, strict=True)]
  assert same == [True, True, False]
  assert np.abs(logits - changed).max() > 1e-3
  # Softmax is unchanged by the bias that the authors give all offsets.
  flat = traverse_util.flatten_dict(params, sep='/')
  biases = [n for n in flat if n.endswith('attend/bias')]
  assert len(biases) == 2
  moved = {**flat, **{n: flat[n] + 3 for n in biases}}
  _, again = run(traverse_util.unflatten_dict(moved, sep='/'))
  np.testing.assert_allclose(again, logits, atol=1e-5)


def test_heads_begin_as_the_shifts_of_a_convolution():
  model = build(
    num_layers=1, hidden_size=18, num_heads=9,
    attention='gpsa(use_bias=True, strength=50.0, gate=50.0)',
  )  # fmt: skip

  @jax.jit
  def start(key):
    return model.init(key, jnp.zeros((1, 12, 12, 3)))['params']

  params = start(jax.random.key(0))
  block = params['Transformer']['encoderblock_0'][SLOT]
  kernel = block['value']['kernel']  # [C H D]
  np.testing.assert_array_equal(kernel.reshape(18, 18), np.eye(18))
  last = params['Transformer']['encoderblock_1'][SLOT]['value']['kernel']
  for x in (block['query']['kernel'], last):
    assert abs(x.std() - 0.02) < 0.02 * 3 / np.sqrt(2 * x.size)
  w, gate = block['attend']['positions'], block['attend']['gate']
  np.testing.assert_array_equal(gate, 50.0)
  # Each head prefers another of the cells around the query.
  cells = [(x, y) for y in (-1, 0, 1) for x in (-1, 0, 1)]
  seen = {
    max(cells, key=lambda c: w[h] @ np.array([*c, c[0] ** 2 + c[1] ** 2]))
    for h in range(9)
  }
  assert seen == set(cells)


def test_variants_start_with_half_open_gates():
  model = models.build('convit', variant='Ti/16', num_classes=3)
  assert model.attention == 'gpsa(use_bias=True)'
  assert (model.num_layers, model.num_class_layers) == (10, 2)


def test_the_drop_path_rate_grows_linearly_over_all_blocks():
  rates = []

  def spy(run, args, kwargs, context):
    if isinstance(context.module, layers.DropPath):
      rates.append((context.module.path[1], context.module.rate))
    return run(*args, **kwargs)

  with nn.intercept_methods(spy):
    shapes_of(build(drop_path_rate=0.4))
  assert rates == [
    (f'encoderblock_{i}', pytest.approx(0.2 * i))
    for i in range(3) for _ in range(2)
  ]  # fmt: skip


def test_any_attention_is_one_word_on_either_side_of_the_class_token():
  names = {
    '/'.join(path[1:-1])
    for path in traverse_util.flatten_dict(
      shapes_of(build(attention='softmax, xca', class_attention='gpsa'))
    )
    if 'attend' in path
  }
  assert names == {
    f'encoderblock_{i}/{SLOT}/attend' for i in (1, 2)
  }


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'classifier': 'map'}, "classifier='map'; choices: token, gap"),
    ({'num_layers': 0}, 'num_layers=0 must be at least 1.* before the class'),
    ({'num_class_layers': 0}, 'num_class_layers=0 must .* with the class'),
    ({'num_heads': 3}, 'width 8 is not divisible by num_heads=3'),
    ({'feature_layers': (3,)}, 'no block 3: the encoder has blocks 0 to 2'),
    ({'attention': 'gpsa(strenth=2)'}, "'strenth'.*did you mean 'strength'"),
  ],
)
def test_a_wrong_field_is_an_error_with_the_constraint(fields, message):
  model = build(**fields)
  images = jax.ShapeDtypeStruct((1, 12, 12, 3), jnp.float32)
  init = functools.partial(model.init, method='features')
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(init, jax.random.key(0), images)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'image_size': (12, 16)}, r'\(12, 16\).* square images'),
    ({'attention': 'softmax'}, "attention='softmax' .*'gpsa"),
    ({'class_attention': 'linear'}, "class_attention='linear' .*'softmax'"),
  ],
)
def test_timm_has_no_place_for_some_fields(fields, message):
  with pytest.raises(ValueError, match=message):
    folders.write(build(**fields))


def folder(**changes):
  """What a reader gets of a folder; None leaves an array out."""
  shapes = {
    'patch_embed.proj.weight': (16, 3, 4, 4), 'head.weight': (3, 16),
    'pos_embed': (1, 9, 16), 'blocks.0.attn.gating_param': (4,),
    'blocks.0.mlp.fc1.weight': (64, 16), 'blocks.1.norm1.weight': (16,),
    **changes,
  }  # fmt: skip
  return {k: np.zeros(s) for k, s in shapes.items() if s is not None}


@pytest.mark.parametrize(
  ('args', 'changes', 'message'),
  [
    ({'depth': 3}, {}, 'depth is 3, by its arrays 2'),
    ({'embed_dim': 16}, {}, 'embed_dim is 16, by its arrays 4'),
    ({'local_up_to_layer': 2}, {}, 'local_up_to_layer is 2, by its arrays 1'),
    ({'qkv_bias': True}, {}, 'qkv_bias is True, by its arrays False'),
    ({'use_pos_embed': False}, {}, 'use_pos_embed is False, by its arrays'),
    ({'mlp_ratio': 2}, {}, 'mlp_ratio=2 of a width of 16'),
    ({'hybrid_backbone': 'x'}, {}, "hybrid_backbone='x' .* may be None"),
    ({'size': 3}, {}, "size=3 in model_args is not known; .*'img_size'"),
    (
      {}, {'blocks.1.attn.gating_param': (4,)},
      r'of 2 blocks those with a gating_param are \[0, 1\]; .* not all',
    ),
    (
      {}, {'blocks.0.attn.gating_param': None}, r'gating_param are \[\]',
    ),
    (
      {}, {'blocks.0.attn.gating_param': (3,)}, 'num_heads=3 does not divide',
    ),
    ({}, {'pos_embed': (1, 8, 16)}, 'for 8 patches; images of 12×12'),
  ],
)  # fmt: skip
def test_a_folder_that_contradicts_itself_is_refused(args, changes, message):
  args = {
    'embed_dim': 4, 'depth': 2, 'local_up_to_layer': 1, 'patch_size': 4, **args
  }  # fmt: skip
  with pytest.raises(ValueError, match=message):
    folders.read('here', 'convit_tiny', args, (12, 12), folder(**changes))
  with pytest.raises(ValueError, match=r'\(12, 16\); .* square images'):
    folders.read('here', 'convit_tiny', {}, (12, 16), folder())
