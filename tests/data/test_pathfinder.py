"""Pathfinder images show what they say, and nothing easier says it."""

import random

import numpy as np
import pytest
from scipy import ndimage

from vit_jax import data
from vit_jax.data import contours, pathfinder

SMALL = 'pathfinder(contour_length=6, examples=8)'
SOURCES = {
  32: pathfinder.Pathfinder('train'),
  128: pathfinder.Pathfinder('test', size=128, contour_length=9),
}


@pytest.fixture(scope='module')
def scenes():
  return {size: [s.scene(i) for i in range(40)] for size, s in SOURCES.items()}


def samples(path, count=9):
  """Points along a path and its gaps, [n 2]."""
  corners = path.reshape(-1, 2)
  t = np.linspace(0, 1, count)[:, None, None]
  return ((1 - t) * corners[:-1] + t * corners[1:]).reshape(-1, 2)


def apart(a, b):
  return np.linalg.norm(a[:, None] - b, axis=-1)


@pytest.mark.parametrize('size', SOURCES)
def test_labels_are_those_of_the_traced_contours(scenes, size):
  style, scale = SOURCES[size].style, 8
  for scene in scenes[size]:
    mask = pathfinder.trace(scene, style, scale)
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    assert count == len(scene.paths)  # none touches another
    one, two = (
      parts[tuple((scale * marker).astype(int))] for marker in scene.markers
    )
    assert one > 0  # both discs lie on a path
    assert two > 0
    assert (one == two) == scene.label


@pytest.mark.parametrize('size', SOURCES)
def test_paths_keep_apart_from_others_and_from_themselves(scenes, size):
  style = SOURCES[size].style
  keep = 0.9 * 2 * style.gap  # what was compared are points
  for scene in scenes[size]:
    points = [samples(path) for path in scene.paths]
    for i, one in enumerate(points):
      for other in points[:i]:
        assert apart(one, other).min() > keep
    for path in scene.paths:
      for i in range(len(path) - 3):
        assert apart(samples(path[i : i + 1]), samples(path[i + 3 :])).min() > (
          0.9 * style.gap
        )


