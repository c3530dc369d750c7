"""The arena's report: rows → report.md, report.html and pictures.

python -m vit_jax.arena.report DIR… --out=DIR merges the rows of workdirs, such
as a cluster's shards, and writes one report of all.
"""

import argparse
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vit_jax.arena import (
  claims,
  fairness,
  page,
  report_data,
  report_latency,
  report_probe,
  report_published,
  report_scaling,
  report_train,
  report_wrong,
  results,
  standings,
)
from vit_jax.arena.page import Cell, Column, Heading, Table, Text

TITLE = 'The arena'
# Suite → fields that every row of it has that is ok.
FIELDS = {
  'train': standings.FIELDS,
  'scaling': report_scaling.FIELDS,
  'probe': report_probe.FIELDS,
  'latency': report_latency.FIELDS,
}
# Of the scaling suite, where its rows say it.
SIZES = (('batch_size', 'B'), ('heads', 'H'), ('width', 'D'))
FAIRNESS = (
  'Fair means: rows of a board differ in one leaf of the configuration and in '
  'nothing else; every choice has the same number of learning rates to be '
  'tuned over, on examples that are neither trained nor tested on; of a seed, '
  'all see the same examples in the same order with the same augmentation, '
  'and parameters that they share start equal. Rows that break this are '
  'refused. Failures are rows too. Times of different devices are never put '
  'in one ranking.'
)


def write(
  workdir: str | os.PathLike, rows: Sequence[Mapping[str, Any]],
  baseline: str = 'softmax',
) -> pathlib.Path:  # fmt: skip
  """Writes report.md, report.html and PNG pictures into a folder.

  The same rows in any order give the same bytes.

  Args:
    workdir: the folder, made if need be.
    rows: of results.jsonl, see `results`.
    baseline: the choice that others are held against.

  Returns:
    The path of report.html.

  Raises:
    ValueError: no rows, two different ones of a key, a suite or a status that
      is not known, or a row without a field of its suite.
    fairness.UnfairError: rows that must not be compared.
  """
  rows = _checked(rows)
  fairness.check(rows)
  workdir = pathlib.Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  blocks, warnings = _sections(workdir, rows, baseline)
  blocks = [*_head(rows, warnings), *blocks]
  (workdir / 'report.md').write_text(page.markdown(blocks), 'utf-8')
  out = workdir / 'report.html'
  out.write_text(page.page(TITLE, blocks), 'utf-8')
  return out


