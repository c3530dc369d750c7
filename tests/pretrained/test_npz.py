"""The .npz of the original and of big_vision: names, shapes, numbers, back."""

import dataclasses
import logging
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
from pretrained import jitter, released
from pretrained.npz_cases import CASES, loaded, save
from scipy import special

from vit_jax import models, pretrained
from vit_jax.pretrained import convert, npz


@pytest.mark.parametrize('name', CASES)
def test_every_released_layout_loads_by_names_and_shapes(name, tmp_path):
  rows, config = CASES[name]
  arrays = save(tmp_path / 'x.npz', rows)
  found = pretrained.load(tmp_path / 'x.npz')
  assert found.config == config
  assert found.channels == (1 if 'grey' in name else 3)
  side = config['image_size']
  assert found.preprocess == {
    'decode': f'decode(channels={found.channels}, convert=True)',
    'transform': f"resize(size=({side}, {side}), resample='bilinear'), "
    'value_range(low=-1, high=1)',
  }
  flat = convert.flatten(found.variables)
  for theirs, _, ours, shape in rows:
    names = ours if isinstance(ours, tuple) else (ours,)
    x = arrays[theirs].reshape(len(names), *shape)
    for each, expected in zip(names, x, strict=True):
      np.testing.assert_array_equal(flat.pop(each), expected)
  assert not flat


# A plain ViT once more, in float64, on the released names.


def layer_norm(x, p, at):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
  return x * p[f'{at}/scale'] + p[f'{at}/bias']


def linear(x, p, at):
  return x @ p[f'{at}/kernel'] + p[f'{at}/bias']


def forward(p, image, layers, patch, heads):
  side = image.shape[0] // patch
  x = np.stack([
    linear(
      image[patch * i : patch * (i + 1), patch * j : patch * (j + 1)].ravel(),
      {'e/kernel': p['embedding/kernel'].reshape(patch * patch * 3, -1),
       'e/bias': p['embedding/bias']}, 'e',
    )
    for i in range(side) for j in range(side)
  ])  # fmt: skip
  x = np.concatenate([p['cls'][0], x]) + p[released.TABLE][0]
  for i in range(layers):
    at = f'Transformer/encoderblock_{i}'
    y = layer_norm(x, p, f'{at}/LayerNorm_0')
    attend = f'{at}/MultiHeadDotProductAttention_1'
    out = p[f'{attend}/out/bias']
    for h in range(heads):
      q, k, v = (
        y @ p[f'{attend}/{n}/kernel'][:, h] + p[f'{attend}/{n}/bias'][h]
        for n in ('query', 'key', 'value')
      )
      weights = special.softmax(q @ k.T / np.sqrt(q.shape[1]), axis=1)
      out = out + weights @ v @ p[f'{attend}/out/kernel'][h]
    x = x + out
    y = linear(
      layer_norm(x, p, f'{at}/LayerNorm_2'), p, f'{at}/MlpBlock_3/Dense_0'
    )
    y = y / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    x = x + linear(y, p, f'{at}/MlpBlock_3/Dense_1')
  x = layer_norm(x, p, 'Transformer/encoder_norm')[0]
  return linear(np.tanh(linear(x, p, 'pre_logits')), p, 'head')


