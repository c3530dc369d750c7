"""Labels images.

python -m vit_jax.predict --checkpoint=PATH IMAGE…

Uses only what the checkpoint holds: model, weights, preprocessing, labels.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import data, pretrained


def predict(
  found: pretrained.Pretrained, images: Sequence[str], topk: int = 5
) -> list[list[tuple[str, float]]]:
  """The `topk` likeliest labels of each image, with their probabilities.

  Args:
    found: a loaded model.
    images: paths of image files.
    topk: how many; at most the number of classes are returned.

  Raises:
    ValueError: topk < 1, or an image that cannot be read.
  """
  if topk < 1:
    raise ValueError(f'topk={topk} must be at least 1')
  if 'vocabulary' in found.preprocess:
    raise ValueError(
      f'the {type(found.model).__name__} of this checkpoint reads sequences, '
      'not images; config.run=evaluate measures it'
    )
  apply = jax.jit(lambda x: found.model.apply(found.variables, x, train=False))
  rows = []
  for image in images:  # one by one: sizes may differ
    x = data.load_image(image, found.preprocess)
    logits = apply(jnp.asarray(x[None], jnp.float32))
    rows.append(_top(np.asarray(jax.nn.softmax(logits[0])), found.labels, topk))
  return rows


def _top(
  probabilities: np.ndarray, labels: Sequence[str], topk: int
) -> list[tuple[str, float]]:
  order = np.argsort(-probabilities, kind='stable')[:topk]
  names = labels or [str(i) for i in range(len(probabilities))]
  return [(names[i], float(probabilities[i])) for i in order]


def main(argv: Sequence[str] | None = None) -> int:
  """The command; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='python -m vit_jax.predict', description='Labels images.'
  )
  parser.add_argument(
    '--checkpoint', required=True,
    help='a workdir of ours, a folder of Hugging Face or timm, an .npz',
  )  # fmt: skip
  parser.add_argument('images', nargs='+', metavar='IMAGE')
  parser.add_argument('--topk', type=int, default=5)
  parser.add_argument(
    '--json', action='store_true', help='one JSON object a line and image'
  )
  args = parser.parse_args(argv)
  try:
    found = pretrained.load(args.checkpoint)
    rows = predict(found, args.images, args.topk)
  except (ValueError, OSError) as e:
    print(f'error: {e}', file=sys.stderr)
    return 2
  for image, row in zip(args.images, rows, strict=True):
    _show(image, row, args.json)
  return 0


def _show(image: str, row: Any, as_json: bool) -> None:
  if as_json:
    found = [{'label': n, 'probability': p} for n, p in row]
    print(json.dumps({'image': image, 'predictions': found}))
    return
  print(image)
  for name, probability in row:
    print(f'  {probability:7.2%}  {name}')


if __name__ == '__main__':
  sys.exit(main())
