"""The .npz of the original and of big_vision: names, shapes, numbers, back."""

import dataclasses
import json
import logging
import re
import zipfile
import zlib

import jax
import ml_dtypes
import numpy as np
import pytest
from pretrained import jitter, released
from scipy import special

from vit_jax import models, pretrained
from vit_jax.pretrained import base, convert, npz, numpy_archive

VIT = {
  'name': 'vit', 'patch_size': 4, 'hidden_size': 16, 'num_classes': 5,
  'num_layers': 2, 'num_heads': 2, 'mlp_dim': 24, 'classifier': 'token',
  'image_size': 16,
}  # fmt: skip
MIXER = {
  'name': 'mixer', 'patch_size': 4, 'hidden_size': 16, 'num_classes': 5,
  'num_layers': 2, 'tokens_mlp_dim': 6, 'channels_mlp_dim': 24,
  'image_size': 16,
}  # fmt: skip


def save(path, rows, dtype='float32', **more):
  """Writes a file of jittered arrays, shuffled, and returns them."""
  out = {
    theirs: jitter.array(theirs, shape).astype(dtype)
    for theirs, shape, *_ in rows
  }
  names = list(out)
  np.random.default_rng(0).shuffle(names)
  np.savez(path, **{name: out[name] for name in names}, **more)
  return out


