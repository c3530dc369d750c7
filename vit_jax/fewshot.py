"""Few-shot linear evaluation: what the features of a model are worth.

The features of k training examples of each class (what the head gets) are
mapped to targets of ±1 by ridge regression, in closed form; the accuracy on the
test split is that of the largest output. As in the original ViT (Dosovitskiy et
al. 2021, section 4.1) and in big_vision, but for two things: the bias is not
penalised at all, and λ is chosen without looking at the test split.
"""

import functools
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from vit_jax import sharding as shardings
from vit_jax.shapes import Float, Int


class Fit(NamedTuple):
  """A linear map of features, z W + b.

  Attributes:
    l2: λ.
    kernel: W, [features classes].
    bias: b, [classes].
    error: the mean squared error on each example when it is left out.
    accuracy: the share of them that are then right.
  """

  l2: float
  kernel: np.ndarray
  bias: np.ndarray
  error: float
  accuracy: float


def ridge(
  features: Float[np.ndarray, 'n d'],
  labels: Int[np.ndarray, ' n'],
  num_classes: int,
  l2: Sequence[float],
  standardize: bool = True,
) -> Iterator[Fit]:
  """Fits argmin Σᵢ ‖zᵢ W + b − yᵢ‖² + λ ‖W‖² for each λ.

  With Z = U S Vᵀ the centred features and Y the targets, 1 at the label and −1
  elsewhere: W = V S / (S² + λ) Uᵀ Y; and left out of the fit, an example has
  the residual eᵢ / (1 − hᵢ), hᵢ = 1/n + Σⱼ Uᵢⱼ² Sⱼ² / (Sⱼ² + λ). In float64.

  Args:
    features: n examples.
    labels: their classes.
    num_classes: K.
    l2: the λ, all positive.
    standardize: divide each feature by its standard deviation over the examples
      (which then contain, for hᵢ, the one left out), so that λ means the same
      for all; else they are only centred.
  """
  x = np.asarray(features, np.float64)
  mean = x.mean(0)
  # What never varies here stays out, even if it varies elsewhere.
  scale = x.std(0) + 1e-5 if standardize else np.ones_like(mean)
  y = 2.0 * np.eye(num_classes)[labels] - 1.0
  u, s, vt = np.linalg.svd((x - mean) / scale, full_matrices=False)
  centre = y.mean(0)
  projected = u.T @ (y - centre)
  for value in l2:
    shrunk = s**2 / (s**2 + value)
    kernel = (vt.T * (s / (s**2 + value))) @ projected / scale[:, None]
    left = 1 - 1 / len(y) - (u**2) @ shrunk
    residual = (y - centre - u @ (shrunk[:, None] * projected)) / left[:, None]
    hits = (y - residual).argmax(-1) == labels
    yield Fit(
      value, kernel, centre - mean @ kernel, float(np.mean(residual**2)),
      float(np.mean(hits)),
    )  # fmt: skip


def extract(
  variables: Any,
  *,
  model: nn.Module,
  data: Any,
  sharding: shardings.Sharding,
  batch_size: int,
) -> tuple[Float[np.ndarray, 'n d'], Int[np.ndarray, ' n']]:
  """Features and labels of the test split of `data`, in its order.

  Every process has them all. Images that were skipped are left out.

  Raises:
    ValueError: the model gives no vector of features.
  """
  sharding.check_batch(batch_size)
  step = _compiled(model.clone(num_classes=0), sharding)
  processes, found = jax.process_count(), []
  for batch in data.test_batches(
    batch_size, jax.process_index(), processes
  ):
    out = jax.device_get(
      step(variables, shardings.put_batch(batch, sharding))
    )
    # Process p has the examples p, p + processes, … of a batch.
    found.append({
      k: x.reshape(processes, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)
      for k, x in out.items()
    })
  whole = {k: np.concatenate([b[k] for b in found]) for k in found[0]}
  if whole['features'].ndim != 2:
    raise ValueError(
      f'the model gives features {whole["features"].shape}, not [n d]: set '
      'config.model.classifier to a pooled one'
    )
  kept = whole['weight'] != 0
  return whole['features'][kept], whole['label'][kept]


