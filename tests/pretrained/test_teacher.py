"""A teacher understands the pixels and the classes, or is refused."""

import flax.linen as nn
import numpy as np
import pytest

from vit_jax.pretrained import base, teacher

HALVES = 'normalize(mean=0.5, std=0.5)'
IMAGENET = (
  'normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))'
)


def check(known=HALVES, labels=('a', 'b'), channels=3, **given):
  found = base.Pretrained(
    nn.Dense(3), {}, {'transform': known}, labels, {}, channels
  )
  given = {'labels': ('a', 'b'), 'channels': 3, 'ours': HALVES, **given}
  transforms = {'config.data.test': given.pop('ours')}
  teacher.check_teacher(found, 'runs/a', transforms=transforms, **given)


def test_scales_are_compared_by_what_they_do_to_pixels():
  ours = 'resize(size=8), value_range(low=-1.0, high=1.0)'
  check(ours=ours)
  np.testing.assert_allclose(
    teacher.scale(ours, 2)[:, 0, 1], np.linspace(-1, 1, 256), atol=1e-6
  )


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'known': IMAGENET}, r'from -2.12 to 2.25; -2.04 to 2.43; .*test=.*from '
     '-1 to 1'),
    ({'ours': 'value_range(low=0.0, high=1.0)'}, 'from 0 to 1'),
    ({'ours': 'resize(size=8)'}, 'from 0 to 255'),
    ({'channels': 1}, 'takes images of 1 channels, not 3'),
    ({'labels': ('a', 'c')}, "differs is 'b' there and 'c' here|'c' there"),
    ({'labels': ('a', 'b', 'c')}, 'there are 3 there and 2 here|2 there'),
  ],
)  # fmt: skip
def test_other_pixels_and_classes_are_refused(given, message):
  with pytest.raises(ValueError, match='teacher runs/a .*' + message):
    check(**given)


def test_what_a_checkpoint_does_not_say_is_not_compared():
  check(known='', ours='value_range(low=0.0, high=255.0)')
  check(labels=())
