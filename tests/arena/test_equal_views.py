"""A board at equal parameters, FLOPs and time, and its learning curves."""

import itertools
import math

import numpy as np
import pytest

from vit_jax.arena import learning, standings, statistics, views

STEPS = (10, 20, 40)
# Choice → parameters, GFLOPs a step, seconds a step, accuracies at STEPS.
CHOICES = {
  'softmax': (1000, 2.0, 0.2, (0.50, 0.70, 0.90)),
  'cheap': (1010, 1.0, 0.4, (0.40, 0.60, 0.80)),
  'quick': (1011, 3.0, 0.1, (0.30, 0.60, 0.85)),
  'heavy': (989, 9.0, 1.0, (0.60, 0.80, 0.95)),
}
SHIFTS = {0: 0.0, 1: 0.02, 2: -0.02}  # of the accuracies, by seed


def row(choice, seed, steps=STEPS):
  parameters, flops, seconds, scores = CHOICES[choice]
  scores = dict(zip(STEPS, scores, strict=True))
  slow = 1 + 5 * SHIFTS[seed]  # a seed's clock runs otherwise: its mean is 1
  curve = [
    [n, 1e9 * flops * n, slow * seconds * n, scores[n] + SHIFTS[seed]]
    for n in steps
  ]
  return {
    'choice': choice, 'status': 'ok', 'seed': seed, 'learning_rate': 0.1,
    'rates': [0.1], 'validation': 0.5, 'validation_loss': 1.0, 'loss': 0.3,
    'accuracy': curve[-1][3], 'parameters': parameters, 'curve': curve,
    'train_seconds': curve[-1][2], 'compile_seconds': 1.0,
  }  # fmt: skip


def found(steps=None):
  """The standings; `steps` are those that a seed evaluated, if not STEPS."""
  steps = {**dict.fromkeys(SHIFTS, STEPS), **(steps or {})}
  return standings.standings([
    row(choice, seed, steps[seed])
    for choice in CHOICES
    for seed in SHIFTS
  ])  # fmt: skip


def base_of(some):
  return next(s for s in some if s.choice == 'softmax')


def tables(blocks):
  """Rows of texts of every table, by choice."""
  return [
    {
      cells[[c.name for c in block.columns].index('choice')].text:
      [cell.text for cell in cells]
      for cells in block.rows
    }
    for block in blocks
    if hasattr(block, 'columns')
  ]  # fmt: skip


@pytest.fixture(scope='module')
def shown(tmp_path_factory):
  some = found()
  blocks = views.blocks(
    tmp_path_factory.mktemp('views'), 'board', some, base_of(some)
  )
  return blocks, tables(blocks)


def test_equal_parameters_are_within_a_hundredth_of_the_baseline():
  some = found()
  usual, near, far = views.equal_parameters(some, base_of(some))
  assert usual == 1000
  # Exactly 1 % is within; 1.1 % is not, above or below.
  assert [s.choice for s in near] == ['softmax', 'cheap']
  assert [s.choice for s in far] == ['heavy', 'quick']
  # Without a baseline: 989, 1000, 1010, 1011, whose lower middle is 1000.
  assert views.equal_parameters(some, None)[0] == 1000
  usual, near, _ = views.equal_parameters(
    [s for s in some if s.choice != 'heavy'], None
  )
  assert usual == 1010
  assert len(near) == 3


def test_places_at_equal_parameters_are_among_those_alone(shown):
  blocks, (rows, _) = shown
  # As trained 'heavy' is first; it has other parameters.
  assert list(rows) == ['softmax', 'cheap', 'heavy', 'quick']
  assert rows['softmax'] == ['1', 'softmax', '1,000', '+0.00', '90.00', '1.15']
  assert rows['cheap'][:4] == ['2', 'cheap', '1,010', '+1.00']
  assert rows['heavy'][:4] == ['–', 'heavy', '≠ 989', '-1.10']
  assert rows['quick'][:4] == ['–', 'quick', '≠ 1,011', '+1.10']
  text = blocks[1].text
  assert text.startswith('2 of 4 choices have the 1,000 parameters of softmax')
  assert 'The other 2 are marked' in text