def test_logits_of_a_released_file_equal_a_plain_vit_in_float64(tmp_path):
  # Twelve blocks: the tenth comes after the ninth, not after the first.
  size = {**released.TINY, 'layers': 12}
  arrays = save(tmp_path / 'x.npz', released.vit(pre_logits=10, **size))
  found = pretrained.load(tmp_path / 'x.npz')
  images = jitter.images(2, 16, 16, 3)
  logits = jax.jit(found.model.apply)(found.variables, images)
  wide = {name: x.astype(np.float64) for name, x in arrays.items()}
  expected = [
    forward(wide, image.astype(np.float64), 12, 4, 2) for image in images
  ]
  np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_full_size_file_loads_and_comes_back_bit_by_bit(tmp_path):
  rows = released.vit(tokens=197, classes=1000, **released.B16)
  # No two arrays have a number in common.
  ends = np.cumsum([np.prod(shape) for _, shape, *_ in rows])
  numbers = np.arange(ends[-1], dtype=np.uint32).view(np.float32)
  arrays = {
    theirs: part.reshape(shape)
    for (theirs, shape, *_), part in zip(
      rows, np.split(numbers, ends[:-1]), strict=True
    )
  }
  np.savez(tmp_path / 'B_16.npz', **arrays)
  found = pretrained.load(tmp_path / 'B_16.npz')
  for name, value in models.VisionTransformer.VARIANTS['B/16'].items():
    assert found.config[name] == value
  assert (found.config['image_size'], found.config['num_classes']) == (
    224, 1000,
  )  # fmt: skip
  assert ends[-1] == 86_567_656
  pretrained.save(tmp_path / 'back.npz', found, 'npz')
  back = npz.read(tmp_path / 'back.npz')
  for theirs, _, ours, _ in rows:
    assert back.pop(ours).tobytes() == arrays[theirs].tobytes()
  assert not back
  for path in tmp_path.iterdir():
    path.unlink()  # pytest keeps the folders of three runs


def contents(path):
  """Each member of an archive but for its time."""
  with zipfile.ZipFile(path) as archive:
    return {i.filename: archive.read(i) for i in archive.infolist()}


@pytest.mark.parametrize(
  ('name', 'dtype'),
  [
    ('linen', 'float16'), ('linen', 'bfloat16'), ('linen', 'float32'),
    ('pre-trained head', 'float64'), ('Mixer', 'bfloat16'),
  ],
)  # fmt: skip
def test_the_current_layout_comes_back_bit_by_bit(name, dtype, tmp_path):
  rows = [(ours, shape, ours, shape) for _, _, ours, shape in CASES[name][0]]
  dtype = convert.named_dtype(dtype)
  arrays = save(tmp_path / 'x.npz', rows, np.float16)
  arrays = {n: x.astype(np.float32).astype(dtype) for n, x in arrays.items()}
  np.savez(tmp_path / 'x.npz', **arrays)  # bfloat16 as V2, by NumPy itself
  found = pretrained.load(tmp_path / 'x.npz')
  mapping = pretrained.save(tmp_path / 'back.npz', found, 'npz')
  assert set(mapping) == {(n, n) for n in arrays}
  back = npz.read(tmp_path / 'back.npz')
  assert set(back) == set(arrays)
  for n, x in back.items():
    assert x.dtype == dtype
    assert x.tobytes() == arrays[n].tobytes()
  with np.load(tmp_path / 'back.npz', allow_pickle=False) as other:
    assert set(other.files) == set(arrays)
    assert all(other[n].tobytes() == arrays[n].tobytes() for n in arrays)
    assert other.zip.comment == b''  # nothing that the arrays do not show


@pytest.mark.parametrize(
  'name', ['R+Ti/16', 'big_vision, map, stacked',
           'big_vision, free class token', 'big_vision, sincos2d'],
)  # fmt: skip
def test_other_layouts_come_back_as_the_same_model(name, tmp_path):
  save(tmp_path / 'x.npz', CASES[name][0])
  found = pretrained.load(tmp_path / 'x.npz')
  pretrained.save(tmp_path / 'back.npz', found, 'npz')
  back = pretrained.load(tmp_path / 'back.npz')
  assert npz.read_comment(tmp_path / 'back.npz') == b''
  assert back.config == found.config
  jax.tree.map(np.testing.assert_array_equal, back.variables, found.variables)
  names = set(npz.read(tmp_path / 'back.npz'))
  assert ('pos_embedding' in names) == ('free' in name)


def other(found, **fields):
  """The same weights in a model with other fields."""
  config = {**found.config, **fields}
  return dataclasses.replace(
    found, config=config, model=models.build(**config)
  )


