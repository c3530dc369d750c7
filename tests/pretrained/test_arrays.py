"""Files that somebody else wrote: read exactly, or refused; nothing is run."""

import json
import pickle
import struct

import numpy as np
import pytest
import safetensors.numpy
from pretrained.hostile import ARRAYS, Trap, equal, refused

from vit_jax import pretrained
from vit_jax.pretrained import arrays


def test_safetensors_give_what_was_written(tmp_path):
  path = tmp_path / 'x.safetensors'
  arrays.write_safetensors(path, {**ARRAYS, 'h': ARRAYS['b'][:, ::2].T})
  expected = {**ARRAYS, 'h': ARRAYS['b'][:, ::2].T.copy()}
  equal(arrays.read_safetensors(path), expected)
  with safetensors.safe_open(path, 'np') as f:
    assert f.metadata() == {'format': 'pt'}  # transformers asks for it
  (tmp_path / 'plain').touch()
  assert path.stat().st_mode == (tmp_path / 'plain').stat().st_mode
  plain = {n: x for n, x in expected.items() if n != 'f'}
  safetensors.numpy.save_file(
    {n: np.asarray(x, order='C') for n, x in plain.items()}, path
  )
  equal(arrays.read_safetensors(path), plain)


def safe(path, tensors, data=bytes(16), length=None):
  text = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
  size = struct.pack('<Q', len(text) if length is None else length)
  path.write_bytes(size + text + data)


