"""The probe: measures of maps, and its run on a tiny ViT."""

import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models, pretrained
from vit_jax.arena import checks, maps, probing, process, results
from vit_jax.pretrained import base

# --- measures of maps

GRID, PATCH = (2, 3), (4, 2)
N = 6
ALONG_ROWS = np.roll(np.eye(3), 1, axis=1)  # each sees the next of its row
SHIFT = np.kron(np.eye(2), ALONG_ROWS)


def far(*pixels):
  return np.mean(pixels)


@pytest.mark.parametrize(
  ('name', 'a', 'entropy', 'rank', 'distance'),
  [
    ('identity', np.eye(N), 0, N, 0),
    # From the corner patch: 0, 2, 4 in its row, √(16 + ·²) in the other.
    (
      'uniform', np.full((N, N), 1 / N), np.log(N), 1,
      far(
        *[0, 2, 4, 4, 20**0.5, 32**0.5] * 4, *[2, 0, 2, 20**0.5, 4, 20**0.5] * 2
      ),
    ),
    ('shift', SHIFT, 0, N, far(2, 2, 4)),
    ('one key', np.eye(N)[np.zeros(N, int)], 0, 1,
     far(0, 2, 4, 4, 20**0.5, 32**0.5)),
    ('halves of opposite sign', (np.eye(N) - SHIFT) / 2, np.log(2), None,
     far(2, 2, 4) / 2),
    ('nothing', np.zeros((N, N)), 0, 0, 0),
  ],
)  # fmt: skip
def test_measures_of_hand_made_maps(name, a, entropy, rank, distance):
  found = maps.measures(
    jnp.asarray(a[None, None], jnp.float32), GRID, PATCH, 0
  )
  assert float(found['entropy'][0, 0]) == pytest.approx(entropy, abs=1e-5), name
  if rank is not None:
    assert float(found['rank'][0, 0]) == pytest.approx(rank, rel=1e-4)
  assert float(found['distance'][0, 0]) == pytest.approx(distance, abs=1e-5)
  assert np.allclose(found['row_sum'][0, 0], a.sum(1), atol=1e-6)


def test_the_effective_rank_is_that_of_its_definition():
  values = np.array([4.0, 2.0, 1.0, 1.0])
  p = values / 8
  rng = np.random.default_rng(0)
  u, v = (np.linalg.qr(rng.standard_normal((4, 4)))[0] for _ in range(2))
  found = maps.rank(jnp.asarray(u * values @ v, jnp.float32))
  assert float(found) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)


def test_tokens_before_the_grid_have_no_distance():
  a = np.full((N + 1, N + 1), 0.0)
  a[1:, 1:], a[:, 0] = 0.25 * SHIFT, 0.75  # most of the weight is on the prefix
  found = maps.distance(jnp.asarray(a, jnp.float32), GRID, PATCH, 1)
  assert float(found) == pytest.approx(far(2, 2, 4), abs=1e-5)
  with pytest.raises(ValueError, match='prefix=0 and grid=.* make 6'):
    maps.distance(jnp.asarray(a, jnp.float32), GRID, PATCH, 0)


# --- the run

SECTION = {
  'name': 'vit', 'patch_size': 2, 'hidden_size': 16, 'num_layers': 2,
  'num_heads': 2, 'mlp_dim': 24, 'num_classes': 10, 'image_size': 8,
}  # fmt: skip


@pytest.fixture(scope='module')
def init(tmp_path_factory):
  """A ViT whose first layer has queries of zero: its map is uniform."""
  model = models.build(**SECTION)
  rng = np.random.default_rng(1)
  variables = jax.tree.map(
    lambda s: jnp.asarray(0.3 * rng.standard_normal(s.shape), s.dtype),
    base.shapes(model, 3),
  )
  block = variables['params']['Transformer']['encoderblock_0']
  layer = block['MultiHeadDotProductAttention_0']
  layer['query'] = jax.tree.map(jnp.zeros_like, layer['query'])
  path = tmp_path_factory.mktemp('probe') / 'init'
  pretrained.save(path, pretrained.Pretrained(
    model, variables,
    {
      'decode': 'decode(channels=3)',
      'transform': 'value_range(low=-1.0, high=1.0)',
    },
    tuple('0123456789'), SECTION,
  ))  # fmt: skip
  return str(path)


@pytest.fixture
def run(init, monkeypatch):
  """`probe` on four digits, its choices in this process; and their names."""
  begun, reported = [], []

  def here(module, job, log, timeout):
    assert module == probing.MODULE
    begun.append(job['choice'])
    job = json.loads(json.dumps(job))
    if job['choice'] == 'hydra':
      return process.End('timeout', 'not ready after 1 s')
    results.append(job['file'], probing.measure(job))
    return process.End('ok', '')

  report = types.ModuleType('vit_jax.arena.report')
  report.write = lambda workdir, rows: reported.append(rows)
  monkeypatch.setitem(sys.modules, report.__name__, report)
  monkeypatch.setattr('vit_jax.arena.report', report, raising=False)

  def go(workdir, *choices, **changes):
    begun.clear()
    reported.clear()
    rows = probing.probe(workdir, **{
      'init': init, 'source': 'digits', 'choices': choices, 'images': 4,
      'map_images': 3, 'influence_images': 2, 'check': False, **changes,
    })  # fmt: skip
    assert reported == [rows]
    return {r['choice']: r for r in rows}, list(begun)

  go.process = here
  monkeypatch.setattr(process, 'run', here)
  monkeypatch.setattr(probing.suite, 'machine', lambda f: results.environment())
  return go


