"""Distillation against its definitions; the teacher is an argument."""

import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy import special

from vit_jax import metrics, models, optimizers, pretrained, tasks, train
from vit_jax import state as states

B, K, TAU = 16, 5, 3.0
RNG = np.random.default_rng(0)
WEIGHT = np.ones(B, np.float32)
WEIGHT[[1, 2, 6, 10, 14]] = 0.0  # all of the third of four micro-batches
LABEL = RNG.integers(0, K, B)


class Linear(nn.Module):
  """Logits are pixels times a matrix; two heads are two matrices."""

  num_classes: int = K
  dtype: str = 'float32'

  def setup(self):
    shape = (3, self.num_classes)
    self.w, self.u = (
      self.param(n, nn.initializers.normal(2.0), shape) for n in 'wu'
    )

  def __call__(self, images, train=False):
    return images.mean((1, 2)) @ self.w

  def heads(self, images, train=False):
    pixels = images.mean((1, 2))
    return pixels @ self.w, pixels @ self.u


FIELDS = {
  'patch_size': 4, 'hidden_size': 16, 'num_layers': 2, 'num_heads': 2,
  'mlp_dim': 24, 'num_classes': K, 'image_size': 8,
}  # fmt: skip
MODEL = Linear()
IMAGES = RNG.uniform(-1, 1, (B, 2, 2, 3)).astype(np.float32)
OURS, THEIRS = (
  {'params': {n: RNG.standard_normal((3, K)).astype(np.float32) for n in 'wu'}}
  for _ in range(2)
)
TEACHER = types.SimpleNamespace(model=MODEL, variables=THEIRS)
PIXELS = IMAGES.astype(np.float64).mean((1, 2))
Z, Z2, T = (
  PIXELS @ v['params'][n] for v, n in ((OURS, 'w'), (OURS, 'u'), (THEIRS, 'w'))
)


def build(teacher=TEACHER, num_classes=K, **fields):
  return tasks.build(
    'distillation', num_classes=num_classes, teacher=teacher, **fields
  )


def make_batch(images=IMAGES, **changed):
  batch = {'image': images, 'label': LABEL, 'weight': WEIGHT, **changed}
  return {k: jnp.asarray(v) for k, v in batch.items()}


def forward_of(variables, model=MODEL):
  def forward(*args, method=None, train):
    return model.apply(variables, *args, train=train, method=method)

  return forward


@functools.partial(jax.jit, static_argnums=3)
def loss_of(task, variables, batch, model=MODEL):
  batch = task.prepare(batch, jax.random.key(2))
  return task.loss(forward_of(variables, model), batch, jax.random.key(1))


def mean(losses):
  return np.average(losses, weights=WEIGHT)


def cross_entropy(z, label):
  return -special.log_softmax(z, axis=1)[np.arange(B), label]


def divergence(z, t, tau=1.0):
  p = special.softmax(t / tau, axis=1)
  gap = special.log_softmax(t / tau, axis=1) - special.log_softmax(
    z / tau, axis=1
  )
  return tau**2 * (p * gap).sum(1)


PARTS = {
  'labels': lambda z: cross_entropy(z, LABEL),
  'soft': lambda z: divergence(z, T, TAU),
  'hard': lambda z: cross_entropy(z, T.argmax(1)),
}


@pytest.mark.parametrize(
  'weights',
  [
    {'soft': 1.0},
    {'soft': 0.0, 'hard': 1.0},
    {'labels': 0.5, 'soft': 0.3, 'hard': 2.0},
  ],
)
def test_the_loss_is_the_weighted_sum_of_its_parts(weights):
  task = build(temperature=TAU, **weights)
  loss, found = loss_of(task, OURS, make_batch())
  expected = {k: mean(part(Z)) for k, part in PARTS.items()}
  total = sum(w * expected[k] for k, w in weights.items())
  assert float(loss) == pytest.approx(total, rel=1e-5)
  found = metrics.values(found)
  assert found['loss'] == pytest.approx(total, rel=1e-5)
  for name, weight in weights.items():
    if weight:
      assert found[f'{name}_loss'] == pytest.approx(expected[name], rel=1e-5)
  assert found['accuracy'] == pytest.approx(mean(Z.argmax(1) == LABEL))
  same = mean(Z.argmax(1) == T.argmax(1))
  assert found['agreement'] == pytest.approx(same)
  assert 0 < same < 1