def tensor(start, end, shape=None, dtype='F32'):
  shape = [(end - start) // 4] if shape is None else shape
  return {'dtype': dtype, 'shape': shape, 'data_offsets': [start, end]}


TWICE = json.dumps({'a': tensor(0, 16)})[:-1]
TWICE += ', "a": ' + json.dumps(tensor(0, 16)) + '}'


@pytest.mark.parametrize(
  ('content', 'text'),
  [
    ({'tensors': {'a': tensor(0, 16), 'b': tensor(8, 16)}}, 'damaged'),
    ({'tensors': {'a': tensor(0, 16)}, 'data': bytes(12)}, 'damaged'),
    ({'tensors': {'a': tensor(0, 16)}, 'data': bytes(20)}, 'damaged'),
    ({'tensors': {'a': tensor(4, 16)}}, 'damaged'),
    ({'tensors': {'a': tensor(0, 16, [10**12])}}, 'damaged'),
    ({'tensors': {'a': tensor(0, 16, [2**62, 2**62])}}, 'damaged'),
    ({'tensors': {'a': tensor(0, 16, [-4])}}, 'damaged'),
    ({'tensors': {'a': tensor(0, 16, dtype='F99')}}, 'damaged'),
    ({'tensors': {'a': tensor(0, 16, [16], 'F8_E4M3')}}, "'a': dtype F8_E4M3"),
    ({'tensors': {'a': tensor(0, 10**13)}}, 'damaged'),
    ({'tensors': TWICE.encode()}, "the key 'a' comes twice"),
    ({'tensors': {'a': 1}}, 'damaged'),
    ({'tensors': b'[1]'}, 'no object'),
    ({'tensors': b'{"a": NaN}'}, 'NaN'),
    ({'tensors': b'\xff\xfe{}'}, 'no good JSON'),
    ({'tensors': b'[' * 10**5}, 'no good JSON'),
    ({'tensors': {'a': tensor(0, 16)}, 'length': 2**40}, 'declares a header'),
    ({'tensors': {'a': tensor(0, 16)}, 'length': 500}, 'declares a header'),
    ({'tensors': b'', 'data': b''}, 'no good JSON'),
  ],
)
def test_hostile_safetensors_are_refused(content, text, tmp_path):
  safe(tmp_path / 'x.safetensors', **content)
  refused(arrays.read_safetensors, tmp_path / 'x.safetensors', text)


def test_safetensors_that_end_early_are_refused_wherever_they_end(tmp_path):
  path = tmp_path / 'x.safetensors'
  arrays.write_safetensors(path, ARRAYS)
  data = path.read_bytes()
  for size in range(0, len(data), 11):
    path.write_bytes(data[:size])
    refused(arrays.read_safetensors, path)


def parts(folder, index, **shards):
  for name, found in shards.items():
    arrays.write_safetensors(folder / f'{name}.safetensors', found)
  (folder / arrays.INDEX).write_text(json.dumps(index))


ONE, TWO = {'a': np.ones(2)}, {'b': np.zeros(3), 'c': np.ones(1)}
MAP = {'a': 'one.safetensors', 'b': 'two.safetensors', 'c': 'two.safetensors'}


def test_parts_are_read_together_and_a_whole_file_before_them(tmp_path):
  parts(tmp_path, {'weight_map': MAP, 'metadata': {}}, one=ONE, two=TWO)
  equal(arrays.read_safetensors_folder(tmp_path), {**ONE, **TWO})
  arrays.write_safetensors(tmp_path / arrays.WEIGHTS, ONE)
  equal(arrays.read_safetensors_folder(tmp_path), ONE)


@pytest.mark.parametrize(
  ('index', 'text'),
  [
    ({'weight_map': {**MAP, 'd': 'three.safetensors'}},
     'lacks 1 of 3 files.*three.safetensors'),
    ({'weight_map': {**MAP, 'd': 'two.safetensors'}}, 'do not agree on d'),
    ({'weight_map': {'a': MAP['a'], 'b': MAP['b']}}, 'do not agree on c'),
    ({'weight_map': {**MAP, 'a': '../one.safetensors'}}, 'no file of the fold'),
    ({'weight_map': {**MAP, 'a': '/etc/passwd'}}, 'no file of the folder'),
    ({'weight_map': {**MAP, 'a': 3}}, 'no file of the folder'),
    ({'weight_map': []}, 'maps no names'),
    ({}, 'no weight_map'),
  ],
)  # fmt: skip
def test_parts_that_are_not_those_of_the_index_are_refused(
  index, text, tmp_path
):
  parts(tmp_path, index, one=ONE, two=TWO)
  refused(arrays.read_safetensors_folder, tmp_path, text)


def test_a_folder_with_only_a_pickle_is_refused_and_not_run(tmp_path):
  refused(arrays.read_safetensors_folder, tmp_path, 'has neither')
  (tmp_path / 'pytorch_model.bin').write_bytes(
    pickle.dumps(Trap(tmp_path / 'run'))
  )
  refused(arrays.read_safetensors_folder, tmp_path, 'bin is a pickle')
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('text', 'error'),
  [
    (b'[1, 2]', 'a JSON list, no object'),
    (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' comes twice"),
    (b'{"a": Infinity}', 'Infinity is no JSON number'),
    (b'{"a": ', 'no good JSON'),
    (b'\xff', 'no good JSON'),
    (b'{"a": ' + b'[' * 10**5, 'no good JSON'),
    (b'{"a": ' + b'9' * 10**5 + b'}', 'no good JSON'),
    (b'{}' + b' ' * 2**24, 'larger than 16777216 bytes'),
  ],
)
def test_json_that_is_no_plain_object_is_refused(text, error, tmp_path):
  (tmp_path / 'config.json').write_bytes(text)
  refused(arrays.read_json, tmp_path / 'config.json', error)


def test_files_that_are_not_there_are_named(tmp_path):
  for read in (arrays.read_json, arrays.read_safetensors):
    with pytest.raises(ValueError, match='gone is no file'):
      read(tmp_path / 'gone')


@pytest.mark.parametrize(
  'name', ['x.npz', 'x.pth', 'x.pt', 'x.bin', 'x.pkl', 'pytorch_model.bin']
)
def test_a_pickle_on_its_own_is_refused_and_not_run(name, tmp_path):
  (tmp_path / name).write_bytes(pickle.dumps(Trap(tmp_path / 'run')))
  refused(pretrained.load, tmp_path / name, 'is a pickle.*save_file')
  assert not (tmp_path / 'run').exists()
