"""DeepViT's re-attention against its definition, training included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from scipy import special

from vit_jax import models

TINY = {
  'patch_size': 4, 'hidden_size': 8, 'num_layers': 1, 'num_heads': 2,
  'mlp_dim': 12, 'image_size': 8, 'num_classes': 5,
}  # fmt: skip
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)
SLOT = 'Transformer/encoderblock_0/MultiHeadDotProductAttention_0'


def build(**fields):
  return models.build('deepvit', **{**TINY, **fields})


def draw(model):
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(IMAGES))

  def one(path, s):
    x = RNG.standard_normal(s.shape)
    return jnp.asarray(0.5 + x**2 if path[-1].key == 'var' else x, s.dtype)

  return jax.tree_util.tree_map_with_path(one, shapes)


def norm(x, p, at, eps=1e-6):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
  return x * p[f'{at}/scale'] + p[f'{at}/bias']


def definition(variables, train):
  """Logits, and the running mean and variance afterwards, in float64."""
  flat = traverse_util.flatten_dict(variables, sep='/')
  flat = {k: np.asarray(v, np.float64) for k, v in flat.items()}
  p = {k.removeprefix('params/'): v for k, v in flat.items()}
  dense = lambda x, at: x @ p[f'{at}/kernel'] + p[f'{at}/bias']  # noqa: E731
  x = IMAGES.reshape(3, 2, 4, 2, 4, 3).swapaxes(2, 3).reshape(3, 4, 48)
  x = x @ p['embedding/kernel'].reshape(48, 8) + p['embedding/bias']
  x = np.concatenate([np.tile(p['cls'], (3, 1, 1)), x], axis=1)
  x = x + p['Transformer/posembed_input/pos_embedding']
  block, own = 'Transformer/encoderblock_0', f'{SLOT}/attend'
  y = norm(x, p, f'{block}/LayerNorm_0')
  q, k, v = (
    np.einsum('bnc,chd->bhnd', y, p[f'{SLOT}/{n}/kernel'])
    + p[f'{SLOT}/{n}/bias'][None, :, None]
    for n in ('query', 'key', 'value')
  )
  maps = special.softmax(q @ k.swapaxes(2, 3) / np.sqrt(4), axis=-1)
  mixed = np.zeros_like(maps)
  for g in range(2):  # a 1×1 convolution over heads, with a bias
    mixed[:, g] = p[f'{own}/bias'][g]
    for h in range(2):
      mixed[:, g] += p[f'{own}/kernel'][h, g] * maps[:, h]
  stats = {}
  for g in range(2):  # and a BatchNorm of each head's map
    mean, var = (
      flat[f'batch_stats/{own}/norm/{n}'][g] for n in ('mean', 'var')
    )
    if train:
      new = mixed[:, g].mean(), mixed[:, g].var()
      stats[g] = 0.9 * mean + 0.1 * new[0], 0.9 * var + 0.1 * new[1]
      mean, var = new
    mixed[:, g] = (mixed[:, g] - mean) / np.sqrt(var + 1e-5)
    mixed[:, g] *= p[f'{own}/norm/scale'][g]
    mixed[:, g] += p[f'{own}/norm/bias'][g]
  y = np.einsum('bhnd,hdc->bnc', mixed @ v, p[f'{SLOT}/out/kernel'])
  x = x + y + p[f'{SLOT}/out/bias']
  y = dense(norm(x, p, f'{block}/LayerNorm_1'), f'{block}/MlpBlock_0/Dense_0')
  x = x + dense(y * special.ndtr(y), f'{block}/MlpBlock_0/Dense_1')
  return dense(norm(x, p, 'Transformer/encoder_norm')[:, 0], 'head'), stats


@pytest.mark.parametrize('train', [False, True])
def test_it_is_a_vit_with_the_papers_re_attention(train):
  model = build()
  variables = draw(model)
  run = functools.partial(model.apply, train=train, mutable=['batch_stats'])
  found, changed = jax.jit(run)(variables, jnp.asarray(IMAGES))
  expected, stats = definition(variables, train)
  np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)
  if train:
    flat = traverse_util.flatten_dict(changed['batch_stats'], sep='/')
    for i, name in enumerate(('mean', 'var')):
      np.testing.assert_allclose(
        flat[f'{SLOT}/attend/norm/{name}'], [stats[g][i] for g in range(2)],
        atol=1e-6,
      )  # fmt: skip


def test_dropout_of_maps_comes_before_they_are_mixed():
  # A dropped weight is no zero after Θ, the bias and the norm.
  model = build(attention_dropout_rate=0.9)
  variables = draw(model)
  images = jnp.asarray(IMAGES)

  @jax.jit
  def mean(key):
    return model.apply(
      variables, images, train=True, rngs=key, mutable=['batch_stats']
    )[1]['batch_stats']

  first, second = mean(jax.random.key(0)), mean(jax.random.key(1))
  gaps = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), first, second)
  assert min(jax.tree.leaves(gaps)) > 1e-4  # the statistics see what is dropped


def test_it_starts_as_published():
  model = build(num_heads=8, hidden_size=32)

  @jax.jit
  def some(key):
    params = model.init(key, jnp.asarray(IMAGES))['params']
    flat = traverse_util.flatten_dict(params, sep='/')
    return {
      k.removeprefix(f'{SLOT}/'): v for k, v in flat.items() if SLOT in k
    }

  found = some(jax.random.key(0))
  bound = 1 / np.sqrt(8)  # PyTorch's for a convolution of 8 channels
  theta = np.asarray(found['attend/kernel'])
  assert 0.9 * bound < np.abs(theta).max() <= bound
  assert np.abs(found['attend/bias']).max() > 0.5 * bound
  np.testing.assert_array_equal(found['attend/norm/scale'], 1.0)
  assert np.asarray(found['query/kernel']).std() == pytest.approx(0.02, rel=0.1)
