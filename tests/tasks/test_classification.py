"""The classification loss and its metrics against their NumPy definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from sklearn.metrics import log_loss, top_k_accuracy_score

from vit_jax import metrics, tasks

B, K = 12, 7
RNG = np.random.default_rng(0)
LOGITS = (3 * RNG.standard_normal((B, K))).astype(np.float32)
LABEL = RNG.integers(0, K, B)
WEIGHT = np.array([1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 1, 0], np.float32)
CLASS_WEIGHTS = tuple(np.linspace(0.2, 3.0, K).tolist())


def make_batch(**changed):
  """Images carry their own logits, which the 'model' reads off."""
  batch = {'image': LOGITS[:, None, None], 'label': LABEL, 'weight': WEIGHT}
  return {k: jnp.asarray(v) for k, v in {**batch, **changed}.items()}


def forward(images, *, train):
  return images[:, 0, 0]


def loss_of(task, batch, key=0):
  @jax.jit
  def run(batch):
    batch = task.prepare(batch, jax.random.key(key))
    return task.loss(forward, batch, jax.random.key(1))

  loss, found = run(batch)
  return float(loss), metrics.values(found)


def evaluate(task, batch):
  found = jax.jit(lambda batch: task.metrics(forward, batch))(batch)
  return metrics.values(found)


def definition(kind, smoothing, class_weights):
  """Σ w l / Σ w Σ_k c_k y_k, example by example, in float64."""
  total = mass = 0.0
  for z, label, w in zip(LOGITS.astype(np.float64), LABEL, WEIGHT, strict=True):
    y = np.full(K, smoothing / K)
    y[label] += 1 - smoothing
    if kind == 'softmax':
      each = -y * special.log_softmax(z)
    else:
      each = -y * special.log_expit(z) - (1 - y) * special.log_expit(-z)
    total += w * np.sum(class_weights * each)
    mass += w * np.sum(class_weights * y)
  return total / mass


@pytest.mark.parametrize('kind', ['softmax', 'sigmoid'])
@pytest.mark.parametrize('smoothing', [0.0, 0.3])
@pytest.mark.parametrize('weighted', [False, True])
def test_the_loss_equals_its_definition(kind, smoothing, weighted):
  task = tasks.build(
    'classification', num_classes=K, loss=kind, label_smoothing=smoothing,
    class_weights=CLASS_WEIGHTS if weighted else (),
  )  # fmt: skip
  class_weights = np.array(CLASS_WEIGHTS) if weighted else np.ones(K)
  expected = definition(kind, smoothing, class_weights)
  loss, found = loss_of(task, make_batch())
  assert loss == pytest.approx(expected, rel=1e-5)
  assert found['loss'] == pytest.approx(expected, rel=1e-5)


def test_the_plain_loss_is_scikit_learns_log_loss():
  task = tasks.build('classification', num_classes=K)
  expected = log_loss(
    LABEL, special.softmax(LOGITS, axis=1), sample_weight=WEIGHT,
    labels=range(K),
  )  # fmt: skip
  assert loss_of(task, make_batch())[0] == pytest.approx(expected, rel=1e-5)
  assert evaluate(task, make_batch())['loss'] == pytest.approx(
    expected, rel=1e-5
  )


def test_class_weights_make_torchs_weighted_mean():
  # torch.nn.CrossEntropyLoss(weight): Σ c[y] l / Σ c[y].
  task = tasks.build(
    'classification', num_classes=K, class_weights=CLASS_WEIGHTS
  )
  each = -special.log_softmax(LOGITS, axis=1)[np.arange(B), LABEL]
  expected = np.average(each, weights=np.take(CLASS_WEIGHTS, LABEL) * WEIGHT)
  assert loss_of(task, make_batch())[0] == pytest.approx(expected, rel=1e-5)


def test_shares_of_the_loss_add_up_to_that_of_the_whole_batch():
  task = tasks.build(
    'classification', num_classes=K, class_weights=CLASS_WEIGHTS
  )
  batch = task.prepare(make_batch(), jax.random.key(0))
  whole, found = task.loss(forward, batch, jax.random.key(1))
  halves = [
    task.loss(
      forward, {k: v[i : i + 3] for k, v in batch.items()}, jax.random.key(1)
    )
    for i in range(0, B, 3)
  ]
  assert float(sum(h[0] for h in halves)) == pytest.approx(
    float(whole), rel=1e-6
  )
  merged = None
  for _, part in halves:
    merged = metrics.merge(merged, part)
  assert metrics.values(merged) == pytest.approx(metrics.values(found))


@pytest.mark.parametrize('augment', ['', 'mixup(alpha=1.0)', 'cutmix'])
@pytest.mark.parametrize('kind', ['softmax', 'sigmoid'])
def test_examples_of_weight_zero_have_exactly_no_influence(kind, augment):
  task = tasks.build(
    'classification', num_classes=K, loss=kind, augment=augment,
    class_weights=CLASS_WEIGHTS,
  )  # fmt: skip
  out = WEIGHT == 0
  image, label = LOGITS[:, None, None].copy(), LABEL.copy()
  image[out], label[out] = 100.0, 0
  image[np.flatnonzero(out)[0]] = np.nan
  batch, changed = make_batch(), make_batch(image=image, label=label)

  @jax.jit
  def run(batch):
    prepared = task.prepare(batch, jax.random.key(2))

    def value(scale):
      model = lambda x, *, train: scale * forward(x, train=train)  # noqa: E731
      loss, found = task.loss(model, prepared, jax.random.key(1))
      return loss, found

    gradient, found = jax.grad(value, has_aux=True)(jnp.float32(1.5))
    return value(jnp.float32(1.5))[0], gradient, found

  loss, gradient, found = run(batch)
  other_loss, other_gradient, same = run(changed)
  assert np.isfinite(gradient)
  assert gradient != 0
  assert (float(loss), float(gradient)) == (
    float(other_loss), float(other_gradient),
  )  # fmt: skip
  assert metrics.values(found) == metrics.values(same)
  assert evaluate(task, batch) == evaluate(task, changed)


def test_accuracies_equal_scikit_learns():
  task = tasks.build('classification', num_classes=K)
  found = evaluate(task, make_batch())
  for name, k in (('accuracy', 1), ('accuracy_top5', 5)):
    expected = top_k_accuracy_score(
      LABEL, LOGITS, k=k, sample_weight=WEIGHT, labels=range(K)
    )
    assert found[name] == pytest.approx(expected)
    assert 0 < found[name] < 1  # the data tells right from wrong
  assert loss_of(task, make_batch())[1]['accuracy'] == found['accuracy']


def test_equal_logits_are_not_correct_for_everybody():
  # A model that says nothing has chance accuracy on balanced labels.
  task = tasks.build('classification', num_classes=10)
  label = np.arange(20) % 10
  batch = {
    'image': jnp.zeros((20, 1, 1, 10)),
    'label': jnp.asarray(label),
    'weight': jnp.ones(20),
  }
  found = evaluate(task, batch)
  assert found['accuracy'] == pytest.approx(0.1)
  assert found['accuracy_top5'] == pytest.approx(0.5)
  assert loss_of(task, batch)[1]['accuracy'] == pytest.approx(0.1)


def test_top5_of_few_classes_is_always_right():
  task = tasks.build('classification', num_classes=3)
  batch = make_batch(image=LOGITS[:, None, None, :3], label=LABEL % 3)
  found = evaluate(task, batch)
  assert found['accuracy_top5'] == 1.0
  assert found['accuracy'] < 1.0


def test_evaluation_has_neither_smoothing_nor_class_weights():
  plain = tasks.build('classification', num_classes=K)
  hard = tasks.build(
    'classification', num_classes=K, label_smoothing=0.5,
    class_weights=CLASS_WEIGHTS, augment='mixup',
  )  # fmt: skip
  assert evaluate(hard, make_batch()) == evaluate(plain, make_batch())


def test_half_precision_logits_are_scored_in_float32():
  task = tasks.build('classification', num_classes=K)
  half = LOGITS.astype(jnp.bfloat16)
  exact = evaluate(
    task, make_batch(image=half.astype(np.float32)[:, None, None])
  )
  found = evaluate(task, make_batch(image=half[:, None, None]))
  assert found == exact


def test_the_models_are_run_in_the_right_mode():
  seen = []

  def spy(images, *, train):
    seen.append(train)
    return forward(images, train=train)

  task = tasks.build('classification', num_classes=K)
  batch = task.prepare(make_batch(), jax.random.key(0))
  task.loss(spy, batch, jax.random.key(0))
  task.metrics(spy, batch)
  assert seen == [True, False]


def test_augmentations_apply_in_order_each_with_its_own_randomness():
  task = tasks.build('classification', num_classes=K, augment='flip, flip')
  images = jnp.asarray(RNG.standard_normal((64, 1, 2, 1)), jnp.float32)
  batch = {
    'image': images,
    'label': jnp.zeros(64, int),
    'weight': jnp.ones(64),
  }
  image = task.prepare(batch, jax.random.key(0))['image']
  # With the same key twice, every image would come back as it was.
  share = np.mean(np.any(np.asarray(image != images), axis=(1, 2, 3)))
  assert 0.3 < share < 0.7


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'name': 'clasification'}, "did you mean 'classification'"),
    ({'smoothing': 0.1}, "'smoothing'.*did you mean 'label_smoothing'"),
    ({'loss': 'hinge'}, "loss='hinge'; choices: softmax, sigmoid"),
    ({'label_smoothing': 1.0}, r'label_smoothing=1.0 is not in \[0, 1\)'),
    ({'class_weights': (1.0, 2.0)}, '7 positive numbers.*got .1.0, 2.0'),
    ({'class_weights': (0.0,) * 7}, '7 positive numbers'),
    ({'augment': 'mixupp'}, "'mixupp'; did you mean 'mixup'"),
    ({'augment': 'mixup(beta=1.0)'}, "'beta'.*choices: alpha"),
  ],
)
def test_a_wrong_field_is_an_error_that_names_the_choices(fields, message):
  fields = {'name': 'classification', 'num_classes': K, **fields}
  with pytest.raises(ValueError, match=message):
    tasks.build(**fields)


def test_a_model_with_other_logits_is_an_error_that_says_what_to_set():
  task = tasks.build('classification', num_classes=K + 1)
  with pytest.raises(ValueError, match=r'\(12, 7\) .*\(12, 8\).*num_classes'):
    loss_of(task, make_batch())