def test_the_soft_gradient_is_tau_times_the_difference_of_probabilities():
  # d/dz τ² KL(p(t/τ) ‖ p(z/τ)) = τ (p(z/τ) - p(t/τ)).
  task = build(temperature=TAU)
  grad = jax.grad(lambda v: loss_of(task, v, make_batch())[0])(OURS)
  gap = special.softmax(Z / TAU, 1) - special.softmax(T / TAU, 1)
  expected = PIXELS.T @ (TAU * WEIGHT[:, None] / WEIGHT.sum() * gap)
  np.testing.assert_allclose(grad['params']['w'], expected, atol=1e-6)


@pytest.mark.parametrize(
  'weights',
  [
    {'labels': 0.5, 'soft': 0.0, 'hard': 0.5},  # DeiT, hard
    {'labels': 0.9, 'soft': 0.1},  # DeiT, soft
  ],
)
def test_the_class_head_learns_labels_and_the_token_the_teacher(weights):
  task = build(temperature=TAU, token=True, **weights)
  loss, found = loss_of(task, OURS, make_batch())
  expected = sum(
    w * mean(PARTS[k](Z if k == 'labels' else Z2)) for k, w in weights.items()
  )
  assert float(loss) == pytest.approx(expected, rel=1e-5)
  same = mean(Z2.argmax(1) == T.argmax(1))
  assert metrics.values(found)['agreement'] == pytest.approx(same)
  assert mean(Z.argmax(1) == T.argmax(1)) != same


def test_the_teacher_sees_the_very_image_that_the_student_sees():
  same = types.SimpleNamespace(model=MODEL, variables=OURS)
  task = build(same, augment='mixup(alpha=1.0), cutmix, flip')
  assert float(loss_of(task, OURS, make_batch())[0]) == 0.0
  assert float(loss_of(task, THEIRS, make_batch())[0]) > 0.01


def test_skipped_examples_have_exactly_no_influence():
  task = build(
    labels=1.0, hard=1.0, augment='mixup(alpha=1.0)', temperature=TAU
  )
  images, label = IMAGES.copy(), LABEL.copy()
  images[WEIGHT == 0], label[WEIGHT == 0] = np.nan, -1
  run = jax.value_and_grad(
    lambda v, batch: loss_of(task, v, batch), has_aux=True
  )
  expected, same = (
    run(OURS, make_batch(x, label=y))
    for x, y in ((IMAGES, LABEL), (images, label))
  )
  for a, b in zip(
    jax.tree.leaves(expected), jax.tree.leaves(same), strict=True
  ):
    assert np.isfinite(a).all()
    np.testing.assert_array_equal(a, b)


def test_evaluation_adds_agreement_to_the_metrics_of_classification():
  task = build()
  plain = tasks.build('classification', num_classes=K)
  found, expected = (
    metrics.values(t.metrics(forward_of(OURS), make_batch()))
    for t in (task, plain)
  )
  same = mean(Z.argmax(1) == T.argmax(1))
  assert found == {**expected, 'agreement': pytest.approx(same)}


def test_a_teacher_in_half_precision_answers_nearly_the_same():
  model = models.build('vit', **{**FIELDS, 'num_layers': 1})
  teacher = types.SimpleNamespace(model=model, variables=drawn(model, 1))
  teach = jax.jit(lambda task, images: task._teach(images, False)[0])
  full, half = (
    teach(build(teacher, teacher_dtype=d), pictures())
    for d in (None, 'bfloat16')
  )
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(full, half, atol=0.1)
  assert (full != half).any()


# A whole step of a ViT with another attention than its teacher's.


def pictures():
  rng = np.random.default_rng(3)
  return rng.uniform(-1, 1, (B, 8, 8, 3)).astype(np.float32)