CASES = {
  'pre-linen': (released.vit(**released.TINY), VIT),
  'linen': (released.vit(released.LINEN, **released.TINY), VIT),
  'pre-trained head': (
    released.vit(pre_logits=10, **released.TINY),
    {**VIT, 'representation_size': 10},
  ),
  'one grey channel, no head': (
    [r for r in released.vit(inputs=1, **released.TINY) if 'head' not in r[0]],
    {**VIT, 'num_classes': 0},
  ),
  'R50+B/16': (
    released.hybrid((3, 4, 9), tokens=5),
    {**VIT, 'patch_size': 1, 'image_size': 32, 'resnet': (3, 4, 9),
     'resnet_width': 32},
  ),
  'R26, linen GroupNorms': (
    released.hybrid((2, 2, 2, 2), tokens=5, flat=True),
    {**VIT, 'patch_size': 1, 'image_size': 64, 'resnet': (2, 2, 2, 2),
     'resnet_width': 32},
  ),
  'R+Ti/16': (
    released.hybrid((), tokens=5, patch=8),
    {**VIT, 'patch_size': 8, 'image_size': 64, 'resnet': (),
     'resnet_width': 32},
  ),
  'Mixer': (released.mixer(), MIXER),
  'big_vision': (released.big_vision(), {**VIT, 'classifier': 'gap'}),
  'big_vision, before 2022': (
    [(r[0].replace('pos_e', 'Transformer/pos_e'), *r[1:])
     for r in released.big_vision('opt/target/')],
    {**VIT, 'classifier': 'gap'},
  ),
  'big_vision, sincos2d': (
    released.big_vision(tokens=0),
    {**VIT, 'classifier': 'gap', 'position': 'sincos2d', 'image_size': 224},
  ),
  'big_vision, map, stacked': (
    released.big_vision(pool='map', stack=True, classes=0),
    {**VIT, 'classifier': 'map', 'num_classes': 0},
  ),
  'big_vision, inlined map': (
    released.big_vision(prefix='', pool='map', map_head=''),
    {**VIT, 'classifier': 'map'},
  ),
  'big_vision, free class token': (
    released.big_vision(pool='tok'), {**VIT, 'prefix_positions': 0},
  ),
  'big_vision, image tower alone': (
    released.big_vision('params/img/', pool='map', classes=0),
    {**VIT, 'classifier': 'map', 'num_classes': 0},
  ),
}  # fmt: skip


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


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float32', 'float64'])
@pytest.mark.parametrize('name', ['linen', 'pre-trained head', 'Mixer'])
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
  'name', ['R26, linen GroupNorms', 'big_vision, map, stacked',
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


def loaded(tmp_path, name='linen'):
  save(tmp_path / 'x.npz', CASES[name][0])
  return pretrained.load(tmp_path / 'x.npz')


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


def test_a_damaged_comment_is_refused(tmp_path):
  found = dataclasses.replace(loaded(tmp_path), labels=tuple('abcde'))
  pretrained.save(tmp_path / 'y.npz', found, 'npz')
  good = (tmp_path / 'y.npz').read_bytes()
  start, refused = good.index(b'vit_jax\n') + 8, 0
  for at in range(start, len(good)):
    bad = bytearray(good)
    bad[at] ^= 16
    (tmp_path / 'z.npz').write_bytes(bad)
    try:
      labels = numpy_archive.read(tmp_path / 'z.npz').labels
    except ValueError as e:
      refused += bool(re.search(r'comment of .*z\.npz', str(e)))
    else:
      assert labels == found.labels  # a bit that pads the compressed stream
  assert refused > 0.9 * (len(good) - start)


@pytest.mark.parametrize(
  ('said', 'text'),
  [
    ({'model': {'num_layers': 10**9}}, 'num_layers=1000000000 must be'),
    ({'model': {'hidden_size': 8}}, 'the model has'),
    ({'model': {'image_size': [4, 8]}}, r'the patches of image_size=\(4, 8\)'),
    ({'model': {'image_size': [6, 64]}}, 'x.npz: no such model.*not divisible'),
    ({'model': {'image_size': 'x'}}, "image_size='x' must be of type int"),
    ({'labels': ['a']}, 'names 1 labels for 5 classes'),
    ({'more': 1}, 'has the keys model, preprocess, labels, more'),
    ({'labels': ' ' * 2**25}, 'longer than 16777216 bytes'),
  ],
)
def test_a_hostile_comment_is_refused(said, text, tmp_path):
  note = {'model': {}, 'preprocess': {}, 'labels': [], **said}
  arrays = save(tmp_path / 'x.npz', CASES['linen'][0])
  note = zlib.compress(json.dumps(note).encode(), 9)
  npz.write(tmp_path / 'x.npz', arrays, numpy_archive.MARK + note)
  with pytest.raises(ValueError, match=text) as error:
    numpy_archive.read(tmp_path / 'x.npz')
  assert 'x.npz' in str(error.value)


@pytest.mark.parametrize(
  ('fields', 'text'),
  [
    ({'layer_scale': 0.1}, 'no place for.*LayerScale_0/scale'),
    ({'num_registers': 2}, 'no place for.*register'),
    ({'qk_norm': True}, 'no place for.*query_ln/scale'),
    ({'qkv_bias': False}, 'no array .*query/bias'),
    ({'norm_after_pooling': True}, 'no place for.*fc_norm/scale'),
    ({'name': 'deit', 'distilled': True}, 'VisionTransformer.*, not DeiT'),
    ({'attention': 'linformer(rank=4)'}, 'no place for.*attend'),
  ],
  ids=str,
)
def test_what_the_format_has_no_place_for_is_refused(fields, text, tmp_path):
  config = {**VIT, **fields}
  model = models.build(**config)
  variables = jax.tree.map(
    lambda s: np.zeros(s.shape, s.dtype), base.shapes(model, 3)
  )
  found = pretrained.Pretrained(
    model, variables, {'decode': 'decode', 'transform': ''}, (), config
  )
  with pytest.raises(ValueError, match=text):
    pretrained.save(tmp_path / 'x.npz', found, 'npz')
  assert not list(tmp_path.iterdir())


def test_a_name_without_npz_is_refused(tmp_path):
  with pytest.raises(ValueError, match='must end'):
    pretrained.save(tmp_path / 'x', loaded(tmp_path), 'npz')


def without(rows, part):
  return [row for row in rows if part not in row[0]]


@pytest.mark.parametrize(
  ('rows', 'text'),
  [
    (
      without(released.vit(**{**released.TINY, 'layers': 4}), 'block_2/'),
      'encoderblock_2 is missing; Transformer/encoderblock_3 is there',
    ),
    (without(CASES['R50+B/16'][0], 'block2/unit2/'), 'block2/unit2 is missing'),
    (
      released.vit(tokens=19, **released.TINY),
      'has 19 rows, not the patches of a square grid.*resize_positions',
    ),
    (without(CASES['pre-linen'][0], 'cls'), 'has 17 rows'),
    (released.mixer(tokens=12), '12 patches, which are no square grid'),
    (
      without(CASES['linen'][0], 'block_1/LayerNorm_1/scale'),
      r'nothing fills: Transformer/encoderblock_1/LayerNorm_1/scale',
    ),
    (
      [*CASES['linen'][0], ('heads/bias', (5,), None, None)],
      r'nothing uses: heads/bias \(nearest: head/bias\)',
    ),
    (
      [*without(CASES['linen'][0], 'head/kernel'),
       ('head/kernel', (15, 5), None, None)],
      r'head/kernel \(15, 5\).*the model has \(16, 5\)',
    ),
    (
      [*without(CASES['linen'][0], 'embedding/k'),
       ('embedding/kernel', (4, 2, 3, 16), None, None)],
      '4×2 pixels; ours are square',
    ),
    (
      [*without(CASES['linen'][0], 'embedding/k'),
       ('embedding/kernel', (0, 0, 3, 16), None, None)],
      'not 4 sizes above 0',
    ),
    ([('a/b', (3,), None, None)], 'has no array embedding/kernel'),
    (
      [*released.big_vision()[:2], *(
        (f'params/Transformer/encoderblock/{name}', (5000, *shape), None, None)
        for name, shape in released.block(released.LINEN, 2, 1, 2)
      )],
      r'stacked blocks=5000 must be a whole number in \[1, 1024\]',
    ),
    (
      [(n, shape if 'Dense_0/b' not in n else (3, 24), *rest)
       for n, shape, *rest in released.big_vision(stack=True)],
      'Dense_0/bias .3, 24. cannot become .*: its first axis is not one of 2',
    ),
    (
      [*CASES['linen'][0], *released.vit(**released.TINY)[-16:]],
      'nothing uses: .*(LayerNorm_2|LayerNorm_1)/scale',
    ),
  ],
)  # fmt: skip
def test_arrays_that_are_no_whole_model_are_refused(rows, text, tmp_path):
  save(tmp_path / 'x.npz', rows)
  with pytest.raises(ValueError, match=text) as error:
    pretrained.load(tmp_path / 'x.npz')
  assert 'x.npz' in str(error.value)


def test_weights_that_are_no_floats_are_refused(tmp_path):
  save(tmp_path / 'x.npz', CASES['linen'][0], 'int32')
  with pytest.raises(ValueError, match='is int32; weights are float16, '):
    pretrained.load(tmp_path / 'x.npz')


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
