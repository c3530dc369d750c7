"""The arena's report: all rows are in it, in any order; none can break it."""

import html
import html.parser
import json
import math
import random
import re

import numpy as np
import pytest

from vit_jax.arena import (
  fairness,
  page,
  report,
  report_scaling,
  results,
  standings,
)

ENVIRONMENT = {
  'time': '2026-01-02T03:04:05+00:00', 'device': 'cpu', 'platform': 'cpu',
  'devices': 1, 'host': 'x86_64', 'cores': 2, 'python': '3.11.9',
  'jax': '0.10.2', 'jaxlib': '0.10.2', 'flax': '0.12.8', 'commit': 'c0ffee',
}  # fmt: skip
HOSTILE = (
  '<script>alert(1)</script>', 'a|b`c*_d_*$e$[x](y)', '"><img src=x>',
  '`tick`', '\n# not a heading', '\\', '$\\frac{', '</style></title>&amp;',
  'Ω' * 90,
)  # fmt: skip
RATES = [0.001, 0.01]
LENGTHS = (64, 256, 1024)


def row(suite, choice, *key, **fields):
  return {
    'key': '/'.join(map(str, (suite, choice, *key))), 'suite': suite,
    'choice': choice, 'status': 'ok', 'error': '', 'environment': ENVIRONMENT,
    **fields,
  }  # fmt: skip


def cell(choice, seed, rate, accuracy, seconds=0.01, board='digits', **more):
  return row(
    'train', choice, board, seed, rate, board=board, leaf='model.attention',
    learning_rate=rate, seed=seed, steps=20, batch_size=8, accuracy=accuracy,
    loss=0.5, train_loss=0.4, validation=accuracy, validation_loss=0.6,
    parameters=1000, flops=2e6, memory=2**20, step_seconds=seconds,
    train_seconds=20 * seconds, compile_seconds=1.5, recipe='r', test_size=200,
    curve=[
      [s, 6e6 * 8 * s, seconds * s, accuracy * s / 20] for s in (10, 20)
    ],
    order=f'o{seed}', start=f's{seed}', rates=RATES, **more,
  )  # fmt: skip


def board(choice, accuracy, **more):
  """Tuned on seed 0, the higher rate is better; then two more seeds."""
  return [
    cell(choice, 0, 0.001, accuracy - 0.1, **more),
    *(
      cell(choice, s, 0.01, accuracy + d, **more)
      for s, d in enumerate((0, 0.005, -0.005))
    ),
  ]


def failure(suite, choice, status, error, **fields):
  return row(suite, choice, status, **fields) | {
    'status': status, 'error': error,
  }  # fmt: skip


def scaled(choice, power, start=2e-5):
  return [
    row(
      'scaling', choice, n, dtype='float32', length=n, direction='forward',
      seconds=start * (n / 64) ** power, seconds_low=start,
      seconds_high=1.0, flops=10.0 * n**power, bytes=8.0 * n**power,
      declared_flops=12.0 * n**power, declared_bytes=9.0 * n**power,
      ratio=None if choice == 'softmax'
      else 1e-5 * (n / 64) ** 2 / (start * (n / 64) ** power),
    )
    for n in LENGTHS
  ]  # fmt: skip


def probed(choice, wrong=''):
  return row(
    'probe', choice, flagged=bool(wrong),
    checks={'finite': '', 'row_sums': wrong},
    layers=[
      {'layer': i, 'local': 0.1 * i, 'accumulated': 0.2 * i, 'entropy': 3.0,
       'rank': 20.0 - i, 'distance': None, 'map': 'weights'}
      for i in range(3)
    ],
  )  # fmt: skip


def sample():
  """All suites, and a failure of every kind."""
  rows = [
    *board('softmax', 0.9), *board('linear', 0.8, seconds=0.005),
    *(r for name in HOSTILE for r in board(name, 0.7)),
    cell('torn', 0, 0.001, 0.6),
    failure('train', 'lost', 'refused', 'needs 4 tokens', board='digits',
            leaf='model.attention'),
    failure('train', 'torn', 'timeout', 'after 9 s', board='digits',
            leaf='model.attention', learning_rate=0.01, seed=0),
    *scaled('softmax', 2), *scaled('linear', 1), *scaled(HOSTILE[0], 1),
    failure('scaling', 'huge', 'out_of_memory', 'needs 9 GiB',
            dtype='float32', length=1024, direction='forward'),
    probed('softmax'), probed('linear', 'rows sum to 3'), probed(HOSTILE[1]),
    failure('probe', 'odd', 'failed', 'died of SIGSEGV'),
  ]  # fmt: skip
  return json.loads(json.dumps(rows))


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  folder = tmp_path_factory.mktemp('report')
  assert report.write(folder, sample()) == folder / 'report.html'
  return folder


