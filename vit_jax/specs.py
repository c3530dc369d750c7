"""Specs: `'name(key=literal)'` strings that name an entry of a table.

A spec is one leaf of a config: it overrides on the command line as one word and
labels its own row in a report. Only literals are accepted (numbers, strings,
tuples, None, True, False), so a spec from an untrusted file runs no code.
"""

import ast
import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple


class Spec(NamedTuple):
  """A parsed spec: the entry's name and its options."""

  name: str
  options: dict[str, Any]

  def __str__(self) -> str:
    if not self.options:
      return self.name
    inside = ', '.join(f'{k}={v!r}' for k, v in self.options.items())
    return f'{self.name}({inside})'


def parse(text: str) -> tuple[Spec, ...]:
  """Parses `'a(x=1), b'` into `(Spec('a', {'x': 1}), Spec('b', {}))`.

  Args:
    text: one or more specs, comma separated; the empty string is no spec.

  Raises:
    ValueError: on anything but names with literal keyword options.
  """
  if not isinstance(text, str):
    raise ValueError(f'a spec is a string, not {type(text).__name__}: {text!r}')
  if not text.strip():
    return ()
  try:
    tree = ast.parse(f'({text.strip()},)', mode='eval').body
  except (SyntaxError, ValueError) as e:  # of a null byte, before 3.11.4
    raise ValueError(
      f"cannot read the spec {text!r} ({e.args[0]}); write 'name', "
      "'name(key=1)' or several of them with commas between"
    ) from None
  return tuple(_spec(node, text) for node in tree.elts)


def _spec(node: ast.expr, text: str) -> Spec:
  if isinstance(node, ast.Name):
    return Spec(node.id, {})
  if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
    raise ValueError(
      f"in the spec {text!r}, {ast.unparse(node)!r} is neither 'name' nor "
      "'name(key=literal)'"
    )
  name, options = node.func.id, {}
  if node.args:
    raise ValueError(
      f'in the spec {text!r}, write the options of {name!r} with their names: '
      f"'{name}(key={ast.unparse(node.args[0])})'"
    )
  for keyword in node.keywords:
    value = ast.unparse(keyword.value)
    if keyword.arg is None:
      raise ValueError(f'in the spec {text!r}, **{value} is not an option')
    if keyword.arg in options:
      raise ValueError(f'in the spec {text!r}, {keyword.arg} is given twice')
    try:
      options[keyword.arg] = ast.literal_eval(keyword.value)
    except (TypeError, ValueError):  # TypeError: an unhashable key
      raise ValueError(
        f'in the spec {text!r}, {keyword.arg}={value} is not a literal '
        '(a number, a quoted string, a tuple, None, True or False)'
      ) from None
  return Spec(name, options)


def nearest(word: str, choices: Iterable[str]) -> str:
  """Says which choices there are, the likeliest first."""
  choices = sorted(choices)
  close = difflib.get_close_matches(word, choices, n=1)
  hint = f'did you mean {close[0]!r}? ' if close else ''
  return f'{hint}choices: {", ".join(choices) or "none"}'


def lookup(table: Mapping[str, Any], name: str, what: str) -> Any:
  """`table[name]`, or a ValueError that lists the table."""
  if name not in table:
    raise ValueError(f'unknown {what} {name!r}; {nearest(name, table)}')
  return table[name]


def accepted(entry: Callable[..., Any]) -> tuple[str, ...]:
  """Names of the keyword options that `entry` takes."""
  given = entry.args if isinstance(entry, functools.partial) else ()
  entry = entry.func if isinstance(entry, functools.partial) else entry
  names = list(inspect.signature(entry).parameters)[len(given) :]
  # A linen module's own two fields are not options of ours.
  hidden = ('parent', 'name') if 'parent' in names else ()
  return tuple(n for n in names if n not in hidden)


def check_options(
  entry: Callable[..., Any], options: Mapping[str, Any], label: str
) -> None:
  """Raises a ValueError if `entry` does not take one of `options`."""
  known = accepted(entry)
  for key in options:
    if key not in known:
      raise ValueError(
        f'{label} has no option {key!r} (given {key}={options[key]!r}); '
        f'{nearest(key, known)}'
      )


def build(
  spec: str | Spec, table: Mapping[str, Any], what: str, **given: Any
) -> Any:
  """Builds `table[name](**options, **given)` from one spec.

  Args:
    spec: `'name(key=literal)'`.
    table: name → class or function.
    what: what the table holds, for the messages: `'transform'`.
    **given: options set by the caller; an option in both is an error.

  Raises:
    ValueError: unknown name, unknown option, or not exactly one spec.
  """
  if isinstance(spec, str):
    found = parse(spec)
    if len(found) != 1:
      raise ValueError(f'expected one {what}, got {len(found)} in {spec!r}')
    spec = found[0]
  entry = lookup(table, spec.name, what)
  check_options(entry, {**spec.options, **given}, f'the {what} {spec.name!r}')
  for key in spec.options:
    if key in given:
      raise ValueError(
        f'{key}={spec.options[key]!r} in the {what} spec {str(spec)!r} is set '
        f'by the caller already, to {given[key]!r}'
      )
  try:
    return entry(**spec.options, **given)
  except TypeError as e:
    raise ValueError(f'cannot build the {what} {str(spec)!r}: {e}') from e


def build_all(
  text: str, table: Mapping[str, Any], what: str, **given: Any
) -> tuple[Any, ...]:
  """Builds every spec of a comma separated string."""
  return tuple(build(spec, table, what, **given) for spec in parse(text))
