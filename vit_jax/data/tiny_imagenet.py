"""Tiny ImageNet, 200 classes of 64×64 pictures, in the folders it comes in.

`PATH/train/WNID/images/*.JPEG`, and `PATH/val/images/*.JPEG` with
`PATH/val/val_annotations.txt`; `PATH/words.txt` names the WordNet ids. Le and
Yang 2015, "Tiny ImageNet Visual Recognition Challenge".
"""

import hashlib
import os

from vit_jax import specs


class TinyImagenet:
  """The split 'train' or 'val'.

  The classes are the folders of train, sorted, so a copy with some of the 200
  will do: lines of val_annotations.txt about other classes are left out.

  Attributes:
    labels: 'n01443537 goldfish, Carassius auratus', or the WordNet id alone
      where there is no words.txt or it does not have it.
    fingerprint: SHA-256 of the names, sizes and labels of all pictures.
  """

  location = ('path',)

  def __init__(self, split: str, path: str):
    path = os.path.expanduser(path)
    if split == 'test':
      raise ValueError(
        "the split 'test' of Tiny ImageNet has no labels; 'val' has: set "
        "data.test_split='val'"
      )
    specs.lookup({'train': 0, 'val': 0}, split, f'split of {path!r}:')
    classes = _list(os.path.join(path, 'train'), 'a folder for each WordNet id')
    names = _read_names(os.path.join(path, 'words.txt'), classes)
    self.labels = tuple(
      f'{c} {names[c]}' if c in names else c for c in classes
    )
    found = _train(path, classes) if split == 'train' else _val(path, classes)
    digest = hashlib.sha256('\n'.join(self.labels).encode())
    for name, label in found:
      size = os.path.getsize(os.path.join(path, name))
      digest.update(f'{name} {size} {label}\n'.encode())
    self.fingerprint = digest.hexdigest()
    self._path, self._files = path, found

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: int) -> dict:
    name, label = self._files[index]
    name = os.path.join(self._path, name)
    with open(name, 'rb') as f:
      image = f.read()
    return {'image': image, 'label': label, 'name': name}


def _list(folder: str, what: str, suffix: str = '') -> list[str]:
  """Names of files with that suffix, or of folders; none is an error."""
  found = os.scandir(folder) if os.path.isdir(folder) else ()
  names = sorted(
    e.name
    for e in found
    if not e.name.startswith('.')
    and (e.name.lower().endswith(suffix) if suffix else e.is_dir())
  )
  if not names:
    raise ValueError(
      f'{folder!r} is not {what}: a copy of Tiny ImageNet has '
      'train/WNID/images/*.JPEG, val/images/*.JPEG, val/val_annotations.txt'
    )
  return names


def _train(path: str, classes: list[str]) -> list[tuple[str, int]]:
  """(file, label) of the training pictures, by class."""
  out = []
  for label, wnid in enumerate(classes):
    folder = os.path.join('train', wnid, 'images')
    files = _list(os.path.join(path, folder), 'a folder of pictures', '.jpeg')
    out += [(os.path.join(folder, name), label) for name in files]
  return out


def _val(path: str, classes: list[str]) -> list[tuple[str, int]]:
  """(file, label) of the validation pictures, by name."""
  folder = os.path.join('val', 'images')
  files = _list(os.path.join(path, folder), 'a folder of pictures', '.jpeg')
  where = os.path.join(path, 'val', 'val_annotations.txt')
  annotated = _read_table(where, 'of a picture and its WordNet id')
  for name in files:
    if name not in annotated:
      raise ValueError(f'{where!r} has no line for {name!r} of {folder!r}')
    if annotated[name] not in classes:
      raise ValueError(
        f'{name!r} is {annotated[name]!r} in {where!r}, which is none of the '
        f'{len(classes)} folders of train'
      )
  there = set(files)
  absent = [
    n for n, c in annotated.items() if c in classes and n not in there
  ]
  if absent:
    raise ValueError(
      f'{len(absent)} pictures of {where!r} are not in {folder!r}: '
      f'{", ".join(absent[:8])}'
    )
  return [(os.path.join(folder, n), classes.index(annotated[n])) for n in files]


def _read_names(path: str, classes: list[str]) -> dict[str, str]:
  """What words.txt calls these classes; {} without one."""
  if not os.path.exists(path):
    return {}
  found = _read_table(path, 'of a WordNet id and its words')
  return {c: found[c] for c in classes if c in found}


def _read_table(path: str, what: str) -> dict[str, str]:
  """The first two columns of a file with tabs between them."""
  if not os.path.exists(path):
    raise ValueError(f'{path!r} does not exist: a table {what}')
  out = {}
  with open(path, encoding='utf-8') as file:
    for number, line in enumerate(file, 1):
      cells = line.rstrip('\r\n').split('\t')
      if len(cells) < 2:
        raise ValueError(
          f'line {number} of {path!r} is no row {what}, with tabs between: '
          f'{line[:80]!r}'
        )
      out[cells[0]] = cells[1]
  return out