def _checked(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  """The rows by key, each once."""
  if not rows:
    raise ValueError('no rows; a report needs at least one')
  found = {}
  for row in rows:
    if row['suite'] not in FIELDS:
      raise ValueError(
        f'row {row["key"]!r} is of suite {row["suite"]!r}; known are '
        + ', '.join(FIELDS)
      )
    if row['status'] not in results.STATUSES:
      raise ValueError(
        f'row {row["key"]!r} has status {row["status"]!r}; known are '
        + ', '.join(results.STATUSES)
      )
    needed = FIELDS[row['suite']] if row['status'] == 'ok' else ()
    missing = sorted({*needed, 'choice', 'environment', 'error'} - set(row))
    if missing:
      raise ValueError(f'row {row["key"]!r} lacks {", ".join(missing)}')
    if found.setdefault(row['key'], row) != row:
      raise ValueError(f'two different rows have the key {row["key"]!r}')
  return [found[key] for key in sorted(found)]


def device(row: Mapping[str, Any]) -> str:
  """Where it was measured: two rows' times compare only if these agree."""
  e = row['environment']
  if e['platform'] == 'cpu':
    return f'CPU {e["host"]}, {e["cores"]} cores'
  count = f'{e["devices"]} × ' if e['devices'] > 1 else ''
  return f'{count}{e["device"]}'


def _sections(
  workdir: pathlib.Path, rows: Sequence[Mapping[str, Any]], baseline: str
) -> tuple[list[page.Block], list[str]]:
  blocks, warnings, slugs = [], [], {}

  def add(
    what: str, of: Sequence[Mapping[str, Any]], key: Callable, section: Callable
  ) -> None:
    """A section for each key, (order, name), and device of those rows."""
    groups = {}
    for row in of:
      groups.setdefault((*key(row), device(row)), []).append(row)
    for (_, name, place), some in sorted(groups.items()):
      title = ' · '.join(x for x in (what, name, place) if x)
      slug = _slug(title)
      slugs[slug] = slugs.setdefault(slug, 0) + 1
      if slugs[slug] > 1:
        slug = f'{slug}-{slugs[slug]}'
      more, found = section(slug, title, some)
      blocks.extend(more)
      warnings.extend(found)

  suites = {s: [r for r in rows if r['suite'] == s] for s in FIELDS}
  shared = [r for r in suites['train'] if 'share' in r]
  add(
    'Data', shared, lambda r: ('', r['set']),
    lambda slug, title, some: report_data.section(
      workdir, slug, title, some,
      [r for r in shared if r['set'] == some[0]['set']],
    ),
  )  # fmt: skip
  add(
    'Latency', suites['latency'], lambda r: ('', ''),
    lambda slug, title, some: report_latency.section(
      workdir, slug, title, some
    ),
  )  # fmt: skip
  add(
    'Board', suites['train'], lambda r: ('', r['board']),
    lambda slug, title, some: _board(
      workdir, slug, title, some,
      [r for r in suites['train'] if r['board'] == some[0]['board']],
      claims.VIT if 'share' in some[0] else baseline,
    ),
  )  # fmt: skip
  add(
    'Scaling', suites['scaling'],
    lambda r: (r['direction'] == 'backward', ' '.join(
      [r['dtype'], r['direction']]
      + [f'{letter}={r[field]}' for field, letter in SIZES if field in r]
    )),
    lambda slug, title, some: report_scaling.section(
      workdir, slug, title, some, baseline
    ),
  )  # fmt: skip
  add(
    'Probe', suites['probe'],
    lambda r: ('', ' '.join(
      f'{field} {pathlib.Path(r[field]).name}'
      for field in ('init', 'recipe') if field in r
    )),
    lambda slug, title, some: report_probe.section(workdir, slug, title, some),
  )  # fmt: skip
  return blocks, warnings


def _board(
  workdir: pathlib.Path, slug: str, title: str,
  rows: Sequence[Mapping[str, Any]], whole: Sequence[Mapping[str, Any]],
  baseline: str,
) -> tuple[list[page.Block], list[str]]:  # fmt: skip
  """A board's section, and what is said of some boards only."""
  blocks, warnings = report_train.section(
    workdir, slug, title, rows, whole, baseline
  )
  found = standings.standings(rows, whole)
  more = [*report_published.section(found, rows), *report_wrong.section(found)]
  return [*blocks, *more], warnings


def _slug(title: str) -> str:
  """A file name: lower-case ASCII letters, digits and bars."""
  return re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')


def _head(
  rows: Sequence[Mapping[str, Any]], warnings: Sequence[str]
) -> list[page.Block]:
  own = [
    f'Rows are of several {what}: {", ".join(sorted(found))}.{why}'
    for what, found, why in (
      ('devices', {device(r) for r in rows},
       ' Each has its own sections; times are not compared between them.'),
      ('commits', {r['environment']['commit'] or '(none)' for r in rows},
       ' The code may have changed between them.'),
      ('versions of jax', {r['environment']['jax'] for r in rows}, ''),
    )
    if len(found) > 1
  ]  # fmt: skip
  changed = {r['environment']['commit'] for r in rows}
  changed = sorted(c for c in changed if c.endswith('+'))
  if changed:
    own.append(
      f'The code differed from its commit, {", ".join(changed)}: these rows '
      'cannot be made again from it.'
    )
  failed = [r for r in rows if r['status'] != 'ok']
  times = sorted(r['environment']['time'] for r in rows)
  counts = [
    f'{len(some):,} of suite {suite}'
    for suite in FIELDS
    if (some := [r for r in rows if r['suite'] == suite])
  ]
  return [
    Heading(1, TITLE),
    Text(
      f'{len({r["choice"] for r in rows})} choices, {len(rows):,} rows: '
      f'{", ".join(counts)}; {len(failed)} of them failures. Measured from '
      f'{times[0]} to {times[-1]}.'
    ),
    *(Text(text, warning=True) for text in (*own, *warnings)),
    Text(FAIRNESS),
    _versions(rows),
  ]


def _versions(rows: Sequence[Mapping[str, Any]]) -> Table:
  """How many rows were measured with what."""
  fields = ('commit', 'python', 'jax', 'jaxlib', 'flax')
  counts = {}
  for row in rows:
    key = (device(row), *(row['environment'][f] for f in fields))
    counts[key] = counts.setdefault(key, 0) + 1
  table = [
    [*(Cell(x or page.NONE, x) for x in key), page.number(count, ',d')]
    for key, count in sorted(counts.items())
  ]
  columns = [Column(c) for c in ('device', *fields, 'rows')]
  return Table('Measured with:', columns, table)


def main(words: Sequence[str] | None = None) -> None:
  """Merges workdirs and says where the report is."""
  parser = argparse.ArgumentParser(
    'python -m vit_jax.arena.report', description=__doc__
  )
  parser.add_argument('places', nargs='+', metavar='DIR',
                      help='workdirs, or files of rows')  # fmt: skip
  parser.add_argument('--out', required=True, help='folder of the report')
  parser.add_argument('--baseline', default='softmax')
  given = parser.parse_args(words)
  rows = results.read(*given.places)
  try:
    print(write(given.out, rows, given.baseline))
  except ValueError as e:
    raise SystemExit(f'{", ".join(given.places)}: {e}') from None


if __name__ == '__main__':
  main()
