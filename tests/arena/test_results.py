"""Results outlive whoever writes them, and parts make one whole."""

import pytest

from vit_jax.arena import process, results


def row(key, **fields):
  return {'key': key, 'status': 'ok', 'error': '', **fields}


def test_a_torn_last_line_is_skipped_and_cut_off(tmp_path):
  file = tmp_path / 'results.jsonl'
  results.append(file, row('a'))
  with file.open('a') as f:
    f.write('{"key": "b", "sta')
  assert [r['key'] for r in results.read(file)] == ['a']
  results.append(file, row('c'))
  assert [r['key'] for r in results.read(file)] == ['a', 'c']
  assert file.read_text().count('\n') == 2


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path):
  file = tmp_path / 'results.jsonl'
  file.write_text('{"key": "a"}\nrubbish\n{"key": "c"}\n')
  with pytest.raises(ValueError, match='line 2'):
    results.read(file)


def test_the_last_row_of_a_key_counts_and_shards_are_merged(tmp_path):
  results.append(tmp_path / 'results-0of2.jsonl', row('a', n=1))
  results.append(tmp_path / 'results-1of2.jsonl', row('b', n=2))
  results.append(tmp_path / 'results-1of2.jsonl', row('b', n=3))
  assert [(r['key'], r['n']) for r in results.read(tmp_path)] == [
    ('a', 1), ('b', 3),
  ]  # fmt: skip
  assert results.read(tmp_path / 'absent') == []


@pytest.mark.parametrize('bad', [
  {'status': 'ok'}, {'key': 'a', 'status': 'fine'},
  {'key': 'a', 'status': 'failed', 'error': ''},
])  # fmt: skip
def test_a_row_that_says_nothing_is_refused(tmp_path, bad):
  with pytest.raises(ValueError, match='row'):
    results.append(tmp_path / 'results.jsonl', bad)
  assert not (tmp_path / 'results.jsonl').exists()


def module(folder, monkeypatch, text):
  (folder / 'doomed.py').write_text(text)
  monkeypatch.setenv('PYTHONPATH', str(folder))
  return 'doomed'


@pytest.mark.parametrize(('text', 'status', 'error'), [
  ('import sys, json; json.load(sys.stdin)', 'ok', ''),
  ('import os; os.kill(os.getpid(), 9)', 'out_of_memory', 'no memory'),
  ('import os; os.kill(os.getpid(), 11)', 'failed', 'SIGSEGV'),
  ("raise ValueError('seven')", 'failed', 'ValueError: seven'),
  ("raise RuntimeError('RESOURCE_EXHAUSTED: 9 GiB')", 'out_of_memory', '9 GiB'),
  ('import time; time.sleep(60)', 'timeout', 'after 1 s'),
])  # fmt: skip
def test_how_a_process_ends_is_told(tmp_path, monkeypatch, text, status, error):
  name = module(tmp_path, monkeypatch, text)
  timeout = 1.0 if status == 'timeout' else 60.0
  end = process.run(name, {'n': 1}, tmp_path / 'log.txt', timeout)
  assert end.status == status
  assert error in end.error
