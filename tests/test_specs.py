"""Specs: what they accept, how they print, and how they fail."""

import dataclasses
import functools

import flax.linen as nn
import pytest

from vit_jax import specs


@dataclasses.dataclass(frozen=True)
class Crop:
  size: int
  pad: int = 0


class Module(nn.Module):
  rank: int = 64


def scale(factor, *, seed=0):
  return factor, seed


TABLE = {
  'crop': Crop,
  'module': Module,
  'scale': scale,
  'half': functools.partial(scale, 0.5),
}


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('a', [('a', {})]),
    ('a()', [('a', {})]),
    ('a, b(x=1),c', [('a', {}), ('b', {'x': 1}), ('c', {})]),
    ('', []),
    ('  \n ', []),
    (
      'a(i=-1, f=1e-3, s="x, y(z)", t=(1, 2), n=None, b=True, l=[1], '
      'd={"k": 2})',
      [(
        'a',
        {
          'i': -1, 'f': 1e-3, 's': 'x, y(z)', 't': (1, 2), 'n': None,
          'b': True, 'l': [1], 'd': {'k': 2},
        },
      )],
    ),
    ('a(\n  x=1,\n)', [('a', {'x': 1})]),
  ],
)  # fmt: skip
def test_a_spec_is_a_name_with_literal_options(text, expected):
  found = specs.parse(text)
  assert [(s.name, s.options) for s in found] == expected
  # Printing and parsing again gives the same.
  assert specs.parse(', '.join(map(str, found))) == found


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('a(', "cannot read the spec 'a\\('"),
    ('a b', "cannot read .*write 'name', 'name\\(key=1\\)'"),
    ('a,', 'cannot read'),
    ('1', "'1' is neither 'name' nor 'name\\(key=literal\\)'"),
    ("'a'", 'is neither'),
    ('a.b', 'is neither'),
    ('a.b(x=1)', 'is neither'),
    ('a[0]', 'is neither'),
    ('a), (b', 'is neither'),
    ('*a', 'is neither'),
    ('(a, b)', 'is neither'),
    ('a(1)', "options of 'a' with their names: 'a\\(key=1\\)'"),
    ('a(**b)', r'\*\*b is not an option'),
    ('a(x=y)', 'x=y is not a literal'),
    ('a(x=1 + 1)', 'is not a literal'),
    ('a(x={[]: 1})', 'is not a literal'),
    ('a(x=f"{b}")', 'is not a literal'),
    ('a(x=1, x=2)', 'x is given twice'),
    ('a\0', 'cannot read'),
  ],
)
def test_anything_else_is_an_error_that_quotes_it(text, message):
  with pytest.raises(ValueError, match=message):
    specs.parse(text)


@pytest.mark.parametrize(
  'code',
  [
    '__import__("os").mkdir({path!r})',
    '(lambda: __import__("os").mkdir({path!r}))()',
    '[__import__("os").mkdir({path!r}) for _ in (1,)]',
  ],
)
@pytest.mark.parametrize('spec', ['a(x={code})', '{code}', 'a({code})'])
def test_a_spec_runs_no_code(tmp_path, spec, code):
  made = tmp_path / 'made'
  text = spec.format(code=code.format(path=str(made)))
  with pytest.raises(ValueError, match='spec'):
    specs.parse(text)
  assert not made.exists()


def test_something_other_than_a_string_is_an_error():
  with pytest.raises(Exception, match='3|str'):
    specs.parse(3)


@pytest.mark.parametrize(
  ('word', 'choices', 'expected'),
  [
    ('crp', TABLE, "did you mean 'crop'? choices: crop, half, module, scale"),
    ('zzz', ['b', 'a'], 'choices: a, b'),
    ('x', [], 'choices: none'),
  ],
)
def test_the_nearest_choice_is_named_first(word, choices, expected):
  assert specs.nearest(word, choices) == expected


@pytest.mark.parametrize(
  ('entry', 'expected'),
  [
    (Crop, ('size', 'pad')),
    (scale, ('factor', 'seed')),
    (functools.partial(scale, 0.5), ('seed',)),
    (Module, ('rank',)),  # without linen's own parent and name
  ],
)
def test_accepted_are_the_options_that_a_caller_may_set(entry, expected):
  assert specs.accepted(entry) == expected


def test_build_takes_options_from_the_spec_and_from_the_caller():
  build = functools.partial(specs.build, table=TABLE, what='thing')
  assert build('crop(size=3)') == Crop(3)
  assert build('crop(size=3)', pad=2) == Crop(3, 2)
  assert build('crop', size=3) == Crop(3)
  assert build(specs.Spec('crop', {'size': 3})) == Crop(3)
  assert build('half(seed=4)') == (0.5, 4)
  assert build('module(rank=2)').rank == 2


@pytest.mark.parametrize(
  ('spec', 'given', 'message'),
  [
    ('crp(size=1)', {}, "unknown thing 'crp'; did you mean 'crop'"),
    (
      'crop(sice=1)', {},
      r"the thing 'crop' has no option 'sice' \(given sice=1\); "
      "did you mean 'size'.*choices: pad, size",
    ),
    ('crop(size=1)', {'colour': 2}, r"no option 'colour' \(given colour=2\)"),
    ('crop(size=1)', {'size': 2}, r'size=1 .*by the caller already, to 2'),
    ('crop(size=1)', {'size': 1}, 'set by the caller already'),
    ('crop', {}, "cannot build the thing 'crop': .*size"),
    ('module(parent=1)', {}, "no option 'parent'"),
    ('', {}, "expected one thing, got 0 in ''"),
    ('crop(size=1), half', {}, 'expected one thing, got 2'),
  ],
)  # fmt: skip
def test_build_fails_with_the_value_and_the_choices(spec, given, message):
  with pytest.raises(ValueError, match=message):
    specs.build(spec, TABLE, 'thing', **given)


def test_build_all_builds_in_order():
  found = specs.build_all('crop(size=1), half, crop(size=2)', TABLE, 'thing')
  assert found == (Crop(1), (0.5, 0), Crop(2))
  assert specs.build_all('', TABLE, 'thing') == ()