@pytest.mark.parametrize('size', SOURCES)
def test_paddles_and_gaps_have_their_lengths_and_turns(scenes, size):
  source = SOURCES[size]
  long = 14 if size == 32 else 9
  for scene in scenes[size]:
    lengths = [len(path) for path in scene.paths]
    short = long // 3
    assert lengths[:2] == [long, long]
    assert lengths[2:] == [short] * (source.style.budget // short)
    for path in scene.paths:
      steps = path[:, 1] - path[:, 0]
      lengths = np.linalg.norm(steps, axis=-1)
      np.testing.assert_allclose(lengths, source.style.paddle_length)
      gaps = np.linalg.norm(path[1:, 0] - path[:-1, 1], axis=-1)
      assert (gaps <= source.style.gap + 1e-9).all()  # shorter where it turns
      assert (gaps >= 0.9 * source.style.gap).all()
      angles = np.arctan2(*steps.T)
      turns = np.abs((np.diff(angles) + np.pi) % (2 * np.pi) - np.pi)
      assert turns.max() <= 0.8 + 1e-9
      low, high = path.min(), path.max()
      assert low >= 0
      assert high <= size


@pytest.mark.parametrize('size', SOURCES)
def test_both_discs_are_seen_whole_and_alone(scenes, size):
  source = SOURCES[size]
  radius = source.style.marker_radius
  for i, scene in enumerate(scenes[size][:20]):
    image = source[i]['image']
    assert image.shape == (size, size, 1)
    assert image.dtype == np.uint8
    lit, count = ndimage.label(image[..., 0] == 255)
    assert count == 2  # paddles are darker
    found = ndimage.center_of_mass(image[..., 0] == 255, lit, [1, 2])
    near = apart(np.array(found) + 0.5, scene.markers)
    assert (near.min(0) < 0.5).all()
    assert len(set(near.argmin(0))) == 2
    # Nothing but the end itself is within the disc.
    for marker in scene.markers:
      touching = [
        apart(samples(path), marker[None]).min() <= radius
        for path in scene.paths
      ]
      assert sum(touching) == 1


def test_dashes_show_their_gaps(scenes):
  for i, scene in enumerate(scenes[128][:5]):
    image = SOURCES[128][i]['image'][..., 0]
    for path in scene.paths[2:]:
      middles = path.mean(1).astype(int)
      assert (image[tuple(middles.T)] > 100).all()
      gaps = ((path[1:, 0] + path[:-1, 1]) / 2).astype(int)
      assert (image[tuple(gaps.T)] < 100).all()


def test_labels_are_balanced_and_the_distance_of_the_discs_says_nothing():
  source = pathfinder.Pathfinder('train', contour_length=6)
  scenes = [source.scene(i) for i in range(400)]
  labels = np.array([s.label for s in scenes])
  assert labels.mean() == 0.5
  distance = np.linalg.norm(
    [s.markers[0] - s.markers[1] for s in scenes], axis=-1
  )
  joined, parted = distance[labels == 1], distance[labels == 0]
  error = distance.std() * (2 / 200) ** 0.5
  assert abs(joined.mean() - parted.mean()) < 3 * error
  # As different as random halves of the same: Kolmogorov and Smirnov at 0.1 %.
  grid = np.sort(distance)
  shares = [
    np.searchsorted(np.sort(x), grid, 'right') / 200 for x in (joined, parted)
  ]
  assert np.abs(shares[0] - shares[1]).max() < 1.95 * (2 / 200) ** 0.5
  # And the light of the image.
  light = np.array([pathfinder.draw(s, source.style).mean() for s in scenes])
  error = light.std() * (2 / 200) ** 0.5
  assert abs(light[labels == 1].mean() - light[labels == 0].mean()) < 3 * error


def test_both_labels_mark_the_same_scene():
  # Only which end of a path is marked differs, in the order of the generator.
  for i in range(20):
    rng, found = random.Random(i), None
    while found is None:
      found = contours.arrange(rng, pathfinder.STYLES[32], (6, 6, 2), 0.8)
    paths, (p, q, r) = found
    ends = [{tuple(path[0, 0]), tuple(path[-1, 1])} for path in paths]
    (own,) = (e for e in ends if tuple(p) in e)
    assert tuple(q) in own
    assert tuple(r) not in own
    assert any(tuple(r) in e for e in ends[:2])
    distances = [np.linalg.norm(p - x) for x in (q, r)]
    assert abs(distances[0] - distances[1]) <= 32 / 20
    assert min(distances) >= 4  # two radii and a gap


def test_an_example_depends_on_split_seed_and_index_only():
  a = pathfinder.Pathfinder('test', contour_length=6)
  b = pathfinder.Pathfinder('test', contour_length=6, examples=7)
  seeded = pathfinder.Pathfinder('test', contour_length=6, seed=1)
  train = pathfinder.Pathfinder('train', contour_length=6)
  np.testing.assert_array_equal(a[5]['image'], b[5]['image'])
  images = [x[5]['image'] for x in (a, seeded, train)] + [a[7]['image']]
  assert len({x.tobytes() for x in images}) == 4
  prints = [x.fingerprint for x in (a, b, seeded, train)]
  assert len(set(prints)) == 4
  again = pathfinder.Pathfinder('test', contour_length=6)
  assert again.fingerprint == a.fingerprint
  assert (len(a), len(train), len(b)) == (20_000, 160_000, 7)
  with pytest.raises(IndexError):
    b[7]


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'split': 'dev'}, 'choices: train, validation, test'),
    ({'size': 48}, 'choices: 32, 64, 128, 256'),
    ({'contour_length': 2}, 'contour_length=2 must be an integer of at least'),
    ({'gap': 0}, r'gap=0 must be in \(0, 32\)'),
    ({'max_turn': 3.0}, 'max_turn=3.0 must be in'),
    ({'distractors': -1}, 'distractors=-1 must be an integer'),
    ({'paddle_length': 30.0}, '2000 trials found no room'),
  ],
)
def test_settings_that_no_scene_fulfils_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    pathfinder.Pathfinder(**options)


def test_it_goes_through_the_pipeline_as_images_and_as_pixels():
  options = {'source': SMALL, 'decode': 'decode(channels=1)'}
  images = data.build(train='value_range', test='value_range', **options)
  assert images.spec['image'] == ((32, 32, 1), np.dtype(np.float32))
  assert images.labels == ('apart', 'joined')
  words = data.build(train='', test='', tokens='pixels', **options)
  assert words.spec['tokens'] == ((1024,), np.dtype(np.int32))
  source = pathfinder.Pathfinder('test', contour_length=6, examples=8)
  (batch,) = words.test_batches(8)
  for i in range(8):
    pixels = source[i]['image'].reshape(-1).astype(int)
    np.testing.assert_array_equal(batch['tokens'][i], pixels + 1)
