"""A page of headings, tables and figures, as Markdown and as one HTML file."""

import html
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

NONE = '–'


class Cell(NamedTuple):
  """What a table says in one place.

  Attributes:
    text: as it is read.
    sort: what its column is sorted by; None for what is missing, always last.
    kind: '', 'name' (in the font of code), or one of KINDS.
    title: what is said when the mouse rests on it.
  """

  text: str
  sort: float | str | None = None
  kind: str = ''
  title: str = ''


# Looks of a cell, and what marks them where there are no colours.
KINDS = {'good': '**', 'bad': '**', 'best': '**', 'weak': '', 'name': ''}


class Column(NamedTuple):
  """A heading, and what it means."""

  name: str
  title: str = ''


class Heading(NamedTuple):
  """Opens a section; level 1 is the page's own."""

  level: int
  text: str


class Text(NamedTuple):
  """A paragraph; `warning` in red."""

  text: str
  warning: bool = False


class Table(NamedTuple):
  """Rows of cells; the last one of a short row takes the rest of the columns.

  A folded one is hidden until it is clicked on.
  """

  caption: str
  columns: Sequence[Column]
  rows: Sequence[Sequence[Cell]]
  folded: bool = False


class Figure(NamedTuple):
  """A picture beside the page, and the same as a live plot inside it."""

  caption: str
  file: str
  plot: Any = None


Block = Heading | Text | Table | Figure


def name(text: str) -> Cell:
  """A cell with a name in it."""
  return Cell(text, text.lower(), 'name')


def number(value: float | None, form: str = ',.2f', scale: float = 1) -> Cell:
  """A cell with a number in it, or the sign for none."""
  if value is None or not math.isfinite(value):
    return Cell(NONE)
  return Cell(format(value * scale, form), float(value))


def plain(text: str) -> str:
  """On one line, without characters that are not seen."""
  return ''.join(c if c.isprintable() else ' ' for c in text)


def markdown(blocks: Sequence[Block]) -> str:
  """The page in GitHub's Markdown."""
  return '\n\n'.join(_markdown(block) for block in blocks) + '\n'


def _markdown(block: Block) -> str:
  match block:
    case Heading(level, text):
      return '#' * level + ' ' + _escaped(text)
    case Text(text, warning):
      return '> **Warning:** ' * warning + _escaped(text)
    case Figure(caption, file):
      return f'![{_escaped(caption)}]({file})\n\n*{_escaped(caption)}*'
    case Table(caption, columns, rows):
      lines = [[_escaped(c.name) for c in columns], ['---'] * len(columns)]
      lines += [
        [_marked(cell) for cell in row] + [''] * (len(columns) - len(row))
        for row in rows
      ]
      return '\n'.join(
        [_escaped(caption), '', *('| ' + ' | '.join(x) + ' |' for x in lines)]
      )


def _marked(cell: Cell) -> str:
  if cell.kind == 'name':
    return _code(cell.text)
  mark = KINDS[cell.kind] if cell.kind and cell.text.strip() else ''
  return mark + _escaped(cell.text.strip()) + mark


def _code(text: str) -> str:
  """A code span: nothing in it is markup, but a bar still ends its cell."""
  text = plain(text).strip()
  runs = [len(run) for run in re.findall('`+', text)]
  fence = '`' * (max(runs, default=0) + 1)
  pad = ' ' * (text.startswith('`') or text.endswith('`'))
  return fence + pad + text.replace('|', r'\|') + pad + fence


def _escaped(text: str) -> str:
  """Markup's own characters, made plain; `_` inside a word is no markup."""
  text = re.sub(r'([\\`*\[\]|~$#])', r'\\\1', plain(text))
  text = re.sub(r'(?<!\w)_|_(?!\w)', r'\_', text)
  return html.escape(text, quote=False)


def page(title: str, blocks: Sequence[Block]) -> str:
  """The page as one HTML file that needs no other, nor a network."""
  plots = any(isinstance(b, Figure) and b.plot is not None for b in blocks)
  library = ''
  if plots:
    import plotly.offline

    library = f'<script>{plotly.offline.get_plotlyjs()}</script>'
  links, body = [], []
  for number, block in enumerate(blocks):
    if isinstance(block, Heading) and 1 < block.level < 4:
      links.append(
        f'<a class="level{block.level}" href="#at{number}">'
        f'{_safe(block.text)}</a>'
      )
    body.append(_html(block, number))
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<title>{_safe(title)}</title>\n<style>{STYLE}</style>\n{library}\n'
    f'</head>\n<body>\n<nav>{" ".join(links)}</nav>\n<main>\n'
    + '\n'.join(body)
    + f'\n</main>\n<script>{SORT}</script>\n</body>\n</html>\n'
  )


