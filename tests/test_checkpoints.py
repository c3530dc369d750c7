"""Checkpoints: what is damaged is found, said and passed over."""

import json
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import checkpoints


def make_state(step):
  return {
    'params': {'a': jnp.full((64, 8), float(step)), 'b': {'c': jnp.ones(3)}},
    'variables': {},
    'optimizer': {'step': jnp.int32(step), 'state': (jnp.zeros(4), None)},
    'ema': {},
  }


def abstract():
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    make_state(0),
  )


@pytest.fixture(scope='module')
def three(tmp_path_factory):
  """A workdir with checkpoints of steps 1 (the best), 2 and 3."""
  workdir = tmp_path_factory.mktemp('three')
  saved = checkpoints.Checkpoints(workdir)
  for step, accuracy in ((0, 0.1), (1, 0.9), (2, 0.2), (3, 0.3)):
    metrics = {'test/accuracy': accuracy}
    saved.save(step, make_state(step), {'identity': step}, metrics)
  saved.close()
  return workdir


@pytest.fixture
def workdir(three, tmp_path):
  return shutil.copytree(three, tmp_path / 'run')


def test_the_newest_two_and_the_best_are_kept(three):
  assert checkpoints.steps_in(three / 'checkpoints') == [1, 2, 3]


def test_what_is_saved_is_restored(workdir):
  saved = checkpoints.Checkpoints(workdir)
  assert saved.good == 3
  assert saved.meta(3)['identity'] == 3
  found = saved.restore(3, abstract())
  saved.close()
  same = jax.tree.map(np.array_equal, found, make_state(3))
  assert all(jax.tree.leaves(same))
  assert jax.tree.structure(found) == jax.tree.structure(make_state(3))


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(bytes(data))


def truncate(path):
  path.write_bytes(path.read_bytes()[:-1])


def remove(path):
  path.unlink()


def sealed_files(step_dir):
  return sorted(json.loads((step_dir / checkpoints.MANIFEST).read_text()))


@pytest.mark.parametrize('damage', [flip, truncate, remove])
def test_damage_to_any_file_of_a_checkpoint_is_found(workdir, damage):
  step_dir = workdir / 'checkpoints' / '3'
  names = sealed_files(step_dir)
  assert any(name.startswith('params/') for name in names)
  assert any(name.startswith('optimizer/') for name in names)
  assert 'meta/metadata' in names
  for name in names:
    original = (step_dir / name).read_bytes()
    if not original:
      continue
    damage(step_dir / name)
    assert name in checkpoints.verify(step_dir)
    (step_dir / name).write_bytes(original)
  assert checkpoints.verify(step_dir) is None


@pytest.mark.parametrize('damage', [flip, truncate, remove])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
  workdir, damage
):
  step_dir = workdir / 'checkpoints' / '3'
  largest = max(
    sealed_files(step_dir), key=lambda n: (step_dir / n).stat().st_size
  )
  damage(step_dir / largest)
  saved = checkpoints.Checkpoints(workdir)
  assert saved.good == 2
  assert largest in saved.faults[3]
  found = saved.restore(2, abstract())
  assert found['params']['a'][0, 0] == 2.0
  # The same step can be saved again, and the damaged one is not lost.
  saved.save(3, make_state(3), {'identity': 3}, None)
  saved.close()
  assert checkpoints.newest_good(workdir / 'checkpoints') == (3, {})
  assert len(list((workdir / 'damaged').glob('3-*'))) == 1


@pytest.mark.parametrize('damage', [flip, truncate, remove])
def test_files_that_are_not_sealed_are_not_needed(workdir, damage):
  for name in checkpoints.UNSEALED[1:]:
    path = workdir / 'checkpoints' / '3' / name
    if path.exists() and path.stat().st_size:
      damage(path)
  saved = checkpoints.Checkpoints(workdir)
  assert saved.restore(3, abstract())['params']['a'][0, 0] == 3.0
  saved.close()


@pytest.mark.parametrize(
  'text', ['', '[]', '{}', '{"a": ', '{"params/x": "0"}', '\x00']
)
def test_a_damaged_manifest_is_a_damaged_checkpoint(workdir, text):
  path = workdir / 'checkpoints' / '3' / checkpoints.MANIFEST
  path.write_text(text)
  assert checkpoints.verify(path.parent) is not None
  assert checkpoints.newest_good(workdir / 'checkpoints')[0] == 2


def test_an_empty_step_folder_is_a_damaged_checkpoint(workdir):
  (workdir / 'checkpoints' / '9').mkdir()
  saved = checkpoints.Checkpoints(workdir)
  assert saved.good == 3
  assert 'missing' in saved.faults[9]
  saved.close()


def test_with_no_good_checkpoint_nothing_is_touched(workdir):
  for step in (1, 2, 3):
    flip(workdir / 'checkpoints' / str(step) / 'meta' / 'metadata')
  with pytest.raises(ValueError, match='no checkpoint in .* is good.*step 1'):
    checkpoints.Checkpoints(workdir)
  assert checkpoints.steps_in(workdir / 'checkpoints') == [1, 2, 3]


def test_a_full_disk_names_the_step_and_leaves_the_last_good_one(tmp_path):
  saved = checkpoints.Checkpoints(tmp_path)
  saved.save(1, make_state(1), {'identity': 1}, None)
  saved.wait()
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  big = make_state(2)
  big['params']['a'] = jax.random.normal(jax.random.key(0), (512, 512))

  def save():
    saved.save(2, big, {'identity': 2}, None)
    saved.wait()

  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
  try:
    with pytest.raises(RuntimeError, match='step 2: .*last good.*step 1 in'):
      save()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  saved.close()
  assert checkpoints.newest_good(tmp_path / 'checkpoints') == (1, {})
  again = checkpoints.Checkpoints(tmp_path)
  again.save(2, big, {'identity': 2}, None)
  again.close()
  assert checkpoints.newest_good(tmp_path / 'checkpoints') == (2, {})


def test_saving_does_not_see_later_changes(tmp_path):
  """The step donates its buffers while Orbax writes in the background."""
  saved = checkpoints.Checkpoints(tmp_path)
  step = jax.jit(lambda x: x + 1.0, donate_argnums=0)
  x = jnp.zeros((256, 256))
  state = make_state(1)
  state['params']['a'] = x
  saved.save(1, state, {'identity': 1}, None)
  del state
  for _ in range(20):
    x = step(x)
  saved.wait()
  target = abstract()
  target['params']['a'] = jax.ShapeDtypeStruct(
    x.shape, x.dtype, sharding=x.sharding
  )
  assert not saved.restore(1, target)['params']['a'].any()
  saved.close()