class Reader(html.parser.HTMLParser):
  """The cells of all tables, tags and addresses."""

  def __init__(self, text):
    super().__init__()
    self.cells, self.tags, self.addresses = [], [], []
    self.feed(re.sub('<script>.*?</script>', '<script></script>', text,
                     flags=re.DOTALL))  # fmt: skip
    self.close()

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.addresses += [v for k, v in attrs if k in ('src', 'href')]
    if tag == 'td':
      self.cells.append('')

  def handle_data(self, data):
    if self.tags and self.tags[-1] == 'td':
      self.cells[-1] += data


def read(folder):
  return (folder / 'report.html').read_text('utf-8')


def test_every_choice_and_every_failure_is_in_both_reports(written):
  cells = Reader(read(written)).cells
  markdown = (written / 'report.md').read_text('utf-8')
  for r in sample():
    assert page.plain(r['choice']) in cells, r['choice']
    assert page._code(r['choice']) in markdown
    if r['error']:
      assert any(r['error'] in c for c in cells)
      assert r['error'] in markdown
      assert any(r['status'] in c for c in cells)


def test_names_cannot_break_out_of_the_page(written):
  text = read(written)
  found = Reader(text)
  # The library and the plots are ours, and nothing else is a script.
  plots = found.tags.count('figure')
  assert plots == 7
  assert found.tags.count('script') == 2 + plots
  assert 'img' not in found.tags
  assert found.tags.count('title') == found.tags.count('style') == 1
  assert all(a.startswith('#at') for a in found.addresses)
  scripts = re.findall('<script[^>]*>(.*?)</script>', text, flags=re.DOTALL)
  for script in scripts:
    assert '<script>alert' not in script


def test_names_cannot_break_a_markdown_table(written):
  lines = (written / 'report.md').read_text('utf-8').splitlines()
  width = None
  for line in lines:
    if not line.startswith('|'):
      width = None
      continue
    bars = len(re.findall(r'(?<!\\)\|', line))
    width = width or bars
    assert bars == width, line
  assert not any(line.startswith('# not a heading') for line in lines)


def test_the_report_needs_no_other_file_and_no_network(written):
  text = read(written)
  assert text.count('plotly.js v') == 1
  outside = re.sub('<script.*?</script>', '', text, flags=re.DOTALL)
  assert 'http' not in outside
  for file in re.findall(r'\]\((.+?\.png)\)', (written / 'report.md')
                         .read_text('utf-8')):  # fmt: skip
    assert (written / file).read_bytes().startswith(b'\x89PNG')
  assert len(list(written.glob('*.png'))) == 7


def test_order_of_rows_changes_no_byte_and_shards_merge_to_the_whole(
  written, tmp_path
):
  rows = sample()
  random.Random(3).shuffle(rows)
  for i in range(2):
    for r in rows[i::2]:
      results.append(tmp_path / f'shard{i}' / f'results-{i}of2.jsonl', r)
  report.main([
    str(tmp_path / 'shard1'), str(tmp_path / 'shard0'), '--out',
    str(tmp_path / 'out'),
  ])  # fmt: skip
  files = {path.name for path in written.iterdir()}
  assert files == {path.name for path in (tmp_path / 'out').iterdir()}
  for name in files:
    assert (tmp_path / 'out' / name).read_bytes() == (
      written / name
    ).read_bytes(), name


def table(folder, caption):
  """Rows of the Markdown table under a caption, by heading."""
  lines = (folder / 'report.md').read_text('utf-8').splitlines()
  at = next(i for i, x in enumerate(lines) if x.startswith(caption)) + 2
  out = []
  while lines[at].startswith('|'):
    out.append([x.strip() for x in re.split(r'(?<!\\)\|', lines[at])[1:-1]])
    at += 1
  head, _, *body = out
  return [dict(zip(head, line, strict=True)) for line in body]


