"""Placement on 8 fake devices: one step agrees with one device, and errors."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from vit_jax import metrics, models, optimizers, sharding, tasks, train
from vit_jax import state as states

CLASSES = 8


@pytest.fixture(scope='module')
def run():
  """A function of a Sharding (or None) → state and metrics of two steps."""
  # One block: every kind of parameter, the least to compile.
  model = models.build(
    'vit', patch_size=4, hidden_size=16, num_layers=1, num_heads=4, mlp_dim=32,
    num_classes=CLASSES, image_size=8,
  )  # fmt: skip
  task = tasks.build(
    'classification', num_classes=CLASSES, augment='mixup',
    class_weights=tuple(np.arange(1.0, 9.0).tolist()),
  )  # fmt: skip
  optimizer = optimizers.build(
    10, name='adamw(eps=1e-2)', learning_rate=1e-2, weight_decay=0.1, clip=1.0,
    ema=0.9,
  )  # fmt: skip
  rng = np.random.default_rng(0)
  batch = {
    'image': rng.uniform(-1, 1, (16, 8, 8, 3)).astype(np.float32),
    'label': rng.integers(0, CLASSES, 16),
    'weight': (np.arange(16) != 3).astype(np.float32),
  }
  shapes = jax.eval_shape(
    functools.partial(model.init, train=False),
    jax.random.key(0),
    jnp.zeros((1, 8, 8, 3)),
  )
  variables = jax.tree.map(
    lambda s: jnp.asarray(0.3 * rng.standard_normal(s.shape), s.dtype), shapes
  )

  def of(mesh):
    state = states.fresh(
      jax.tree.map(jnp.copy, variables), optimizer=optimizer
    )
    step = functools.partial(
      train.train_step, model=model, optimizer=optimizer
    )
    key = jax.random.key(0)
    if mesh is None:
      return *jax.jit(step)(state, task, batch, key), None
    placed = states.place(state, mesh)
    step = jax.jit(
      step,
      in_shardings=(placed, mesh.replicated, mesh.batch, mesh.replicated),
      out_shardings=(placed, mesh.replicated),
      donate_argnums=0,
    )
    state = jax.device_put(state, placed)
    return *step(state, task, sharding.put_batch(batch, mesh), key), placed

  return of


@pytest.fixture(scope='module')
def alone(run):
  return run(None)


def flat(tree):
  return {
    optimizers.path_of(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


BLOCK = 'Transformer/encoderblock_0'
ATTENTION = f'{BLOCK}/MultiHeadDotProductAttention_0'


@pytest.mark.parametrize(
  ('sizes', 'parts'),
  [
    # path → in how many parts it lies on the devices
    ((8, 1, 1), {}),
    (
      (1, 8, 1),
      {
        'cls': 8, 'embedding/kernel': 8, 'head/kernel': 8, 'head/bias': 8,
        f'{BLOCK}/MlpBlock_0/Dense_0/kernel': 8, f'{ATTENTION}/out/kernel': 8,
        f'{ATTENTION}/query/kernel': 8, f'{ATTENTION}/query/bias': 1,
      },
    ),
    (
      (2, 2, 2),
      {
        'head/kernel': 2, f'{ATTENTION}/query/kernel': 4,
        f'{ATTENTION}/query/bias': 2, f'{ATTENTION}/out/kernel': 4,
        f'{BLOCK}/MlpBlock_0/Dense_0/kernel': 4,
        f'{BLOCK}/MlpBlock_0/Dense_0/bias': 2,
        f'{BLOCK}/MlpBlock_0/Dense_1/kernel': 4,
      },
    ),
    (
      (2, 1, 4),
      {
        'head/kernel': 1, f'{ATTENTION}/query/kernel': 4,
        f'{ATTENTION}/out/kernel': 4, f'{BLOCK}/MlpBlock_0/Dense_1/kernel': 4,
        f'{BLOCK}/LayerNorm_0/scale': 1,
      },
    ),
  ],
  ids=['data', 'fsdp', 'all', 'tensor'],
)  # fmt: skip
def test_a_step_on_eight_devices_equals_one_device(run, alone, sizes, parts):
  expected, expected_metrics, _ = alone
  state, found, placed = run(sharding.build(*sizes))
  for name in ('params', 'ema', 'optimizer'):
    ours, theirs = (flat(getattr(s, name)) for s in (state, expected))
    assert set(ours) == set(theirs)
    for path, value in ours.items():
      np.testing.assert_allclose(
        value, theirs[path], rtol=1e-5, atol=1e-5, err_msg=path
      )
  for name, metric in metrics.to_host(found).items():
    assert metric.value() == pytest.approx(
      expected_metrics[name].value(), rel=1e-5
    )
  # What is split really takes less memory on each device.
  params = flat(state.params)
  averages, moments = flat(state.ema), flat(state.optimizer)
  for path, value in params.items():
    count = parts.get(path)
    (mu,) = [x for p, x in moments.items() if p.endswith(f'mu/{path}')]
    for array in (value, averages[path], mu):
      shards = array.addressable_shards
      assert len(shards) == 8
      each = {shard.data.nbytes for shard in shards}
      if count is not None:
        assert each == {array.nbytes // count}, path
      assert array.sharding.is_equivalent_to(value.sharding, array.ndim), path
  if not parts:
    assert all(x.is_fully_replicated for x in params.values())
  assert jax.tree.map(lambda x: x.sharding, state.params) == placed.params


def test_shards_of_a_parameter_hold_different_parts(run):
  mesh = sharding.build(1, 8, 1)
  value = np.arange(64.0).reshape(4, 16)
  at = mesh.parameters({'w': jax.ShapeDtypeStruct((4, 16), 'float32')})['w']
  array = jax.device_put(value, at)
  assert len({tuple(s.data.ravel().tolist()) for s in array.addressable_shards})
  assert at.spec == PartitionSpec(None, 'fsdp')
  np.testing.assert_array_equal(array, value)


def test_fsdp_splits_the_largest_axis_that_divides():
  mesh = sharding.build(2, 4, 1)
  specs = {
    (8, 12): PartitionSpec(None, 'fsdp'),
    (12, 8): PartitionSpec('fsdp'),
    (4, 9): PartitionSpec('fsdp'),
    (3, 5, 7): PartitionSpec(),
    (): PartitionSpec(),
  }
  for shape, expected in specs.items():
    leaf = jax.ShapeDtypeStruct(shape, 'float32')
    assert mesh.parameters({'w': leaf})['w'].spec == expected


def test_batches_are_split_over_data_and_fsdp():
  mesh = sharding.build(2, 2, 2)
  assert mesh.batch_devices == 4
  batch = {'x': np.arange(16.0).reshape(8, 2)}
  placed = sharding.put_batch(batch, mesh)['x']
  assert {s.data.shape for s in placed.addressable_shards} == {(2, 2)}
  np.testing.assert_array_equal(placed, batch['x'])


def test_a_users_rule_comes_first_and_the_first_match_wins():
  shapes = {
    'head': {'kernel': jax.ShapeDtypeStruct((16, 8), 'float32')},
    'MlpBlock_0': {
      'Dense_0': {'kernel': jax.ShapeDtypeStruct((16, 32), 'float32')}
    },
    'other': jax.ShapeDtypeStruct((8, 16), 'float32'),
  }
  mesh = sharding.build(
    2, 2, 2,
    rules=[
      ('^head', [None, ['fsdp', 'tensor']]),
      ('Dense_0/kernel', 'fsdp'),
      ('head|other', [None, None]),
    ],
  )  # fmt: skip
  found = {
    path: at.spec for path, at in flat(mesh.parameters(shapes)).items()
  }
  assert found == {
    'head/kernel': PartitionSpec(None, ('fsdp', 'tensor')),
    'MlpBlock_0/Dense_0/kernel': PartitionSpec(None, 'fsdp'),
    'other': PartitionSpec(None, None),
  }


def test_a_state_leaf_lies_with_its_parameter_only_if_shaped_like_it():
  mesh = sharding.build(1, 8, 1)
  leaf = jax.ShapeDtypeStruct((16, 8), 'float32')
  params = {'a': {'kernel': leaf}, 'b': {'kernel': leaf}}
  placed = mesh.parameters(params)
  placed['b']['kernel'] = mesh.replicated
  tree = {
    'mu': params,
    'v_row': {'a': {'kernel': jax.ShapeDtypeStruct((16,), 'float32')}},
    'count': jax.ShapeDtypeStruct((), 'int32'),
  }
  found = mesh.like(tree, params, placed)
  assert found['mu'] == placed
  assert found['v_row']['a']['kernel'] == found['count'] == mesh.replicated


@pytest.mark.parametrize(
  ('sizes', 'expected'),
  [
    ((-1, 1, 1), (8, 1, 1)),
    ((-1, 2, 1), (4, 2, 1)),
    ((2, -1, 2), (2, 2, 2)),
    ((1, 2, -1), (1, 2, 4)),
    ((-1, 8, 1), (1, 8, 1)),
  ],
)
def test_minus_one_takes_the_rest_of_the_devices(sizes, expected):
  mesh = sharding.build(*sizes).mesh
  assert tuple(mesh.shape.values()) == expected
  assert math.prod(expected) == jax.device_count()


@pytest.mark.parametrize(
  'sizes',
  [(3, 1, 1), (4, 1, 1), (-1, 3, 1), (-1, -1, 1), (0, 1, 1), (-1, 0, 1),
   (-2, 2, 2), (16, 1, 1), (-1, 16, 1)],
)  # fmt: skip
def test_axes_that_do_not_multiply_to_the_devices_are_an_error(sizes):
  data, fsdp, tensor = sizes
  message = (
    f'data={data}, fsdp={fsdp}, tensor={tensor} does not fit 8 devices: '
    'the product must be 8; one axis may be -1'
  )
  with pytest.raises(ValueError, match=message):
    sharding.build(*sizes)


SHAPES = {
  'head': {
    'kernel': jax.ShapeDtypeStruct((16, 10), 'float32'),
    'bias': jax.ShapeDtypeStruct((10,), 'float32'),
  }
}


@pytest.mark.parametrize(
  ('rule', 'message'),
  [
    (('haed', 'fsdp'), "'haed' matches no parameter; parameters: head/"),
    (('bias', (None, 'fsdp')), r'has 2 axes but head/bias has shape \(10,'),
    (('head', ('data',)), r'1 axes but head/kernel has shape \(16, 10\)'),
    (
      ('kernel', (None, 'fsdp')),
      r'splits head/kernel of shape \(16, 10\) .*10 is not divisible by 4',
    ),
  ],
)
def test_a_rule_that_does_not_fit_the_parameters_is_an_error(rule, message):
  mesh = sharding.build(2, 4, 1, rules=[rule])
  with pytest.raises(ValueError, match=message):
    mesh.parameters(SHAPES)


@pytest.mark.parametrize(
  ('rule', 'message'),
  [
    (('head', ('model', None)), "axis 'model'; choices: data, fsdp, tensor, N"),
    (('head', (('fsdp', 'heads'), None)), "'heads'; choices: data, fsdp"),
    (('head', (('data', 'fsdp'), 'data')), "the mesh axis 'data' twice"),
    (('head', 'tensor'), """'tensor': write "fsdp", or one of data, fsdp"""),
    (('head',), r"pair \(regex, axes or .*got \('head',\)"),
    (((), 'fsdp'), r'pair \(regex'),
    (('(', 'fsdp'), r"'\(' is not a regular expression"),
  ],
)
def test_a_malformed_rule_is_an_error(rule, message):
  with pytest.raises(ValueError, match=message):
    sharding.build(2, 4, 1, rules=[rule])


def test_heads_that_tensor_parallelism_cannot_split_are_an_error():
  shapes = {'query': {'kernel': jax.ShapeDtypeStruct((16, 3, 4), 'float32')}}
  with pytest.raises(ValueError, match='query/kernel.* 3 is not divisible'):
    sharding.build(-1, 1, 2).parameters(shapes)


@pytest.mark.parametrize(
  ('size', 'accumulate', 'near'),
  [(12, 1, 16), (13, 1, 16), (24, 2, 32), (0, 1, 8), (-8, 1, 8), (4, 1, 8)],
)
def test_a_batch_that_devices_do_not_divide_is_an_error(size, accumulate, near):
  mesh = sharding.build(4, 2, 1)
  with pytest.raises(
    ValueError,
    match=f'batch_size={size} is not divisible by {8 * accumulate} '
    f'.*8 devices .*{accumulate} micro.*nearest size that is: {near}$',
  ):
    mesh.check_batch(size, accumulate)


def test_a_batch_that_devices_divide_is_accepted():
  mesh = sharding.build(2, 2, 2)
  mesh.check_batch(4)
  mesh.check_batch(24, 3)
