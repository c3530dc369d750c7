"""The over-smoothing probe against loops over patches, blocks and maps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from vit_jax import attention, models, smoothing

WIDTHS = {
  'patch_size': 4, 'hidden_size': 8, 'num_layers': 2, 'num_heads': 2,
  'mlp_dim': 8, 'image_size': 8, 'num_classes': 3,
}  # fmt: skip
MODELS = {
  'vit': {'num_registers': 1, 'remat': True},
  'deepvit': {},
  'cait': {'layer_scale': 0.5, 'num_class_layers': 1},
  'tnt': {'inner_size': 4, 'inner_heads': 2, 'word_stride': 2},
}  # fmt: skip
IMAGES = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 3)).astype('f4')


def build(name, **fields):
  return models.build(name, **{**WIDTHS, **MODELS[name], **fields})


def draw(model, images=IMAGES):
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(images))
  rng = np.random.default_rng(1)

  def one(path, s):
    x = 0.8 * rng.standard_normal(s.shape)
    return jnp.asarray(1 + x**2 if path[-1].key == 'var' else x, s.dtype)

  return jax.tree_util.tree_map_with_path(one, shapes)


@functools.partial(jax.jit, static_argnums=0)
def caught(model, variables, images):
  """What flax itself records: the blocks' outputs, queries and keys."""
  names = ('Encoder1DBlock', 'TNTBlock', 'DenseGeneral')
  _, state = model.apply(
    variables, images,
    capture_intermediates=lambda m, _: type(m).__name__ in names,
  )  # fmt: skip
  return state['intermediates']


def cosine(a, b):
  return a @ b / np.sqrt((a @ a) * (b @ b))


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def maps_of(name, q, k, own):
  """[B H N N] by the papers; `own` gives the variables of the attention."""
  logits = np.einsum('bnhd,bmhd->bhnm', q, k) / np.sqrt(q.shape[-1])
  of = lambda leaf: own(leaf)[None, :, None, None]  # noqa: E731
  mixed = lambda x, part: of(f'{part}bias') + np.einsum(  # noqa: E731
    'bhnm,hg->bgnm', x, own(f'{part}kernel')
  )
  if name == 'cait':
    return mixed(softmax(mixed(logits, 'logits_')), 'weights_')
  if name == 'deepvit':
    x = mixed(softmax(logits), '') - of('norm/mean')
    x = x / np.sqrt(of('norm/var') + 1e-5)
    return x * of('norm/scale') + of('norm/bias')
  return softmax(logits)


@pytest.mark.parametrize('name', MODELS)
def test_it_is_the_mean_cosine_of_patches_blocks_and_columns(name):
  model = build(name)
  variables = draw(model)
  # Two batches, of two images and of one, say the same.
  size = 2 if name == 'vit' else 3
  rows = smoothing.measure(model, variables, IMAGES, batch_size=size)
  found = caught(model.clone(remat=False), variables, IMAGES)
  found, flat = (
    {
      path.replace('Transformer/encoderblock_', 'block_'): x
      for path, x in traverse_util.flatten_dict(tree, sep='/').items()
    }
    for tree in (found, variables)
  )
  outputs, maps = [], []
  for i in range(2):
    x = found[f'block_{i}/__call__'][0]
    x = x[1] if name == 'tnt' else x
    outputs.append(np.asarray(x, np.float64)[:, -4:])
    part = 'outer/' * (name == 'tnt')
    at = f'block_{i}/{part}MultiHeadDotProductAttention_0'
    q, k = (
      np.asarray(found[f'{at}/{n}/__call__'][0]) for n in ('query', 'key')
    )

    def own(leaf, at=at):
      (x,) = (
        flat[f'{c}/{at}/attend/{leaf}']
        for c in ('params', 'batch_stats')
        if f'{c}/{at}/attend/{leaf}' in flat
      )
      return np.asarray(x)

    maps.append(maps_of(name, q, k, own))
  for i, row in enumerate(rows):
    alike = [
      cosine(image[n], image[m])
      for image in outputs[i] for n in range(4) for m in range(4) if n != m
    ]  # fmt: skip
    assert row['block'] == i
    assert row['patches'] == pytest.approx(np.mean(alike), abs=1e-5)
  same = [
    cosine(a, b)
    for a, b in zip(*(x.reshape(-1, 8) for x in outputs), strict=True)
  ]
  assert rows[0]['blocks'] is rows[0]['maps'] is None
  assert rows[1]['blocks'] == pytest.approx(np.mean(same), abs=1e-5)
  columns = [
    cosine(maps[1][b, h, :, t], maps[0][b, h, :, t])
    for b in range(3) for h in range(2) for t in range(maps[0].shape[-1])
  ]  # fmt: skip
  assert rows[1]['maps'] == pytest.approx(np.mean(columns), abs=1e-5)
  assert 0.01 < abs(rows[1]['maps']) < 0.999


