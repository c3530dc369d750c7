"""Optimisers, masks and schedules, on the parameters of a real tiny ViT."""

import functools
import re

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models, optimizers

PATHS = optimizers.path_of


@pytest.fixture(scope='module')
def params():
  model = models.build(
    'vit', patch_size=4, hidden_size=16, num_layers=3, num_heads=2, mlp_dim=24,
    num_classes=5, image_size=8, classifier='map', representation_size=8,
  )  # fmt: skip
  shapes = jax.eval_shape(
    functools.partial(model.init, train=False),
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32),
  )['params']
  return random_like(shapes, 0)


@pytest.fixture(scope='module')
def gradients(params):
  return random_like(params, 1)


def random_like(tree, seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda s: jnp.asarray(rng.standard_normal(s.shape), jnp.float32), tree
  )


def flat(tree):
  """path → NumPy array."""
  return {
    PATHS(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def build(steps=100, **fields):
  """A plain SGD of rate 1 at every step, unless said otherwise."""
  return optimizers.build(
    steps,
    **{
      'name': 'sgd(momentum=0.0)',
      'schedule': 'constant',
      'learning_rate': 1.0,
      **fields,
    },
  )


def update(optimizer, params, gradients):
  """path → the first update."""

  @jax.jit
  def first(params, gradients):
    return optimizer.tx.update(gradients, optimizer.tx.init(params), params)[0]

  return flat(first(params, gradients))


# Masks.


def test_weight_decay_shrinks_the_kernels_and_nothing_else(params):
  zeros = jax.tree.map(jnp.zeros_like, params)
  optimizer = build(name='adamw', learning_rate=0.5, weight_decay=0.1)
  found, old = update(optimizer, params, zeros), flat(params)
  for path, change in found.items():
    expected = -0.5 * 0.1 * old[path] if path.endswith('kernel') else 0.0
    np.testing.assert_allclose(change, expected, rtol=1e-6, err_msg=path)
  assert {p.rsplit('/')[-1] for p in found} >= {'kernel', 'bias', 'scale'}


def test_the_pattern_says_what_decays(params):
  zeros = jax.tree.map(jnp.zeros_like, params)
  found = update(
    build(weight_decay=0.1, decay=r'^head/|scale$'), params, zeros
  )
  assert {p for p, x in found.items() if np.any(x)} == {
    p for p in found if p.startswith('head/') or p.endswith('scale')
  }


def test_frozen_parameters_have_no_update_and_no_state(params, gradients):
  pattern = r'^embedding/|encoderblock_[01]/'
  optimizer = build(
    name='adamw', freeze=pattern, weight_decay=0.1, learning_rate=0.1
  )
  for path, change in update(optimizer, params, gradients).items():
    frozen = re.search(pattern, path) is not None
    assert np.any(change) != frozen, path
  state = jax.eval_shape(optimizer.tx.init, params)
  kept = [p for p in flat(params) if not re.search(pattern, p)]
  for moment in ('mu', 'nu'):
    paths = [
      PATHS(path).split(f'/{moment}/')[1]
      for path, _ in jax.tree_util.tree_leaves_with_path(state)
      if f'/{moment}/' in PATHS(path)
    ]
    assert sorted(paths) == sorted(kept)


FACTORS = {
  r'^(embedding|Transformer/posembed_input)/': 4,
  r'encoderblock_0/': 3,
  r'encoderblock_1/': 2,
  r'encoderblock_2/': 1,
  # The pooling head has an MlpBlock_0, which is no block of the encoder.
  r'^(Transformer/encoder_norm|MAPHead_0|pre_logits|head)/': 0,
}


@pytest.mark.parametrize('freeze', ['', 'encoderblock_2/'])
@pytest.mark.parametrize('name', ['sgd(momentum=0.0)', 'adamw'])
def test_updates_shrink_by_the_layer_decay_a_block(
  params, gradients, name, freeze
):
  fields = {'name': name, 'weight_decay': 0.1}
  plain = update(build(**fields), params, gradients)
  found = update(
    build(**fields, layer_decay=0.5, freeze=freeze), params, gradients
  )
  for path, change in found.items():
    (power,) = [n for p, n in FACTORS.items() if re.search(p, path)]
    if freeze and re.search(freeze, path):
      assert not np.any(change)
    else:
      np.testing.assert_allclose(
        change, 0.5**power * plain[path], rtol=1e-5, err_msg=path
      )


@pytest.mark.parametrize(
  ('path', 'power'),
  [
    ('conv_root/kernel', 3),
    ('block2/unit1/conv1/kernel', 3),  # of a hybrid's ResNet
    ('dist', 3),
    ('MixerBlock_0/token_mixing/Dense_1/kernel', 2),
    ('MixerBlock_1/LayerNorm_0/scale', 1),
    ('fc_norm/scale', 0),
    ('pre_head_layer_norm/scale', 0),
    ('head_dist/kernel', 0),
  ],
)
def test_stems_and_heads_of_every_model_have_their_layer(path, power):
  params = flax.traverse_util.unflatten_dict({
    name: jnp.zeros(1)
    for name in {path, 'MixerBlock_1/scale', 'head/bias'}
  }, sep='/')  # fmt: skip
  factors = optimizers.layer_factors(params, 0.5)
  assert flat(factors)[path] == 0.5**power
  assert flat(factors)['head/bias'] == 1


def test_blocks_of_a_pyramid_are_counted_through_its_stages():
  powers = {
    'embedding/kernel': 5, 'stage_0/norm/scale': 4, 'stage_0/block_0/bias': 4,
    'stage_0/block_1/kernel': 3, 'stage_1/embedding/kernel': 2,
    'stage_1/block_0/kernel': 2, 'stage_1/block_1/kernel': 1,
    'encoder_norm/scale': 0, 'head/kernel': 0,
  }  # fmt: skip
  params = flax.traverse_util.unflatten_dict(
    dict.fromkeys(powers, jnp.zeros(1)), sep='/'
  )
  factors = flat(optimizers.layer_factors(params, 0.5))
  assert factors == {path: 0.5**power for path, power in powers.items()}


def test_clipping_scales_the_whole_gradient_to_the_norm(params, gradients):
  plain = flat(gradients)
  norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in plain.values()))
  found = update(build(clip=2.0), params, gradients)
  for path, change in found.items():
    np.testing.assert_allclose(change, -plain[path] * 2.0 / norm, rtol=1e-4)
  short = jax.tree.map(lambda g: g / norm, gradients)
  for path, change in update(build(clip=2.0), params, short).items():
    np.testing.assert_array_equal(change, -flat(short)[path])


