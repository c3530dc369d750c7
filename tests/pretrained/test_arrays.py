"""Files that somebody else wrote: read exactly, or refused; nothing is run."""

import io
import json
import pickle
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from vit_jax import pretrained
from vit_jax.pretrained import arrays, npz

ARRAYS = {
  'a/kernel': np.arange(6, dtype=np.float32).reshape(2, 3),
  'b': np.asfortranarray(np.arange(24, dtype=np.float64).reshape(2, 3, 4)),
  'c': np.float16(1.5).reshape(()),
  'd': np.zeros((0, 5), np.float32),
  'e': np.arange(5, dtype=np.int64) - 2,
  'f': np.array([[1.5, -2.0], [np.inf, 3e38]], ml_dtypes.bfloat16),
  'g': np.array([True, False]),
}


class Trap:
  """Whoever unpickles it makes a folder."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    import os

    return os.mkdir, (str(self.path),)


def equal(found, expected):
  assert set(found) == set(expected)
  for name, x in expected.items():
    assert found[name].dtype == x.dtype, name
    assert found[name].shape == x.shape, name
    assert found[name].tobytes() == x.tobytes(), name


def refused(read, path, text='.'):
  """It says so, names the file, and takes little memory to find out."""
  tracemalloc.start()
  with pytest.raises(ValueError, match=text) as error:
    read(path)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert path.name in str(error.value)
  assert peak < 2**23 + 2 * path.stat().st_size


@pytest.mark.parametrize('write', [np.savez, np.savez_compressed])
def test_an_npz_gives_what_numpy_wrote(write, tmp_path):
  write(tmp_path / 'x.npz', **ARRAYS)
  equal(npz.read(tmp_path / 'x.npz'), ARRAYS)


def test_big_endian_numbers_and_version_2_headers_are_read(tmp_path):
  with zipfile.ZipFile(tmp_path / 'x.npz', 'w') as archive:
    for version in ((1, 0), (2, 0)):
      with archive.open(f'{version[0]}.npy', 'w') as f:
        np.lib.format.write_array(f, np.arange(4, dtype='>f4'), version)
  expected = np.arange(4, dtype=np.float32)
  equal(npz.read(tmp_path / 'x.npz'), {'1': expected, '2': expected})


def test_what_is_written_numpy_reads(tmp_path):
  npz.write(tmp_path / 'x.npz', ARRAYS, b'a comment')
  with np.load(tmp_path / 'x.npz', allow_pickle=False) as found:
    bits = {n: x.view('V2') if n == 'f' else x for n, x in ARRAYS.items()}
    equal({n: found[n] for n in found.files}, bits)
  equal(npz.read(tmp_path / 'x.npz'), ARRAYS)
  assert npz.read_comment(tmp_path / 'x.npz') == b'a comment'


def header(shape=(2,), descr='<f4', version=(1, 0), order=False, pad=0):
  text = repr({'descr': descr, 'fortran_order': order, 'shape': shape})
  text = text.encode() + b' ' * pad + b'\n'
  size = struct.pack('<H' if version == (1, 0) else '<I', len(text))
  return b'\x93NUMPY' + bytes(version) + size + text


def archive(path, members, method=zipfile.ZIP_STORED):
  with zipfile.ZipFile(path, 'w', method) as out:
    for name, content in members:
      out.writestr(name, content)


EIGHT = bytes(8)  # two float32


@pytest.mark.parametrize(
  ('member', 'text'),
  [
    (header((10**12,)) + EIGHT, r'declares \(10{12},\).* where 8 follow'),
    (header((2**62, 4)) + EIGHT, 'declares .* where 8 follow'),
    (header((-2, -1)) + EIGHT, 'declares .* where 8 follow'),
    (header((1,)) + EIGHT, 'declares .* 4 bytes, where 8 follow'),
    (header((0, 10**18)) + EIGHT, 'declares .* 0 bytes, where 8 follow'),
    (header(()) + EIGHT[:3], 'declares .* 4 bytes, where 3 follow'),
    (header(descr='|O') + EIGHT, 'pickled Python objects'),
    (header(descr=[('a', '<f4')]) + EIGHT, 'not one of numbers'),
    (header(descr='<U1') + EIGHT, 'not one of numbers'),
    (header(descr='|V4') + EIGHT, 'not one of numbers'),
    (header(descr='<M8[s]') + EIGHT, 'not one of numbers'),
    (header(descr='|S0') + EIGHT, 'not one of numbers'),
    (header(descr='no') + EIGHT, 'descr'),
    (header('abc') + EIGHT, 'shape is not valid'),
    (header(version=(3, 0)) + EIGHT, r'version \(3, 0\)'),
    (header(pad=20_000) + EIGHT, 'a header of 20.* bytes; at most 10000'),
    (header(version=(2, 0), pad=10**6) + EIGHT, 'a header of 10'),
    (b'\x93NUMPY\x01\x00\xff\x00{', '.'),
    (b'\x93NUMPY\x01\x00\x03\x00[[[', ''),
    (b'\x93NUMPY\x01\x00\x0c\x00' + b'{' * 12, '.'),
    (b'\x93NUMPY\x01\x00\x88\x13' + b'-' * 5000, '.'),
    (b'', 'is no .npy array'),
    (pickle.dumps([1]), 'is no .npy array'),
  ],
)
def test_a_member_that_is_no_array_of_its_size_is_refused(
  member, text, tmp_path
):
  good = ('good.npy', header() + EIGHT)
  archive(tmp_path / 'x.npz', [good, ('x.npy', member)])
  refused(npz.read, tmp_path / 'x.npz', rf"array 'x': .*{text}")


@pytest.mark.parametrize(
  ('members', 'text'),
  [
    ([('../x.npy', header() + EIGHT)], 'is a path'),
    ([('/x.npy', header() + EIGHT)], 'is a path'),
    ([('a//x.npy', header() + EIGHT)], 'is a path'),
    ([('a\\x.npy', header() + EIGHT)], 'is a path'),
    ([('archive/data.pkl', pickle.dumps([1]))], 'which is no .npy array'),
    ([('x.npy', header() + EIGHT)] * 2, "holds the array 'x' twice"),
  ],
)
@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_names_that_are_no_arrays_names_are_refused(members, text, tmp_path):
  archive(tmp_path / 'x.npz', members)
  refused(npz.read, tmp_path / 'x.npz', text)


@pytest.mark.parametrize('compressed', [False, True])
def test_a_pickle_in_an_npz_is_refused_and_not_run(compressed, tmp_path):
  write = np.savez_compressed if compressed else np.savez
  trap = np.array([Trap(tmp_path / 'run')], object)
  write(tmp_path / 'x.npz', kernel=np.ones(3), trap=trap)
  refused(npz.read, tmp_path / 'x.npz', "array 'trap': it holds pickled")
  refused(pretrained.load, tmp_path / 'x.npz', 'pickled')
  assert not (tmp_path / 'run').exists()
  with np.load(tmp_path / 'x.npz', allow_pickle=True) as found:
    found['trap']
  assert (tmp_path / 'run').exists()  # so it was a trap


@pytest.mark.parametrize(
  'name', ['x.npz', 'x.pth', 'x.pt', 'x.bin', 'x.pkl', 'pytorch_model.bin']
)
def test_a_pickle_on_its_own_is_refused_and_not_run(name, tmp_path):
  (tmp_path / name).write_bytes(pickle.dumps(Trap(tmp_path / 'run')))
  refused(pretrained.load, tmp_path / name, 'is a pickle.*save_file')
  assert not (tmp_path / 'run').exists()


def test_a_file_that_would_unpack_to_much_more_is_not_unpacked(tmp_path):
  size = 2**27
  with zipfile.ZipFile(
    tmp_path / 'x.npz', 'w', zipfile.ZIP_DEFLATED, compresslevel=1
  ) as out, out.open('x.npy', 'w') as f:
    f.write(header((size // 4,)))
    for _ in range(size // 2**24):
      f.write(bytes(2**24))
  assert (tmp_path / 'x.npz').stat().st_size < 2**23
  refused(npz.read, tmp_path / 'x.npz', 'would unpack from .* more than 20')


def one_array():
  """An .npz with one array, its bytes, and where its directory entry starts."""
  content = io.BytesIO()
  np.savez(content, x=np.arange(50, dtype=np.float32))
  data = content.getvalue()
  return data, data.index(b'PK\x01\x02')


@pytest.mark.parametrize(
  ('offset', 'value', 'text'),
  [
    (8, struct.pack('<H', 1), "'x' is encrypted"),
    (10, struct.pack('<H', 12), "'x' is compressed by method 12"),
    (20, struct.pack('<I', 2**31), 'declares 2147483648 bytes of arrays'),
    (24, struct.pack('<I', 2**31), 'would unpack from'),
    (24, struct.pack('<I', 2**16), "array 'x': .*declares"),
    (24, struct.pack('<I', 200), "array 'x': Bad CRC"),
    (42, struct.pack('<I', 2**31), '.'),  # where the member begins
  ],
)
def test_a_directory_that_lies_is_refused(offset, value, text, tmp_path):
  data, entry = one_array()
  at = entry + offset
  data = data[:at] + value + data[at + len(value) :]
  (tmp_path / 'x.npz').write_bytes(data)
  refused(npz.read, tmp_path / 'x.npz', text)


def test_a_truncated_archive_is_refused_wherever_it_ends(tmp_path):
  data, _ = one_array()
  for size in range(0, len(data), 7):
    (tmp_path / 'x.npz').write_bytes(data[:size])
    refused(npz.read, tmp_path / 'x.npz')


def test_a_flipped_bit_never_changes_a_number(tmp_path):
  data, _ = one_array()
  expected = np.arange(50, dtype=np.float32)
  harmless = unnamed = 0
  for at in range(len(data)):
    bad = bytearray(data)
    bad[at] ^= 1 << at % 8
    (tmp_path / 'x.npz').write_bytes(bad)
    try:
      found = npz.read(tmp_path / 'x.npz')
    except ValueError as e:
      unnamed += 'x.npz' not in str(e)
    else:  # in a date, say
      equal(found, {'x': expected})
      harmless += 1
  assert not unnamed
  assert harmless < len(data) / 4


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