def test_patches_that_are_one_patch_have_cosine_one():
  model = build('vit', position='none', num_registers=0)
  images = np.broadcast_to(IMAGES[:1, :4, :4], (1, 4, 4, 3))
  images = np.tile(images, (1, 2, 2, 1))
  for row in smoothing.measure(model, draw(model), images):
    assert row['patches'] == pytest.approx(1.0, abs=1e-5)


def test_attentions_without_a_map_have_no_maps_to_compare():
  model = build('vit', attention='fnet')
  assert isinstance(attention.build('fnet', num_heads=2), attention.Mixer)
  rows = smoothing.measure(model, draw(model), IMAGES)
  assert [row['maps'] for row in rows] == [None] * 2
  assert all(row['blocks'] is not None for row in rows[1:])


@pytest.mark.parametrize(
  ('name', 'fields', 'images', 'message'),
  [
    ('vit', {}, IMAGES[:0], 'images is empty'),
    ('vit', {'image_size': 4}, IMAGES[:, :4, :4], '4×4 pixels are one patch'),
  ],
)
def test_what_cannot_be_measured_is_refused(name, fields, images, message):
  model = build(name, **fields)
  with pytest.raises(ValueError, match=message):
    smoothing.measure(model, draw(model, IMAGES[:, :4, :4]), images)


def test_models_without_a_row_of_blocks_are_refused():
  model = models.build(
    'resnet', num_classes=3, depths=(1,), hidden_sizes=(8,), embedding_size=8
  )
  with pytest.raises(ValueError, match='ResNetClassifier has no row of blocks'):
    smoothing.measure(model, {}, IMAGES)


ROWS = [
  {'block': i, 'patches': i / 10, 'blocks': i / 20 if i else None,
   'maps': None}
  for i in range(9)
]  # fmt: skip


def test_the_table_shows_five_depths_and_the_plot_is_a_picture(tmp_path):
  table = smoothing.markdown({'a ViT': ROWS}).splitlines()
  assert table[0].startswith('| cosine of patches of an image | blocks |')
  assert table[2] == '| a ViT | 9 | 0.000 | 0.200 | 0.400 | 0.600 | 0.800 |'
  table = smoothing.markdown({'a ViT': ROWS}, 'blocks').splitlines()
  assert table[2] == '| a ViT | 8 | 0.050 | 0.150 | 0.250 | 0.300 | 0.400 |'
  table = smoothing.markdown({'a ViT': ROWS}, 'maps').splitlines()
  assert table[2] == '| a ViT | 0 | – | – | – | – | – |'
  with pytest.raises(ValueError, match="'map'; choices: patches, blocks, maps"):
    smoothing.markdown({}, 'map')
  figure = smoothing.plot({'a ViT': ROWS}, tmp_path / 'a.png')
  assert (tmp_path / 'a.png').read_bytes().startswith(b'\x89PNG')
  lines = [[len(x.get_xdata()) for x in a.lines] for a in figure.axes]
  assert lines == [[9], [8], []]
