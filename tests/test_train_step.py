"""One update: accumulation, randomness, averages and mutated variables."""

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import metrics, models, optimizers, tasks, train
from vit_jax import state as states

BATCH, CLASSES = 16, 5


def sgd(**fields):
  """SGD of rate ½ without momentum: the update is the gradient, halved."""
  return optimizers.build(
    100, name='sgd(momentum=0.0)', schedule='constant', learning_rate=0.5,
    **fields,
  )  # fmt: skip


def make_batch(seed=0):
  rng = np.random.default_rng(seed)
  weight = np.ones(BATCH, np.float32)
  weight[[1, 2, 6, 10, 14]] = 0.0  # all of the third micro-batch
  return {
    'image': jnp.asarray(rng.uniform(-1, 1, (BATCH, 8, 8, 3)), jnp.float32),
    'label': jnp.asarray(rng.integers(0, CLASSES, BATCH)),
    'weight': jnp.asarray(weight),
  }


class Setup:
  """A tiny ViT on a hard batch, and its step with any optimiser."""

  def __init__(self):
    self.model = models.build(
      'vit', patch_size=4, hidden_size=16, num_layers=1, num_heads=2,
      mlp_dim=24, num_classes=CLASSES, image_size=8,
    )  # fmt: skip
    self.task = tasks.build(
      'classification', num_classes=CLASSES, label_smoothing=0.1,
      class_weights=(1.0, 2.0, 0.5, 3.0, 0.1), augment='mixup(alpha=1.0)',
    )  # fmt: skip
    self.batch = make_batch()
    shapes = jax.eval_shape(
      functools.partial(self.model.init, train=False),
      jax.random.key(0),
      self.batch['image'],
    )
    rng = np.random.default_rng(1)
    self.variables = jax.tree.map(
      lambda s: jnp.asarray(0.3 * rng.standard_normal(s.shape), s.dtype), shapes
    )
    self.plain = self.step(sgd())

  def step(self, optimizer, **fields):
    run = jax.jit(
      functools.partial(
        train.train_step, model=self.model, optimizer=optimizer, **fields
      )
    )

    def call(batch, at=0, seed=0):
      state = states.fresh(self.variables, optimizer=optimizer)
      state = state.replace(step=jnp.asarray(at, jnp.int32))
      return run(state, self.task, batch, jax.random.key(seed))

    return call


@pytest.fixture(scope='module')
def setup():
  return Setup()