def test_frozen_gradients_are_no_part_of_the_clipped_norm(params, gradients):
  plain = flat(gradients)
  norm = np.linalg.norm(
    np.concatenate([
      g.ravel() for p, g in plain.items() if p.startswith('head/')
    ])
  )
  found = update(build(clip=2.0, freeze='^(?!head/)'), params, gradients)
  np.testing.assert_allclose(
    found['head/bias'], -plain['head/bias'] * 2.0 / norm, rtol=1e-4
  )


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'freeze': 'blocks'}, r"'blocks' matches no parameter; .*MAPHead_0/.*, …"),
    ({'weight_decay': 0.1, 'decay': 'weight$'}, r"'weight\$' matches no"),
    ({'freeze': '('}, r"'\(' is not a regular expression"),
  ],
)
def test_a_pattern_that_matches_nothing_is_an_error(params, fields, message):
  with pytest.raises(ValueError, match=message):
    build(**fields).tx.init(params)


def test_layer_decay_without_blocks_is_an_error():
  with pytest.raises(ValueError, match=r'layer_decay=0\.5 needs numbered'):
    build(layer_decay=0.5).tx.init({'head': {'kernel': jnp.zeros(2)}})


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'name': 'adam'}, "unknown optimizer 'adam'; did you mean 'adamw'"),
    ({'name': 'adamw(beta1=0.9)'}, "'beta1'.*choices: accumulator, b1, b2"),
    ({'name': 'sgd, lion'}, 'expected one optimizer, got 2'),
    ({'schedule': 'cosin'}, "'cosin'; did you mean 'cosine'.*noam"),
    ({'schedule': 'cosine, linear'}, 'expected one schedule, got 2'),
    ({'schedule': ''}, 'expected one schedule, got 0'),
    ({'schedule': 'noam'}, "cannot build the schedule 'noam'.*width"),
    ({'schedule': 'noam(size=3)'}, "no option 'size'.*choices: width"),
    ({'learning_rate': -1.0}, 'learning_rate=-1.0'),
    ({'learning_rate': float('nan')}, 'learning_rate=nan'),
    ({'weight_decay': -0.1}, 'weight_decay=-0.1'),
    ({'clip': -1.0}, 'clip=-1.0'),
    ({'layer_decay': 1.5}, r'layer_decay=1.5 is not in \[0.0, 1.0\]'),
    ({'ema': 1.0}, 'ema=1.0'),
    ({'warmup': -1}, 'warmup=-1'),
  ],
)
def test_a_wrong_value_is_an_error_that_names_it(fields, message):
  with pytest.raises(ValueError, match=message):
    build(**fields)


