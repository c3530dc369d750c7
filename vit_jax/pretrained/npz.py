"""Arrays of an .npz that somebody else wrote: nothing is executed.

Every size that the archive declares is compared with the file itself before
anything of that size is allocated.
"""

import io
import math
import os
import pathlib
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from vit_jax.pretrained.arrays import refuse_pickle

MAGIC = b'\x93NUMPY'  # of the .npy format
HEADER = 10_000  # characters of an .npy header: NumPy's own limit
RATIO = 20  # bytes unpacked for a byte of an archive; weights reach 2
UNPACKED = 2**26  # bytes unpacked that are allowed whatever the ratio
CHUNK = 2**20  # bytes read at a time

# What NumPy's and Python's readers raise on hostile bytes.
DAMAGE = (
  zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError,
  ValueError, TypeError, SyntaxError, EOFError, OSError, RuntimeError,
  OverflowError, MemoryError,
)  # fmt: skip


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Name → array of an .npz, compressed or not.

  bfloat16, which NumPy writes as two bytes of nothing ('V2'), is bfloat16
  again. Pickled objects are never read.

  Raises:
    ValueError: no zip archive; a damaged, truncated, encrypted, nameless or
      doubled member; one that is no array of numbers; a header that declares
      another size than there is; more than `RATIO` times the file unpacked.
  """
  path = pathlib.Path(path)
  with _archive(path) as archive:
    out = {}
    for name, info in _members(path, archive).items():
      try:
        out[name] = _member(archive, info)
      except DAMAGE as e:
        raise ValueError(f'{path}, array {name!r}: {e}') from e
    return out


def read_comment(path: str | os.PathLike) -> bytes:
  """The comment of a zip archive, b'' where it has none."""
  with _archive(pathlib.Path(path)) as archive:
    return archive.comment


def write(
  path: str | os.PathLike, arrays: Mapping[str, np.ndarray], comment: bytes
) -> None:
  """Writes what `np.savez` does, bfloat16 as 'V2', and the archive's comment.

  The names may be any. Other readers of .npz pass over the comment.
  """
  with zipfile.ZipFile(path, 'w') as archive:
    for name, x in arrays.items():
      x = x.view('V2') if x.dtype == ml_dtypes.bfloat16 else x
      with archive.open(f'{name}.npy', 'w', force_zip64=True) as f:
        np.lib.format.write_array(f, x, allow_pickle=False)
    archive.comment = comment


def _archive(path: pathlib.Path) -> zipfile.ZipFile:
  try:
    return zipfile.ZipFile(path)
  except DAMAGE as e:
    with path.open('rb') as f:
      start = f.read(2)
    if start[:1] == b'\x80':  # the first byte of a pickle since protocol 2
      refuse_pickle(path)
    raise ValueError(f'{path} is no .npz, or a truncated one: {e}') from e


def _members(
  path: pathlib.Path, archive: zipfile.ZipFile
) -> dict[str, zipfile.ZipInfo]:
  """The members by array name, after a look at what the directory declares."""
  out = {}
  for info in archive.infolist():
    name = info.filename.removesuffix('.npy')
    if name == info.filename:
      raise ValueError(f'{path} holds {name!r}, which is no .npy array')
    if '\\' in name or set(name.split('/')) & {'', '.', '..'}:
      raise ValueError(f'{path}: {name!r} is a path, not the name of an array')
    if name in out:
      raise ValueError(f'{path} holds the array {name!r} twice')
    if info.flag_bits & 1:
      raise ValueError(f'{path}: the array {name!r} is encrypted')
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
      raise ValueError(
        f'{path}: the array {name!r} is compressed by method '
        f'{info.compress_type}; those of np.savez and np.savez_compressed are '
        'read'
      )
    out[name] = info
  size = path.stat().st_size
  packed = sum(info.compress_size for info in out.values())
  total = sum(info.file_size for info in out.values())
  if packed > size:
    raise ValueError(
      f'{path} declares {packed} bytes of arrays and has {size} in all'
    )
  if total > max(UNPACKED, RATIO * size):
    raise ValueError(
      f'{path} would unpack from {size} to {total} bytes, more than {RATIO} '
      'times as many; if it is yours, write it again with np.savez'
    )
  return out


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
  with archive.open(info) as f:
    start = f.read(8)
    if start[:6] != MAGIC:
      raise ValueError('it is no .npy array')
    version = tuple(start[6:])
    if version not in ((1, 0), (2, 0)):
      raise ValueError(f'version {version} of .npy is not for numbers')
    digits = f.read(2 if version == (1, 0) else 4)
    length = int.from_bytes(digits, 'little')
    if length > HEADER:
      raise ValueError(f'a header of {length} bytes; at most {HEADER}')
    header = io.BytesIO(digits + f.read(length))
    shape, columns_first, dtype = (
      np.lib.format.read_array_header_1_0
      if version == (1, 0)
      else np.lib.format.read_array_header_2_0
    )(header, max_header_size=HEADER)
    dtype = _numbers(dtype)
    declared = math.prod(shape) * dtype.itemsize
    there = info.file_size - 8 - len(digits) - length
    if declared != there or any(n < 0 for n in shape):
      raise ValueError(
        f'its header declares {shape} of {dtype}, {declared} bytes, where '
        f'{there} follow'
      )
    x = _exactly(f, there).view(dtype)
  x = x if dtype.isnative else x.astype(dtype.newbyteorder('='))
  return x.reshape(shape, order='F' if columns_first else 'C')


def _numbers(dtype: np.dtype) -> np.dtype:
  """The dtype if it is one of numbers; raises a ValueError otherwise."""
  if dtype.hasobject:
    raise ValueError(
      'it holds pickled Python objects: loading them runs whatever code is in '
      'them; save the arrays of numbers on their own'
    )
  if dtype == np.dtype('V2'):
    return np.dtype(ml_dtypes.bfloat16)
  if dtype.kind not in 'biufc':
    raise ValueError(f'its dtype {dtype} is not one of numbers')
  return dtype


def _exactly(f: Any, size: int) -> np.ndarray:
  """Exactly `size` bytes up to the end, where the checksum is compared."""
  out = np.empty(size, np.uint8)
  done = 0
  while done < size:
    part = f.read(min(CHUNK, size - done))
    if not part:
      raise ValueError(f'it ends after {done} of {size} bytes')
    out[done : done + len(part)] = np.frombuffer(part, np.uint8)
    done += len(part)
  if f.read(1):
    raise ValueError(f'it goes on after {size} bytes')
  return out
