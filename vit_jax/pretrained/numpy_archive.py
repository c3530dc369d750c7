"""The .npz of the original codebase and of big_vision.

Such a file holds arrays and nothing else: `numpy_config` reads the
architecture off their names and shapes, and the preprocessing is the
original's, a plain resize and pixels in [-1, 1]. Read are

- the released files' pre-linen names and linen names, hybrids, Mixer;
- big_vision's: under `params/` or `opt/target/`, blocks stacked along a first
  axis, `pos_embedding` at the top, `MAPHead_0`, bfloat16; `FILE.npz:img` is
  the image tower of a file of several.

Written are the original's linen names. What arrays do not show (labels, other
preprocessing, an exact GELU, a rectangular image) goes into the comment of the
zip archive, as compressed JSON: `read` knows it, other programs pass over it,
and a warning names the fields of which they will know nothing.
"""

import dataclasses
import logging
import pathlib
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from vit_jax import layers, models
from vit_jax.pretrained import arrays, base, checks, convert, npz
from vit_jax.pretrained.numpy_config import (
  BLOCKS,
  NAMES,
  TABLE,
  infer,
  is_stacked,
)

LOOKS = 'an .npz of the original codebase or of big_vision (or FILE.npz:PART)'
MODELS = (models.VisionTransformer, models.MlpMixer)
FILE = re.compile(r'(.+\.npz)(?::([\w/]+))?')
MARK = b'vit_jax\n'  # begins our comment
COMMENT = 2**16 - 1  # bytes that a zip comment can have

# Older spellings, under the prefix of the file → linen's.
RESPELLED = (
  (r'(Transformer/)?pos_embedding$', TABLE),
  (r'(probe$|(MultiHeadDotProductAttention|LayerNorm|MlpBlock)_0/)',
   r'MAPHead_0/\1'),
  (rf'({BLOCKS}_\d+/MultiHeadDotProductAttention)_1/', r'\1_0/'),
  (rf'({BLOCKS}_\d+/LayerNorm)_2/', r'\1_1/'),
  (rf'({BLOCKS}_\d+/MlpBlock)_3/', r'\1_0/'),
)  # fmt: skip
# What training leaves beside the parameters: the optimiser's state, clocks.
LEFT = (r'^opt/(?!target/)', r'^extra/', r'^chrono/')


def matches(path: pathlib.Path) -> bool:
  """Whether it is an .npz, a part of one, or a pickle, which is refused."""
  file, _ = _split(path)
  return file.is_file() and file.suffix in ('.npz', *arrays.PICKLES)


def _split(path: pathlib.Path) -> tuple[pathlib.Path, str | None]:
  """'FILE.npz:img' → (FILE.npz, 'img')."""
  found = FILE.fullmatch(str(path))
  return (pathlib.Path(found[1]), found[2]) if found else (path, None)


def read(path: pathlib.Path) -> base.Pretrained:
  """Loads it.

  Raises:
    ValueError: a pickle, a damaged or hostile archive, no such part, or arrays
      that are not those of one model.
  """
  file, part = _split(path)
  if file.suffix in arrays.PICKLES:
    arrays.refuse_pickle(file)
  where, found = str(path), npz.read(file)
  prefix, dropped = _prefix(where, found, part)
  theirs = _linen(found, prefix)
  note = _read_note(file)
  config, channels = infer(
    where,
    {ours: found[name].shape for ours, name in theirs.items()},
    **{k: v for k, v in note['model'].items() if k == 'image_size'},
  )
  return base.fill(
    where,
    config={**config, **note['model']},
    arrays=found,
    table=list(_pairs(theirs, found, config['num_layers'])),
    preprocess=(
      note['preprocess'] or _preprocess(config['image_size'], channels)
    ),
    labels=note['labels'],
    channels=channels,
    dropped=dropped,
  )


def _prefix(
  where: str, names: Mapping[str, Any], part: str | None
) -> tuple[str, tuple[str, ...]]:
  """What stands before the model's names; patterns of what may be left over."""
  top = ''
  for prefix in ('opt/target/', 'params/'):
    if any(n.startswith(prefix) for n in names):
      top = prefix
  if part:
    chosen = f'{top}{part}/'
    if not any(n.startswith(chosen) for n in names):
      raise ValueError(f'{where}: no array is under {chosen}')
    return chosen, (*LEFT, rf'^(?!{re.escape(chosen)})')
  if f'{top}embedding/kernel' in names or f'{top}stem/kernel' in names:
    return top, LEFT
  inside = [n.removeprefix(top) for n in names if n.startswith(top)]
  parts = sorted({n.split('/')[0] for n in inside})
  if parts == ['img']:
    return f'{top}img/', LEFT
  raise ValueError(
    f'{where} has no array {top}embedding/kernel as a ViT has, nor '
    f'{top}stem/kernel as a Mixer; it has {", ".join(parts[:12])}. The part '
    'img of a file of several is FILE.npz:img'
  )


