"""Any attention in any model by one word, around one parameter tree."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import attention, models

ENTRIES = sorted(attention.ATTENTIONS | attention.MIXERS)


def tiny(spec, **fields):
  return models.build(
    'vit', patch_size=4, hidden_size=16, num_layers=2, num_heads=2, mlp_dim=16,
    num_classes=3, image_size=16, attention=spec, **fields,
  )  # fmt: skip


def shapes(model, train=False):
  image = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
  names = ('params', 'dropout', 'gumbel', 'features', 'hash')
  rngs = {n: jax.random.key(i) for i, n in enumerate(names)}
  out, variables = jax.eval_shape(
    functools.partial(model.init_with_output, train=train), rngs, image
  )
  assert out.shape == (2, 3)
  return variables


@pytest.mark.parametrize('entry', ENTRIES)
def test_every_entry_is_one_word_of_a_model(entry):
  for train in (False, True):
    found = shapes(tiny(entry), train)
  if entry in attention.MIXERS:
    return
  # What is not under `attend` has softmax attention's names and shapes.
  flat = flax.traverse_util.flatten_dict(found['params'], sep='/')
  rest = {k: v.shape for k, v in flat.items() if '/attend/' not in k}
  exact = flax.traverse_util.flatten_dict(
    shapes(tiny('softmax'))['params'], sep='/'
  )
  assert rest == {k: v.shape for k, v in exact.items()}


def test_shared_parameters_start_equal():
  image = jnp.zeros((1, 16, 16, 3))
  exact, other = (
    flax.traverse_util.flatten_dict(
      jax.jit(tiny(spec).init)(jax.random.key(0), image)['params'], sep='/'
    )
    for spec in ('softmax', 'linformer(rank=3)')
  )
  assert set(other) > set(exact)
  for name, array in exact.items():
    np.testing.assert_array_equal(array, other[name], err_msg=name)


def test_specs_are_repeated_over_the_layers():
  found = shapes(tiny('linformer(rank=3), softmax'))['params']['Transformer']
  layer = lambda i: found[f'encoderblock_{i}'][  # noqa: E731
    'MultiHeadDotProductAttention_0'
  ]
  assert 'attend' in layer(0)
  assert 'attend' not in layer(1)


def test_another_number_of_tokens_is_refused_by_weights_of_a_fixed_length():
  model = tiny('linformer(rank=3)', position='sincos2d')
  variables = shapes(model)
  larger = jax.ShapeDtypeStruct((2, 24, 16, 3), jnp.float32)
  with pytest.raises(ValueError, match='number of tokens is fixed'):
    jax.eval_shape(model.apply, variables, larger)


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('nystrom(causal=True)', "'nystrom' has no causal form.* do: .*linear"),
    ('performer(feature=8)', "'feature'.*did you mean 'features'"),
    ('linfomer', "unknown attention 'linfomer'; did you mean 'linformer'"),
  ],
)
def test_what_a_kernel_cannot_do_names_those_that_can(spec, message):
  with pytest.raises(ValueError, match=message):
    shapes(tiny(spec))


def test_dropout_of_weights_is_refused_by_kernels_without_weights():
  with pytest.raises(ValueError, match='Linear has no dropout'):
    shapes(tiny('linear', attention_dropout_rate=0.1))
