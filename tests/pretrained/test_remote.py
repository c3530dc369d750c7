"""Checkpoints behind addresses: local stand-ins, asked by the real clients."""

import functools
import hashlib
import http.server
import json
import pathlib
import threading

import fsspec
import fsspec.implementations.memory
import pytest

from vit_jax.pretrained import remote


class Site(http.server.BaseHTTPRequestHandler):
  """Serves `files`, also under the addresses of the hub's interface."""

  files = {}
  asked = []
  commit = 'a' * 40

  def _answer(self, body: bool) -> None:
    self.asked.append(self.path)
    path = self.path.partition('?')[0]
    repository = '/api/models/someone/tiny/revision/'
    if path.startswith(repository):
      revision = path.removeprefix(repository)
      if revision not in ('main', 'v2', self.commit):
        self.send_error(404)
        return
      found = {
        'id': 'someone/tiny', 'sha': self.commit,
        'siblings': [{'rfilename': name} for name in self.files],
      }  # fmt: skip
      self._send(json.dumps(found).encode(), 'application/json', body)
    elif path.startswith('/api/models/someone/tiny/tree/'):
      found = [
        {'type': 'file', 'path': name, 'size': len(x), 'oid': 'b' * 40}
        for name, x in self.files.items()
      ]
      self._send(json.dumps(found).encode(), 'application/json', body)
    elif (name := path.rpartition('/')[2]) in self.files:
      self._send(self.files[name], 'application/octet-stream', body)
    else:
      self.send_error(404)

  def _send(self, data: bytes, kind: str, body: bool) -> None:
    self.send_response(200)
    self.send_header('Content-Type', kind)
    short = 'short' in self.path  # breaks off: says more than it sends
    self.send_header('Content-Length', str(len(data) + short))
    self.send_header('ETag', f'"{hashlib.sha256(data).hexdigest()}"')
    self.send_header('X-Repo-Commit', self.commit)
    self.end_headers()
    if body:
      self.wfile.write(data)

  do_GET = functools.partialmethod(_answer, True)  # noqa: N815
  do_HEAD = functools.partialmethod(_answer, False)  # noqa: N815

  def log_message(self, *_) -> None:
    """Quiet."""


@pytest.fixture
def site(monkeypatch, tmp_path):
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setattr(Site, 'asked', [])
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Site)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  yield f'http://127.0.0.1:{server.server_port}'
  server.shutdown()
  server.server_close()


def test_a_path_stays_a_path(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  assert remote.local('~/run') == tmp_path / 'run'
  assert remote.local('weights.npz:img') == pathlib.Path('weights.npz:img')


def test_a_file_from_a_site_is_fetched_once(site, monkeypatch):
  monkeypatch.setattr(Site, 'files', {'w.npz': b'weights'})
  for _ in range(2):
    found = remote.local(f'{site}/some/w.npz')
    assert (found.name, found.read_bytes()) == ('w.npz', b'weights')
  assert Site.asked == ['/some/w.npz']
  # The reader's suffix is kept, and is not asked for.
  part = remote.local(f'{site}/some/w.npz:img')
  assert part == found.with_name('w.npz:img')
  assert Site.asked == ['/some/w.npz']


@pytest.mark.parametrize(
  ('path', 'message'),
  [
    ('/none.npz', '404'),
    ('/folder', 'one .npz file'),
    ('/short/w.npz', 'cannot fetch|broke off'),
  ],
)
def test_a_failed_download_is_said_and_leaves_nothing(
  site, monkeypatch, tmp_path, path, message
):
  monkeypatch.setattr(Site, 'files', {'w.npz': b'weights'})
  with pytest.raises(ValueError, match=message):
    remote.local(site + path)
  assert not [p for p in (tmp_path / 'cache').rglob('*') if p.is_file()]


def test_plain_http_is_refused():
  with pytest.raises(ValueError, match='use https'):
    remote.local('http://example.com/w.npz')


@pytest.fixture
def bucket(monkeypatch, tmp_path):
  """gs:// answered from memory: what gcsfs does beyond fsspec is its own."""
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'cache'))

  class Bucket(fsspec.implementations.memory.MemoryFileSystem):
    protocol = 'gs'
    store = {}
    pseudo_dirs = ['']

    @classmethod
    def _strip_protocol(cls, path):
      return '/' + path.removeprefix('gs://').strip('/')

  known = dict(fsspec.registry)
  fsspec.register_implementation('gs', Bucket, clobber=True)
  yield Bucket()
  fsspec.register_implementation('gs', known.get('gs', Bucket), clobber=True)


def test_a_bucket_gives_files_and_folders(bucket):
  bucket.pipe('/vit/B_16.npz', b'weights')
  bucket.pipe('/vit/model/config.json', b'{}')
  bucket.pipe('/vit/model/model.safetensors', b'more')
  assert remote.local('gs://vit/B_16.npz').read_bytes() == b'weights'
  folder = remote.local('gs://vit/model')
  assert sorted(p.name for p in folder.iterdir()) == [
    'config.json', 'model.safetensors',
  ]  # fmt: skip
  with pytest.raises(ValueError, match=r'gs://vit/none.npz: there is no such'):
    remote.local('gs://vit/none.npz')


def test_an_unknown_kind_of_address_is_refused():
  with pytest.raises(ValueError, match='cannot fetch nothing://a/b'):
    remote.local('nothing://a/b')


@pytest.fixture
def hub(site, monkeypatch, tmp_path):
  hub = pytest.importorskip('huggingface_hub')
  files = {
    'config.json': b'{}', 'model.safetensors': b'x', 'pytorch_model.bin': b'!'
  }  # fmt: skip
  monkeypatch.setattr(Site, 'files', files)
  fetch = functools.partial(
    hub.snapshot_download, cache_dir=tmp_path / 'hub', endpoint=site
  )
  monkeypatch.setattr(hub, 'snapshot_download', fetch)
  return site


@pytest.mark.parametrize('address', ['someone/tiny', 'someone/tiny@v2'])
def test_the_hub_gives_a_folder_without_pickles(hub, address):
  folder = remote.local(f'hf-hub:{address}')
  assert sorted(p.name for p in folder.iterdir()) == [
    'config.json', 'model.safetensors',
  ]  # fmt: skip
  assert not any(path.endswith('.bin') for path in Site.asked)


def test_what_the_hub_has_not_is_said(hub):
  with pytest.raises(ValueError, match='cannot fetch hf-hub:someone/none'):
    remote.local('hf-hub:someone/none')


@pytest.mark.parametrize('bad', ['tiny', 'a/b/c', '', 'a b/c'])
def test_a_bad_name_on_the_hub_is_refused(bad):
  with pytest.raises(ValueError, match=r'must be hf-hub:OWNER/NAME'):
    remote.local(f'hf-hub:{bad}')