CHOICES = ('softmax', 'linformer(rank=4)', 'differential', 'fnet', 'hydra')


def test_rows_say_what_became_of_every_choice(run, tmp_path):
  rows, _ = run(tmp_path, *CHOICES)
  assert tuple(rows) == CHOICES
  assert [r['status'] for r in rows.values()] == [
    'ok', 'ok', 'ok', 'refused', 'timeout'
  ]
  # Softmax: no error, and the uniform map of queries of zero.
  first, second = rows['softmax']['layers']
  assert first['local'] == first['accumulated'] == second['local'] == 0
  assert first['entropy'] == pytest.approx(np.log(17), abs=1e-4)
  assert first['entropy_share'] == pytest.approx(1, abs=1e-4)
  assert first['rank'] == pytest.approx(1, abs=1e-2)
  apart = maps.apart((4, 4), (2, 2)).mean()
  assert first['distances'] == pytest.approx([apart] * 2, abs=1e-3)
  assert second['entropy'] < first['entropy'] - 0.01
  for row in (first, second):
    assert row['map'] == 'weights'
    assert row['images'] == 3
    sums = [row['row_sum_low'], row['row_sum'], row['row_sum_high']]
    assert sums == pytest.approx([1, 1, 1], abs=1e-5)
  # E and F, [17, 4] a head, in two layers.
  found = rows['linformer(rank=4)']
  counted = pretrained.load(found['init'], attention='linformer(rank=4)')
  exact_ = pretrained.load(found['init'])
  size = lambda p: sum(x.size for x in jax.tree.leaves(p.variables))  # noqa: E731
  assert found['fresh'] == size(counted) - size(exact_) > 0
  assert min(r['local'] for r in found['layers']) > 0.01
  assert rows['softmax']['fresh'] == 0
  # Not linear in its values: by its gradients.
  for row in rows['differential']['layers']:
    assert row['map'] == 'influence'
    assert row['images'] == 2
    assert row['row_sum'] is None
    assert 0 < row['entropy'] <= np.log(17) + 1e-5
  assert rows['fnet']['layers'] == []
  assert 'no place for' in rows['fnet']['error']
  assert rows['hydra']['error'] == 'not ready after 1 s'


def test_a_probe_goes_on_where_it_ended_and_shards_make_the_whole(
  run, tmp_path
):
  some = ('softmax', 'fnet', 'hydra')
  left, begun = run(tmp_path, *some, shard='0/2')
  assert tuple(left) == tuple(begun) == ('softmax', 'hydra')
  both, begun = run(tmp_path, *some, shard='1/2')
  assert begun == ['fnet']
  names = sorted(p.name for p in tmp_path.glob('*.jsonl'))
  assert names == ['results-0of2.jsonl', 'results-1of2.jsonl']
  assert set(both) == set(some)
  again, begun = run(tmp_path, *some)
  assert not begun
  assert again == both
  with pytest.raises(ValueError, match='rows of another probe'):
    run(tmp_path, *some, images=5)


def test_layers_may_take_turns_and_are_checked_each(run, tmp_path, monkeypatch):
  monkeypatch.setattr(
    checks, 'check',
    lambda spec: {'jit': 'no'} if spec == 'linear' else
    {'jit': '', 'batch': ''},
  )
  rows, _ = run(tmp_path, 'softmax, linear', check=True)
  (row,) = rows.values()
  assert row['checks'] == {'jit': 'linear: no', 'batch': ''}
  assert row['flagged']
  assert [r['local'] < 1e-6 for r in row['layers']] == [True, False]


@pytest.mark.slow  # processes that compile
def test_a_choice_runs_in_a_process_of_its_own(init, tmp_path):
  job = {
    'choice': 'softmax', 'init': init, 'source': 'digits', 'split': 'test',
    'images': 2, 'map_images': 1, 'influence_images': 1, 'transform': '',
    'decode': '', 'check': False, 'seed': 0, 'batch_size': 2, 'recipe': 'one',
    'file': str(tmp_path / 'results.jsonl'), 'cache': str(tmp_path / 'cache'),
  }  # fmt: skip
  probing._run(job, tmp_path / 'results.jsonl', 300.0)
  (row,) = results.read(tmp_path)
  assert (row['status'], row['error']) == ('ok', '')
  probing._run(
    {**job, 'choice': 'cosine', 'init': 'nowhere'},
    tmp_path / 'results.jsonl', 300.0,
  )  # fmt: skip
  row = results.read(tmp_path)[1]
  assert row['status'] == 'failed'
  assert 'nowhere does not exist' in row['error']


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'choices': ('sofmax',)}, "did you mean 'softmax'"),
    ({'choices': ('linear', 'linear')}, "'linear' is there twice"),
    ({'choices': ('',)}, "'' is no attention"),
    ({'images': 0}, 'images=0 must be an integer of at least 1'),
    ({'shard': '2/2'}, "shard='2/2' must be"),
  ],
)
def test_bad_arguments_are_refused(run, tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    run(tmp_path, **changes)


def test_too_few_images_are_refused(init):
  found = pretrained.load(init)
  job = {
    'source': 'digits', 'split': 'test', 'transform': '', 'decode': '',
    'images': 10**4, 'seed': 0,
  }  # fmt: skip
  with pytest.raises(ValueError, match='images=10000, but the split'):
    probing.pictures(found, job)
