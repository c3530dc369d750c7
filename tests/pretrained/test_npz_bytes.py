"""Archives of NumPy's: read exactly, or refused; nothing is run."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest
from pretrained.hostile import ARRAYS, Trap, equal, refused

from vit_jax import pretrained
from vit_jax.pretrained import npz


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
