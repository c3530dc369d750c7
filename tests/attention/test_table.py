"""The table of docs/attention.md is what the code says."""

import pytest

from docs import attention_table as page

LINES = page.read('table').splitlines()


def test_the_table_lists_every_entry_once():
  names = [line.split('`')[1] for line in LINES[2:]]
  assert sorted(names) == sorted(page.ENTRIES)


@pytest.mark.parametrize('entry', sorted(page.ENTRIES))
def test_the_table_is_current(entry):
  (_, _, line) = page.markdown([entry]).splitlines()
  assert line in LINES


@pytest.mark.parametrize('section', ['digits', 'growth', 'speed'])
def test_the_measured_tables_hold_every_entry(section):
  lines = page.read(section).splitlines()[2:]
  assert sorted(line.split('`')[1] for line in lines) == sorted(page.ENTRIES)
