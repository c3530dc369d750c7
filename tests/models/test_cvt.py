"""CvT: what its attention and its GELU are, and its running statistics."""

import jax
import jax.numpy as jnp
import numpy as np
from models.table import TINY

from vit_jax import attention, layers, models


def normal(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def drawn(module, *args):
  """Jittered variables; variances are positive."""
  rng = np.random.default_rng(1)

  def draw(path, like):
    x = 0.3 * rng.standard_normal(like.shape)
    return jnp.asarray(abs(x) + 0.5 if path[-1].key == 'var' else x, like.dtype)

  return jax.tree_util.tree_map_with_path(
    draw, jax.eval_shape(module.init, jax.random.key(0), *args)
  )


def test_quick_gelu_is_its_formula():
  x = np.linspace(-6, 6, 49)
  np.testing.assert_allclose(
    layers.gelu('quick')(jnp.asarray(x, jnp.float32)),
    x / (1 + np.exp(-1.702 * x)), atol=1e-6,
  )  # fmt: skip
  half = layers.gelu('quick')(jnp.asarray(x, jnp.bfloat16))
  assert half.dtype == jnp.bfloat16


def test_logits_as_code_are_divided_by_the_root_of_the_width():
  # As if queries of width D, divided by √D, were 1 / √H as long.
  x, build = normal(1, 13, 8), attention.MIXERS['conv_projection']
  plain, code = (
    build(num_heads=4, grid=(3, 4), prefix=1, as_code=flag)
    for flag in (False, True)
  )
  variables = drawn(plain, x)
  shorter = jax.tree_util.tree_map_with_path(
    lambda path, x: x / 2 if path[1].key == 'query' else x, variables
  )
  np.testing.assert_allclose(
    jax.jit(code.apply)(variables, x), jax.jit(plain.apply)(shorter, x),
    atol=1e-6,
  )  # fmt: skip


def test_running_statistics_are_pytorchs_and_leave_the_class_token_out():
  model = models.build('cvt', num_classes=3, **TINY['cvt'])
  images = normal(2, 16, 16, 3)
  variables = drawn(model, images)

  @jax.jit
  def train(params):
    return model.apply(
      {**variables, 'params': params}, images, train=True,
      mutable=['batch_stats', 'intermediates'], capture_intermediates=True,
    )[1]  # fmt: skip

  found = train(variables['params'])
  for stage, cells in (('stage_0', 32), ('stage_1', 8)):
    block = ('block_0', 'MultiHeadDotProductAttention_0')
    layer, stats, old = (
      tree[stage][block[0]][block[1]]
      for tree in (
        found['intermediates'], found['batch_stats'], variables['batch_stats']
      )
    )
    (patches,) = layer['query_conv']['__call__']
    flat = np.asarray(patches, np.float64).reshape(cells, -1)
    for name, new in (('mean', flat.mean(0)), ('var', flat.var(0, ddof=1))):
      np.testing.assert_allclose(
        stats['query_norm'][name],
        0.9 * old['query_norm'][name] + 0.1 * new,
        atol=1e-6,
      )
  # Another class token is another answer, and the same statistics.
  params = jax.tree.map(lambda x: x, variables['params'])
  params['stage_1']['cls'] += normal(1, 1, 16)
  other = train(params)
  for a, b in zip(
    *(jax.tree.leaves(t['batch_stats']) for t in (found, other)), strict=True
  ):
    np.testing.assert_array_equal(a, b)
  logits = [t['intermediates']['head']['__call__'][0] for t in (found, other)]
  assert np.abs(logits[0] - logits[1]).max() > 1e-3
