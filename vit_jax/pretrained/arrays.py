"""Arrays and JSON of files that somebody else wrote: nothing is executed.

Every size that a file declares is compared with the file itself before
anything of that size is allocated. Archives of NumPy's are read in `npz`.
"""

import json
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

JSON = 2**24  # bytes of a JSON file, or of a safetensors header
PICKLES = ('.bin', '.pth', '.pt', '.pkl', '.pickle', '.ckpt')
WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'  # names the file of each array

SAFE_DTYPES = {
  'F64': '<f8', 'F32': '<f4', 'F16': '<f2', 'BF16': ml_dtypes.bfloat16,
  'I64': '<i8', 'I32': '<i4', 'I16': '<i2', 'I8': 'i1',
  'U64': '<u8', 'U32': '<u4', 'U16': '<u2', 'U8': 'u1', 'BOOL': '?',
}  # fmt: skip


def refuse_pickle(path: str | os.PathLike) -> None:
  """Raises the ValueError that says what a pickle is and how to convert it."""
  raise ValueError(
    f'{path} is a pickle: loading it runs whatever code is in it. Convert it '
    'once, on a machine that you can trust with it: safetensors.torch.'
    'save_file(torch.load(FILE, weights_only=True), "model.safetensors")'
  )


def read_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Name → array of a safetensors file; BF16 is `ml_dtypes.bfloat16`.

  Raises:
    ValueError: what the safetensors library refuses (truncation, overlapping
      ranges, shapes that are not the ranges'), a name that comes twice, a
      header above `JSON` bytes, or a dtype that NumPy has not.
  """
  import safetensors

  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(f'{path} is no file')
  with path.open('rb') as f:
    length = int.from_bytes(f.read(8), 'little')
    if length > min(JSON, path.stat().st_size - 8):
      raise ValueError(
        f'{path} declares a header of {length} bytes; at most {JSON} and no '
        'more than the file has'
      )
    header = parse_json(f.read(length), str(path))
    try:
      with safetensors.safe_open(path, framework='np'):
        pass  # it has compared the header with the file
    except (safetensors.SafetensorError, OSError) as e:
      raise ValueError(f'{path} is damaged: {e}') from e
    out = {}
    for name, entry in header.items():
      if name == '__metadata__':
        continue
      if entry['dtype'] not in SAFE_DTYPES:
        raise ValueError(
          f'{path}, array {name!r}: dtype {entry["dtype"]}; those that are '
          f'read: {", ".join(SAFE_DTYPES)}'
        )
      dtype = np.dtype(SAFE_DTYPES[entry['dtype']])
      f.seek(8 + length + entry['data_offsets'][0])
      x = np.fromfile(f, dtype, math.prod(entry['shape']))
      out[name] = x.reshape(entry['shape'])
    return out


def write_safetensors(
  path: str | os.PathLike, arrays: Mapping[str, np.ndarray]
) -> None:
  """Writes a safetensors file that transformers and timm open, too."""
  import safetensors.numpy

  # The library takes the memory as it lies; transformers asks for the format.
  arrays = {name: np.asarray(x, order='C') for name, x in arrays.items()}
  path = pathlib.Path(path)
  path.touch()
  mode = path.stat().st_mode  # whoever may read other new files
  safetensors.numpy.save_file(arrays, path, metadata={'format': 'pt'})
  path.chmod(mode)


def read_safetensors_folder(
  folder: str | os.PathLike,
) -> dict[str, np.ndarray]:
  """Name → array of a folder: `model.safetensors`, or parts with an index.

  Raises:
    ValueError: there is neither; the folder has only pickles; a part is
      missing, lies elsewhere, or holds other arrays than the index says.
  """
  folder = pathlib.Path(folder)
  if (folder / WEIGHTS).is_file():
    return read_safetensors(folder / WEIGHTS)
  if not (folder / INDEX).is_file():
    for path in sorted(folder.iterdir()):
      if path.suffix in PICKLES:
        refuse_pickle(path)
    raise ValueError(f'{folder} has neither {WEIGHTS} nor {INDEX}')
  index = read_json(folder / INDEX)
  if 'weight_map' not in index:
    raise ValueError(f'{folder / INDEX} has no weight_map')
  where = index['weight_map']
  if not isinstance(where, dict) or not where:
    raise ValueError(
      f'{folder / INDEX}: weight_map={where!r} maps no names to files'
    )
  for name in where.values():
    if not (isinstance(name, str) and re.fullmatch(r'\w[\w.-]*', name)):
      raise ValueError(
        f'{folder / INDEX} names {name!r}, which is no file of the folder'
      )
  parts = sorted(set(where.values()))
  missing = [name for name in parts if not (folder / name).is_file()]
  if missing:
    raise ValueError(
      f'{folder} lacks {len(missing)} of {len(parts)} files that {INDEX} '
      f'names: {", ".join(missing)}'
    )
  out = {}
  for part in parts:
    found = read_safetensors(folder / part)
    named = {name for name, file in where.items() if file == part}
    if named != set(found):
      wrong = sorted(named ^ set(found))
      raise ValueError(
        f'{folder / part} and {INDEX} do not agree on {", ".join(wrong[:8])}'
      )
    out |= found
  return out


def read_json(path: str | os.PathLike) -> dict[str, Any]:
  """The object in a JSON file.

  Raises:
    ValueError: as `parse_json`, or the file is larger than `JSON` bytes.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(f'{path} is no file')
  if path.stat().st_size > JSON:
    raise ValueError(f'{path} is larger than {JSON} bytes')
  return parse_json(path.read_bytes(), str(path))


def parse_json(text: bytes, where: str) -> dict[str, Any]:
  """The object in UTF-8 JSON; `where` it is from, for errors.

  Raises:
    ValueError: no JSON, no object, a key that comes twice, NaN or infinity.
  """

  def unique(items):
    out = {}
    for key, value in items:
      if key in out:
        raise ValueError(f'the key {key!r} comes twice')
      out[key] = value
    return out

  def refuse(constant):
    raise ValueError(f'{constant} is no JSON number')

  try:
    found = json.loads(
      text.decode(), object_pairs_hook=unique, parse_constant=refuse
    )
  except (ValueError, RecursionError) as e:
    raise ValueError(f'{where} holds no good JSON: {e}') from e
  if not isinstance(found, dict):
    raise ValueError(f'{where} holds a JSON {type(found).__name__}, no object')
  return found
