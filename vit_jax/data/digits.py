"""scikit-learn's 1,797 handwritten 8×8 digits: real data, no download.

E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
"""

import contextlib
import fcntl
import os

import numpy as np
from PIL import Image

from vit_jax.data import tfds as tfds_source

TEST_SIZE = 360  # 20 %, stratified; 1,437 remain to train


class Digits(tfds_source.Tfds):
  """The digits as a TFDS data set, prepared on first use in `data_dir`."""

  def __init__(self, split: str, data_dir: str | None = None):
    import tensorflow_datasets as tfds

    data_dir = os.path.expanduser(data_dir or str(tfds.core.constants.DATA_DIR))
    _prepare(data_dir)
    super().__init__(split, name='digits', data_dir=data_dir)


def _prepare(data_dir: str) -> None:
  """Prepares the set unless it is there; safe in concurrent processes."""
  import tensorflow_datasets as tfds

  # TFDS writes into a temporary folder and renames it, so a preparation that
  # was interrupted leaves no folder, and one with this file is complete.
  folder = os.path.join(data_dir, 'digits', '1.0.0')
  done = os.path.join(folder, 'dataset_info.json')
  if os.path.exists(done):
    return
  os.makedirs(data_dir, exist_ok=True)
  with _lock(os.path.join(data_dir, 'digits.lock')):
    if not os.path.exists(done):
      _builder()(
        data_dir=data_dir, file_format='array_record'
      ).download_and_prepare(
        download_config=tfds.download.DownloadConfig(
          download_mode=tfds.GenerateMode.REUSE_CACHE_IF_EXISTS
        )
      )


@contextlib.contextmanager
def _lock(path: str):
  """Waits for an exclusive lock, which dies with its process."""
  with open(path, 'w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _builder() -> type:
  """The TFDS builder; a function, so that TFDS is imported on use only."""
  import tensorflow_datasets as tfds

  # Registering a name twice is an error; reading needs only the files.
  with tfds.core.registered.skip_registration():

    class Digits(tfds.core.GeneratorBasedBuilder):
      """1,797 handwritten digits, 8×8, 10 classes."""

      VERSION = tfds.core.Version('1.0.0')

      def _info(self):
        return tfds.core.DatasetInfo(
          builder=self,
          description=self.__doc__,
          features=tfds.features.FeaturesDict(
            {
              'image': tfds.features.Image(
                shape=(8, 8, 1), encoding_format='png'
              ),
              'label': tfds.features.ClassLabel(num_classes=10),
            }
          ),
          supervised_keys=('image', 'label'),
          homepage='https://archive.ics.uci.edu/dataset/80',
        )

      def _split_generators(self, dl_manager):
        from sklearn import datasets, model_selection

        digits = datasets.load_digits()
        train, test = model_selection.train_test_split(
          np.arange(len(digits.target)),
          test_size=TEST_SIZE,
          stratify=digits.target,
          random_state=0,
        )
        return {
          'train': self._generate_examples(digits, train),
          'test': self._generate_examples(digits, test),
        }

      def _generate_examples(self, digits, indices):
        for i in indices:
          pixels = np.rint(digits.images[i] * 255 / 16).astype(np.uint8)
          yield (
            f'{i:04d}',
            {'image': Image.fromarray(pixels), 'label': int(digits.target[i])},
          )

  return Digits
