"""Few-shot evaluation: ridge regression by definition, each example once."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vit_jax import data, fewshot, main, pretrained, sharding

L2 = (0.01, 1.0, 100.0)


@pytest.fixture(scope='module')
def points():
  """30 features of 40 examples of three classes, of very different scales."""
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, 40)
  centres = rng.standard_normal((3, 30))
  x = centres[labels] + rng.standard_normal((40, 30))
  return x * np.geomspace(0.1, 10, 30) + 3, labels


def solve(z, y, l2):
  """Weights and bias by the normal equations, the bias as a column of ones."""
  ones = np.concatenate([z, np.ones((len(z), 1))], axis=1)
  penalty = l2 * np.eye(ones.shape[1])
  penalty[-1, -1] = 0
  return np.linalg.solve(ones.T @ ones + penalty, ones.T @ y)


def predict(w, z):
  return z @ w[:-1] + w[-1]


@pytest.mark.parametrize('standardize', [True, False])
@pytest.mark.parametrize('count', [40, 20])  # more and fewer than features
def test_ridge_solves_the_normal_equations(points, count, standardize):
  x, labels = points[0][:count], points[1][:count]
  y = np.where(labels[:, None] == np.arange(3), 1.0, -1.0)
  z = (x - x.mean(0)) / (x.std(0) + 1e-5) if standardize else x
  new = points[0][::-1]
  new_z = (new - x.mean(0)) / (x.std(0) + 1e-5) if standardize else new
  fits = list(fewshot.ridge(x, labels, 3, L2, standardize))
  assert [f.l2 for f in fits] == list(L2)
  for fit in fits:
    np.testing.assert_allclose(
      new @ fit.kernel + fit.bias, predict(solve(z, y, fit.l2), new_z),
      rtol=1e-7, atol=1e-8,
    )  # fmt: skip


@pytest.mark.parametrize('count', [40, 20])
def test_leaving_out_equals_fitting_without(points, count):
  x, labels = points[0][:count], points[1][:count]
  y = np.where(labels[:, None] == np.arange(3), 1.0, -1.0)
  for fit in fewshot.ridge(x, labels, 3, L2, standardize=False):
    out = np.stack([
      predict(solve(np.delete(x, i, 0), np.delete(y, i, 0), fit.l2), x[i])
      for i in range(count)
    ])
    assert fit.error == pytest.approx(np.mean((out - y) ** 2), rel=1e-6)
    assert fit.accuracy == np.mean(out.argmax(-1) == labels)


def test_features_that_never_vary_change_nothing(points):
  x, labels = points
  still = np.concatenate([x, np.full((40, 2), 7.0)], axis=1)
  moved = still[:, :]
  moved = np.concatenate([x, np.full((40, 2), 9.0)], axis=1)
  for a, b in zip(
    fewshot.ridge(x, labels, 3, L2), fewshot.ridge(still, labels, 3, L2),
    strict=True,
  ):  # fmt: skip
    np.testing.assert_allclose(
      x @ a.kernel + a.bias, moved @ b.kernel + b.bias, atol=1e-6
    )


# The run.


class Mean(nn.Module):
  """The brightness of a picture, and a head that must not count."""

  num_classes: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, images, train=False):
    x = images.mean(axis=(1, 2))
    return nn.Dense(self.num_classes)(x) if self.num_classes else x


@pytest.fixture(scope='module')
def parts():
  """The arguments of a run, with random weights."""
  built = main.build(tiny.config(), 'unused')
  variables = built['model'].init(
    jax.random.key(0), jnp.zeros((1, 8, 8, 1))
  )
  head = variables['params']['head']
  head['kernel'] = jax.random.normal(jax.random.key(1), head['kernel'].shape)
  names = ('model', 'data', 'sharding', 'batch_size')
  return {'init': variables, **{k: built[k] for k in names}}


def take(parts, batch_size, mesh, built):
  return fewshot.extract(
    sharding.replicate(parts['init'], mesh), model=parts['model'], data=built,
    sharding=mesh, batch_size=batch_size,
  )  # fmt: skip


def test_main_builds_the_run_of_a_checkpoint(parts, monkeypatch, tmp_path):
  asked = []

  def load(path):
    asked.append(path)
    preprocess = {'decode': '', 'transform': 'value_range'}
    config = {**tiny.CONFIG['model'], 'num_classes': 7}
    return pretrained.Pretrained(
      parts['model'].clone(num_classes=7), parts['init'], preprocess, (),
      config, channels=1,
    )  # fmt: skip

  monkeypatch.setattr(pretrained, 'load', load)
  # The data's ten classes are not those of the head, which has no part in it.
  changes = {'model__num_classes': None, 'shots': (3,)}
  for init in (None, 'runs/other'):
    config = tiny.config(run='fewshot', init=init, **changes)
    built = main.build(config, tmp_path)
    assert set(built) == {*parts, 'seed', 'shots'}
  assert asked == [str(tmp_path), 'runs/other']


def test_features_are_what_the_head_gets(parts):
  x, y = take(parts, 104, sharding.build(), parts['data'])
  (batch,) = parts['data'].test_batches(360)
  np.testing.assert_array_equal(y, batch['label'])
  logits = parts['model'].apply(parts['init'], jnp.asarray(batch['image']))
  head = jax.device_get(parts['init']['params']['head'])
  np.testing.assert_allclose(
    x @ head['kernel'] + head['bias'], logits, atol=1e-5
  )


@pytest.mark.parametrize(
  ('batch_size', 'mesh'), [(56, (8, 1, 1)), (512, (2, 4, 1))]
)
def test_features_depend_on_neither_batch_size_nor_mesh(
  parts, batch_size, mesh
):
  few = parts['data'].few(3, seed=0)
  expected = take(parts, 8, sharding.build(), few)
  found = take(parts, batch_size, sharding.build(*mesh), few)
  assert len(expected[1]) == 30
  np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
  np.testing.assert_array_equal(found[1], expected[1])


def test_a_run_measures_each_number_of_shots(parts, tmp_path, capsys):
  rows = fewshot.fewshot(tmp_path, **{**parts, 'shots': (2, 0, 4)})
  assert [r['shots'] for r in rows] == [2, 0, 4]
  assert [r['examples'] for r in rows] == [20, 1437, 40]
  assert json.loads((tmp_path / 'fewshot.json').read_text()) == rows
  for row in rows:
    # Fitted once more, apart: seeded, and fewer are some of more.
    built = parts['data'].few(row['shots'], 0)
    x, y = take(parts, 360, sharding.build(), built)
    test_x, test_y = take(parts, 360, sharding.build(), parts['data'])
    (fit,) = fewshot.ridge(x, y, 10, (row['l2'],))
    hits = (test_x @ fit.kernel + fit.bias).argmax(-1) == test_y
    assert row['accuracy'] == pytest.approx(hits.mean(), abs=0.006)
    assert row['by_l2'][str(row['l2'])] == row['accuracy']
    errors = [f.error for f in fewshot.ridge(x, y, 10, tuple(
      float(k) for k in row['by_l2']
    ))]  # fmt: skip
    assert list(row['by_l2'])[int(np.argmin(errors))] == str(row['l2'])
  # Even random features tell digits apart; chance is 0.1.
  assert rows[1]['accuracy'] > 0.5
  assert capsys.readouterr().out.count('a class') == 3


def test_the_head_does_not_count(parts, tmp_path):
  """Neither its weights nor its number of classes."""
  built = parts['data']
  same = {'batch_size': 360, 'data': built, 'sharding': sharding.build()}
  rows = [
    fewshot.fewshot(
      tmp_path, model=Mean(k), init={'params': {}}, shots=(2,), **same
    )
    for k in (3, 10)
  ]
  assert rows[0] == rows[1]


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'shots': ()}, r'shots=\(\)'),
    ({'shots': (5, -1)}, 'at least 0'),
    ({'shots': (500,)}, '500 examples of each class .* has 14'),
    ({'l2': (1.0, 0.0)}, 'must be positive'),
    ({'batch_size': 12}, 'batch_size=12'),
  ],
)
def test_bad_numbers_are_errors(parts, tmp_path, options, message):
  with pytest.raises(ValueError, match=message):
    fewshot.fewshot(tmp_path, **{**parts, **options})
  assert not list(tmp_path.iterdir())


def test_features_that_are_no_vector_are_an_error(parts):
  unpooled = parts['model'].clone(classifier='token_unpooled')
  few = parts['data'].few(1, seed=0)
  with pytest.raises(ValueError, match=r'\(16, 5, 16\), not \[n d\]'):
    take({**parts, 'model': unpooled}, 16, sharding.build(), few)


def test_skipped_images_are_left_out():
  built = data.build(
    'synthetic(classes=2, height=4, width=4, size=8)', train='value_range',
    test='value_range', on_bad='skip',
  )  # fmt: skip
  load = built._test._load
  # The second is as if it were damaged.
  built._test._load = lambda raw: (
    None if raw['name'].endswith('/1') else load(raw)
  )
  x, y = fewshot.extract(
    {'params': {}}, model=Mean(2), data=built, sharding=sharding.build(),
    batch_size=8,
  )  # fmt: skip
  assert x.shape == (7, 3)
  assert y.tolist() == [0, 0, 1, 0, 1, 0, 1]


def test_every_process_has_the_examples_in_order(parts, monkeypatch):
  """A batch holds the examples of one process after those of the other."""
  few = parts['data'].few(2, seed=0)
  expected = take(parts, 8, sharding.build(), few)

  class Both:
    """Both processes' shares of a batch, in the order of the mesh."""

    def test_batches(self, batch_size, process, processes):
      shares = [few.test_batches(batch_size, p, 2) for p in range(2)]
      for pair in zip(*shares, strict=True):
        yield {k: np.concatenate([b[k] for b in pair]) for k in pair[0]}

  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(
    fewshot.shardings, 'put_batch',
    lambda batch, sharding: jax.device_put(batch, sharding.batch),
  )  # fmt: skip
  found = take(parts, 8, sharding.build(), Both())
  np.testing.assert_array_equal(found[1], expected[1])
  np.testing.assert_allclose(found[0], expected[0], atol=1e-6)