# Directions.

SPECS = {
  'sgd': 'sgd',
  'adamw': 'adamw',
  'lamb': 'lamb',
  'lion': 'lion',
  'adafactor': 'adafactor(min_dim_size_to_factor=2)',
}


def test_every_optimizer_of_the_table_is_tested():
  assert set(SPECS) == set(optimizers.OPTIMIZERS)


@pytest.mark.parametrize('name', sorted(SPECS))
def test_every_optimizer_lowers_a_quadratic(name):
  optimizer = build(name=SPECS[name], learning_rate=0.02, weight_decay=1e-3)
  rng = np.random.default_rng(0)
  x, y = (
    jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((32, 6), (32, 4))
  )
  params = {'kernel': jnp.ones((6, 4)), 'bias': jnp.zeros((1, 4))}

  def loss(p):
    return jnp.mean((x @ p['kernel'] + p['bias'] - y) ** 2)

  @jax.jit
  def run(params):
    def step(carry, _):
      params, state = carry
      value, gradient = jax.value_and_grad(loss)(params)
      change, state = optimizer.tx.update(gradient, state, params)
      return (jax.tree.map(jnp.add, params, change), state), value

    start = (params, optimizer.tx.init(params))
    return jax.lax.scan(step, start, None, length=60)[1]

  losses = np.asarray(run(params))
  assert losses[1] < losses[0]
  assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
  ('spec', 'expected'),
  [
    ('sgd', {'bfloat16'}),
    ("sgd(accumulator='float32')", {'float32'}),
    ('adamw', {'float32'}),
    ("adamw(accumulator='bfloat16')", {'bfloat16', 'float32'}),
    ("lamb(accumulator='bfloat16')", {'bfloat16', 'float32'}),
    ('lion', {'float32'}),
    ("lion(accumulator='bfloat16')", {'bfloat16'}),
    ('adafactor', {'bfloat16', 'float32'}),
  ],
)
def test_accumulators_have_the_declared_types(
  params, gradients, spec, expected
):
  optimizer = build(name=spec)
  for state in (
    jax.eval_shape(optimizer.tx.init, params),
    jax.eval_shape(
      lambda p, g: optimizer.tx.update(g, optimizer.tx.init(p), p)[1],
      params,
      gradients,
    ),
  ):
    found = {str(x.dtype) for x in jax.tree.leaves(state) if x.ndim}
    assert found == expected


def two_steps(optimizer, params, *gradients):
  state = optimizer.tx.init(params)
  for gradient in gradients:
    change, state = optimizer.tx.update(gradient, state, params)
    params = jax.tree.map(jnp.add, params, change)
  return np.asarray(params['kernel'])


RNG = np.random.default_rng(3)
W, G1, G2 = RNG.standard_normal((3, 4, 3)).astype(np.float32)


def test_sgd_equals_its_formula():
  optimizer = build(
    name="sgd(momentum=0.8, accumulator='float32')", learning_rate=0.1,
    weight_decay=0.3,
  )  # fmt: skip
  w = W - 0.1 * (G1 + 0.3 * W)
  w = w - 0.1 * (0.8 * G1 + G2 + 0.3 * w)
  found = two_steps(optimizer, *({'kernel': x} for x in (W, G1, G2)))
  np.testing.assert_allclose(found, w, atol=1e-6)


@pytest.mark.parametrize('name', ['adamw', 'lamb'])
def test_adamw_and_lamb_equal_their_formulas(name):
  optimizer = build(
    name=f'{name}(b1=0.8, b2=0.9, eps=1e-3)', learning_rate=0.1,
    weight_decay=0.3,
  )  # fmt: skip
  w, m, v = W.astype(np.float64), 0.0, 0.0
  for t, g in enumerate((G1, G2), 1):
    m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
    u = (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-3) + 0.3 * w
    ratio = np.linalg.norm(w) / np.linalg.norm(u) if name == 'lamb' else 1.0
    w = w - 0.1 * ratio * u
  found = two_steps(optimizer, *({'kernel': x} for x in (W, G1, G2)))
  np.testing.assert_allclose(found, w, atol=1e-5)


