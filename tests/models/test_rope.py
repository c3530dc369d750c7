"""RoPE-ViT: which layers rotate, and how its parameters start.

The rotations against NumPy: tests/attention/test_positions.py; the models
against timm's: tests/live, and its goldens in tests/pretrained.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models

TINY = {
  'patch_size': 4, 'hidden_size': 16, 'num_layers': 2, 'num_heads': 2,
  'mlp_dim': 24, 'image_size': (8, 12), 'num_classes': 5,
}  # fmt: skip
IMAGE = jax.ShapeDtypeStruct((1, 8, 12, 3), jnp.float32)
ATTENTION = 'MultiHeadDotProductAttention_0'


def shapes(model, image=IMAGE):
  return jax.eval_shape(model.init, jax.random.key(0), image)['params']


@pytest.mark.parametrize('kind', ['axial', 'mixed'])
@pytest.mark.parametrize('table', ['', '-APE'])
def test_a_variant_says_what_rotates_and_whether_there_is_a_table(kind, table):
  row = models.RotaryViT.VARIANTS[f'S/16-{kind}{table}']
  found = shapes(models.build('rope', **TINY, position=row['position']))
  encoder = found['Transformer']
  assert ('posembed_input' in encoder) == bool(table)
  if table:  # the class token has no row
    positions = encoder['posembed_input']['pos_embedding']
    assert positions.shape == (1, 6, 16)
  for i in range(2):
    attention = encoder[f'encoderblock_{i}'][ATTENTION]
    assert ('position' in attention) == (kind == 'mixed')
    if kind == 'mixed':
      assert attention['position']['frequencies'].shape == (2, 2, 4)


def test_it_starts_as_deit3_with_frequencies_of_every_layer_and_head():
  model = models.build('rope', **{**TINY, 'position': 'rotary_mixed'})

  @jax.jit
  def some(key):
    params = model.init(key, jnp.zeros(IMAGE.shape))['params']
    return [params['Transformer'][f'encoderblock_{i}'] for i in range(2)]

  blocks = some(jax.random.key(0))
  directions = []
  for block in blocks:
    for i in range(2):
      np.testing.assert_allclose(block[f'LayerScale_{i}']['scale'], 1e-4)
    assert np.std(block['MlpBlock_0']['Dense_0']['kernel']) < 0.023
    assert not np.any(block[ATTENTION]['query']['bias'])
    x, y = np.asarray(block[ATTENTION]['position']['frequencies'])
    # 10^(-4i/D) of two pairs a direction: D is 8.
    np.testing.assert_allclose(
      np.hypot(x, y), [[1, 10**-0.5] * 2] * 2, rtol=1e-5
    )
    directions += list(np.arctan2(y, x)[:, 0])
  assert len(np.unique(np.round(directions, 3))) == 4
  assert (model.drop_path_rule, model.gelu) == ('uniform', 'exact')


def test_any_other_grid_needs_no_other_parameters():
  for position in ('rotary', 'learned, rotary_mixed'):
    model = models.build('rope', **{**TINY, 'position': position})
    image = jax.ShapeDtypeStruct((2, 16, 20, 3), jnp.float32)
    params = {'params': shapes(model)}
    assert jax.eval_shape(model.apply, params, image).shape == (2, 5)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'num_heads': 8}, 'divisible by 4 on a grid; it is 2'),
    (
      {'num_heads': 8, 'position': 'rotary_mixed'},
      'a head width divisible by 4; they are',
    ),
    ({'prefix_positions': 1}, 'needs a learned position'),
    ({'image_size': 10}, '10×10 .*4×4; the nearest'),
  ],
)
def test_a_wrong_field_is_an_error_with_the_constraint(fields, message):
  with pytest.raises(ValueError, match=message):
    shapes(models.build('rope', **{**TINY, **fields}))
