"""Strict conversion between the arrays of a file and a model's variables.

A format lists `Pair`s: which arrays of the file become which variables, in
which layout, both ways. Nothing is left over on either side, or it is said.
"""

import dataclasses
import difflib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.traverse_util
import ml_dtypes
import numpy as np

from vit_jax.pretrained.layouts import (
  CONV,
  DENSE,
  PIXEL,
  SAME,
  Layout,
  fused,
  heads,
  heads_bias,
  heads_out,
  reshaped,
  stacked,
)

FLOATS = ('float16', 'bfloat16', 'float32', 'float64')
SHOWN = 12  # names of each kind of fault in an error
COMPARED = 2000  # names, and letters of a name, among which to find the nearest


class ConversionError(ValueError):
  """The arrays of a file and the variables of a model do not match."""


@dataclasses.dataclass(frozen=True)
class Pair:
  """Arrays of a file and the variables they become.

  Attributes:
    theirs: names in the file.
    ours: names of variables: 'head/kernel' for params, with the collection in
      front for others, 'batch_stats/…'.
    layout: how one becomes the other.
  """

  theirs: tuple[str, ...]
  ours: tuple[str, ...]
  layout: Layout


Row = tuple[str | tuple[str, ...], str | tuple[str, ...], Layout]


def pairs(rows: Iterable[Row], **indices: Any) -> list[Pair]:
  """Pairs of a row-wise table; '{i}' stands for each of `indices['i']`.

  A row holds theirs, ours (a name or several) and the layout.
  """
  out = []
  for theirs, ours, layout in rows:
    theirs = (theirs,) if isinstance(theirs, str) else theirs
    ours = (ours,) if isinstance(ours, str) else ours
    used = [k for k in indices if f'{{{k}}}' in theirs[0]]
    at = [{}]
    for key in used:
      at = [{**a, key: v} for a in at for v in indices[key]]
    out += [
      Pair(
        tuple(n.format(**a) for n in theirs),
        tuple(n.format(**a) for n in ours),
        layout,
      )
      for a in at
    ]
  return out


def flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
  """{'head/kernel': …, 'batch_stats/…': …}: params without their prefix."""
  flat = flax.traverse_util.flatten_dict(dict(variables), sep='/')
  return {name.removeprefix('params/'): x for name, x in flat.items()}


def unflatten(
  flat: Mapping[str, Any], collections: Iterable[str] = ()
) -> dict[str, Any]:
  """The inverse of `flatten`; `collections` are those besides params."""
  collections = tuple(collections)
  out = {
    name if name.split('/')[0] in collections else f'params/{name}': x
    for name, x in flat.items()
  }
  return flax.traverse_util.unflatten_dict(out, sep='/')


def exact_float32(name: str, x: np.ndarray) -> np.ndarray:
  """The array in float32, with the very same numbers.

  Raises:
    ConversionError: it holds no floats, or floats that float32 has not.
  """
  if x.dtype.name not in FLOATS:
    raise ConversionError(
      f'the array {name!r} is {x.dtype}; weights are {", ".join(FLOATS)}'
    )
  with np.errstate(over='ignore'):  # to infinity, which is not equal
    out = x.astype(np.float32)
  if x.dtype == np.float64 and not np.array_equal(out, x, equal_nan=True):
    raise ConversionError(
      f'the array {name!r} is float64 and would lose digits in float32; '
      'round it with .astype("float32") first'
    )
  return out