def test_at_equal_flops_all_have_spent_what_the_thriftiest_had(shown):
  blocks, (_, rows) = shown
  # 'cheap' needs 40 G; softmax is then at step 20, 'quick' at 13⅓, a third of
  # the way from 0.3 to 0.6; 'heavy' is at 4.4, before its first evaluation.
  at = {choice: row[4:7] for choice, row in rows.items()}
  assert at['cheap'] == ['80.00', '1.15', '1']
  assert at['softmax'] == ['70.00', '1.15', '2']
  assert at['quick'] == ['40.00', '1.15', '3']
  assert at['heavy'] == ['–', '–', '–']
  text = next(b.text for b in blocks if 'thriftiest' in str(b))
  assert '4e+10 training FLOPs (cheap was ready; 1 of 4 had not been' in text
  assert [rows[c][3] for c in ('heavy', 'softmax', 'quick', 'cheap')] == list(
    '1234'
  )


def test_at_equal_seconds_every_seed_is_read_from_its_own_clock(shown):
  _, (_, rows) = shown
  # 'quick' needs 4 s on average. Of softmax that is step 20 / slow, where the
  # clocks of its seeds run 1, 1.1 and 0.9 times as long.
  expected = []
  for seed, shift in SHIFTS.items():
    step = 4.0 / 0.2 / (1 + 5 * SHIFTS[seed])
    low, high = (0.5, 0.7) if step <= 20 else (0.7, 0.9)
    start, width = (10, 10) if step <= 20 else (20, 20)
    expected.append(100 * (low + (high - low) * (step - start) / width + shift))
  mean = sum(expected) / 3
  error = math.sqrt(sum((x - mean) ** 2 for x in expected) / 2 / 3)
  assert rows['softmax'][7:10] == [f'{mean:.2f}', f'{error:.2f}', '2']
  # Seed 1 of 'cheap' needs 4.4 s for its first evaluation: no mean of three.
  assert rows['cheap'][7:10] == rows['heavy'][7:10] == ['–', '–', '–']
  # The seed that is slower than 4 s is not ready, and is read at step 36.4.
  late = 100 * (0.6 + 0.25 * (40 / 1.1 - 20) / 20 + 0.02)
  mean = (85.0 + late + 83.0) / 3
  assert rows['quick'][7:8] == [f'{mean:.2f}']
  assert rows['quick'][9] == '1'


def test_places_are_shared_and_unknown_ones_have_none():
  scores = {'a': 1.0, 'b': 2.0, 'c': 1.0, 'd': math.nan, 'e': 0.5}
  assert views.places(scores) == {'a': 2, 'b': 1, 'c': 2, 'd': None, 'e': 4}


def test_a_course_is_the_mean_and_the_extremes_of_the_seeds():
  one = learning.course(base_of(found()))
  np.testing.assert_allclose(one.mean, [50, 70, 90])
  np.testing.assert_allclose(one.low, [48, 68, 88])
  np.testing.assert_allclose(one.high, [52, 72, 92])
  assert one.seeds == 3
  steps, flops, seconds = one.spent.values()
  assert tuple(steps) == STEPS
  np.testing.assert_allclose(flops, [20, 40, 80])
  np.testing.assert_allclose(seconds, [2, 4, 8])


def test_a_course_has_the_steps_that_all_seeds_evaluated():
  one = learning.course(base_of(found({1: (20, 40), 2: (10, 40)})))
  assert tuple(one.spent['training steps']) == (40,)
  np.testing.assert_allclose(one.mean, [90])


def courses(count):
  """The first is best; the last is far below all others."""
  return [
    learning.Course(
      f'choice<{i}>', {axis: [1.0, 2.0 + i] for axis in learning.AXES},
      [80 - i / 4, 90 - i / 4], [79 - i / 4, 89 - i / 4],
      [81 - i / 4, 91 - i / 4], 3,
    )
    for i in range(count - 1)
  ] + [learning.Course('worst', {axis: [1.0, 2.0] for axis in learning.AXES},
                       [0.0, 2.0], [0.0, 1.0], [1.0, 3.0], 3)]  # fmt: skip