@functools.lru_cache(maxsize=8)
def _compiled(model: nn.Module, sharding: shardings.Sharding):
  def step(variables, batch):
    x = model.apply(variables, batch['image'], train=False)
    return {
      'features': x.astype('float32'), 'label': batch['label'],
      'weight': batch['weight'],
    }  # fmt: skip

  return jax.jit(
    step,
    in_shardings=(None, sharding.batch),
    out_shardings=sharding.replicated,
  )


def fewshot(
  workdir: str | os.PathLike,
  *,
  batch_size: int,
  model: nn.Module,
  data: Any,
  sharding: shardings.Sharding,
  init: Mapping[str, Any],
  seed: int = 0,
  shots: Sequence[int] = (5, 10, 25),
  l2: Sequence[float] = tuple(2.0**i for i in range(-10, 21)),
  standardize: bool = True,
) -> list[dict[str, Any]]:
  """Fits features of a few examples and measures them; writes fewshot.json.

  Of the λ in `l2` the one is taken with the least error on training examples
  that are left out of the fit one by one.

  Args:
    workdir: gets fewshot.json.
    batch_size: of the forward pass.
    model: the model, whose head is left out.
    data: training examples are drawn from, and tested on, its two splits, both
      through the test transforms.
    sharding: the mesh.
    init: the model's variables.
    seed: of the examples that are drawn; fewer shots are part of more.
    shots: examples of each class, once for each number; 0 takes the whole
      training split, which is a linear probe in closed form.
    l2: the λ to choose from.
    standardize: see `ridge`.

  Returns:
    For each of `shots`: 'shots', 'examples', 'l2' (the chosen one),
    'left_out_accuracy' on those examples, 'accuracy' on the test split, and
    'by_l2', the accuracy there for each λ.

  Raises:
    ValueError: bad numbers, or a class with fewer examples.
  """
  if not shots or min(shots) < 0:
    raise ValueError(f'shots={tuple(shots)} must be numbers of at least 0')
  if not l2 or min(l2) <= 0:
    raise ValueError(f'l2={tuple(l2)} must be positive numbers')
  get = functools.partial(
    extract, shardings.replicate(init, sharding), model=model,
    sharding=sharding, batch_size=batch_size,
  )  # fmt: skip
  most = 0 if 0 in shots else max(shots)
  x, y = get(data=data.few(most, seed))
  test_x, test_y = get(data=data)
  # The how-manieth of its class each example is.
  rank = np.zeros(len(y), int)
  for k in range(data.num_classes):
    rank[y == k] = np.arange((y == k).sum())
  rows = []
  for count in shots:
    chosen = rank < (count or len(y))
    fits = list(
      ridge(x[chosen], y[chosen], data.num_classes, l2, standardize)
    )
    right = [
      float(np.mean((test_x @ f.kernel + f.bias).argmax(-1) == test_y))
      for f in fits
    ]
    best = int(np.argmin([f.error for f in fits]))
    rows.append({
      'shots': count,
      'examples': int(chosen.sum()),
      'l2': fits[best].l2,
      'left_out_accuracy': fits[best].accuracy,
      'accuracy': right[best],
      'by_l2': {str(f.l2): a for f, a in zip(fits, right, strict=True)},
    })  # fmt: skip
  if jax.process_index() == 0:
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / 'fewshot.json').write_text(json.dumps(rows, indent=1) + '\n')
    for row in rows:
      print(
        f'{row["shots"] or "all"} a class, {row["examples"]} examples: '
        f'accuracy {row["accuracy"]:.4f} at l2={row["l2"]:g}'
      )
  return rows
