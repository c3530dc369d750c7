"""Whether a loaded model may teach a student on the student's images."""

from collections.abc import Mapping, Sequence

import numpy as np

from vit_jax import specs
from vit_jax.pretrained import base


def check_teacher(
  teacher: base.Pretrained,
  where: str,
  *,
  labels: Sequence[str],
  channels: int,
  transforms: Mapping[str, str],
) -> None:
  """Raises unless the teacher understands what the student sees and is asked.

  Both see the same image, so pixels must be scaled as the teacher knows them;
  its size may be another. What a checkpoint does not say is not compared.

  Args:
    teacher: a loaded model.
    where: its path, for errors.
    labels: names of the student's classes, () if they are unknown.
    channels: of the student's images.
    transforms: what makes them, by the key of the config that says so.

  Raises:
    ValueError: other classes, channels or scaling.
  """
  if teacher.channels != channels:
    raise ValueError(
      f'the teacher {where} takes images of {teacher.channels} channels, not '
      f'{channels}'
    )
  if labels and teacher.labels and tuple(labels) != tuple(teacher.labels):
    counts = len(teacher.labels), len(labels)
    first = next(
      (
        f'the first that differs is {a!r} there and {b!r} here'
        for a, b in zip(teacher.labels, labels, strict=False)
        if a != b
      ),
      f'there are {counts[0]} there and {counts[1]} here',
    )
    raise ValueError(
      f'the teacher {where} has other classes than the data: {first}'
    )
  known = teacher.preprocess['transform']
  if not known:
    return
  for key, text in transforms.items():
    ours, theirs = (scale(t, channels) for t in (text, known))
    if not np.allclose(ours, theirs, atol=1e-4):
      raise ValueError(
        f'the teacher {where} knows pixels from {_range(theirs)}, as '
        f'{known!r} makes them, and {key}={text!r} makes them from '
        f'{_range(ours)}: scale them as the teacher does'
      )


def scale(text: str, channels: int) -> np.ndarray:
  """What transforms make of the pixels 0…255, [256 1 C]."""
  # Imports Pillow, which only this needs.
  from vit_jax.data import transforms

  scales = {
    'value_range': transforms.ValueRange, 'normalize': transforms.Normalize
  }  # fmt: skip
  image = np.arange(256, dtype=np.uint8)[:, None, None]
  example = {'image': np.repeat(image, channels, axis=2)}
  for spec in specs.parse(text):
    if spec.name in scales:
      example = specs.build(spec, scales, 'transform')(example, None)
  return example['image']


def _range(ramp: np.ndarray) -> str:
  low, high = ramp[0, 0], ramp[-1, 0]
  pairs = [f'{a:.3g} to {b:.3g}' for a, b in zip(low, high, strict=True)]
  return pairs[0] if len(set(pairs)) == 1 else '; '.join(pairs)
