"""Files and models that are no .npz of the original's are refused."""

import dataclasses
import json
import re
import zlib

import jax
import numpy as np
import pytest
from pretrained import released
from pretrained.npz_cases import CASES, VIT, loaded, save

from vit_jax import models, pretrained
from vit_jax.pretrained import base, npz, numpy_archive


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