def test_ranking_is_by_the_mean_at_the_tuned_rate(written):
  rows = table(written, 'Ranking by mean')
  first, second = rows[:2]
  assert first['choice'] == '`softmax`'
  assert first['accuracy, %'] == '90.00 ± 0.29'
  assert first['interval'] == r'\[89.50, 90.50\]'
  assert (first['rate'], first['seeds']) == ('0.01', '3')
  assert first['notes'] == 'rate at the edge'
  assert second['choice'] == '`linear`'
  assert second['ms a step'] == '5.00'
  assert '-10.00' in second['minus softmax']
  # Of 'torn' the other rate is left; 'lost' has nothing.
  torn = next(r for r in rows if r['choice'] == '`torn`')
  assert torn['notes'] == 'rate at the edge; 1 of its cells failed'
  assert rows[-1]['choice'] == '`lost`'
  assert 'refused: needs 4 tokens' in ' '.join(rows[-1].values())


def test_who_beats_whom_is_said_with_the_difference_that_counts(written):
  text = (written / 'report.md').read_text('utf-8')
  # softmax, linear and the hostile names; `torn` has one seed.
  k = 2 + len(HOSTILE)
  assert f'all {k * (k - 1) // 2} pairs at once' in text
  assert f'1 of {k + 1} choices lack one of these seeds' in text
  assert re.search(
    f'With 3 seeds and {k} choices, two around the median accuracy of 70.00 % '
    r'have to differ by 0\.\d\d percentage points', text
  )  # fmt: skip
  by = {r['choice']: r for r in table(written, 'Ranking by mean')}
  assert (by['`softmax`']['beats'], by['`linear`']['beats']) == ('10', '9')
  assert by['`linear`']['beaten by'] == '1'
  assert by['`torn`']['beats'] == by['`torn`']['beaten by'] == '0'
  assert '▼ -10.00' in by['`linear`']['minus softmax']
  assert by['`torn`']['minus softmax'] == '-30.00'
  one = {r['choice']: r for r in table(written, 'The same as a table')}
  assert one['`linear`']['▲ beats'] == '9'


def test_views_at_equal_cost_read_the_curves(written):
  rows = table(written, 'Mean test accuracy over the seeds, and place')
  by = {r['choice']: r for r in rows}
  # `linear` is twice as fast: then softmax is at half of its curve.
  assert by['`softmax`']['equal time, %'] == '45.00'
  assert by['`linear`']['equal time, %'] == '80.00'
  assert by['`softmax`']['equal FLOPs, %'] == '90.00'


def test_slopes_and_crossover_are_those_of_the_rows(written):
  by = {r['choice']: r for r in table(written, 'Growth of every kernel')}
  linear = by['`linear`']
  assert linear['time exponent'] == linear['FLOPs exponent'] == '1.00'
  assert by['`softmax`']['bytes exponent'] == '2.00'
  # 1e-5 (n/64)² = 2e-5 (n/64) at n = 128.
  assert linear['faster from N ='] == '128'
  assert by['`softmax`']['faster from N ='] == page.NONE
  assert by['`huge`']['notes'] == r'**out_of_memory at 1,024**'


def test_a_plot_begins_with_the_fastest_where_most_were_measured():
  series = {f'c{i}': ([64, 256], [1.0, 50.0 - i]) for i in range(9)}
  series['slow'] = ([64, 256, 1024], [9.0, 99.0, 9.0])
  found = report_scaling._fastest(series)
  assert found == [f'c{8 - i}' for i in range(8)]
  apart = {'a': ([64], [2.0]), 'b': ([256], [1.0])}
  assert report_scaling._fastest(apart) == ['b']


def test_flags_of_the_probe_are_red_and_at_the_head(written):
  assert '<td class="bad number" data-sort="0">wrong</td>' in read(written)
  head = read(written).split('<h2')[0]
  assert 'flagged as wrong: linear.' in head
  by = {r['choice']: r for r in table(written, 'Summary over the layers')}
  assert by['`linear`']['local, worst'] == '0.2'
  assert by['`linear`']['accumulated, last'] == '0.4'
  assert 'rows sum to 3' in by['`linear`']['notes']


def test_devices_are_not_ranked_together(tmp_path):
  other = {**ENVIRONMENT, 'device': 'NVIDIA H100', 'platform': 'gpu',
           'commit': 'c0ffee+'}  # fmt: skip
  rows = [*board('softmax', 0.9), *board('linear', 0.8)]
  rows += [
    {**r, 'environment': other, 'key': f'gpu/{r["key"]}'}
    for r in board('hydra', 0.95)
  ]
  report.write(tmp_path, rows)
  text = (tmp_path / 'report.md').read_text('utf-8')
  assert 'of several devices: CPU x86_64, 2 cores, NVIDIA H100' in text
  assert 'of several commits' in text
  assert 'The code differed from its commit, c0ffee+' in text
  first, second = text.split('## Board')[1:]
  assert ('`hydra`' in first, '`hydra`' in second) == (False, True)
  assert ('`linear`' in first, '`linear`' in second) == (True, False)
  assert "the baseline 'softmax' has no result" in text


