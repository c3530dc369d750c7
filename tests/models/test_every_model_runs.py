"""Every model of the table through the same main, on eight devices.

Slow: `pytest -m slow`.
"""

import numpy as np
import pytest
import tiny
from models.table import TINY
from PIL import Image

from vit_jax import main, predict, pretrained

pytestmark = pytest.mark.slow


SOURCE = 'synthetic(classes=3, height={0}, width={0}, channels=3, size=24)'


def run(label, workdir, **changes):
  """A run of a tiny model on noise of its size."""
  model = {'name': label.split()[0], **TINY[label], 'num_classes': 3}
  return tiny.run(
    workdir, model=model, data__source=SOURCE.format(model['image_size']),
    data__train='flip, value_range(low=-1.0, high=1.0)',
    data__decode='decode(channels=3)', **changes,
  )  # fmt: skip


@pytest.mark.parametrize('label', TINY)
def test_it_trains_sharded_evaluates_and_predicts(label, tmp_path):
  workdir, side = tmp_path / 'run', TINY[label]['image_size']
  trained = run(
    label, workdir, steps=2, eval_every=2, checkpoint_every=2,
    sharding={'data': 2, 'fsdp': 4},
  )
  rows = tiny.rows(workdir)
  assert all(np.isfinite(v) for row in rows for v in row.values())

  # From the checkpoint alone: the same averaged parameters, the same loss.
  again = tiny.config(
    run='evaluate', data__source=SOURCE.format(side), data__train='',
    data__test='', data__decode='', model={}, init=str(workdir),
  )  # fmt: skip
  for key in ('optimizer', 'steps', 'log_every', 'eval_every',
              'checkpoint_every'):
    del again[key]
  arguments = main.build(again, tmp_path / 'evaluated')
  found = main.RUNS['evaluate'](tmp_path / 'evaluated', **arguments)
  assert found['loss'] == pytest.approx(trained['test/loss'], rel=1e-5)

  picture = tmp_path / 'picture.png'
  noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
  Image.fromarray(noise).save(picture)
  ((top, *_),) = predict.predict(pretrained.load(workdir), [str(picture)])
  assert 1 / 3 <= top[1] <= 1
