"""Prediction uses only what the checkpoint holds."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image
from sklearn import datasets

from vit_jax import predict, pretrained


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('predict')
  tiny.run(workdir, steps=2, eval_every=0, checkpoint_every=0)
  return workdir


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
  folder = tmp_path_factory.mktemp('pictures')
  paths = []
  for i, pixels in enumerate(datasets.load_digits().images[:3]):
    path = folder / f'{i}.png'
    Image.fromarray(np.round(pixels * 255 / 16).astype(np.uint8)).save(path)
    paths.append(str(path))
  return paths


def test_probabilities_are_the_models(trained, pictures):
  found = pretrained.load(trained)
  rows = predict.predict(found, pictures, topk=10)
  for path, row in zip(pictures, rows, strict=True):
    assert sorted(name for name, _ in row) == [str(i) for i in range(10)]
    values = [p for _, p in row]
    assert values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(1, abs=1e-5)
    x = np.asarray(Image.open(path), np.float32)[None, ..., None] / 127.5 - 1
    logits = np.asarray(found.model.apply(found.variables, jnp.asarray(x)))[0]
    expected = np.exp(logits) / np.exp(logits).sum()
    by_name = [dict(row)[str(i)] for i in range(10)]
    np.testing.assert_allclose(by_name, expected, rtol=1e-4)


def test_weights_are_the_averaged_ones(trained):
  import orbax.checkpoint as ocp

  with ocp.StandardCheckpointer() as checkpointer:
    ema = checkpointer.restore(trained / 'checkpoints' / '2' / 'ema')
    raw = checkpointer.restore(trained / 'checkpoints' / '2' / 'params')
  found = pretrained.load(trained).variables['params']
  kernel = found['head']['kernel']
  assert np.array_equal(kernel, ema['head']['kernel'])
  assert not np.array_equal(kernel, raw['head']['kernel'])


def test_only_the_checkpoint_is_needed(trained, pictures, tmp_path, capsys):
  step_dir = tmp_path / 'alone'
  shutil.copytree(trained / 'checkpoints' / '2', step_dir)
  status = predict.main([f'--checkpoint={step_dir}', '--json', *pictures])
  assert status == 0
  lines = [json.loads(x) for x in capsys.readouterr().out.splitlines()]
  assert [line['image'] for line in lines] == pictures
  assert all(len(line['predictions']) == 5 for line in lines)


def test_the_table_shows_labels_and_probabilities(trained, pictures, capsys):
  assert predict.main([f'--checkpoint={trained}', '--topk=2', pictures[0]]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == pictures[0]
  assert len(lines) == 3
  assert '%' in lines[1]


@pytest.mark.parametrize(
  ('args', 'words'),
  [
    (['--checkpoint={missing}', '{image}'], ['does not exist']),
    (['--checkpoint={empty}', '{image}'], ['a workdir of', 'timm', '.npz']),
    (['--checkpoint={run}', '{missing}'], ['missing']),
    (['--checkpoint={run}', '{text}'], ['text.png']),
    (['--checkpoint={run}', '--topk=0', '{image}'], ['topk=0']),
  ],
)
def test_bad_input_is_one_line(
  trained, pictures, tmp_path, capsys, args, words
):
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'text.png').write_text('no picture')
  places = {
    'missing': tmp_path / 'missing', 'empty': tmp_path / 'empty',
    'run': trained, 'image': pictures[0], 'text': tmp_path / 'text.png',
  }  # fmt: skip
  assert predict.main([a.format(**places) for a in args]) == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ')
  assert len(error.splitlines()) == 1
  for word in words:
    assert word in error
