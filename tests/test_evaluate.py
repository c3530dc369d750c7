"""Evaluation counts every example exactly once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vit_jax import data, evaluate, main, models, pretrained, sharding, tasks


@pytest.fixture(scope='module')
def parts():
  arguments = main.build(tiny.config(), 'unused')
  model = arguments['model']
  variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
  head = variables['params']['head']
  head['kernel'] = jax.random.normal(jax.random.key(1), head['kernel'].shape)
  return arguments, variables


def measure(parts, batch_size, mesh):
  arguments, variables = parts
  return evaluate.run(
    variables, model=arguments['model'], task=arguments['task'],
    data=arguments['data'], sharding=mesh, batch_size=batch_size,
  )  # fmt: skip


@pytest.fixture(scope='module')
def expected(parts):
  """By hand, from all logits at once."""
  arguments, variables = parts
  (batch,) = arguments['data'].test_batches(360)
  logits = np.asarray(
    arguments['model'].apply(variables, jnp.asarray(batch['image'])), np.float64
  )
  label = batch['label']
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  top5 = np.argsort(-logits, -1)[:, :5]
  return {
    'loss': -log_p[np.arange(360), label].mean(),
    'accuracy': (logits.argmax(-1) == label).mean(),
    'accuracy_top5': (top5 == label[:, None]).any(-1).mean(),
  }


@pytest.mark.parametrize('batch_size', [8, 56, 104, 512])
def test_metrics_do_not_depend_on_the_batch_size(parts, expected, batch_size):
  found = measure(parts, batch_size, sharding.build())
  assert found == pytest.approx(expected, rel=1e-5)
  assert round(found['accuracy'] * 360, 6).is_integer()


@pytest.mark.parametrize('mesh', [(2, 4, 1), (2, 2, 2)])
def test_metrics_do_not_depend_on_the_mesh(parts, expected, mesh):
  found = measure(parts, 104, sharding.build(*mesh))
  assert found == pytest.approx(expected, rel=1e-5)


def test_some_of_a_checkpoints_classes_are_evaluated_by_name(
  parts, monkeypatch, tmp_path
):
  """Among all its logits, which are in an order of their own."""
  arguments, variables = parts
  names = ('x', '3', '1', 'y', *'0248567', '9', 'z')
  config = {**tiny.CONFIG['model'], 'num_classes': len(names)}
  model = models.build(**config)
  rng = np.random.default_rng(0)
  kernel = rng.standard_normal((16, len(names))).astype(np.float32)
  head = {'kernel': kernel, 'bias': np.zeros(len(names), np.float32)}
  variables = {'params': {**variables['params'], 'head': head}}
  preprocess = {'decode': 'decode(channels=1)', 'transform': 'value_range'}
  found = pretrained.Pretrained(
    model, variables, preprocess, names, config, channels=1
  )
  monkeypatch.setattr(pretrained, 'load', lambda path: found)
  config = tiny.config(run='evaluate', init='some', model__num_classes=None)
  built = main.build(config, tmp_path)
  assert built['task'].num_classes == 13
  values = main.RUNS['evaluate'](tmp_path, **built)
  (batch,) = arguments['data'].test_batches(360)
  logits = np.asarray(model.apply(variables, jnp.asarray(batch['image'])))
  label = np.array([names.index(str(k)) for k in batch['label']])
  assert values['accuracy'] == (logits.argmax(-1) == label).mean()
  top5 = (np.argsort(-logits)[:, :5] == label[:, None]).any(-1)
  assert values['accuracy_top5'] == pytest.approx(top5.mean())
  monkeypatch.setattr(
    pretrained, 'load',
    lambda path: dataclasses.replace(found, labels=('0', *names[1:])),
  )  # fmt: skip
  with pytest.raises(ValueError, match="class '0' of the data may be any of"):
    main.build(config, tmp_path)


def test_a_batch_that_does_not_divide_is_refused(parts):
  with pytest.raises(ValueError, match='batch_size=10 .*8'):
    measure(parts, 10, sharding.build())


def test_skipped_images_are_counted_and_left_out(tmp_path):
  from PIL import Image

  rng = np.random.default_rng(0)
  for split in ('train', 'test'):
    for name in ('a', 'b'):
      folder = tmp_path / split / name
      folder.mkdir(parents=True)
      for i in range(3):
        pixels = rng.integers(0, 255, (8, 8), np.uint8)
        Image.fromarray(pixels).save(folder / f'{i}.png')
  bad = tmp_path / 'test' / 'a' / '1.png'
  bad.write_bytes(bad.read_bytes()[:40])
  section = {
    **tiny.config()['data'], 'source': f'folder(path={str(tmp_path)!r})',
    'on_bad': 'skip',
  }  # fmt: skip
  model = models.build(**{**tiny.config()['model'], 'num_classes': 2})
  variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
  found = evaluate.run(
    variables, model=model, task=tasks.build('classification', num_classes=2),
    data=data.build(**section), sharding=sharding.build(), batch_size=8,
  )  # fmt: skip
  assert found['skipped'] == 1
  # A zero head is undecided: its loss is log 2 on each of the five.
  assert found['loss'] == pytest.approx(np.log(2))
  # All logits tie, and the first class wins: 2 of the 5 left are of it.
  assert found['accuracy'] == pytest.approx(2 / 5)