def test_one_seed_one_rate_and_one_choice_are_enough_for_a_report(tmp_path):
  rows = [{**cell('softmax', 4, 0.01, 0.5), 'rates': [0.01]}]
  report.write(tmp_path, rows)
  found = table(tmp_path, 'Ranking by mean')
  assert found[0]['accuracy, %'] == '50.00'
  assert found[0]['interval'] == page.NONE
  assert found[0]['notes'] == ''
  assert 'with one nothing beats' in (tmp_path / 'report.md').read_text('utf-8')


def test_failures_alone_make_a_report(tmp_path):
  rows = [r for r in sample() if r['status'] != 'ok']
  report.write(tmp_path, rows)
  text = (tmp_path / 'report.md').read_text('utf-8')
  for r in rows:
    assert r['error'] in text
  assert not list(tmp_path.glob('*.png'))
  assert 'plotly' not in read(tmp_path)


def test_other_parameters_are_marked(tmp_path):
  rows = board('softmax', 0.9)
  for name, parameters in (('near', 1010), ('far', 1011)):
    rows += [{**r, 'parameters': parameters} for r in board(name, 0.8)]
  report.write(tmp_path, rows)
  by = {r['choice']: r for r in table(tmp_path, 'Ranking by mean')}
  assert by['`near`']['parameters'] == '1,010'
  assert by['`far`']['parameters'] == '**≠ 1,011**'
  assert '+1.1 % parameters' in by['`far`']['notes']


def test_no_rows_are_refused(tmp_path):
  with pytest.raises(ValueError, match='no rows'):
    report.write(tmp_path, [])
  with pytest.raises(SystemExit, match='no rows'):
    report.main([str(tmp_path), '--out', str(tmp_path)])


@pytest.mark.parametrize(
  ('change', 'match'),
  [
    ({'suite': 'opera'}, "suite 'opera'; known are train, scaling, probe"),
    ({'status': 'fine'}, "status 'fine'; known are ok"),
    ({'accuracy': 0.4}, 'two different rows have the key'),
  ],
)
def test_rows_that_are_none_are_refused(tmp_path, change, match):
  one = cell('softmax', 0, 0.01, 0.5)
  with pytest.raises(ValueError, match=match):
    report.write(tmp_path, [one, one | change])


def test_a_row_without_its_fields_is_refused(tmp_path):
  one = cell('softmax', 0, 0.01, 0.5)
  del one['curve'], one['flops']
  with pytest.raises(ValueError, match='lacks curve, flops'):
    report.write(tmp_path, [one])


def test_unfair_rows_get_no_report(tmp_path):
  rows = board('softmax', 0.9) + board('linear', 0.8)
  rows[-1]['order'] = 'another'
  with pytest.raises(fairness.UnfairError, match="'linear' \\(order="):
    report.write(tmp_path, rows)
  assert not list(tmp_path.iterdir())


def test_standings_are_by_mean_and_hold_the_tuned_rate():
  rows = [*board('a', 0.5), *board('b', 0.6)]
  found = standings.standings(rows)
  assert [s.choice for s in found] == ['b', 'a']
  assert found[0].rate == 0.01
  np.testing.assert_allclose(found[0].percent(), [60, 60.5, 59.5])
  assert math.isclose(found[0].trials[0.001]['accuracy'], 0.5)


def test_sorting_knows_numbers_as_they_are_not_as_they_read():
  cells = [page.number(x, ',.1f') for x in (1234.5, None, math.inf, -2)]
  assert [c.text for c in cells] == ['1,234.5', page.NONE, page.NONE, '-2.0']
  assert [c.sort for c in cells] == [1234.5, None, None, -2.0]
  table = page.Table('t', [page.Column('x')], [[c] for c in cells])
  text = page.page('t', [table])
  assert re.findall('data-sort="(.*?)"', text) == ['1234.5', '-2.0']


@pytest.mark.parametrize('name', HOSTILE)
def test_a_name_in_markdown_is_code_on_one_line(name):
  found = page._code(name)
  assert '\n' not in found
  fence = re.match('`+', found)[0]
  assert found.endswith(fence)
  assert f'{fence}`' not in found
  inside = found.removeprefix(fence).removesuffix(fence)
  assert fence not in inside.strip(' ')
