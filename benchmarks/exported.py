r"""A Hugging Face folder evaluated by transformers and by us, side by side.

pip install torch transformers && python benchmarks/exported.py FOLDER SOURCE

SOURCE is a spec of labelled images: "folder(path='data/flowers')". Both sides
read the same files with what the folder says: weights, preprocessing, labels.
Fails if their accuracies differ, or any logit by more than 1e-3.
"""

import argparse
import io
import json
import sys

import jax
import numpy as np
from PIL import Image

from vit_jax import data, pretrained, specs


def ours(folder: str, images: list[bytes], batch: int) -> np.ndarray:
  """Our logits [n K]."""
  found = pretrained.load(folder)
  apply = jax.jit(lambda x: found.model.apply(found.variables, x, train=False))
  out = []
  for i in range(0, len(images), batch):
    x = [data.load_image(b, found.preprocess) for b in images[i : i + batch]]
    out.append(np.asarray(apply(np.stack(x))))
  return np.concatenate(out)


def theirs(folder: str, images: list[bytes], batch: int) -> np.ndarray:
  """Logits of transformers [n K]."""
  import torch
  import transformers

  processor = transformers.AutoImageProcessor.from_pretrained(
    folder, backend='pil'
  )
  model = transformers.AutoModelForImageClassification.from_pretrained(folder)
  out = []
  for i in range(0, len(images), batch):
    part = images[i : i + batch]
    x = [Image.open(io.BytesIO(b)).convert('RGB') for b in part]
    with torch.inference_mode():
      logits = model(**processor(images=x, return_tensors='pt')).logits
    out.append(logits.float().numpy())
  return np.concatenate(out)


def main() -> int:
  """The command; the exit status is 1 if the two differ."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('folder')
  parser.add_argument('source')
  parser.add_argument('--split', default='test')
  parser.add_argument('--batch', type=int, default=32)
  args = parser.parse_args()
  source = specs.build(
    args.source, data.SOURCES, 'source', split=args.split
  )
  with open(f'{args.folder}/config.json') as file:
    numbers = json.load(file)['label2id']
  examples = [source[i] for i in range(len(source))]
  images = [e['image'] for e in examples]
  label = np.array([numbers[source.labels[e['label']]] for e in examples])
  logits = {
    'ours': ours(args.folder, images, args.batch),
    'transformers': theirs(args.folder, images, args.batch),
  }
  right = {}
  for name, z in logits.items():
    right[name] = int((z.argmax(-1) == label).sum())
    share = right[name] / len(label)
    print(f'{name:12} {right[name]} of {len(label)} right, {share:.2%}')
  apart = np.abs(logits['ours'] - logits['transformers']).max()
  print(f'largest difference of a logit: {apart:.2g}')
  return int(right['ours'] != right['transformers'] or apart > 1e-3)


if __name__ == '__main__':
  sys.exit(main())
