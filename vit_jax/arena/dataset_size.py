"""Accuracy against data: models of equal FLOPs on nested shares of a set."""

import functools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from vit_jax import data, flops, identity, models, specs
from vit_jax import start as starts
from vit_jax.arena import board as boards
from vit_jax.arena import results, run, suite

SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)
# Keys of the suite, of which a board knows nothing.
OWN = ('shares', 'epochs', 'tolerance', 'subset')


class Part(NamedTuple):
  """A share of the training examples: a board, and what it trains on.

  Attributes:
    board: of that share.
    share: of the examples that a balanced set can have, in (0, 1].
    examples: trained on; those that choose the learning rate not counted.
    digest: of their places in the split: equal digests, equal examples.
  """

  board: boards.Board
  share: float
  examples: int
  digest: str


def data_size(
  workdir: str | os.PathLike,
  *,
  record: Mapping[str, Any],
  board: str,
  choices: Mapping[str, Any],
  shares: Sequence[float] = SHARES,
  subset: int = 0,
  epochs: float = 0.0,
  tolerance: float = 0.1,
  rates: Sequence[float] = (3e-4, 1e-3, 3e-3),
  seeds: int = 3,
  validation: float = 0.1,
  evaluations: int = 4,
  shard: str = '0/1',
  timeout: float = 7200.0,
) -> list[dict[str, Any]]:
  """An arena board for each share of the training examples.

  The share s of a set whose smallest class has c examples has round(s·c) of
  every class, the first ones in an order that `subset` draws, so a smaller
  share lies in a larger one; of each class the last `validation` of them tune
  the learning rate, anew for each share, and are not trained on. All models and
  seeds see the same examples. Equal steps for every share, so equal training
  FLOPs, or equal `epochs`, whose steps (and warm-up, in proportion) grow.

  Choices named 'ViT', 'CNN' and 'hybrid' are what the report's claims are
  about. Killed and started again it goes on with the cells that are missing.

  Args:
    workdir: gets results.jsonl, the report, logs and a file for each share.
    record: the config: the recipe, and what the other arguments say. Its init
      is one of the checkpoints, or None.
    board: name; those of the shares are 'NAME 10 %' and so on.
    choices: label → `model` section, from scratch; with an init in the record,
      label → checkpoint, fine-tuned.
    shares: of the training examples, in (0, 1].
    subset: seed of the drawing; one draw for all models and seeds.
    epochs: 0 takes the recipe's steps for every share.
    tolerance: by how much the most forward FLOPs may exceed the fewest.
    rates: learning rates to be tuned over, for each share.
    seeds: how many, from the recipe's on.
    validation: share of each subset that chooses the rate.
    evaluations: points of each cell's curve.
    shard: 'i/n' does every n-th pair of a share and a model, and writes
      results-iofn.jsonl.
    timeout: seconds for one pair.

  Returns:
    All rows of the workdir: those of suite 'train' with `set` (the name),
    `share`, `examples` and `subset` (the digest).

  Raises:
    ValueError: a bad argument, models whose FLOPs differ by more, too few
      examples for a share, or a row of another recipe in the workdir.
    fairness.UnfairError: rows that must not be compared.
  """
  values = {k: identity.plain(v) for k, v in choices.items()}
  if len(values) < 2:
    raise ValueError(
      f'choices={sorted(values)} must be two models or more, label → section, '
      'or label → checkpoint'
    )
  whole, found = built(record, shares), values
  if 'init' in record and record['init']:
    if record['init'] not in values.values():
      raise ValueError(
        f'config.init={record["init"]!r} must be one of the checkpoints in '
        f'config.choices={values}: each starts from its own'
      )
    found = {
      k: starts.load(v, record['model']).config for k, v in values.items()
    }
  check_flops(found, whole, tolerance)
  record = {k: v for k, v in record.items() if k not in OWN}
  more = {
    'rates': tuple(rates), 'seeds': seeds, 'validation': validation,
    'evaluations': evaluations,
  }  # fmt: skip
  cut = parts(record, board, shares, whole, subset, epochs, more)
  workdir = pathlib.Path(workdir)
  pairs = {
    f'{part.board.name}/{label}': (part, label)
    for part in cut
    for label in values
  }
  names = boards.share_of(pairs, shard)
  file = workdir / boards.file_name(shard)
  check_recipes(workdir, cut, results.read(workdir))

  def each(name):
    part, label = pairs[name]
    # Beside each other: shares have one compilation of a model in common.
    own = workdir / f'share-{part.share:g}-{file.name}'
    check_recipes(workdir, cut, results.read(own))
    rows = run.train_choice(part.board, label, values[label], own, timeout)
    keep(file, rows, board, part)
    return run.summary(rows)

  return suite.run(workdir, names, each)


def built(record: Mapping[str, Any], shares: Sequence[float]) -> Any:
  """The data of the record, all of it.

  Raises:
    ValueError: shares that are none, or data that is cut already.
  """
  good = all(isinstance(s, float | int) and 0 < s <= 1 for s in shares)
  if not good or not shares or len(set(shares)) != len(shares):
    raise ValueError(
      f'shares={tuple(shares)} must be one or more in (0, 1], all different'
    )
  section = {'train': '', 'test': '', **record['data']}
  cut = sorted({'shots', 'shots_seed'} & set(section))
  if cut:
    raise ValueError(
      f'config.data has {", ".join(cut)}, which this suite sets for every '
      'share: leave it out'
    )
  specs.check_options(data.build, section, 'config.data')
  return data.build(**section)