def _linen(names: Mapping[str, Any], prefix: str) -> dict[str, str]:
  """Linen's name → the file's, of all that have a place."""
  out = {}
  for name in names:
    ours = name.removeprefix(prefix)
    for old, new in RESPELLED:
      ours = re.sub(rf'^{old}', new, ours)
    if name.startswith(prefix) and NAMES.fullmatch(ours) and ours not in out:
      out[ours] = name
  return out


def _pairs(
  theirs: Mapping[str, str], found: Mapping[str, Any], blocks: int
) -> Iterator[convert.Pair]:
  """How the arrays become variables, of so many blocks."""
  for ours, name in theirs.items():
    shape, names, layout = found[name].shape, (ours,), convert.SAME
    if is_stacked([ours]):
      rest = ours.removeprefix(BLOCKS)
      names = tuple(f'{BLOCKS}_{i}{rest}' for i in range(blocks))
      layout = convert.stacked(blocks)
    elif re.search(r'(^|/)gn', ours) and shape[:-1] == (1, 1, 1):
      # flax wrote a GroupNorm's arrays so before linen.
      layout = convert.reshaped(shape[-1:], shape)
    yield convert.Pair((name,), names, layout)


def _preprocess(
  image_size: int | tuple[int, int], channels: int
) -> dict[str, str]:
  """The original's, for evaluation."""
  return {
    'decode': f'decode(channels={channels}, convert=True)',
    'transform': (
      f"resize(size={layers.pair(image_size)}, resample='bilinear'), "
      'value_range(low=-1, high=1)'
    ),
  }


def _read_note(file: pathlib.Path) -> dict[str, Any]:
  """What our comment says, or that it says nothing."""
  comment = npz.read_comment(file)
  if not comment.startswith(MARK):
    return {'model': {}, 'preprocess': {}, 'labels': ()}
  where = f'the comment of {file}'
  try:
    inflate = zlib.decompressobj()
    text = inflate.decompress(comment.removeprefix(MARK), arrays.JSON)
  except zlib.error as e:
    raise ValueError(f'{where} is damaged: {e}') from e
  if not inflate.eof:  # cut off, or a bomb; also, the checksum comes last
    raise ValueError(f'{where} is cut off or longer than {arrays.JSON} bytes')
  note = arrays.parse_json(text, where)
  checks.check_keys(where, note, ('model', 'preprocess', 'labels'))
  note = base.parts(where, note)
  # All fields of a Mixer's that need a note are a ViT's, too.
  checks.check_types(where, {**note['model'], 'name': 'vit'})
  checks.check_sizes(where, note['model'], checks.LAYERS)
  return note


def write(
  path: pathlib.Path, found: base.Pretrained
) -> tuple[tuple[str, str], ...]:
  """Writes it, and returns what mapped to what.

  Raises:
    ValueError: no plain ViT or Mixer, variables that the original has no
      name for, or labels that do not fit into a zip comment.
  """
  where = f'{path.name} (npz)'
  if path.suffix != '.npz':
    raise ValueError(f'{path.name}: the name of an .npz must end so')
  if type(found.model) not in MODELS:
    raise ValueError(
      f'an .npz of the original holds {" or ".join(m.__name__ for m in MODELS)}'
      f', not {type(found.model).__name__}; formats for any model: vit_jax'
    )
  flat = convert.flatten(found.variables)
  # Without a row for the class token, the table is written as big_vision's.
  free = 'cls' in flat and found.model.learned_prefix == 0
  table = [
    convert.Pair(
      ('pos_embedding' if free and name == TABLE else name,),
      (name,),
      convert.SAME,
    )
    for name in flat
    if NAMES.fullmatch(name)
  ]
  written = convert.write(flat, table, found.dtypes, where)
  note = _note(where, found, {name: x.shape for name, x in flat.items()})
  npz.write(path, written, note)
  return base.shown(table)


def _note(
  where: str, found: base.Pretrained, shapes: Mapping[str, Any]
) -> bytes:
  """The comment: what the arrays do not show, b'' if they show everything."""
  size = found.model.image_size
  shown, _ = infer(where, shapes, None if isinstance(size, int) else size)
  if not isinstance(size, int):
    del shown['image_size']
  plain, fields = models.build(**shown), {}
  for field in dataclasses.fields(found.model):
    name = field.name
    value = getattr(found.model, name)
    if name not in ('name', 'parent') and value != getattr(plain, name):
      fields[name] = value
  preprocess = dict(found.preprocess)
  if preprocess == _preprocess(size, found.channels):
    preprocess = {}
  if not (fields or preprocess or found.labels):
    return b''
  if fields:
    told = ', '.join(f'{name}={value!r}' for name, value in fields.items())
    logging.warning('%s: other programs will know nothing of %s', where, told)
  text = base.to_json(
    where,
    {'model': fields, 'preprocess': preprocess, 'labels': found.labels},
  )
  note = MARK + zlib.compress(text.encode(), 9)
  if len(note) > COMMENT:
    raise ValueError(
      f'{where}: the labels take {len(note)} bytes, and the comment of an '
      f'.npz has room for {COMMENT}; save without them, '
      'dataclasses.replace(found, labels=()), or in another format'
    )
  return note