def test_lion_equals_its_formula():
  optimizer = build(
    name='lion(b1=0.6, b2=0.9)', learning_rate=0.1, weight_decay=0.3
  )
  w = W - 0.1 * (np.sign(G1) + 0.3 * W)
  w = w - 0.1 * (np.sign(0.6 * 0.1 * G1 + 0.4 * G2) + 0.3 * w)
  found = two_steps(optimizer, *({'kernel': x} for x in (W, G1, G2)))
  np.testing.assert_allclose(found, w, atol=1e-6)


# Schedules, in closed form.


def rate(*steps, **fields):
  """The learning rates of a run of 100 steps, peak 2."""
  fields = {'learning_rate': 2.0, 'steps': 100, **fields}
  at = optimizers.build_schedule(fields.pop('schedule'), **fields)
  return [float(at(step)) for step in steps]


CLOSED = {
  # 20 warm-up steps; at steps 0, 10, 20, 60, 100.
  'constant': [0, 1, 2, 2, 2],
  'cosine': [0, 1, 2, 1, 0],
  'cosine(end=0.1)': [0, 1, 2, 1.1, 0.2],
  'linear': [0, 1, 2, 1, 0],
  'linear(end=0.5)': [0, 1, 2, 1.5, 1],
  'rsqrt(timescale=40)': [0, 1, 2, 2**0.5, 2 * 3**-0.5],
}


def test_every_schedule_is_tested_in_closed_form():
  assert {s.split('(')[0] for s in CLOSED} == set(optimizers.SCHEDULES)


@pytest.mark.parametrize('schedule', sorted(CLOSED))
def test_schedules_have_their_values_at_start_warmup_middle_and_end(schedule):
  np.testing.assert_allclose(
    rate(0, 10, 20, 60, 100, schedule=schedule, warmup=20),
    CLOSED[schedule],
    atol=1e-6,
  )
  # Without a warm-up they start at the peak.
  assert rate(0, schedule=schedule) == [2.0]


def test_a_cosine_is_a_cosine():
  found = rate(25, 75, schedule='cosine')
  np.testing.assert_allclose(
    found, [1 + 2**-0.5, 1 - 2**-0.5], rtol=1e-6
  )


def test_a_warmup_shrinks_to_a_quarter_of_a_short_run():
  assert rate(
    0, 1, 2, 3, schedule='constant', warmup=10_000, steps=8
  ) == [0.0, 1.0, 2.0, 2.0]
  assert rate(0, schedule='constant', warmup=10_000, steps=3) == [2.0]


def test_a_cooldown_ends_at_zero_and_touches_nothing_before():
  found = rate(0, 79, 80, 90, 99, 100, schedule='constant', cooldown=20)
  np.testing.assert_allclose(found, [2, 2, 2, 1, 0.1, 0], atol=1e-6)
  assert rate(7, 8, schedule='constant', cooldown=500, steps=8) == [1.0, 0.0]


def test_noam_equals_the_papers_formula():
  # width^-½ · min(step^-½, step · warmup^-1.5), steps counted from 1.
  for step in (1, 10, 20, 21, 90):
    expected = 2 * 64**-0.5 * min(step**-0.5, step * 20**-1.5)
    (found,) = rate(step - 1, schedule='noam(width=64)', warmup=20)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_chain_follows_the_schedule():
  optimizer = build(
    schedule='linear', learning_rate=1.0, steps=4,
  )  # fmt: skip
  params = {'kernel': jnp.zeros(2)}
  gradient = {'kernel': jnp.ones(2)}
  state, seen = optimizer.tx.init(params), []
  for step in range(4):
    change, state = optimizer.tx.update(gradient, state, params)
    seen.append(-float(change['kernel'][0]))
    assert seen[-1] == pytest.approx(float(optimizer.learning_rate(step)))
  assert seen == pytest.approx([1, 0.75, 0.5, 0.25])


# The average of parameters.


@pytest.mark.parametrize(
  ('step', 'decay'), [(0, 1 / 10), (8, 9 / 18), (98, 0.9), (10**6, 0.9)]
)
def test_the_average_follows_its_formula(step, decay):
  old, new = {'w': jnp.asarray(W)}, {'w': jnp.asarray(G1)}
  found = optimizers.update_ema(old, new, step, 0.9)
  np.testing.assert_allclose(
    found['w'], decay * W + (1 - decay) * G1, rtol=1e-6, atol=1e-6
  )


def test_the_average_of_what_does_not_move_stays_bit_for_bit():
  average = {'w': jnp.asarray(W)}
  for step in range(20):
    average = optimizers.update_ema(average, {'w': jnp.asarray(W)}, step, 0.97)
  np.testing.assert_array_equal(average['w'], W)
