"""Where a checkpoint lies: here, on the Hugging Face hub, in a bucket, online.

What is fetched is kept in `~/.cache/vit_jax/downloads` (or `$VIT_JAX_CACHE`),
under its address, and is not fetched again; the hub has a cache of its own.
"""

import hashlib
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable

HUB = 'hf-hub:'
# All that `load` reads; never a pickle.
WANTED = ('*.json', '*.safetensors', '*.npz')
ADDRESS = re.compile(r'^([a-z][a-z0-9+.-]*)://')


def local(path: str | os.PathLike) -> pathlib.Path:
  """The path on this machine, after a download if it is an address.

  Args:
    path: a path; `hf-hub:OWNER/NAME` or `hf-hub:OWNER/NAME@REVISION`;
      `https://…/FILE.npz`; or a file or folder of any file system that fsspec
      knows, `gs://BUCKET/…` with gcsfs.

  Raises:
    ValueError: a bad address, a missing client library, a failed download.
  """
  text = os.fspath(path)
  if text.startswith(HUB):
    return _from_hub(text)
  address = ADDRESS.match(text)
  if not address:
    return pathlib.Path(text).expanduser()
  scheme = address.group(1)
  if scheme == 'http':
    host = text.removeprefix('http://').partition('/')[0].partition(':')[0]
    if host not in ('localhost', '127.0.0.1'):
      raise ValueError(f'{text}: http is not safe; use https')
  # A suffix as in FILE.npz:img is for the reader.
  plain, part = re.fullmatch(r'(.*?)((?::\w+)?)', text).groups()
  fetch = _from_site if scheme in ('http', 'https') else _from_bucket
  found = _kept(plain, fetch)
  return found.with_name(found.name + part)


def _kept(address: str, fetch: Callable[[str, pathlib.Path], None]):
  """The downloaded file or folder, fetched if it is not here yet."""
  name = address.rstrip('/').rpartition('/')[2].partition('?')[0]
  if not name:
    raise ValueError(f'{address} names no file or folder')
  digest = hashlib.sha256(address.encode()).hexdigest()[:16]
  folder = _cache() / digest
  if not (folder / name).exists():
    folder.mkdir(parents=True, exist_ok=True)
    aside = pathlib.Path(tempfile.mkdtemp(dir=folder))
    try:
      fetch(address, aside / name)
      (aside / name).rename(folder / name)
    finally:
      shutil.rmtree(aside, ignore_errors=True)
  return folder / name


def _cache() -> pathlib.Path:
  if 'VIT_JAX_CACHE' in os.environ:
    return pathlib.Path(os.environ['VIT_JAX_CACHE'])
  return pathlib.Path.home() / '.cache' / 'vit_jax' / 'downloads'


def _from_site(address: str, target: pathlib.Path) -> None:
  import requests

  if target.suffix != '.npz':
    raise ValueError(
      f'{address}: one .npz file can be fetched from a site; for a folder use '
      'hf-hub:OWNER/NAME or a bucket'
    )
  try:
    with requests.request(
      'GET', address, stream=True, timeout=60
    ) as answer:
      answer.raise_for_status()
      with target.open('wb') as f:
        for part in answer.iter_content(1 << 20):
          f.write(part)
      # Compressed in transit, the length is that of something else.
      if 'Content-Encoding' not in answer.headers:
        _check_length(address, answer.headers, target)
  except requests.RequestException as e:
    raise ValueError(f'cannot fetch {address}: {e}') from e


def _check_length(address, headers, target: pathlib.Path) -> None:
  if 'Content-Length' in headers:
    said, got = int(headers['Content-Length']), target.stat().st_size
    if said != got:
      raise ValueError(f'{address} broke off: {got} of {said} bytes came')


def _from_bucket(address: str, target: pathlib.Path) -> None:
  import fsspec

  try:
    system, inside = fsspec.core.url_to_fs(address)
    folder = system.isdir(inside)
    if not folder and not system.exists(inside):
      raise FileNotFoundError('there is no such file or folder')
    system.download(inside, str(target), recursive=folder)
  except ImportError as e:
    raise ValueError(f'cannot fetch {address}: {e} (pip install)') from e
  except (OSError, ValueError) as e:
    raise ValueError(f'cannot fetch {address}: {e}') from e


def _from_hub(address: str) -> pathlib.Path:
  found = re.fullmatch(
    r'([\w.-]+/[\w.-]+)(?:@([\w./-]+))?', address.removeprefix(HUB)
  )
  if not found:
    raise ValueError(f'{address!r} must be hf-hub:OWNER/NAME[@REVISION]')
  try:
    import huggingface_hub
  except ImportError as e:
    raise ValueError(
      f"{address} needs huggingface_hub: pip install 'vit_jax[hub]'"
    ) from e
  name, revision = found.groups()
  try:
    return pathlib.Path(
      huggingface_hub.snapshot_download(
        name, revision=revision, allow_patterns=list(WANTED)
      )
    )
  except (OSError, ValueError) as e:  # its errors are of these two kinds
    raise ValueError(f'cannot fetch {address}: {e}') from e
