"""TNT: words within patches, by definition and against loops."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import attention, models
from vit_jax.models.tnt import TNTBlock

TINY = {
  'patch_size': 4, 'hidden_size': 8, 'num_layers': 3, 'num_heads': 2,
  'mlp_dim': 12, 'inner_size': 4, 'inner_heads': 2, 'word_stride': 2,
  'image_size': (8, 12), 'num_classes': 5,
}  # fmt: skip
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)


def build(**fields):
  return models.build('tnt', **{**TINY, **fields})


def block_of(legacy=False):
  softmax = attention.layer('softmax')
  return TNTBlock(12, 2, softmax, 2, softmax, (2, 3), legacy)


def draw(model):
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda s: jnp.asarray(rng.standard_normal(s.shape), s.dtype),
    jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(IMAGES)),
  )


def embedded(model, variables):
  run = jax.jit(lambda v: model.apply(v, jnp.asarray(IMAGES), method='embed'))
  return run(variables)[0]


@pytest.mark.parametrize('legacy', [False, True])
def test_words_are_a_convolution_of_each_patch_and_its_positions(legacy):
  model = build(legacy=legacy)
  variables = draw(model)
  words, _ = embedded(model, variables)
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables['params'])
  kernel, at = p['word_embedding']['kernel'], p['word_positions'][0]
  assert words.shape == (2 * 6, 4, 4)
  for patch in range(12):
    image, row, column = patch // 6, patch // 3 % 2, patch % 3
    for word in range(4):
      out = p['word_embedding']['bias'] + at[word]
      for dy in range(7):
        for dx in range(7):
          # From the patch's corner, or the image's: where the window lies.
          y, x = 2 * (word // 2) + dy - 3, 2 * (word % 2) + dx - 3
          inside = 0 <= y < 4 and 0 <= x < 4
          y, x = 4 * row + y, 4 * column + x
          if legacy:
            inside = 0 <= y < 8 and 0 <= x < 12
          if inside:
            out = out + IMAGES[image, y, x] @ kernel[dy, dx]
      np.testing.assert_allclose(words[patch, word], out, atol=1e-4)


def norm(x, p):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
  return x * p['scale'] + p['bias']


@pytest.mark.parametrize('legacy', [False, True])
def test_words_join_their_patch_and_never_the_class_token(legacy):
  # Without what the inner and the outer half add, that is all a block does.
  words, x = (RNG.standard_normal(s) for s in ((12, 4, 4), (2, 7, 8)))
  block = block_of(legacy)
  both = tuple(jnp.asarray(v, jnp.float32) for v in (words, x))
  shapes = jax.eval_shape(block.init, jax.random.key(0), both)

  def one(path, s):
    if path[-2].key in ('out', 'Dense_1'):
      return jnp.zeros(s.shape)
    return jnp.asarray(RNG.standard_normal(s.shape), s.dtype)

  variables = jax.tree_util.tree_map_with_path(one, shapes)
  same, found = jax.jit(block.apply)(variables, both)
  np.testing.assert_array_equal(same, both[0])
  p = jax.tree.map(np.asarray, variables['params']['from_words'])
  assert ('bias' in p['projection']) == legacy == ('norm_after' not in p)
  for b in range(2):
    np.testing.assert_allclose(found[b, 0], x[b, 0], atol=1e-6)
    for i in range(6):
      own = words[6 * b + i]
      own = own if legacy else own.ravel()
      y = norm(own, p['norm']).ravel()
      y = y @ p['projection']['kernel']
      y = y + p['projection']['bias'] if legacy else norm(y, p['norm_after'])
      np.testing.assert_allclose(found[b, 1 + i], x[b, 1 + i] + y, atol=1e-4)


def test_words_see_their_own_patch_only():
  model = build(num_layers=1)
  variables = draw(model)
  words, x = embedded(model, variables)

  @jax.jit
  def reach(words):
    out = lambda w: model.apply(  # noqa: E731
      variables, (w, x), (2, 3), collect=(0,), method='encode'
    )[1][0].reshape(-1)
    inner = lambda w: block_of().apply(  # noqa: E731
      {'params': variables['params']['block_0']}, (w, x)
    )[0]
    moved = words.at[0, 0, 0].add(1.0)
    return inner(moved) - inner(words), out(moved) - out(words)

  of_words, of_tokens = reach(words)
  changed = np.abs(of_words).max((1, 2)) > 0
  np.testing.assert_array_equal(changed, np.arange(12) == 0)
  # Through the outer half a patch reaches all tokens of its image, no other.
  of_tokens = np.abs(of_tokens.reshape(2, 7, 8)).max(-1)
  assert (of_tokens[0] > 0).all()
  assert not of_tokens[1].any()


def test_drop_path_grows_linearly_and_words_have_none_of_their_own():
  model = build(drop_path_rate=0.4)
  rates = []

  def watch(next_fun, args, kwargs, context):
    if isinstance(context.module, TNTBlock):
      rates.append(context.module.drop_path_rate)
    return next_fun(*args, **kwargs)

  with nn.intercept_methods(watch):
    jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(IMAGES))
  assert rates == [0.0, 0.2, 0.4]


def test_it_starts_as_published():
  model = build(hidden_size=64, inner_size=16, patch_size=8, word_stride=2)
  images = jnp.zeros((1, 8, 16, 3))
  model = model.clone(image_size=(8, 16))

  @jax.jit
  def some(key):
    params = model.init(key, images)['params']
    return {
      'words': params['word_positions'],
      'patches': params['posembed_input'],
      'stem': params['embedding']['projection']['kernel'],
      'block': params['block_1']['from_words']['projection']['kernel'],
      'head': params['head']['kernel'],
      'convolution': params['word_embedding']['kernel'],
    }

  drawn = some(jax.random.key(0))
  stem = np.asarray(drawn.pop('convolution'))
  bound = 1 / np.sqrt(7 * 7 * 3)
  assert 0.98 * bound < np.abs(stem).max() <= bound
  assert stem.std() == pytest.approx(bound / np.sqrt(3), rel=0.05)
  for name, found in drawn.items():
    found = np.concatenate([x.ravel() for x in jax.tree.leaves(found)])
    assert abs(found.std() - 0.02) < 0.02 * 3 / np.sqrt(2 * found.size), name


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'classifier': 'map'}, "classifier='map'; choices: token, gap"),
    (
      {'legacy': True, 'word_stride': 3},
      'word_stride that divides patch_size=4; it is 3',
    ),
    ({'inner_heads': 3}, 'width 4 is not divisible by num_heads=3'),
    ({'inner_attention': 'windw'}, "'windw'; did you mean 'window'"),
  ],
)
def test_a_wrong_field_is_an_error_with_the_choices(fields, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(
      build(**fields).init, jax.random.key(0), jnp.asarray(IMAGES)
    )