def drawn(model, seed):
  shapes = jax.eval_shape(model.init, jax.random.key(0), pictures()[:1])
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda s: jnp.asarray(0.3 * rng.standard_normal(s.shape), s.dtype), shapes
  )


class Setup:
  """A student, its teacher, the task of all parts and a step of SGD."""

  def __init__(self):
    self.model = models.build('vit', **FIELDS, attention='linear')
    self.teacher = models.build('vit', **FIELDS)
    self.variables, self.theirs = drawn(self.model, 1), drawn(self.teacher, 2)
    self.loaded = types.SimpleNamespace(
      model=self.teacher, variables=self.theirs
    )
    self.task = build(
      self.loaded, labels=0.7, soft=0.4, hard=0.2, features=1.5,
      temperature=TAU, augment='mixup(alpha=1.0)',
    )  # fmt: skip
    self.batch = make_batch(pictures())
    self.optimizer = optimizers.build(
      100, name='sgd(momentum=0.0)', schedule='constant', learning_rate=1.0
    )

  def start(self):
    return states.fresh(self.variables, optimizer=self.optimizer)


@pytest.fixture(scope='module')
def setup():
  return Setup()


@pytest.fixture(scope='module')
def stepped(setup):
  """The step of four micro-batches, and what it did."""
  run = jax.jit(functools.partial(
    train.train_step, model=setup.model, optimizer=setup.optimizer,
    accumulate=4,
  ))  # fmt: skip
  after, found = run(
    setup.start(), setup.task, setup.batch, jax.random.key(0)
  )
  return run, after, found


@functools.partial(jax.jit, static_argnums=0)
def blocks_of(model, variables, images):
  """Logits and the blocks' outputs, caught by flax, normalised by hand."""
  logits, caught = model.apply(
    variables, images,
    capture_intermediates=lambda m, _: type(m).__name__ == 'Encoder1DBlock',
  )  # fmt: skip
  caught = caught['intermediates']['Transformer']
  norm = variables['params']['Transformer']['encoder_norm']
  blocks = []
  for i in range(model.num_layers):
    (x,) = caught[f'encoderblock_{i}']['__call__']
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(
      x.var(-1, keepdims=True) + model.epsilon
    )
    x = x * norm['scale'][None, None] + norm['bias'][None, None]
    blocks.append(
      (x - x.mean(-1, keepdims=True))
      / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
    )
  return logits, jnp.stack(blocks, axis=1)


def test_an_update_is_minus_the_gradient_of_the_definition(setup, stepped):
  # In four micro-batches, one of them of skipped images alone; the definition
  # has one batch. The mixed images and targets are drawn by `Classification`.
  plain = tasks.build(
    'classification', num_classes=K, augment='mixup(alpha=1.0)'
  )
  key, _ = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))

  @jax.jit
  def gradient(params):
    batch = plain.prepare(setup.batch, key)
    w = batch['weight'] / batch['weight'].sum()

    def loss(params):
      z, ours = blocks_of(setup.model, {'params': params}, batch['image'])
      t, theirs = blocks_of(setup.teacher, setup.theirs, batch['image'])
      p = jax.nn.softmax(t / TAU)
      log = lambda x: jnp.log(jax.nn.softmax(x))  # noqa: E731
      each = (
        0.7 * -jnp.sum(batch['target'] * log(z), 1)
        + 0.4 * TAU**2 * jnp.sum(p * (log(t / TAU) - log(z / TAU)), 1)
        + 0.2 * -jnp.take_along_axis(log(z), t.argmax(1)[:, None], 1)[:, 0]
        + 1.5 * jnp.mean((ours - theirs) ** 2, axis=(1, 2, 3))
      )
      return jnp.sum(w * each)

    return jax.value_and_grad(loss)(params)

  _, after, found = stepped
  loss, expected = gradient(setup.variables['params'])
  assert found['loss'].value() == pytest.approx(float(loss), rel=1e-5)
  assert {'soft_loss', 'hard_loss', 'features_loss'} <= set(found)
  change = jax.tree.map(
    lambda a, b: a - b, setup.variables['params'], after.params
  )
  for (path, ours), grad in zip(
    jax.tree_util.tree_leaves_with_path(change),
    jax.tree.leaves(expected),
    strict=True,
  ):
    np.testing.assert_allclose(ours, grad, atol=2e-6, err_msg=str(path))
  assert np.abs(change['Transformer']['encoderblock_0']['LayerNorm_0'][
    'scale']).max() > 1e-3  # fmt: skip


