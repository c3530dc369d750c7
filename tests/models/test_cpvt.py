"""CPVT: a DeiT whose positions come from a convolution after its first block.

The convolution against NumPy: test_vit.py; against timm's: tests/live.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from vit_jax import models

TINY = {
  'patch_size': 4, 'hidden_size': 16, 'num_layers': 3, 'num_heads': 2,
  'mlp_dim': 24, 'image_size': (8, 12), 'num_classes': 5,
}  # fmt: skip
IMAGE = jax.ShapeDtypeStruct((2, 8, 12, 3), jnp.float32)


def shapes(name='cpvt', image=IMAGE, **fields):
  model = models.build(name, **{**TINY, **fields})
  tree = jax.eval_shape(model.init, jax.random.key(0), image)['params']
  flat = traverse_util.flatten_dict(tree, sep='/')
  return {path: x.shape for path, x in flat.items()}


@pytest.mark.parametrize(
  'fields', [{}, {'classifier': 'gap'}, {'distilled': True}]
)
def test_it_is_a_deit_with_a_convolution_in_place_of_the_table(fields):
  found, deit = shapes(**fields), shapes('deit', position='none', **fields)
  own = {k: found.pop(k) for k in set(found) - set(deit)}
  assert found == deit
  assert own == {
    'Transformer/conditional_0/kernel': (3, 3, 1, 16),
    'Transformer/conditional_0/bias': (16,),
  }
  more = shapes(position='conditional(count=3)', **fields)
  assert set(more) - set(deit) == {
    f'Transformer/conditional_{i}/{part}'
    for i in range(3)
    for part in ('kernel', 'bias')
  }


def test_a_convolution_of_zeros_is_a_deit_without_positions():
  model = models.build('cpvt', distilled=True, **TINY)
  plain = models.build('deit', distilled=True, position='none', **TINY)
  rng = np.random.default_rng(0)
  draw = lambda x: jnp.asarray(  # noqa: E731
    0.3 * rng.standard_normal(x.shape), jnp.float32
  )
  images = draw(IMAGE)
  params = jax.tree.map(
    draw, jax.eval_shape(model.init, jax.random.key(0), images)
  )['params']
  encoder = dict(params['Transformer'])
  drawn = encoder.pop('conditional_0')
  expected = plain.apply({'params': {**params, 'Transformer': encoder}}, images)

  @jax.jit
  def run(convolution):
    inside = {**encoder, 'conditional_0': convolution}
    return model.apply({'params': {**params, 'Transformer': inside}}, images)

  np.testing.assert_allclose(
    run(jax.tree.map(jnp.zeros_like, drawn)), expected, atol=1e-5
  )
  assert np.abs(run(drawn) - expected).max() > 0.01


def test_pooled_variants_have_no_class_token_and_the_norm_before_pooling():
  pooled = models.build('cpvt', variant='Ti/16-GAP', num_classes=3)
  assert (pooled.prefix, pooled.norm_after_pooling) == (0, False)
  assert models.build('cpvt', variant='Ti/16', num_classes=3).prefix == 1


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'position': 'conditional(count=4)'}, 'there are 3 blocks'),
    ({'distilled': True, 'classifier': 'gap'}, "needs classifier='token'"),
  ],
)
def test_a_wrong_field_is_an_error_with_the_constraint(fields, message):
  with pytest.raises(ValueError, match=message):
    shapes(**fields)