def read(
  arrays: Mapping[str, np.ndarray],
  table: Sequence[Pair],
  target: Mapping[str, Any],
  where: str,
  dropped: Sequence[str] = (),
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Variables from the arrays of a file.

  Args:
    arrays: name → array of the file.
    table: what becomes what.
    target: flat name → anything with the shape that the model wants.
    where: the file, for errors.
    dropped: regular expressions of arrays that nobody needs.

  Returns:
    Variables by flat name, floats in float32, others (counts, masks) as they
    are; and the dtype they have in the file where that is another.

  Raises:
    ConversionError: an array that nothing uses, a variable that nothing fills,
      a wrong shape or dtype: all of them, with the nearest names.
  """
  out, dtypes, missing, wrong = {}, {}, [], []
  for pair in table:
    absent = [n for n in pair.theirs if n not in arrays]
    missing += absent
    if absent:
      continue
    kinds = {np.dtype(target[n].dtype) for n in pair.ours if n in target}
    given = [
      x if x.dtype in kinds else exact_float32(n, x)
      for n, x in ((n, arrays[n]) for n in pair.theirs)
    ]
    shapes = ', '.join(f'{n} {arrays[n].shape}' for n in pair.theirs)
    try:
      found = pair.layout.read(*given)
    except ValueError as e:
      wrong.append(f'{shapes} cannot become {", ".join(pair.ours)}: {e}')
      continue
    for name, x in zip(pair.ours, found, strict=True):
      if name in target:
        like = target[name]
        if x.shape != tuple(like.shape) or x.dtype != like.dtype:
          wrong.append(
            f'{shapes} gives {name} {x.shape} {x.dtype}; the model has '
            f'{tuple(like.shape)} {like.dtype}'
          )
      out[name] = np.asarray(x, order='C')
      kind = arrays[pair.theirs[0]].dtype.name
      if kind != 'float32':
        dtypes[name] = kind
  wanted = [n for pair in table for n in pair.theirs]
  used = set(wanted)
  unused = [
    n
    for n in arrays
    if n not in used and not any(re.search(p, n) for p in dropped)
  ]
  reached = {n for pair in table for n in pair.ours}
  unfilled = [n for n in target if n not in reached]
  stray = [n for n in reached if n not in target]
  _refuse(
    where,
    {
      'no such array': (missing, unused),
      'arrays that nothing uses': (unused, wanted),
      'variables that nothing fills': (unfilled, unused),
      'variables that the model has not': (stray, target),
      'wrong shapes or dtypes': (wrong, ()),
    },
  )
  return out, dtypes


def write(
  flat: Mapping[str, Any],
  table: Sequence[Pair],
  dtypes: Mapping[str, str],
  where: str,
) -> dict[str, np.ndarray]:
  """The arrays of a file from variables; the inverse of `read`.

  An array has the dtype that its variables had in their file (`dtypes`), if
  their numbers still fit it, otherwise float32.

  Raises:
    ConversionError: the format has no place for a variable, or wants one that
      the model has not.
  """
  reached = {n for pair in table for n in pair.ours}
  _refuse(
    where,
    {
      'variables that the format has no place for': (
        [n for n in flat if n not in reached],
        (),
      ),
      'variables that the format wants': (sorted(reached - set(flat)), flat),
    },
  )
  out = {}
  for pair in table:
    found = pair.layout.write(*(np.asarray(flat[n]) for n in pair.ours))
    # Parts of one array that came from files of two dtypes become float32.
    kinds = {dtypes[n] for n in pair.ours if n in dtypes} or {'float32'}
    dtype = named_dtype(kinds.pop() if len(kinds) == 1 else 'float32')
    for name, x in zip(pair.theirs, found, strict=True):
      out[name] = np.asarray(_fitting(x, dtype), order='C')
  return out


def _fitting(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
  """Floats in `dtype` if that changes no number; otherwise as they are."""
  if x.dtype.name not in FLOATS or x.dtype == dtype:
    return x
  with np.errstate(over='ignore'):  # to infinity, which is not equal
    out = x.astype(dtype)
  return out if np.array_equal(out.astype(x.dtype), x, equal_nan=True) else x


COUNT = 'num_batches_tracked'  # PyTorch's BatchNorm counts its batches
COUNTED = (rf'(^|\.){COUNT}$',)  # what nobody needs, as `read` takes it


def with_counts(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """With the count that PyTorch has beside every running mean, 0."""
  means = [n for n in weights if n.endswith('running_mean')]
  names = [n.removesuffix('running_mean') + COUNT for n in means]
  return {**weights, **{n: np.zeros((), np.int64) for n in names}}


def named_dtype(name: str) -> np.dtype:
  """The dtype of that name, 'bfloat16' too."""
  return np.dtype(ml_dtypes.bfloat16 if name == 'bfloat16' else name)


def _near(name: str, names: Iterable[str]) -> str:
  # Someone else's file may hold any number of names of any length.
  names = [n for n in itertools.islice(names, COMPARED) if len(n) < COMPARED]
  if len(name) >= COMPARED:
    return f'{name[:COMPARED]}…'
  found = difflib.get_close_matches(name, names, n=1, cutoff=0.8)
  return f'{name} (nearest: {found[0]})' if found else name


def _refuse(
  where: str, faults: Mapping[str, tuple[Sequence[str], Iterable[str]]]
) -> None:
  """Raises on faults: what is wrong → (names, names that may be meant)."""
  lines = []
  for what, (names, meant) in faults.items():
    if names:
      shown = '; '.join(_near(n, meant) for n in names[:SHOWN])
      more = f'; and {len(names) - SHOWN} more' * (len(names) > SHOWN)
      lines.append(f'{what}: {shown}{more}')
  if lines:
    raise ConversionError(f'{where} does not fit:\n  ' + '\n  '.join(lines))


__all__ = [
  'CONV', 'COUNTED', 'DENSE', 'PIXEL', 'SAME', 'ConversionError', 'Layout',
  'Pair', 'Row', 'flatten', 'fused', 'heads', 'heads_bias', 'heads_out',
  'pairs', 'read', 'reshaped', 'stacked', 'unflatten', 'with_counts', 'write',
]  # fmt: skip