def test_what_arrays_do_not_show_is_in_the_comment(tmp_path, caplog):
  found = other(
    loaded(tmp_path), gelu='exact', epsilon=1e-12, image_size=(8, 32)
  )
  found = dataclasses.replace(
    found, labels=('Katze', '猫', 'c', 'd', 'e'),
    preprocess={'decode': 'decode', 'transform': 'value_range(low=0)'},
  )  # fmt: skip
  with caplog.at_level(logging.WARNING):
    pretrained.save(tmp_path / 'y.npz', found, 'npz')
  assert "image_size=(8, 32), gelu='exact', epsilon=1e-12" in caplog.text
  back = pretrained.load(tmp_path / 'y.npz')
  assert back.model == found.model
  assert back.labels == found.labels
  assert back.preprocess == found.preprocess
  assert contents(tmp_path / 'y.npz').keys() == contents(
    tmp_path / 'x.npz').keys()  # fmt: skip


def test_labels_of_imagenet_fit_and_random_ones_of_21k_do_not(tmp_path):
  rows = released.vit(released.LINEN, classes=21843, **released.TINY)
  save(tmp_path / 'x.npz', rows)
  found = pretrained.load(tmp_path / 'x.npz')
  rng = np.random.default_rng(0)
  words = tuple(rng.bytes(6).hex() for _ in range(21843))
  with pytest.raises(ValueError, match='room for 65535.*labels=()'):
    pretrained.save(
      tmp_path / 'y.npz', dataclasses.replace(found, labels=words), 'npz'
    )
  assert not (tmp_path / 'y.npz').exists()
  small = pretrained.change(found, num_classes=1000)
  small = dataclasses.replace(small, labels=words[:1000])
  pretrained.save(tmp_path / 'y.npz', small, 'npz')
  assert pretrained.load(tmp_path / 'y.npz').labels == words[:1000]


def test_a_part_of_a_file_of_several_is_chosen_by_its_name(tmp_path):
  image = released.big_vision('params/img/', pool='map', classes=7)
  text = [('params/txt/Embed_0/embedding', (9, 4), None, None)]
  arrays = save(tmp_path / 'x.npz', [*image, *text], **{'params/t': np.ones(1)})
  found = pretrained.load(f'{tmp_path / "x.npz"}:img')
  np.testing.assert_array_equal(
    found.variables['params']['head']['bias'], arrays['params/img/head/bias']
  )
  with pytest.raises(ValueError, match=r'it has img, t, txt.*FILE\.npz:img'):
    pretrained.load(tmp_path / 'x.npz')
  with pytest.raises(ValueError, match='no array is under params/audio/'):
    pretrained.load(f'{tmp_path / "x.npz"}:audio')


def test_what_training_leaves_is_dropped_and_nothing_else(tmp_path):
  rows = released.big_vision('opt/target/')
  state = {
    'opt/state/step': np.int64(7),
    'opt/state/param_states/embedding/bias/momentum': np.ones(16),
    'extra/accum_train_time': np.float64(3.5),
  }
  save(tmp_path / 'x.npz', rows, **state)
  pretrained.load(tmp_path / 'x.npz')
  save(tmp_path / 'y.npz', rows, **state, other=np.ones(2))
  with pytest.raises(ValueError, match='nothing uses: other$'):
    pretrained.load(tmp_path / 'y.npz')


def test_bfloat16_is_read_from_two_bytes_of_nothing(tmp_path):
  rows = released.big_vision(stack=True)
  arrays = save(tmp_path / 'x.npz', rows, ml_dtypes.bfloat16)
  with np.load(tmp_path / 'x.npz') as plain:
    assert plain['params/head/bias'].dtype == 'V2'
  found = pretrained.load(tmp_path / 'x.npz')
  head = found.variables['params']['head']['bias']
  np.testing.assert_array_equal(
    head, arrays['params/head/bias'].astype(np.float32)
  )
  assert set(found.dtypes.values()) == {'bfloat16'}