def test_the_teacher_is_an_argument_of_the_step(setup, stepped):
  run, _, found = stepped
  traced = jax.make_jaxpr(run)(
    setup.start(), setup.task, setup.batch, jax.random.key(0)
  )
  smallest = min(x.size for x in jax.tree.leaves(setup.theirs) if x.ndim > 1)
  assert all(np.size(c) < smallest for c in traced.consts)
  other = setup.task.replace(
    variables=jax.tree.map(lambda x: 1.1 * x, setup.theirs)
  )
  _, changed = run(setup.start(), other, setup.batch, jax.random.key(0))
  assert run._cache_size() == 1
  assert changed['loss'].value() != found['loss'].value()


def test_no_gradient_reaches_the_teacher():
  task = build(hard=1.0)
  grad = jax.grad(
    lambda v: loss_of(task.replace(variables=v), OURS, make_batch())[0]
  )(THEIRS)
  assert not any(x.any() for x in jax.tree.leaves(grad))


def test_layers_by_name_and_patches_alone_where_only_one_has_registers(setup):
  model = setup.teacher.clone(num_layers=1, num_registers=2)
  variables = drawn(model, 4)
  task = build(
    setup.loaded, soft=0.0, features=1.0, layers=(0,), teacher_layers=(-1,)
  )
  images = jnp.asarray(pictures())
  loss, _ = loss_of(task, variables, make_batch(images), model)
  ours = blocks_of(model, variables, images)[1][:, 0, 3:]
  theirs = blocks_of(setup.teacher, setup.theirs, images)[1][:, -1, 1:]
  expected = mean(np.mean((ours - theirs) ** 2, axis=(1, 2)))
  assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_deits_class_head_learns_labels_and_its_token_the_teacher(setup):
  model = models.build('deit', **FIELDS, distilled=True)
  variables = drawn(model, 4)
  images = jnp.asarray(pictures())
  task = build(setup.loaded, token=True, labels=0.5, soft=0.0, hard=0.5)
  loss, _ = loss_of(task, variables, make_batch(images), model)
  heads = jax.jit(functools.partial(model.apply, method='heads'))
  of_class, of_teacher = (
    np.asarray(z, np.float64) for z in heads(variables, images)
  )
  taught = blocks_of(setup.teacher, setup.theirs, images)[0].argmax(1)
  expected = cross_entropy(of_class, LABEL), cross_entropy(of_teacher, taught)
  assert float(loss) == pytest.approx(mean(sum(expected)) / 2, rel=1e-5)


@pytest.mark.parametrize(
  ('change', 'fields', 'message'),
  [
    ({'num_layers': 1}, {}, 'student has 1 blocks.*teacher 2.*teacher_layers'),
    ({'hidden_size': 8}, {}, r'\(16, 4, 8\).*\(16, 4, 16\)'),
    ({'num_layers': 1}, {'layers': (1,)}, 'no block 1: .* blocks 0 to 0'),
    ({'classifier': 'unpooled'}, {'features': 0.0, 'hard': 1.0},
     r'student gives \(16, 4, 5\).*teacher \(16, 5\)'),
  ],
)  # fmt: skip
def test_models_that_do_not_match_are_refused(setup, change, fields, message):
  model = setup.teacher.clone(**change)
  task = build(setup.loaded, **{'features': 1.0, **fields})

  def run():
    batch = task.prepare(setup.batch, jax.random.key(0))
    variables = model.init(jax.random.key(0), setup.batch['image'])
    return task.loss(forward_of(variables, model), batch, jax.random.key(0))

  with pytest.raises(ValueError, match=message):
    jax.eval_shape(run)