def flat(tree):
  return {
    optimizers.path_of(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def test_four_micro_batches_equal_one_batch(setup):
  # With mixup over the whole batch, class weights, and a micro-batch of
  # nothing but skipped images.
  whole, found = setup.plain(setup.batch)
  parts, same = setup.step(sgd(), accumulate=4)(setup.batch)
  old = flat(setup.variables['params'])
  for path, expected in flat(whole.params).items():
    np.testing.assert_allclose(
      flat(parts.params)[path], expected, atol=1e-6, err_msg=path
    )
    if 'key/bias' not in path:
      assert np.abs(expected - old[path]).max() > 1e-5, path
  assert set(found) == set(same)
  for name in found:
    assert same[name].value() == pytest.approx(found[name].value(), rel=1e-5)
  assert int(whole.step) == int(parts.step) == 1


def test_an_update_is_minus_the_rate_times_the_gradient_of_the_loss(setup):
  batch = setup.batch
  plain = setup.task.replace(augmentations=())
  whole = Setup.__new__(Setup)
  whole.__dict__.update(setup.__dict__, task=plain)
  state, found = whole.step(sgd())(batch)

  @jax.jit
  def gradient(params):
    def loss(params):
      logits = setup.model.apply({'params': params}, batch['image'])
      y = 0.9 * jax.nn.one_hot(batch['label'], CLASSES) + 0.1 / CLASSES
      y = y * plain.class_weights[None] * batch['weight'][:, None]
      return -jnp.sum(y * jax.nn.log_softmax(logits)) / jnp.sum(y)

    return jax.value_and_grad(loss)(params)

  loss, expected = gradient(setup.variables['params'])
  expected, old = flat(expected), flat(setup.variables['params'])
  for path, new in flat(state.params).items():
    np.testing.assert_allclose(
      new, old[path] - 0.5 * expected[path], atol=1e-6, err_msg=path
    )
  assert found['loss'].value() == pytest.approx(float(loss), rel=1e-5)
  norm = np.sqrt(sum(np.sum(g**2) for g in expected.values()))
  assert found['grad_norm'].value() == pytest.approx(norm, rel=1e-5)
  assert found['skipped'].value() == 5


def test_skipped_examples_have_exactly_no_influence(setup):
  batch, rng = setup.batch, np.random.default_rng(5)
  out = np.asarray(batch['weight']) == 0
  image, label = np.array(batch['image']), np.array(batch['label'])
  image[out] = rng.standard_normal(image[out].shape)
  image[np.flatnonzero(out)[0]] = np.nan
  label[out] = -1
  changed = {**batch, 'image': jnp.asarray(image), 'label': jnp.asarray(label)}
  state, found = setup.plain(batch)
  other, same = setup.plain(changed)
  for path, new in flat(state.params).items():
    np.testing.assert_array_equal(flat(other.params)[path], new, path)
    assert np.isfinite(new).all()
  assert metrics.values(found) == metrics.values(same)


def test_a_batch_of_skipped_examples_moves_nothing(setup):
  batch = {**setup.batch, 'weight': jnp.zeros(BATCH)}
  state, found = setup.plain(batch)
  old = flat(setup.variables['params'])
  for path, new in flat(state.params).items():
    np.testing.assert_array_equal(new, old[path])
  assert np.isnan(found['loss'].value())
  assert found['skipped'].value() == BATCH


def test_frozen_parameters_stay_bit_for_bit_and_the_average_follows(setup):
  frozen = ('embedding/', 'cls', 'Transformer/encoderblock_0/')
  step = setup.step(sgd(ema=0.9, freeze=rf'^({"|".join(frozen)})'))
  old, plain = flat(setup.variables['params']), flat(
    setup.plain(setup.batch)[0].params
  )
  for at, decay in ((0, 0.1), (100, 0.9)):
    state, _ = step(setup.batch, at=at)
    new, average = flat(state.params), flat(state.ema)
    for path in old:
      if path.startswith(frozen):
        np.testing.assert_array_equal(new[path], old[path])
        np.testing.assert_array_equal(average[path], old[path])
      else:
        assert np.any(new[path] != old[path]) or 'key/bias' in path
        if at == 0:  # the others move as they do without freezing
          np.testing.assert_allclose(new[path], plain[path], atol=1e-6)
        np.testing.assert_allclose(
          average[path], decay * old[path] + (1 - decay) * new[path], atol=1e-6
        )
    assert state.served['params'] is state.ema


def test_the_state_counts_steps_and_randomness_follows_step_and_seed(setup):
  at = lambda *a: flat(setup.plain(setup.batch, *a)[0].params)  # noqa: E731
  first, again, later, other = at(3, 0), at(3, 0), at(4, 0), at(3, 1)
  assert int(setup.plain(setup.batch, 3)[0].step) == 4
  for path in first:
    np.testing.assert_array_equal(first[path], again[path])
  assert np.any(first['head/bias'] != later['head/bias'])
  assert np.any(first['head/bias'] != other['head/bias'])


# Randomness and mutated variables, on a model of one layer.


@flax.struct.dataclass
class Seen:
  """A metric that keeps everything."""

  array: jax.Array

  def merge(self, other):
    return Seen(jnp.concatenate([self.array, other.array]))

  def value(self):
    return 0.0


class Tiny(nn.Module):
  """Dropout of ones, and the batch's running mean."""

  @nn.compact
  def __call__(self, x, train=False):
    weight = self.param('weight', nn.initializers.ones, (1,))
    mean = self.variable('batch_stats', 'mean', jnp.zeros, ())
    if not self.is_initializing():
      mean.value = 0.5 * mean.value + x.mean()
    ones = weight[:, None] * jnp.ones((len(x), 32))
    return nn.Dropout(0.5, deterministic=not train)(ones)


@flax.struct.dataclass
class Look:
  """A task that shows the dropout masks, of two passes, and the task's key."""

  def prepare(self, batch, rng):
    return batch

  def loss(self, forward, batch, rng):
    first = forward(batch['x'], train=True)
    forward(batch['x'], train=True)
    return jnp.sum(first), {
      'mask': Seen((first > 0)[None]),
      'key': Seen(jax.random.key_data(rng)[None]),
    }


@pytest.mark.parametrize('accumulate', [1, 4])
def test_micro_batches_differ_in_dropout_and_pass_variables_on(accumulate):
  model, optimizer = Tiny(), sgd()
  x = jnp.arange(8.0)
  variables = model.init(jax.random.key(0), x)
  state = states.fresh(variables, optimizer=optimizer)
  state, found = jax.jit(
    functools.partial(
      train.train_step, model=model, optimizer=optimizer, accumulate=accumulate
    )
  )(state, Look(), {'x': x, 'weight': jnp.ones(8)}, jax.random.key(0))
  masks = np.asarray(found['mask'].array)
  assert masks.shape == (accumulate, 8 // accumulate, 32)
  assert len(np.unique(masks.reshape(accumulate, -1), axis=0)) == accumulate
  assert len(np.unique(found['key'].array, axis=0)) == accumulate
  assert 0.35 < masks.mean() < 0.65
  # Two passes a micro-batch, one micro-batch after the other; the examples of
  # micro-batch i are i, i + accumulate, …
  mean = 0.0
  for i in range(accumulate):
    for _ in range(2):
      mean = 0.5 * mean + np.arange(8.0)[i::accumulate].mean()
  assert float(state.variables['batch_stats']['mean']) == pytest.approx(mean)


class Sowing(nn.Module):
  """Adds the mean square of its logits to the loss, in training."""

  @nn.compact
  def __call__(self, x, train=False):
    logits = nn.Dense(CLASSES)(x.mean((1, 2)))
    if train:
      self.sow('losses', 'square', 0.1 * jnp.mean(logits**2))
    return logits


@pytest.mark.parametrize('accumulate', [1, 2])
def test_losses_that_layers_sow_are_added_to_the_tasks(accumulate):
  model, task = Sowing(), tasks.build('classification', num_classes=CLASSES)
  batch = {**make_batch(), 'weight': jnp.ones(BATCH)}
  variables = jax.jit(model.init)(jax.random.key(0), batch['image'])
  optimizer = sgd()

  def value(params):
    logits = model.apply({'params': params}, batch['image'])
    cross = -jax.nn.log_softmax(logits)[jnp.arange(BATCH), batch['label']]
    return cross.mean() + 0.1 * jnp.mean(logits**2)

  state = states.fresh(variables, optimizer=optimizer)
  step = jax.jit(
    functools.partial(
      train.train_step, model=model, optimizer=optimizer, accumulate=accumulate
    )
  )
  new, found = step(state, task, batch, jax.random.key(0))
  expected = jax.tree.map(
    lambda p, g: p - 0.5 * g, state.params, jax.grad(value)(state.params)
  )
  for a, b in zip(*map(jax.tree.leaves, (new.params, expected)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)
  logits = model.apply(variables, batch['image'])
  np.testing.assert_allclose(
    found['auxiliary_loss'].value(), 0.1 * np.mean(logits**2), rtol=1e-5
  )
