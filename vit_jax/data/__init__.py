"""Data: sources, transforms, and `build`, which makes batches of them.

Adding a source: a class as `examples.Source`, one line in `SOURCES`. Adding a
transform: a frozen dataclass as `transforms.Transform`, one line in
`TRANSFORMS`. Another way from images to tokens: one line in `TOKENS`.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax import specs
from vit_jax.data import (
  auto,
  color,
  decode,
  digits,
  examples,
  folder,
  geometry,
  listops,
  pathfinder,
  pipeline,
  pixels,
  reading,
  retrieval,
  synthetic,
  text,
  tfds,
  tiny_imagenet,
  transforms,
)

BadImageError = decode.BadImageError

SOURCES = {
  'digits': digits.Digits,  # 1,797 8×8 digits of scikit-learn; no download
  'folder': folder.Folder,  # PATH/train/CLASS/*.jpg, or PATH/CLASS/*.jpg
  'listops': listops.Listops,  # nested lists, as in the Long-Range Arena
  'pathfinder': pathfinder.Pathfinder,  # are two discs joined by dashes?
  'retrieval': retrieval.Retrieval,  # pairs of documents, as bytes
  'synthetic': synthetic.Synthetic,  # noise of a declared shape
  'text': text.Text,  # PATH/train/CLASS/*.txt or PATH/train.tsv, as bytes
  'tfds': tfds.Tfds,  # any TensorFlow Datasets set prepared as array_record
  'tiny_imagenet': tiny_imagenet.TinyImagenet,  # 200 classes of 64×64
}

DECODERS = {
  'decode': decode.Decode,  # JPEG, PNG, WebP, GIF, BMP, within limits
}

TRANSFORMS = {
  # Geometry.
  'resize': geometry.Resize,  # to an exact size
  'resize_short': geometry.ResizeShort,  # the shorter side; keeps the aspect
  'center_crop': geometry.CenterCrop,
  'inception_crop': geometry.InceptionCrop,  # Szegedy et al. 2015, §6
  'pad_crop': geometry.PadCrop,  # He et al. 2016, §4.2
  'flip': geometry.Flip,
  'affine': geometry.Affine,  # small rotation, scale and shift
  # Colour.
  'grayscale': color.Grayscale,
  'color_jitter': color.ColorJitter,
  # Policies.
  'randaugment': auto.RandAugment,  # Cubuk et al. 2020, as in timm
  'trivial_augment': auto.TrivialAugment,  # Müller and Hutter 2021, wide
  'three_augment': auto.ThreeAugment,  # Touvron et al. 2022 (DeiT III)
  # Numbers.
  'value_range': transforms.ValueRange,  # 0..255 → low..high
  'normalize': transforms.Normalize,  # (x / 255 − mean) / std
}

TOKENS = {
  'pixels': pixels.Pixels,  # of grey images, one after the other
}


def build(
  source: str,
  train: str,
  test: str,
  decode: str = 'decode',
  tokens: str = '',
  train_split: str = 'train',
  test_split: str = 'test',
  on_bad: str = 'refuse',
  cache: bool = False,
  workers: int = 0,
  threads: int | None = None,
  prefetch: int = 4,
  repeats: int = 1,
  shots: int = 0,
  shots_seed: int = 0,
) -> pipeline.Data:
  """Builds a data set from specs.

  Args:
    source: spec of `SOURCES`.
    train: specs of `TRANSFORMS`, comma separated, for training.
    test: those for evaluation, and so for prediction; none may be random.
    decode: spec of `DECODERS`.
    tokens: spec of `TOKENS`, which ends both transforms; '' keeps images.
    train_split: split of the source.
    test_split: split of the source.
    on_bad: 'refuse' raises on an image that cannot be used; 'skip' yields it
      with weight 0, logs it, and counts it in the iterator's `skipped`.
    cache: keep decoded images in memory, per process; for small sets.
    workers: processes that prepare batches, 0 for this one. Together with
      threads and prefetch it changes no batch.
    threads: per process; None is one with a cache, else one per core: tiny
      cached examples keep Python busy, and threads would only contend for it.
    prefetch: batches held ready, per process.
    repeats: how often in a row a training example comes, each time with other
      random transforms ("repeated augmentation", Hoffer et al. 2020; DeiT's is
      3); as many steps then see that many times fewer examples.
    shots: training examples of each class, 0 for all; fewer are the first ones
      of more.
    shots_seed: of the order in which they are taken.

  Raises:
    ValueError: on unknown names and options, and on whatever can be known
      without reading all of the data.
  """
  if on_bad not in ('refuse', 'skip'):
    raise ValueError(f"on_bad={on_bad!r} must be 'refuse' or 'skip'")
  if not isinstance(repeats, int) or not 1 <= repeats <= 100:
    raise ValueError(f'repeats={repeats!r} must be a whole number in [1, 100]')
  preprocess = {
    'decode': _spell_out(decode, DECODERS, 'decoder'),
    'transform': _spell_out(test, TRANSFORMS, 'transform'),
  }
  if tokens:
    tokenize = specs.build(tokens, TOKENS, 'way to tokens')
    preprocess['tokens'] = _spell_out(tokens, TOKENS, 'way to tokens')
    preprocess['vocabulary'] = list(tokenize.vocabulary)
  decoder, test_chain = _build_preprocess(preprocess)
  train_chain = examples.Chain((
    *specs.build_all(train, TRANSFORMS, 'transform'),
    *([tokenize] if tokens else []),
  ))
  if threads is None:
    threads = 1 if cache else min(os.cpu_count() or 1, 16)
  how = reading.Reading(workers, threads, prefetch)
  splits = [
    specs.build(source, SOURCES, 'source', split=split)
    for split in (train_split, test_split)
  ]
  for name, split in zip((train_split, test_split), splits, strict=True):
    if not len(split):
      raise ValueError(f'the split {name!r} of {source!r} has no examples')
  sequences = hasattr(splits[0], 'vocabulary')
  if sequences:
    for name, value, without in (
      ('train', train, ''), ('test', test, ''), ('decode', decode, 'decode'),
      ('tokens', tokens, ''), ('on_bad', on_bad, 'refuse'),
    ):  # fmt: skip
      if value != without:
        raise ValueError(
          f'{name}={value!r} is about images, and {source!r} has sequences: '
          f'set it to {without!r}'
        )
    preprocess = {'vocabulary': list(splits[0].vocabulary)}
  identity = {
    'source': _identify(source),
    'splits': [train_split, test_split],
    'sizes': [len(split) for split in splits],
    'fingerprints': [split.fingerprint for split in splits],
    'labels': list(splits[0].labels),
    'train': _spell_out(train, TRANSFORMS, 'transform'),
    'on_bad': on_bad,
    **preprocess,
    **({'repeats': repeats} if repeats > 1 else {}),
  }
  if splits[0].labels != splits[1].labels:
    raise ValueError(
      f'the splits {train_split!r} and {test_split!r} have different labels: '
      f'{splits[0].labels} and {splits[1].labels}'
    )
  if sequences:
    loaded = [examples.Padded(s, cache) for s in splits]
  else:
    loaded = [examples.Decoded(s, decoder, on_bad, cache) for s in splits]
  out = pipeline.Data(
    *loaded,
    train_chain=train_chain,
    test_chain=test_chain,
    labels=splits[0].labels,
    reading=how,
    preprocess=preprocess,
    identity=identity,
    repeats=repeats,
  )
  if not isinstance(shots, int) or shots < 0 or (shots_seed and not shots):
    raise ValueError(
      f'shots={shots!r} must be a whole number of at least 0, and more with a '
      f'shots_seed (given {shots_seed!r})'
    )
  return out.fewer(shots, shots_seed) if shots else out


def load_image(
  image: str | os.PathLike | bytes, preprocess: Mapping[str, Any]
) -> np.ndarray:
  """Decodes and transforms one image as evaluation does.

  Args:
    image: a path or encoded bytes.
    preprocess: `Data.preprocess`.

  Returns:
    float32 `[H W C]`, or the tokens `[N]` of `build(tokens=…)`.

  Raises:
    BadImageError: the image cannot be used.
  """
  decoder, chain = _build_preprocess(preprocess)
  name = '<bytes>'
  if not isinstance(image, bytes):
    name = os.fspath(image)
    with open(name, 'rb') as f:
      image = f.read()
  try:
    pixels = decoder(image)
  except BadImageError as e:
    raise BadImageError(f'cannot use {name}: {e}') from None
  found = chain({'image': pixels, 'name': name})
  return found['tokens' if 'tokens' in preprocess else 'image']


def _build_preprocess(
  preprocess: Mapping[str, Any],
) -> tuple[decode.Decode, examples.Chain]:
  decoder = specs.build(preprocess['decode'], DECODERS, 'decoder')
  chain = specs.build_all(preprocess['transform'], TRANSFORMS, 'transform')
  for transform in chain:
    if transform.random:
      raise ValueError(
        f'{transform!r} is random, in the test transforms '
        f'{preprocess["transform"]!r}: it belongs in train'
      )
  if 'tokens' in preprocess:
    chain += specs.build_all(preprocess['tokens'], TOKENS, 'way to tokens')
  return decoder, examples.Chain(chain)


def _spell_out(text: str, table: Mapping[str, Any], what: str) -> str:
  """The specs with all their options: later defaults must not change them."""
  built = zip(
    specs.parse(text), specs.build_all(text, table, what), strict=True
  )
  return ', '.join(
    str(specs.Spec(spec.name, dataclasses.asdict(entry)))
    for spec, entry in built
  )


def _identify(source: str) -> str:
  """The source's spec without the options that only say where it lies."""
  (spec,) = specs.parse(source)
  where = SOURCES[spec.name].location
  kept = {k: v for k, v in spec.options.items() if k not in where}
  return str(specs.Spec(spec.name, kept))