def _html(block: Block, number: int) -> str:
  match block:
    case Heading(level, text):
      return f'<h{level} id="at{number}">{_safe(text)}</h{level}>'
    case Text(text, warning):
      return f'<p{" class=warning" * warning}>{_safe(text)}</p>'
    case Figure(caption, file, plot):
      if plot is None:
        return f'<p>{_safe(caption)} See {_safe(file)}.</p>'
      drawn = plot.to_html(
        full_html=False, include_plotlyjs=False, div_id=f'plot{number}',
        config={'displaylogo': False, 'responsive': True},
      )  # fmt: skip
      said = f'<figcaption>{_safe(caption)}</figcaption>'
      return f'<figure>{drawn}{said}</figure>'
    case Table(caption, _, _, folded):
      if folded:
        return (
          f'<details><summary>{_safe(caption)}</summary>{_table(block)}'
          '</details>'
        )
      return f'<p class="caption">{_safe(caption)}</p>{_table(block)}'


def _table(table: Table) -> str:
  head = ''.join(
    f'<th title="{_safe(c.title)}"><button>{_safe(c.name)}</button></th>'
    for c in table.columns
  )
  rows = [
    ''.join(_cell(cell) for cell in row[:-1])
    + _cell(row[-1], 1 + len(table.columns) - len(row))
    for row in table.rows
  ]
  body = '\n'.join(f'<tr>{row}</tr>' for row in rows)
  return (
    f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n'
    f'<tbody>{body}</tbody></table></div>'
  )


def _cell(cell: Cell, span: int = 1) -> str:
  kinds = [cell.kind] if cell.kind else []
  if cell.kind == 'name' and len(cell.text) > 36:
    kinds.append('long')
  if cell.text == NONE or isinstance(cell.sort, float | int):
    kinds.append('number')
  out = f'<td class="{" ".join(kinds)}"' if kinds else '<td'
  if span > 1:
    out += f' colspan={span}'
  if cell.title:
    out += f' title="{_safe(cell.title)}"'
  if cell.sort is not None:
    out += f' data-sort="{_safe(str(cell.sort))}"'
  return f'{out}>{_safe(cell.text)}</td>'


def _safe(text: str) -> str:
  return html.escape(plain(text))


STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 0; color: #222; }
main { max-width: 1500px; margin: 0 auto; padding: 0 24px 60px; }
nav { background: #f3f4f7; border-bottom: 1px solid #d5d8e0; padding: 8px 24px;
  position: sticky; top: 0; z-index: 3; font-size: 13px; }
nav a { color: #24508f; margin-right: 14px; text-decoration: none;
  white-space: nowrap; display: inline-block; }
nav a.level2 { font-weight: 600; }
h1, h2, h3 { line-height: 1.2; scroll-margin-top: 70px; }
h2 { margin-top: 48px; border-bottom: 2px solid #d5d8e0; padding-bottom: 4px; }
h3 { margin-top: 32px; }
main > p { max-width: 95ch; }
.warning { background: #fdecea; border-left: 4px solid #c0392b; color: #7d1a10;
  padding: 6px 12px; margin: 6px 0; }
.caption { margin-bottom: 6px; }
.wide { overflow-x: auto; margin-bottom: 20px; }
table { border-collapse: collapse; font-size: 13px; }
th { background: #f3f4f7; text-align: left; vertical-align: bottom;
  border-bottom: 2px solid #b9bec9; }
th button { font: inherit; font-weight: 600; border: 0; background: none;
  padding: 4px 8px; cursor: pointer; text-align: left; }
th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
td { padding: 3px 8px; border-bottom: 1px solid #e5e7ec; white-space: nowrap; }
td:last-child { white-space: normal; min-width: 12ch; overflow-wrap: anywhere; }
tbody tr:hover td { background: #eef3fb; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
td.name { font-family: ui-monospace, monospace; }
td.long { min-width: 36ch; white-space: normal; overflow-wrap: anywhere; }
td.good { color: #17733a; font-weight: 600; }
td.bad { color: #b3261e; font-weight: 600; }
td.best { font-weight: 700; background: #eaf4ea; }
td.weak { color: #8a8f99; }
figure { margin: 12px 0 28px; }
figcaption, summary { color: #555; font-size: 13.5px; max-width: 95ch; }
summary { cursor: pointer; margin-bottom: 8px; }
"""

# A click on a heading sorts by it, another one the other way round; what is
# missing stays last.
SORT = """
document.addEventListener('click', function (event) {
  const button = event.target.closest('th button');
  if (!button) return;
  const heading = button.parentElement;
  const headings = [...heading.parentElement.children];
  const body = heading.closest('table').tBodies[0];
  const up = heading.getAttribute('aria-sort') !== 'ascending';
  const at = headings.indexOf(heading);
  const value = row => row.cells[at] && row.cells[at].dataset.sort;
  const compare = (a, b) =>
    isNaN(a) || isNaN(b) ? a.localeCompare(b) : Number(a) - Number(b);
  const rows = [...body.rows];
  const known = rows.filter(row => value(row) !== undefined);
  known.sort((a, b) => (up ? 1 : -1) * compare(value(a), value(b)));
  body.append(...known, ...rows.filter(row => value(row) === undefined));
  headings.forEach(other => other.removeAttribute('aria-sort'));
  heading.setAttribute('aria-sort', up ? 'ascending' : 'descending');
});
"""
