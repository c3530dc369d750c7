"""The losses of patch diversification against loops over patches."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from models.table import TINY
from scipy import special

from vit_jax import metrics, models, tasks

B, N, C, K = 5, 6, 4, 3
GRID = (2, 3)
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-1, 1, (B, 4, 6, 3)).astype(np.float32)
LABEL = RNG.integers(0, K, B)
WEIGHT = np.array([1, 1, 0, 1, 1], np.float32)
PARAMS = {
  'first': RNG.standard_normal((12, C)).astype(np.float32),
  'last': RNG.standard_normal((C, C)).astype(np.float32),
  'classify': RNG.standard_normal((C, K)).astype(np.float32),
}


class Flat(nn.Module):
  """Two 'blocks', of a class token (the patches' mean) and patches of 2×2."""

  num_layers: int = 2
  prefix: int = 1
  rows: int = GRID[0]

  def setup(self):
    self.w = {
      name: self.param(name, nn.initializers.normal(), x.shape)
      for name, x in PARAMS.items()
    }

  def __call__(self, images, train=False):
    return self.head(self.encode(*self.embed(images), train)[0])

  def embed(self, images):
    x = images.reshape(-1, self.rows, 2, GRID[1], 2, 3)
    x = x.swapaxes(2, 3).reshape(len(images), -1, 12)
    return jnp.concatenate([x.mean(1, keepdims=True), x], 1), (
      self.rows, GRID[1]
    )  # fmt: skip

  def encode(self, tokens, grid, train=False, collect=()):
    outputs = [tokens @ self.w['first']]
    outputs.append(jnp.tanh(outputs[0]) @ self.w['last'])
    return outputs[1], tuple(outputs[i] for i in collect)

  def head(self, x, train=False):
    return x[:, 0] @ self.w['classify']


def build(diversity, **fields):
  return tasks.build(
    'classification', num_classes=K, diversity=diversity, **fields
  )


def make_batch(images=IMAGES, label=LABEL, weight=WEIGHT):
  batch = {'image': images, 'label': label, 'weight': weight}
  return {k: jnp.asarray(v) for k, v in batch.items()}


def forward_of(params, model=None):
  def forward(*args, method=None, train):
    return (model or Flat()).apply(
      {'params': params}, *args, train=train, method=method
    )

  return forward


@jax.jit
def loss_of(task, params, batch):
  batch = task.prepare(batch, jax.random.key(2))
  loss, found = task.loss(forward_of(params), batch, jax.random.key(1))
  return loss, found, batch


def tokens_of(images):
  """h¹ and hᴸ of the patches, and of the class token, in float64."""
  x = np.asarray(images, np.float64).reshape(-1, GRID[0], 2, GRID[1], 2, 3)
  x = x.swapaxes(2, 3).reshape(len(images), N, 12)
  first = x @ PARAMS['first']
  last = np.tanh(first) @ PARAMS['last']
  token = np.tanh(x.mean(1) @ PARAMS['first']) @ PARAMS['last']
  return first, last, token


def cosine(last):
  found = [
    abs(last[i] @ last[j]) / np.linalg.norm(last[i]) / np.linalg.norm(last[j])
    for i in range(N) for j in range(N) if i != j
  ]  # fmt: skip
  return np.mean(found)


def contrastive(first, last):
  total = 0.0
  for i in range(N):
    rest = np.mean([last[j] for j in range(N) if j != i], axis=0)
    good, bad = np.exp(first[i] @ last[i]), np.exp(first[i] @ rest)
    total -= np.log(good / (good + bad)) / N
  return total


def mixing(last, labels):
  """`labels` [N K]: the target of each patch."""
  log = special.log_softmax(last @ PARAMS['classify'], axis=1)
  return np.mean([-labels[i] @ log[i] for i in range(N)])


def test_the_losses_are_their_definitions():
  # Skipped images may hold anything.
  images = np.where(WEIGHT[:, None, None, None] > 0, IMAGES, np.nan)
  task = build('cosine(weight=0.5), contrastive(weight=2.0), mixing')
  loss, found, _ = loss_of(task, PARAMS, make_batch(images))
  first, last, token = tokens_of(IMAGES)
  target = np.eye(K)[LABEL]
  log = special.log_softmax(token @ PARAMS['classify'], axis=1)
  expected = {
    'labels_loss': [-target[b] @ log[b] for b in range(B)],
    'cosine_loss': [cosine(x) for x in last],
    'contrastive_loss': [contrastive(first[b], last[b]) for b in range(B)],
    'mixing_loss': [
      mixing(last[b], np.tile(target[b], (N, 1))) for b in range(B)
    ],
  }
  expected = {k: np.average(v, weights=WEIGHT) for k, v in expected.items()}
  factors = {
    'labels_loss': 1.0, 'cosine_loss': 0.5, 'contrastive_loss': 2.0,
    'mixing_loss': 1.0,
  }  # fmt: skip
  expected['loss'] = sum(f * expected[k] for k, f in factors.items())
  found = metrics.values(found)
  assert float(loss) == pytest.approx(expected['loss'], rel=1e-5)
  for name, value in expected.items():
    assert found[name] == pytest.approx(value, rel=1e-5), name
  hit = token @ PARAMS['classify']
  assert found['accuracy'] == pytest.approx(
    np.average(hit.argmax(1) == LABEL, weights=WEIGHT)
  )


def test_with_cutmix_a_patch_has_the_label_of_its_pixels_image():
  task = build('mixing', augment='flip, cutmix')
  plain = build('', augment='flip')
  batch = make_batch(weight=np.ones(B, np.float32))
  _, found, ready = loss_of(task, PARAMS, batch)
  flipped = plain.prepare(batch, jax.random.key(2))
  before, target = np.asarray(flipped['image']), np.eye(K)[LABEL]
  _, last, _ = tokens_of(ready['image'])
  image, partner = np.asarray(ready['image']), np.roll(before, 1, axis=0)
  shares, losses = set(), []
  for b in range(B):
    labels = np.zeros((N, K))
    for i in range(N):
      for y in range(2):
        for x in range(2):
          at = 2 * (i // GRID[1]) + y, 2 * (i % GRID[1]) + x
          pasted = np.asarray(ready['pasted'])[b][at]
          shares.add(bool(pasted))
          source = partner if pasted else before
          np.testing.assert_array_equal(image[b][at], source[b][at])
          labels[i] += target[b - 1 if pasted else b] / 4
    losses.append(mixing(last[b], labels))
    np.testing.assert_allclose(  # and the image that of all its pixels
      labels.mean(0), np.asarray(ready['target'])[b], atol=1e-6
    )
  assert shares == {False, True}
  value = metrics.values(found)['mixing_loss']
  assert value == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_first_blocks_patches_get_no_gradient_as_such():
  task, batch = build('contrastive'), make_batch()
  fixed, _, _ = tokens_of(IMAGES)
  share = jnp.asarray(WEIGHT / WEIGHT.sum())

  def definition(params):
    tokens, grid = Flat().apply({'params': params}, batch['image'],
                                method='embed')  # fmt: skip
    out, (last,) = Flat().apply(
      {'params': params}, tokens, grid, collect=(1,), method='encode'
    )
    log = jax.nn.log_softmax(out[:, 0] @ params['classify'])
    labels = -jnp.take_along_axis(log, batch['label'][:, None], 1)[:, 0]
    last, first = last[:, 1:], jnp.asarray(fixed, jnp.float32)
    rest = (last.sum(1, keepdims=True) - last) / (N - 1)
    good, bad = (jnp.exp((first * x).sum(-1)) for x in (last, rest))
    return jnp.sum(share * (labels - jnp.log(good / (good + bad)).mean(1)))

  ours = jax.jit(jax.grad(lambda p: loss_of(task, p, batch)[0]))(PARAMS)
  expected = jax.jit(jax.grad(definition))(PARAMS)
  for name, x in expected.items():
    np.testing.assert_allclose(ours[name], x, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(('rank', 'cosine', 'contrastive'), [
  (1, 1.0, np.log(2.0)),  # all patches are the same one
  (N, 0.0, np.log1p(np.exp(-1.0))),  # orthogonal, of length 1
])  # fmt: skip
def test_alike_patches_cost_most_and_orthogonal_ones_least(
  rank, cosine, contrastive
):
  h = jnp.eye(N)[None, np.arange(N) % rank]
  tokens = tasks.diversity.Tokens(h, h, h, GRID, None)
  for name, value in (('cosine', cosine), ('contrastive', contrastive)):
    (loss,) = tasks.diversity.build(name)
    assert float(loss(tokens, {})[0]) == pytest.approx(value, abs=1e-6)


def test_shares_of_micro_batches_add_up():
  task = build('cosine, contrastive, mixing', augment='cutmix')
  whole, _, ready = loss_of(task, PARAMS, make_batch())
  one = jax.jit(
    lambda part: task.loss(forward_of(PARAMS), part, jax.random.key(1))[0]
  )
  parts = [
    one({k: x[i : i + 1] for k, x in ready.items()}) for i in range(B)
  ]
  assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-5)


def run(model, diversity='cosine, contrastive, mixing', **fields):
  """The loss of a model, abstract."""
  task, side = build(diversity, augment='cutmix', **fields), model.image_size
  batch = {
    'image': jnp.zeros((B, side, side, 3)), 'label': jnp.zeros(B, int),
    'weight': jnp.ones(B),
  }  # fmt: skip

  def loss():
    variables = model.init(jax.random.key(0), batch['image'])

    def forward(*args, method=None, train):
      return model.apply(
        variables, *args, train=train, method=method,
        rngs=jax.random.key(1), mutable=list(variables),
      )[0]  # fmt: skip

    ready = task.prepare(batch, jax.random.key(2))
    return task.loss(forward, ready, jax.random.key(3))

  return jax.eval_shape(loss)


@pytest.mark.parametrize(
  'label', ['vit', 'deit distilled', 'deepvit', 'cait', 'tnt', 'mixer']
)
def test_models_with_blocks_of_patches_are_kept_apart(label):
  model = models.build(label.split()[0], num_classes=K, **TINY[label])
  loss, found = run(model)
  assert loss.shape == ()
  assert {'cosine_loss', 'contrastive_loss', 'mixing_loss'} <= set(found)


@pytest.mark.parametrize(
  ('label', 'fields', 'message'),
  [
    ('resnet', {}, "ResNetClassifier has no blocks of patches.*diversity=''"),
    ('vit', {'image_size': 4}, 'one patch for an image of 4×4'),
    ('vit', {'patch_dropout_rate': 0.5}, '2×2 patches; 2 are left'),
    ('vit', {'classifier': 'unpooled'}, r'pooled head.*\(5, 4, 3\)'),
  ],
)
def test_models_that_cannot_be_are_refused(label, fields, message):
  model = models.build(label, num_classes=K, **{**TINY[label], **fields})
  with pytest.raises(ValueError, match=message):
    run(model)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'diversity': 'cosin'}, "'cosin'; did you mean 'cosine'"),
    ({'diversity': 'cosine(alpha=1)'}, "no option 'alpha'"),
    ({'diversity': 'cosine(weight=0.0)'}, 'weight=0.0 .* must be positive'),
    ({'diversity': 'cosine, cosine(weight=2.0)'}, 'names a loss twice'),
    ({'augment': 'mixup_or_cutmix'}, 'in place of mixup_or_cutmix'),
    ({'augment': 'cutmix, flip'}, 'moved or cut again, as flip does'),
    ({'augment': 'cutmix, mixup'}, 'mixed by mixup again'),
    ({'loss': 'sigmoid'}, "'mixing' is of softmax .*loss='sigmoid'"),
  ],
)
def test_a_wrong_field_is_an_error_that_says_what_to_set(fields, message):
  with pytest.raises(ValueError, match=message):
    build(**{'diversity': 'mixing', **fields})


def test_a_config_says_it_in_one_line(tmp_path):
  config = tiny.config(task__diversity='cosine(weight=0.5), contrastive')
  first, second = tiny.main.build(config, tmp_path)['task'].diversity
  assert first == tasks.diversity.Cosine(0.5)
  assert second == tasks.diversity.Contrastive(1.0)
