"""The data suite: equal shares, equal FLOPs, crossovers, claims, batches."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_arena import here, told, trainers  # noqa: F401
from test_report import cell, row

from configs import data_size as configs
from vit_jax import data, main, models, pretrained
from vit_jax.arena import (
  claims,
  dataset_size,
  latency,
  report,
  report_data,
  results,
  trainer,
)
from vit_jax.arena.largest import largest
from vit_jax.arena.statistics import Crossover

VIT = {
  'name': 'vit', 'patch_size': 4, 'hidden_size': 8, 'num_layers': 1,
  'num_heads': 2, 'mlp_dim': 8, 'image_size': 8, 'num_classes': 10,
  'classifier': 'gap',
}  # fmt: skip
CNN = {
  'name': 'resnet', 'block': 'basic', 'depths': [1], 'hidden_sizes': [4],
  'embedding_size': 4, 'stem': 'cifar', 'num_classes': 10,
}  # fmt: skip
SCALE = 'value_range(low=-1.0, high=1.0)'
MORE = {'rates': (1e-3,), 'seeds': 1, 'validation': 0.2, 'evaluations': 1}


def config(**changes):
  """A run on the digits of two tiny models, which are not matched."""
  found = configs.get_config().to_dict()
  found['data'] = {
    'source': 'digits', 'train': SCALE, 'test': SCALE, 'cache': True,
    'decode': 'decode(channels=1)', 'threads': 0,
  }  # fmt: skip
  found['task'] = {'name': 'classification'}
  found['optimizer'] |= {'warmup': 1}
  return {
    **found, 'model': VIT, 'choices': {'ViT': VIT, 'CNN': CNN}, 'steps': 2,
    'batch_size': 16, 'evaluations': 2, 'seeds': 1, 'rates': (1e-3,),
    'shares': (0.1, 0.4), 'tolerance': 99.0, 'validation': 0.2, **changes,
  }  # fmt: skip


def start(workdir, found):
  given = (
    'board', 'choices', 'shares', 'epochs', 'tolerance', 'rates', 'seeds',
    'validation', 'evaluations', 'shard',
  )  # fmt: skip
  return dataset_size.data_size(
    workdir, record=found, **{k: found[k] for k in given}
  )


@pytest.fixture(scope='module')
def whole():
  return dataset_size.built(config(), (1.0,))


def cut(whole, shares, subset=0, epochs=0.0, **changes):
  return dataset_size.parts(
    config(**changes), 'digits', shares, whole, subset, epochs, MORE
  )


def test_shares_are_balanced_nested_and_what_a_cell_trains_on(whole):
  shares = (0.05, 0.1, 0.5, 1.0)
  before, sizes = set(), []
  for part in cut(whole, shares):
    section = part.board.base['data']
    rest, held = data.build(**section).held_out(MORE['validation'])
    counts = np.bincount(rest.train_labels(), minlength=10)
    assert len(set(counts)) == 1
    assert rest.train_size == part.examples == counts.sum()
    assert held.test_size == round(0.2 * held.train_size / 10) * 10
    places = set(rest.train_places)
    assert before < places
    tuned = set(held._test.places())
    assert len(tuned) == held.test_size
    assert not places & tuned
    assert places | tuned == set(held.train_places)
    before = places
    sizes.append(part.examples)
  labels = whole.train_labels()
  smallest = min(labels.count(k) for k in range(10))
  assert sizes[-1] == 10 * round(0.8 * smallest)


def test_the_digest_says_which_examples_they_are(whole):
  first, again = (cut(whole, (0.1, 0.5)) for _ in range(2))
  other = cut(whole, (0.1, 0.5), subset=1)
  assert [p.digest for p in first] == [p.digest for p in again]
  assert len({p.digest for p in (*first, *other)}) == 4
  recipes = {p.board.recipe for p in (*first, *other)}
  assert len(recipes) == 4  # rows of another draw are of another recipe


def test_equal_epochs_scale_steps_and_warm_up(whole):
  parts = cut(whole, (0.1, 0.5), epochs=4.0, steps=100, batch_size=8)
  for part in parts:
    assert part.board.base['steps'] == round(4 * part.examples / 8)
  assert parts[1].board.base['optimizer']['warmup'] == round(
    parts[1].board.base['steps'] / 100
  )
  assert {p.board.base['steps'] for p in cut(whole, (0.1, 0.5))} == {2}


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'shares': (0.1, 1.5)}, r'shares=.*\(0, 1\]'),
    ({'shares': ()}, 'shares='),
    ({'shares': (0.001, 0.5)}, 'of each class; they must be at least 2'),
    ({'shares': (0.1, 0.1001)}, 'differ'),
    ({'epochs': -1.0}, 'epochs=-1.0'),
    ({'tolerance': -1.0}, 'tolerance=-1.0'),
    ({'choices': {'ViT': VIT}}, 'two models or more'),
    ({'init': 'a/b'}, "config.init='a/b' must be one of the checkpoints"),
  ],
)
def test_bad_arguments_are_told(change, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    start(tmp_path, config(**change))


def test_models_of_other_flops_are_refused_with_the_numbers(whole):
  sections = {'ViT': VIT, 'CNN': CNN}
  found = dataset_size.check_flops(sections, whole, 1e9)
  least, most = sorted(found, key=lambda k: found[k])
  ratio = found[most] / found[least]
  assert ratio > 1.1
  with pytest.raises(ValueError, match='not matched') as e:
    dataset_size.check_flops(sections, whole, 0.1)
  assert f'{most!r} has {ratio:.2f} times those of {least!r}' in str(e.value)
  for flops in found.values():
    assert f'{flops / 1e6:,.1f}' in str(e.value)
  assert dataset_size.check_flops(sections, whole, ratio - 1 + 1e-9)
  # Dense layers by hand: 4 tokens of 16 pixels, q, k, v, out, two of the MLP,
  # scores and values, and the head.
  by_hand = 4 * (16 * 8 + 4 * 64 + 2 * 64) + 2 * 16 * 8 + 80
  assert found['ViT'] == 2 * by_hand


def test_the_config_s_models_are_matched():
  image = types.SimpleNamespace(
    spec={'image': ((32, 32, 3), np.float32)}, input='image'
  )
  choices = configs.get_config().choices.to_dict()
  found = dataset_size.check_flops(choices, image, 0.05)
  assert list(found)
  assert set(found) == {'ViT', 'CNN', 'hybrid'}


@pytest.mark.slow  # twelve short trainings
@pytest.mark.usefixtures('here')
def test_two_shares_go_through_and_go_on_where_they_stopped(
  tmp_path, monkeypatch
):
  found = config()
  rows = start(tmp_path / 'whole', found)
  assert {r['status'] for r in rows} == {'ok'}
  assert len(rows) == 2 * 2  # shares, models
  for share in (0.1, 0.4):
    of = [r for r in rows if r['share'] == share]
    assert {r['set'] for r in of} == {'cifar10'}
    assert {r['board'] for r in of} == {f'cifar10 {100 * share:g} %'}
    assert len({(r['examples'], r['subset']) for r in of}) == 1
    assert {r['train_size'] for r in of} == {of[0]['examples']}
    assert len({(r['order'], r['start']) for r in of}) == 1
  report.fairness.check(rows)

  once, count = results.append, []

  def append(file, row):
    once(file, row)
    count.append(file.name)
    if len(count) == 3:
      raise KeyboardInterrupt

  monkeypatch.setattr(results, 'append', append)
  with pytest.raises(KeyboardInterrupt):
    start(tmp_path / 'parts', found)
  again = start(tmp_path / 'parts', found)
  assert told(again) == told(rows)
  assert len(count) == 2 * len(rows)  # none was trained or kept twice

  for shard in ('0/2', '1/2'):
    start(tmp_path / 'shards', {**found, 'shard': shard})
  assert told(results.read(tmp_path / 'shards')) == told(rows)

  with pytest.raises(ValueError, match='another recipe'):
    start(tmp_path / 'whole', {**found, 'batch_size': 8})


def saved(folder, section):
  """A model as if it were trained; its path and parameters."""
  model = models.build(**section)
  rng = np.random.default_rng(5)
  variables = jax.tree.map(
    lambda s: jnp.asarray(0.3 * rng.standard_normal(s.shape) ** 2, s.dtype),
    pretrained.base.shapes(model, 1),
  )
  pretrained.save(folder, pretrained.Pretrained(
    model, variables, {'decode': 'decode(channels=1)', 'transform': SCALE}, (),
    section, channels=1,
  ))  # fmt: skip
  return str(folder), variables['params']


def fine_tuned(tmp_path):
  """A run from a checkpoint of each model, and their parameters."""
  made = {
    name: saved(tmp_path / name, {**section, 'image_size': 8})
    for name, section in (('ViT', VIT), ('CNN', CNN))
  }
  found = configs.get_config('flowers,data/flowers,runs').to_dict()
  assert found['choices']['CNN'] == 'runs/CNN'
  assert found['init'] == found['choices']['ViT']
  changes = config(choices={k: path for k, (path, _) in made.items()})
  changes |= {'model': found['model'], 'head': 'new', 'shares': (0.4,)}
  return (
    {**found, **changes, 'init': made['ViT'][0]},
    {name: params for name, (_, params) in made.items()},
  )


@pytest.mark.slow  # two short trainings
@pytest.mark.usefixtures('here')
def test_fine_tuned_each_starts_from_its_own_checkpoint(tmp_path):
  found, params = fine_tuned(tmp_path)
  rows = start(tmp_path / 'out', found)
  assert {(r['choice'], r['status']) for r in rows} == {
    ('ViT', 'ok'), ('CNN', 'ok')
  }  # fmt: skip
  assert {r['leaf'] for r in rows} == {'init'}
  whole = dataset_size.built(found, (0.4,))
  recipe = {k: v for k, v in found.items() if k not in dataset_size.OWN}
  (part,) = dataset_size.parts(recipe, 'x', (0.4,), whole, 0, 0.0, MORE)
  for name, path in found['choices'].items():
    one = trainer.Trainer(part.board, path, tmp_path)
    state = one._start(jax.random.key(0), None)
    mine = dict(state.params)
    there = dict(params[name])
    there.pop('head')
    head = mine.pop('head')
    assert not np.any(head['bias'])  # a new one
    jax.tree.map(np.testing.assert_array_equal, mine, there)


def test_a_crossing_is_where_the_line_in_the_logarithm_crosses():
  assert claims.crossing((10, 1000), (-1.0, 1.0)).length == pytest.approx(100)
  found = claims.crossing((10, 100, 1000), (-3.0, -1.0, 3.0))
  assert found.bound == ''
  assert found.length == pytest.approx(100 * 10**0.25)
  assert claims.crossing((10, 100), (1.0, -1.0)) == Crossover('>', 100)
  assert claims.crossing((10, 100), (1.0, 2.0)) == Crossover('<', 10)
  # It must stay ahead: an early lead that is lost is none.
  assert claims.crossing((10, 100, 1000), (1.0, -1.0, 1.0)).length > 100
  with pytest.raises(ValueError, match='one for each'):
    claims.crossing((10, 100), (1.0,))


def test_the_interval_of_a_crossing_holds_those_of_single_seeds():
  examples = (100, 1000, 10000)
  cnn = [dict.fromkeys(range(3), 50.0)] * 3
  vit = [
    {0: 40.0, 1: 42.0, 2: 38.0}, {0: 49.0, 1: 51.0, 2: 47.0},
    {0: 60.0, 1: 62.0, 2: 58.0},
  ]  # fmt: skip
  found = claims.crossing_of(examples, vit, cnn)
  ends = [
    claims.crossing(examples, [v[s] - 50.0 for v in vit]) for s in (1, 2)
  ]
  assert found.low == ends[0]
  assert found.high == ends[1]
  assert found.low.length < found.middle.length < found.high.length
  assert found.seeds == 3
  # Where one seed never crosses, the interval is open to that side.
  vit[2] = {0: 60.0, 1: 62.0, 2: 45.0}
  assert claims.crossing_of(examples, vit, cnn).high == Crossover('>', 10000)
  assert claims.crossing_of(examples, [{7: 1.0}] * 3, cnn) is None


def scores(**means):
  """Choice → share → seed → %, of three seeds that differ a little."""
  return {
    choice: {
      share: {seed: m + 0.1 * seed * (1 + len(choice) % 2) for seed in range(3)}
      for share, m in zip((0.1, 1.0), of, strict=True)
    }
    for choice, of in means.items()
  }


@pytest.mark.parametrize(
  ('means', 'verdicts'),
  [
    ({'CNN': (50, 60), 'ViT': (40, 65), 'hybrid': (45, 62)}, 'yes yes yes'),
    ({'CNN': (40, 60), 'ViT': (50, 55), 'hybrid': (30, 62)}, 'no no no'),
    (
      {'CNN': (50, 60), 'ViT': (50, 60), 'hybrid': (50, 60)},
      'undecided undecided undecided',
    ),
    ({'CNN': (50, 60), 'ViT': (40, 65)}, 'yes yes undecided'),
    ({'CNN': (50, 60)}, 'undecided undecided undecided'),
  ],
)
def test_claims_follow_the_intervals(means, verdicts):
  found = claims.claims(scores(**means), {0.1: 100, 1.0: 1000}, 0.01)
  assert [c.verdict for c in found] == verdicts.split()
  for claim in found:
    if claim.verdict != 'undecided':
      assert claim.found.low * claim.found.high > 0


def test_one_seed_decides_nothing():
  given = {
    c: {s: {0: v[0]} for s, v in of.items()}
    for c, of in scores(CNN=(50, 60), ViT=(10, 90), hybrid=(40, 50)).items()
  }
  found = claims.claims(given, {0.1: 100, 1.0: 1000}, 0.01)
  assert {c.verdict for c in found} == {'undecided'}


def share_rows(choice, share, accuracy):
  """Tuned on seed 0 over two rates, then two more seeds."""
  out = []
  trials = [(0, 0.001, -0.1), (0, 0.01, 0.0), (1, 0.01, 0.004), (2, 0.01, 0.0)]
  for seed, rate, more in trials:
    found = cell(
      choice, seed, rate, accuracy + more, board=f'c {100 * share:g} %'
    )
    out.append({
      **found, 'set': 'c', 'share': share, 'examples': round(1000 * share),
      'subset': f'd{share}', 'recipe': f'r{share}', 'leaf': 'model',
    })  # fmt: skip
  return out


def test_a_report_says_the_crossing_and_the_claims(tmp_path):
  rows = []
  for choice, few, many in (
    ('ViT', 0.4, 0.7), ('CNN', 0.5, 0.6), ('hybrid', 0.5, 0.65)
  ):  # fmt: skip
    rows += share_rows(choice, 0.01, few) + share_rows(choice, 1.0, many)
  rows += [
    row(
      'latency', 'ViT', 32, image_size=32, p50=0.001, p99=0.002, samples=500,
      memory=2**20, flops=2e6, parameters=1000, dtype='float32', batch=64,
      needed=2**30, limit=2**31, too_large=72, plans=4,
    ),
    {**row('latency', 'CNN', 32, image_size=32), 'status': 'refused',
     'error': 'too small'},
  ]  # fmt: skip
  said = report.write(tmp_path, rows).with_name('report.md').read_text()
  # The differences −10 and +10 meet half-way in the logarithm of 10 and 1000.
  assert 'ViT passes the CNN at about 100 examples' in said
  for claim, verdict in (
    ('A CNN beats ViT with little data', 'yes'),
    ('ViT catches up with more data', 'yes'),
    ('The hybrid lies between them or above with little data', 'yes'),
  ):
    line = next(x for x in said.splitlines() if x.startswith(f'| {claim}'))
    assert line.split('|')[2].strip() == f'**{verdict}**'
  assert '50.13 ± 0.13' in said
  assert '| 32 | `CNN`' in said
  assert 'refused: too small' in said
  for name in ('accuracy', 'costs'):
    (picture,) = tmp_path.glob(f'data-c-*-{name}.png')
    assert picture.read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(('low', 'high', 'said'), [
  (0.5, 0.6, 'ViT is ahead all along'), (0.3, 0.3, 'the CNN is ahead'),
])  # fmt: skip
def test_no_crossing_in_the_range_is_said(low, high, said, tmp_path):
  rows = [
    *share_rows('ViT', 0.01, low), *share_rows('ViT', 1.0, high),
    *share_rows('CNN', 0.01, 0.4), *share_rows('CNN', 1.0, 0.45),
  ]  # fmt: skip
  blocks, _ = report_data.section(tmp_path, 'x', 'X', rows, rows)
  texts = [b.text for b in blocks if isinstance(b, report.Text)]
  assert any('none in the range' in t and said in t for t in texts)


@pytest.mark.parametrize(('leaf', 'said'), [
  ('model', 'from scratch'), ('init', 'fine-tuned, each from its own'),
])  # fmt: skip
def test_the_report_says_where_they_started(leaf, said, tmp_path):
  rows = [
    {**r, 'leaf': leaf}
    for name, best in (('ViT', 0.5), ('CNN', 0.6))
    for r in share_rows(name, 0.01, best)
  ]
  blocks, _ = report_data.section(tmp_path, 'x', 'X', rows, rows)
  texts = [b.text for b in blocks if isinstance(b, report.Text)]
  assert any(said in t for t in texts)


def test_the_largest_batch_is_the_one_before_the_first_that_does_not_fit():
  noise = np.random.default_rng(0)
  for _ in range(200):
    a, c = noise.uniform(0, 1e6), noise.uniform(1, 1e4)
    limit, unit = noise.uniform(1e3, 1e8), int(noise.choice([1, 8]))
    page, power = noise.choice([1, 65536]), noise.choice([0.8, 1.0, 1.3])

    def plan(b, a=a, c=c, page=page, power=power):
      return int((a + c * b**power) // page * page)

    found = largest(plan, limit, unit)
    if found.batch:
      assert plan(found.batch) <= limit
    if found.too_large is None:
      assert found.batch == 2**16 * unit
    else:
      assert plan(found.batch + unit) > limit
    near = largest(plan, limit, unit, precision=0.05)
    slack = max(unit, 0.05 * near.batch)
    assert found.batch - slack <= near.batch <= found.batch
  exact = largest(lambda b: 3000 + 170 * b, 1e6)
  assert exact.batch == (10**6 - 3000) // 170
  assert exact.plans <= 4


RECORD = {
  'task': {'name': 'classification'}, 'steps': 10,
  'optimizer': {
    'name': 'adamw', 'learning_rate': 1e-3, 'weight_decay': 0.05, 'warmup': 0,
    'schedule': 'cosine', 'clip': 1.0,
  },
  'sharding': {'data': -1, 'fsdp': 1, 'tensor': 1, 'rules': ()},
}  # fmt: skip


@pytest.mark.slow  # compiles a step five times
def test_the_largest_batch_of_a_model_is_that_of_trying_all():
  subject = latency.Subject(VIT, 8, 1, RECORD)
  unit = subject.sharding.batch_devices
  known = {}

  def plan(b):
    if b not in known:
      known[b] = subject.plan(b)
    return known[b]

  for b in (unit, 2 * unit, 3 * unit):
    plan(b)
  limit = (known[2 * unit] + known[3 * unit]) / 2
  found = largest(plan, limit, unit)
  assert (found.batch, found.too_large) == (2 * unit, 3 * unit)
  assert found.needed == known[2 * unit] > known[unit]


def test_latencies_of_an_image_size_are_rows(monkeypatch):
  monkeypatch.setattr(latency.Subject, 'plan', lambda self, b: 2**30 * b // 8)
  monkeypatch.setattr(latency.memory, 'free_bytes', lambda: 10 * 2**30)
  job = {
    'size': 8, 'sections': {'ViT': VIT, 'odd': {**VIT, 'patch_size': 3}},
    'record': RECORD, 'channels': 1, 'calls': 20, 'cell_seconds': 10.0,
    'memory_share': 0.55, 'precision': 0.0,
  }  # fmt: skip
  found = {r['choice']: r for r in latency.measure(job)}
  assert found['odd']['status'] == 'refused'
  assert '3' in found['odd']['error']
  good = found['ViT']
  assert {*report.FIELDS['latency']} <= set(good)
  assert 0 < good['p50'] <= good['p99']
  assert good['samples'] == 20
  assert (good['batch'], good['too_large']) == (40, 48)
  assert good['needed'] == 5 * 2**30
  assert math.isfinite(good['flops'])
  assert good['memory'] > 0


def test_latency_needs_no_data(tmp_path):
  config = configs.get_config('latency').to_dict()
  arguments = main.build(config, tmp_path)
  assert set(arguments) == {
    'record', 'task', 'optimizer', 'choices', 'image_sizes', 'shard'
  }
  assert {*latency.STEP} <= set(arguments['record'])


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'image_sizes': (32, 0)}, 'image_sizes=.*positive'),
    ({'calls': 0}, 'calls=0'),
    ({'memory_share': 0.0}, 'memory_share=0.0'),
    ({'precision': 1.0}, 'precision=1.0'),
    ({'choices': {'ViT': {**VIT, 'name': 'vitt'}}}, 'vitt'),
  ],
)
def test_bad_arguments_of_latency_are_told(change, message, tmp_path):
  given = {'choices': {'ViT': VIT}, 'image_sizes': (8,), **change}
  with pytest.raises(ValueError, match=message):
    latency.latency(
      tmp_path, record=RECORD, task=None, optimizer=None, **given
    )
