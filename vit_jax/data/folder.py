"""Folders of images: `PATH/{train,test}/CLASS/…`, or just `PATH/CLASS/…`.

Folders within a class folder belong to the class. Hidden files are ignored.
"""

import hashlib
import os

from vit_jax import specs

SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp')
SPLITS = ('train', 'test', 'val', 'validation')


class Folder:
  """One split of a folder of images; labels are the sorted class names.

  With split folders the classes are those of `train` (or, without it, of the
  split itself). Without, `train` and `test` are a stratified split, in the
  order of a hash of seed and file name: the same on every machine.

  Attributes:
    labels: class names.
    fingerprint: SHA-256 of the names and sizes of all files.
  """

  location = ('path',)

  def __init__(
    self, split: str, path: str, test_fraction: float = 0.2, seed: int = 0
  ):
    path = os.path.expanduser(path)
    if not os.path.isdir(path):
      raise ValueError(
        f'path={path!r} is not a folder (the current one is {os.getcwd()!r})'
      )
    if not 0 < test_fraction < 1:
      raise ValueError(f'test_fraction={test_fraction!r} must be in (0, 1)')
    folders = _folders(path)
    if set(folders) & set(SPLITS):
      root = os.path.join(path, split)
      specs.lookup(dict.fromkeys(folders), split, f'split of {path!r}:')
      files = _list_classes(root)
      first = 'train' if 'train' in folders else split
      known = _folders(os.path.join(path, first))
    else:
      root = path
      specs.lookup({'train': 0, 'test': 0}, split, f'split of {path!r}:')
      files = {
        k: _share(v, k, split, test_fraction, seed)
        for k, v in _list_classes(path).items()
      }
      known = folders
    self.labels = tuple(known)
    for name in files:
      if name not in known:
        raise ValueError(
          f'the class {name!r} of {root!r} is not in '
          f'train; {specs.nearest(name, known)}'
        )
    self._root = root
    self._files = []
    self._labels = []
    digest = hashlib.sha256()
    for name in sorted(files):
      label = self.labels.index(name)
      for file, size in files[name]:
        self._files.append(os.path.join(name, file))
        self._labels.append(label)
        digest.update(f'{name}/{file} {size}\n'.encode())
    self.fingerprint = digest.hexdigest()

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: int) -> dict:
    name = os.path.join(self._root, self._files[index])
    with open(name, 'rb') as f:
      image = f.read()
    return {'image': image, 'label': self._labels[index], 'name': name}


def _folders(path: str) -> list[str]:
  found = [e.name for e in os.scandir(path) if e.is_dir()]
  return sorted(name for name in found if not name.startswith('.'))


def _list_classes(path: str) -> dict[str, list[tuple[str, int]]]:
  """`{class: [(file within it, bytes), …]}`, sorted."""
  classes = _folders(path)
  if not classes:
    raise ValueError(
      f'{path!r} has no class folders; expected {path}/CLASS/IMAGE'
    )
  return {name: _list_images(os.path.join(path, name)) for name in classes}


def _list_images(path: str) -> list[tuple[str, int]]:
  """The images of one class; none is an error."""
  images, others = [], 0
  for folder, _, names in os.walk(path):
    for name in names:
      if name.startswith('.'):
        continue
      if name.lower().endswith(SUFFIXES):
        file = os.path.join(folder, name)
        size = os.path.getsize(file)
        images.append((os.path.relpath(file, path), size))
      else:
        others += 1
  if not images:
    raise ValueError(
      f'the class folder {path!r} has no images ({", ".join(SUFFIXES)}) and '
      f'{others} other files; fill or remove it'
    )
  return sorted(images)


def _share(
  images: list[tuple[str, int]],
  name: str,
  split: str,
  test_fraction: float,
  seed: int,
) -> list[tuple[str, int]]:
  """The part of one class that belongs to `split`."""
  if len(images) < 2:
    raise ValueError(
      f'the class {name!r} has {len(images)} image, too few to split into '
      'train and test; add images, or make the folders train and test'
    )
  test = min(max(round(len(images) * test_fraction), 1), len(images) - 1)

  def draw(image):
    return hashlib.sha256(f'{seed} {name}/{image[0]}'.encode()).digest()

  chosen = sorted(images, key=draw)
  return sorted(chosen[:test] if split == 'test' else chosen[test:])