class Single(nn.Module):
  """A model of one head and no blocks."""

  num_classes: int = K

  def __call__(self, images, train=False):
    return images.mean((1, 2)) @ jnp.ones((3, K))


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'token': True}, 'distillation token; Single has none'),
    ({'features': 1.0}, 'Single has no blocks .*features=0'),
  ],
)
def test_what_a_model_cannot_give_is_refused_by_name(fields, message):
  task = build(**fields)
  batch = task.prepare(make_batch(), jax.random.key(0))
  with pytest.raises(ValueError, match=message):
    task.loss(forward_of({}, Single()), batch, jax.random.key(0))


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'teacher': 'runs/a'}, "teacher='runs/a' must be a loaded model"),
    ({'num_classes': 7}, 'teacher has 5 classes and the student 7'),
    ({'soft': -1.0}, 'soft=-1.0 must be a finite weight'),
    ({'labels': float('inf')}, 'labels=inf'),
    ({'soft': 0.0, 'labels': 1.0}, 'nothing of the teacher counts'),
    ({'soft': 0.0, 'features': 1.0, 'token': True}, 'soft or hard; both'),
    ({'features': 1.0, 'token': True}, 'token=True with features=1.0'),
    ({'temperature': 0.0}, 'temperature=0.0 must be positive'),
    ({'loss': 'sigmoid'}, "loss='sigmoid' has not"),
    ({'loss': 'hinge'}, "loss='hinge'; choices"),
    ({'teacher_layers': (1,)}, r'teacher_layers=\(1,\).*layers=\(\)'),
    ({'teacher_dtype': 'int8'}, "'int8'; choices: None, float32, bfloat16"),
    ({'tau': 3.0}, "no option 'tau'"),
  ],
)
def test_a_wrong_field_is_an_error_that_says_what_to_set(fields, message):
  with pytest.raises(ValueError, match=message):
    build(**fields)


# Through the command's path: a path in the config becomes a loaded teacher.


@pytest.fixture(scope='module')
def school(tmp_path_factory):
  """A folder with a model that teaches."""
  section = tiny.config()['model']
  model = models.build(**section)
  rng = np.random.default_rng(5)
  variables = jax.tree.map(
    lambda s: jnp.asarray(0.3 * rng.standard_normal(s.shape), s.dtype),
    pretrained.base.shapes(model, 1),
  )
  preprocess = {
    'decode': 'decode(channels=1)', 'transform': tiny.config()['data']['test']
  }  # fmt: skip
  path = tmp_path_factory.mktemp('school') / 'teacher'
  pretrained.save(path, pretrained.Pretrained(
    model, variables, preprocess, (), section, channels=1
  ))  # fmt: skip
  return str(path)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(school, tmp_path):
  task = {'name': 'distillation', 'teacher': school, 'features': 1.0}
  last = tiny.run(
    tmp_path, task=task, init=school, steps=1, optimizer__learning_rate=0.0
  )
  row = tiny.rows(tmp_path)[0]
  for name in ('loss', 'soft_loss', 'features_loss', 'grad_norm'):
    assert abs(row[f'train/{name}']) < 1e-6
  assert row['train/labels_loss'] > 0
  assert row['train/agreement'] == last['test/agreement'] == 1.0
  assert last['test/accuracy'] < 1.0


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'data__test': 'value_range(low=0.0, high=1.0)'},
     'pixels from -1 to 1.*config.data.test=.*from 0 to 1'),
    ({'data__train': 'value_range(low=0.0, high=1.0)'}, 'config.data.train='),
    ({'data__decode': 'decode(channels=3)'}, '1 channels, not 3'),
    ({'task__teacher': None}, 'config.task.teacher'),
    ({'task__teacher': 'no/where'}, 'no/where does not exist'),
  ],
)  # fmt: skip
def test_a_teacher_that_sees_otherwise_is_refused(
  school, tmp_path, changes, message
):
  task = {'name': 'distillation', 'teacher': school}
  with pytest.raises(ValueError, match=message):
    tiny.main.build(tiny.config(**{'task': task, **changes}), tmp_path)


def test_teachers_come_from_pretrained_load(school):
  found = pretrained.load(school)
  task = build(found, num_classes=10)
  assert task.variables is found.variables
