"""One recipe × many choices × seeds → results.jsonl and a report."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax import identity, specs
from vit_jax.arena import board as boards
from vit_jax.arena import process, results, suite, training

MODULE = 'vit_jax.arena.training'


def arena(
  workdir: str | os.PathLike,
  *,
  record: Mapping[str, Any],
  board: str,
  leaf: str = 'model.attention',
  choices: Sequence[Any] | Mapping[str, Any] = (),
  rates: Sequence[float] = (1e-3, 3e-3, 1e-2),
  seeds: int = 3,
  validation: float = 0.1,
  evaluations: int = 4,
  shard: str = '0/1',
  timeout: float = 3600.0,
) -> list[dict[str, Any]]:
  """Trains every choice by the same recipe and reports who wins.

  A choice is tuned: each of `rates` trains with the first seed, the rate with
  the best accuracy on held-out training examples then trains with the others.
  Every choice runs in a process of its own, one after another; killed and
  started again, the arena goes on with the cells that are missing. A choice
  that is a module class or a function, not words, runs in this process.

  Args:
    workdir: gets results.jsonl, report.md, report.html, pictures and logs.
    record: the config: the recipe, and what the other arguments say.
    board: its name in the report.
    leaf: path of what is compared.
    choices: its values, or label → value; () is every attention there is.
    rates: learning rates to be tuned over.
    seeds: how many, from the recipe's on.
    validation: share of the training examples that choose the rate.
    evaluations: points of each cell's curve.
    shard: 'i/n' does every n-th choice from the i-th on and writes
      results-iofn.jsonl; `python -m vit_jax.arena.report` merges workdirs.
    timeout: seconds for one choice.

  Returns:
    All rows.

  Raises:
    ValueError: a bad argument; a row of another recipe is in the workdir.
    fairness.UnfairError: rows that must not be compared.
  """
  workdir = pathlib.Path(workdir)
  one = boards.Board(
    board, dict(record), leaf, tuple(rates), seeds, validation, evaluations
  )
  found = boards.choices_of(choices, leaf, boards.at(record, leaf))
  labels = boards.share_of(found, shard)
  file = workdir / boards.file_name(shard)
  for row in results.read(workdir):
    if row['status'] == 'ok' and row['recipe'] != one.recipe:
      raise ValueError(
        f'{workdir} has rows of another recipe ({row["recipe"]}; this one is '
        f'{one.recipe}): take another --workdir'
      )
  return suite.run(
    workdir, labels,
    lambda label: summary(
      train_choice(one, label, found[label], file, timeout)
    ),
  )  # fmt: skip


def compare(
  workdir: str | os.PathLike,
  config: Mapping[str, Any],
  choices: Sequence[Any] | Mapping[str, Any],
) -> list[dict[str, Any]]:
  """The arena from a notebook, whose own classes need no registration.

  As in `compare('runs/mine', config, {'softmax': 'softmax', 'mine':
  partial(MultiHeadDotProductAttention, attend=Mine)})` with `config =
  configs.arena.get_config().to_dict()`. Classes run in this process.

  Args:
    workdir: as `arena`'s.
    config: plain, with `arena`'s arguments among its keys.
    choices: label → value of the leaf.

  Returns:
    All rows, as `arena`; errors too.
  """
  config = {**config, 'choices': ()}
  given = specs.accepted(arena)
  return arena(
    workdir,
    **{
      **{k: v for k, v in config.items() if k in given},
      'record': identity.plain(config),
      'choices': choices,
    },
  )


def train_choice(
  board: boards.Board, label: str, value: Any, file: pathlib.Path,
  timeout: float,
) -> list[dict[str, Any]]:  # fmt: skip
  """The rows of one choice; those that the file has are not run again.

  Args:
    board: what is equal; `file` has no rows of another one.
    label: of the choice.
    value: of the leaf.
    file: gets the rows; beside it lie logs and what was compiled.
    timeout: seconds for what is missing.
  """
  mine = lambda: [  # noqa: E731
    row for row in results.read(file) if row['choice'] == label
  ]
  before = mine()
  if complete(board, before):
    return before
  if callable(value):
    list(training.run(board, label, value, file))
    return mine()
  end = process.run(
    MODULE,
    {
      'board': dataclasses.asdict(board), 'label': label, 'value': value,
      'file': str(file.absolute()),
      'cache': str((file.parent / 'compiled').absolute()),
    },
    file.parent / 'logs' / f'{boards.digest(label.encode())}.log',
    timeout,
  )  # fmt: skip
  if end.status != 'ok':
    # Asked elsewhere: this process takes no accelerator from the next.
    there = suite.machine(file)
    results.append(file, training.failure(board, label, *end, there))
  return mine()


def complete(
  board: boards.Board, rows: Sequence[Mapping[str, Any]]
) -> bool:
  """Whether a choice has all its cells, or failed for good."""
  cells = [row for row in rows if 'seed' in row]
  if len(cells) < len(rows):
    return True
  first, *others = board.seeds_of()
  trials = [row for row in cells if row['seed'] == first]
  if len(trials) < len(board.rates):
    return False
  if not any(row['status'] == 'ok' for row in trials):
    return True
  return len(cells) == len(trials) + len(others)


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
  """One line on a choice's rows."""
  good = [row for row in rows if row['status'] == 'ok']
  if not good:
    return f'{rows[-1]["status"]}: {rows[-1]["error"]}' if rows else 'no rows'
  best = [100 * row['accuracy'] for row in good]
  text = f'{len(good)} cells, {min(best):.1f} to {max(best):.1f} %'
  bad = [row for row in rows if row['status'] != 'ok']
  return text + (f', {len(bad)} failed: {bad[-1]["error"]}' if bad else '')
