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


def test_measured_tables_list_entries_of_today():
  for section in ('digits', 'growth'):
    lines = page.read(section).splitlines()[2:]
    names = {line.split('`')[1].partition('(')[0] for line in lines}
    assert names <= set(page.ENTRIES), section