def test_every_line_of_the_live_plot_says_its_name_and_ten_have_colours():
  some = courses(40)
  names = [c.choice for c in some]
  named = [*names[: learning.NAMED], names[30]]
  plot = learning.live(some, named, names[30])
  lines = [t for t in plot.data if t.hoverinfo != 'skip']
  assert len(lines) == 40
  assert len(plot.data) == 40 + len(named)  # and bands
  said = [t.hovertemplate.partition('<br>')[0] for t in lines]
  assert sorted(said) == sorted(
    n.replace('<', '&lt;').replace('>', '&gt;') for n in names
  )
  assert sum(t.showlegend for t in lines) == len(named)
  grey = [t for t in lines if t.line.color == learning.GREY]
  assert len(grey) == 40 - len(named)
  assert lines[: len(grey)] == grey  # below the others
  coloured = {t.line.color for t in lines} - {learning.GREY}
  assert len(coloured) == len(named)
  black = [t for t in lines if t.line.color == '#000000']
  assert [t.name for t in black] == ['choice&lt;30&gt;']


def test_the_menu_of_the_live_plot_moves_every_line_and_its_band():
  some = [learning.course(s) for s in found()]
  plot = learning.live(some, ['heavy', 'softmax'], 'softmax')
  buttons = plot.layout.updatemenus[0].buttons
  assert [b.label for b in buttons] == list(learning.AXES)
  for button, (column, unit) in zip(
    buttons, learning.AXES.values(), strict=True
  ):
    places, look = button.args
    assert len(places['x']) == len(plot.data) == 4 + 2
    for trace, x in zip(plot.data, places['x'], strict=True):
      assert len(x) == len(trace.y)
      if trace.hoverinfo == 'skip':  # there and back
        assert list(x) == list(x)[::-1]
      else:
        mine = next(s for s in found() if s.choice == trace.name)
        points = [r['curve'] for r in mine.rows.values()]
        mean = np.mean([[p[column] / unit for p in c] for c in points], 0)
        np.testing.assert_allclose(x, mean)
    # 1 to 9 GFLOPs a step, but as many steps for all.
    log = column != statistics.STEP
    assert look['xaxis.type'] == ('log' if log else 'linear')
    assert list(plot.data[0].x) == list(buttons[0].args[0]['x'][0])


def test_an_outlier_does_not_press_the_others_together():
  some = courses(40)
  low, high = learning.reach(some, [c.choice for c in some[:10]])
  # The coloured ones reach from 76.75 to 91, a grey one ends at 2.
  assert 76 < low < 76.75
  assert 91 < high < 92
  # A grey end that is not far below is kept in.
  near = some[-1]._replace(mean=[0.0, 70.0])
  low, _ = learning.reach([*some, near], [c.choice for c in some[:10]])
  assert 69 < low < 70


def test_ticks_are_plain_numbers_within_a_decade_of_the_values():
  found = learning.plots.ticks(0.3, 25.0)
  values = found['tickvals']
  assert all(a < b for a, b in itertools.pairwise(values))
  assert [t for v, t in zip(values, found['ticktext'], strict=True)
          if 0.25 < v < 40] == [
    '0.3', '0.5', '0.7', '1', '2', '3', '5', '7', '10', '20', '30'
  ]  # fmt: skip


def test_the_axis_of_a_front_begins_at_the_lowest_that_is_not_left_out():
  scores = [98.0, 97.0, 96.0, 95.0, 80.0, 78.0]
  panel = learning.figures.Panel('ms', list('abcdef'), [1] * 6, scores, [0])
  low, high, below = panel.reach()
  # Three times as far below the median, 96, as the best is above it: 90.
  assert below == ['e', 'f']
  assert 94.5 < low < 95
  assert 98 < high < 99
