"""TensorFlow Datasets, read as array_record: any set, without TensorFlow."""

import hashlib
import os

from vit_jax import specs


class Tfds:
  """One split of a prepared TFDS data set; images stay encoded.

  Attributes:
    labels: class names, as the set declares them.
    fingerprint: SHA-256 of name, version, split, sizes of shards, and labels.
  """

  location = ('data_dir',)

  def __init__(
    self,
    split: str,
    name: str,
    data_dir: str | None = None,
    image: str = 'image',
    label: str = 'label',
  ):
    import tensorflow_datasets as tfds

    builder = _open(name, data_dir)
    info = builder.info
    for key in (image, label):
      specs.lookup(dict(info.features), key, f'feature of {name!r}:')
    if not isinstance(info.features[label], tfds.features.ClassLabel):
      raise ValueError(
        f'label={label!r} of {name!r} is {info.features[label]!r}, not a '
        'ClassLabel: classification needs one'
      )
    try:
      chosen = info.splits[split]
      self._source = builder.as_data_source(
        split, decoders={image: tfds.decode.SkipDecoding()}
      )
    except (ValueError, KeyError) as e:
      raise ValueError(
        f'no split {split!r} in {name!r} ({e}); '
        f"{specs.nearest(split, info.splits)}, and parts as 'train[:90%]'"
      ) from None
    self.labels = tuple(info.features[label].names)
    self._name, self._split = info.full_name, split
    self._image, self._label = image, label
    shards = {k: list(v.shard_lengths) for k, v in info.splits.items()}
    what = (
      info.full_name,
      split,
      chosen.num_examples,
      sorted(shards.items()),
      self.labels,
    )
    self.fingerprint = hashlib.sha256(repr(what).encode()).hexdigest()

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict:
    example = self._source[index]
    return {
      'image': example[self._image],
      'label': int(example[self._label]),
      'name': f'{self._name}/{self._split}/{index}',
    }


def _open(name: str, data_dir: str | None):
  """The builder of a prepared set; a ValueError says how to prepare it."""
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import read_only_builder

  data_dir = data_dir and os.path.expanduser(data_dir)
  where = data_dir or tfds.core.constants.DATA_DIR
  how = (
    f"prepare it once, with `pip install 'vit_jax[tf]'` and\n"
    f'  python -c "import tensorflow_datasets as tfds; '
    f"tfds.builder('{name}', data_dir='{where}', "
    f"file_format='array_record').download_and_prepare()\""
  )
  try:
    builder = read_only_builder.builder_from_files(name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError:
    known = tfds.list_builders(with_community_datasets=False)
    base = name.split(':')[0].split('/')[0]
    if base not in known:
      close = specs.nearest(base, known).split('choices:')[0]
      raise ValueError(
        f'name={name!r} is neither prepared in {str(where)!r} nor a TFDS data '
        f'set; {close}all names: https://www.tensorflow.org/datasets/catalog'
      ) from None
    raise ValueError(
      f'{name!r} is not prepared in {str(where)!r}; {how}'
    ) from None
  found = builder.info.file_format.value
  if found != 'array_record':
    raise ValueError(
      f'{name!r} is prepared in {str(where)!r} as {found}, which is not read '
      f'by index; remove {str(builder.data_dir)!r} or give another data_dir, '
      f'and {how}'
    )
  return builder