def parts(
  record: Mapping[str, Any], name: str, shares: Sequence[float], whole: Any,
  subset: int, epochs: float, more: Mapping[str, Any],
) -> list[Part]:  # fmt: skip
  """A board for each share, the smallest first.

  Args:
    record: the recipe.
    name: how the boards' names begin.
    shares: of the examples.
    whole: the data.
    subset: seed of the drawing.
    epochs: see `data_size`.
    more: the other arguments of `board.Board`.

  Raises:
    ValueError: a share without two examples of each class, or equal to another
      one once it is rounded; no such number of epochs.
  """
  if not epochs >= 0:
    raise ValueError(f'epochs={epochs!r} must be at least 0, 0 for equal steps')
  leaf = boards.INIT if 'init' in record and record['init'] else 'model'
  labels = whole.train_labels()
  smallest = min(labels.count(k) for k in range(whole.num_classes))
  shots = [round(s * smallest) for s in sorted(shares)]
  if shots[0] < 2 or len(set(shots)) != len(shots):
    raise ValueError(
      f'shares={tuple(sorted(shares))} of {smallest} examples, as many as the '
      f'smallest class has, are {shots} of each class; they must be at least 2 '
      '(one to train on, one to tune with) and differ'
    )
  out = []
  for share, count in zip(sorted(shares), shots, strict=True):
    rest, _ = whole.fewer(count, subset).held_out(more['validation'])
    places = sorted(rest.train_places)
    base = identity.plain(record)
    base['data'] |= {'shots': count, 'shots_seed': subset}
    if epochs:
      steps = round(epochs * len(places) / base['batch_size'])
      steps = max(steps, more['evaluations'])
      if 'warmup' in base['optimizer']:
        warmup = base['optimizer']['warmup'] * steps / base['steps']
        base['optimizer']['warmup'] = round(warmup)
      base['steps'] = steps
    out.append(Part(
      boards.Board(f'{name} {100 * share:g} %', base, leaf, **more),
      share, len(places),
      boards.digest(
        json.dumps([whole.identity['fingerprints'][0], places]).encode()
      ),
    ))  # fmt: skip
  return out


def check_flops(
  sections: Mapping[str, Mapping[str, Any]], whole: Any, tolerance: float
) -> dict[str, float]:
  """Forward FLOPs of one example by label; nothing is compiled or run.

  Args:
    sections: label → `model` section.
    whole: the data, whose examples they take.
    tolerance: by how much the most may exceed the fewest, as a share.

  Raises:
    ValueError: they differ by more, with the numbers; a bad tolerance, or a
      model that cannot be built or takes no such examples.
  """
  if not tolerance >= 0:
    raise ValueError(f'tolerance={tolerance!r} must be at least 0')
  shape, dtype = whole.spec[whole.input]
  example = jax.ShapeDtypeStruct((1, *shape), dtype)
  found = {k: forward_flops(v, example) for k, v in sections.items()}
  least, most = (f(found, key=lambda k: found[k]) for f in (min, max))
  if found[most] > (1 + tolerance) * found[least]:
    numbers = ', '.join(f'{k!r} {v / 1e6:,.1f}' for k, v in found.items())
    raise ValueError(
      f'the models are not matched: MFLOP forward, one example, {numbers}; '
      f'{most!r} has {found[most] / found[least]:.2f} times those of '
      f'{least!r}, more than {1 + tolerance:g}: change a size (hidden_size, '
      'mlp_dim, num_layers, depths, hidden_sizes) or the tolerance'
    )
  return found


def forward_flops(
  section: Mapping[str, Any], example: jax.ShapeDtypeStruct
) -> float:
  """FLOPs of `models.build(**section)` on one example, by its jaxpr."""
  model = models.build(**section)
  key = jax.eval_shape(lambda: jax.random.key(0))
  start = functools.partial(model.init, train=False)
  variables = jax.eval_shape(start, key, example)
  forward = functools.partial(model.apply, train=False)
  return flops.count(forward, variables, example)


def check_recipes(
  workdir: pathlib.Path, cut: Sequence[Part], rows: Sequence[Mapping[str, Any]]
) -> None:
  """Raises a ValueError on a row of one of the boards by another recipe."""
  wanted = {part.board.name: part.board.recipe for part in cut}
  for row in rows:
    if row['status'] != 'ok' or row['suite'] != 'train':
      continue
    name, recipe = row['board'], row['recipe']
    if name in wanted and recipe != wanted[name]:
      raise ValueError(
        f'{workdir} has rows of another recipe for {name!r} ({recipe}; this '
        f'one is {wanted[name]}): take another --workdir'
      )


def keep(
  file: pathlib.Path, rows: Sequence[Mapping[str, Any]], name: str, part: Part
) -> None:
  """Appends those rows that `file` lacks, with what they were trained on."""
  there = {row['key']: row for row in results.read(file)}
  for row in rows:
    row = {
      **row, 'set': name, 'share': part.share, 'examples': part.examples,
      'subset': part.digest,
    }  # fmt: skip
    if row['key'] not in there or there[row['key']] != row:
      results.append(file, row)
