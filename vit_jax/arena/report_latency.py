"""The report on latency: one image's time, and the largest training batch."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.arena import page
from vit_jax.arena.page import Cell, Column, Heading, Table, Text

FIELDS = (
  'image_size', 'p50', 'p99', 'samples', 'memory', 'flops', 'parameters',
  'dtype', 'batch', 'needed', 'limit', 'too_large',
)  # fmt: skip
COLUMNS = (
  Column('pixels'), Column('model'), Column('dtype'), Column('parameters'),
  Column('MFLOP', 'forward, one image'),
  Column('p50 ms', 'median of forward calls of one image'),
  Column('p99 ms', 'of a hundred calls one is slower'),
  Column('calls'), Column('MiB', 'planned for a forward call of one image'),
  Column('largest batch', 'of a training step, over all devices'),
  Column('does not fit', 'the smallest batch known not to'),
  Column('GiB', 'planned for a training step of the largest batch'),
  Column('of GiB', 'that it might take'), Column('notes'),
)  # fmt: skip


def section(
  workdir: pathlib.Path, slug: str, title: str,
  rows: Sequence[Mapping[str, Any]],
) -> tuple[list[page.Block], list[str]]:  # fmt: skip
  """The blocks of all latencies of one device; nothing to be warned of.

  Args:
    workdir: gets no picture.
    slug: not needed.
    title: of the section.
    rows: of the device.
  """
  del workdir, slug
  table = []
  for row in sorted(rows, key=lambda r: (r['image_size'], r['choice'])):
    cells = [
      page.number(row['image_size'], 'd'), page.name(row['choice']),
    ]  # fmt: skip
    if row['status'] == 'ok':
      cells += _measured(row)
      table.append([*cells, Cell(_note(row))])
    else:
      cells += [Cell(page.NONE)] * (len(COLUMNS) - 3)
      said = f'{row["status"]}: {row["error"]}'
      table.append([*cells, Cell(said, said, 'bad')])
  return [
    Heading(2, title),
    Text(
      'A forward call of one image, waited for, a call of each model in turn '
      'after calls that do not count; and the largest batch of a training step '
      'that XLA plans within a share of the free memory. No batch is made: '
      'what the runtime needs beyond the plan is what the share leaves.'
    ),
    Table('By image size.', COLUMNS, table),
  ], []


def _measured(row: Mapping[str, Any]) -> list[Cell]:
  return [
    Cell(row['dtype'], row['dtype']), page.number(row['parameters'], ',d'),
    page.number(row['flops'], ',.1f', 1e-6),
    page.number(row['p50'], '.3f', 1e3), page.number(row['p99'], '.3f', 1e3),
    page.number(row['samples'], ',d'),
    page.number(row['memory'], ',.1f', 2**-20),
    page.number(row['batch'], ',d'),
    page.number(row['too_large'], ',d'),
    page.number(row['needed'], ',.2f', 2**-30),
    page.number(row['limit'], ',.2f', 2**-30),
  ]  # fmt: skip


def _note(row: Mapping[str, Any]) -> str:
  if row['too_large'] is None:
    return 'larger batches were not looked at'
  if not row['batch']:
    return 'not even the smallest batch fits'
  return '' if row['samples'] >= 100 else 'too few calls for a p99'
