"""ViT against float64 NumPy, the original's parameter tree, and its options."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from scipy import ndimage, special

from vit_jax import attention, models
from vit_jax.attention import positions as inside
from vit_jax.models import positions, vit

TINY = {
  'patch_size': 4,
  'hidden_size': 16,
  'num_layers': 2,
  'num_heads': 2,
  'mlp_dim': 24,
  'image_size': (8, 12),  # rectangular: rows and columns are told apart
  'num_classes': 5,
}


def build(**fields):
  return models.build('vit', **{**TINY, **fields})


def shapes_of(model, images):
  init = functools.partial(model.init, train=False)
  return jax.eval_shape(init, jax.random.key(0), images)


def random_variables(model, images, seed=0, scale=0.3):
  """Jittered variables, without compiling the model's initialisers."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda s: jnp.asarray(scale * rng.standard_normal(s.shape), s.dtype),
    shapes_of(model, images),
  )


def random_images(*shape, seed=1):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.uniform(-1, 1, shape), jnp.float32)


def forward(model, **fixed):
  return jax.jit(functools.partial(model.apply, **{'train': False, **fixed}))


# The whole model once more, in float64 and one image at a time.


def norm(x, p, epsilon):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)
  return x * p['scale'] + p.get('bias', 0)


def dense(x, p):
  return x @ p['kernel'] + p['bias']


def gelu(x, form):
  if form == 'exact':
    return 0.5 * x * (1 + special.erf(x / np.sqrt(2)))
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def mlp(x, p, model):
  return dense(gelu(dense(x, p['Dense_0']), model.gelu), p['Dense_1'])


def attend(queries, keys, p, model):
  heads = []
  for h in range(model.num_heads):
    q, k, v = (
      x @ p[name]['kernel'][:, h] + (
        p[name]['bias'][h] if 'bias' in p[name] else 0
      )
      for name, x in (('query', queries), ('key', keys), ('value', keys))
    )  # fmt: skip
    if 'query_ln' in p:
      q = norm(q, p['query_ln'], model.epsilon)
      k = norm(k, p['key_ln'], model.epsilon)
    weights = special.softmax(q @ k.T / np.sqrt(q.shape[-1]), axis=-1)
    heads.append(weights @ v @ p['out']['kernel'][h])
  return sum(heads) + p['out']['bias']


def block(x, p, model):
  def scale(y, index):
    if model.layer_scale is None:
      return y
    return y * p[f'LayerScale_{index}']['scale']

  branches = (
    lambda y: attend(y, y, p['MultiHeadDotProductAttention_0'], model),
    lambda y: mlp(y, p['MlpBlock_0'], model),
  )
  for i, branch in enumerate(branches):
    normed = functools.partial(
      norm, p=p[f'LayerNorm_{i}'], epsilon=model.epsilon
    )
    if model.norm_placement == 'pre':
      x = x + scale(branch(normed(x)), i)
    else:
      x = normed(x + scale(branch(x), i))
  return x


def convolve(x, p, grid, first):
  """Each patch and its neighbours, weighed channel by channel."""
  out = x.copy()
  for r, c in np.ndindex(*grid):
    at = first + r * grid[1] + c
    out[at] += p['bias']
    for i, j in np.ndindex(3, 3):
      s, t = r + i - 1, c + j - 1
      if 0 <= s < grid[0] and 0 <= t < grid[1]:
        out[at] += p['kernel'][i, j, 0] * x[first + s * grid[1] + t]
  return out


def reference(model, params, image):
  p, size = params, model.patch_size
  rows, columns = image.shape[0] // size, image.shape[1] // size
  tokens = np.stack([
    np.einsum(
      'yxc,yxcf->f',
      image[r * size : (r + 1) * size, c * size : (c + 1) * size],
      p['embedding']['kernel'],
    )
    + p['embedding']['bias']
    for r in range(rows)
    for c in range(columns)
  ])
  prefix = np.concatenate([
    p[name][0] for name in ('cls', 'register') if name in p
  ] or [np.zeros((0, model.hidden_size))])  # fmt: skip
  if 'learned' in model.position:
    table = p['Transformer']['posembed_input']['pos_embedding'][0]
    old = tuple(s // size for s in model.image_size)
    first = len(table) - old[0] * old[1]
    assert first == (
      int('cls' in p) if model.prefix_positions is None
      else model.prefix_positions
    )  # fmt: skip
    grid = table[first:].reshape(*old, -1)
    if model.position_resize == 'bicubic':
      shape = (rows, columns, grid.shape[-1])
      grid = np.asarray(jax.image.resize(jnp.asarray(grid), shape, 'bicubic'))
    else:
      grid = ndimage.zoom(grid, (rows / old[0], columns / old[1], 1), order=1)
    tokens = tokens + grid.reshape(rows * columns, -1)
    prefix[:first] += table[:first]
  elif model.position == 'sincos1d':
    width = model.hidden_size
    for n in range(rows * columns):
      for i in range(width):  # Vaswani et al. 2017, section 3.5
        angle = n / 10000 ** (2 * (i // 2) / width)
        tokens[n, i] += np.cos(angle) if i % 2 else np.sin(angle)
  elif model.position == 'sincos2d':
    count = model.hidden_size // 4
    for r in range(rows):
      for c in range(columns):
        for i in range(count):
          rate = 1e4 ** (-i / (count - 1))
          tokens[r * columns + c] += [
            f(at * rate) if j == i else 0
            for f, at in (
              (np.sin, c), (np.cos, c), (np.sin, r), (np.cos, r),
            )
            for j in range(count)
          ]  # fmt: skip
  x = np.concatenate([prefix, tokens])
  for i in range(model.num_layers):
    x = block(x, p['Transformer'][f'encoderblock_{i}'], model)
    if f'conditional_{i}' in p['Transformer']:
      x = convolve(
        x, p['Transformer'][f'conditional_{i}'], (rows, columns), len(prefix)
      )
  if not model.norm_after_pooling and model.norm_placement == 'pre':
    x = norm(x, p['Transformer']['encoder_norm'], model.epsilon)
  if model.classifier == 'token':
    x = x[0]
  elif model.classifier == 'gap':
    x = (x if model.pool_prefix else x[-rows * columns :]).mean(0)
  elif model.classifier == 'map':
    head = p['MAPHead_0']
    x = x if model.pool_prefix is not False else x[-rows * columns :]
    y = attend(
      head['probe'][0], x, head['MultiHeadDotProductAttention_0'], model
    )
    x = (y + mlp(
      norm(y, head['LayerNorm_0'], model.epsilon), head['MlpBlock_0'], model
    ))[0]  # fmt: skip
  if model.norm_after_pooling:
    x = norm(x, p['fc_norm'], model.epsilon)
  if model.representation_size is not None:
    x = np.tanh(dense(x, p['pre_logits']))
  return dense(x, p['head'])


@pytest.mark.parametrize(
  'fields',
  [
    {},
    {'classifier': 'gap', 'gelu': 'exact', 'num_registers': 2},
    {
      'classifier': 'map', 'epsilon': 0.1, 'qk_norm': True, 'gelu': 'exact',
      'num_registers': 1,
    },
    {'classifier': 'gap', 'num_registers': 1, 'pool_prefix': True},
    {'position': 'sincos2d', 'representation_size': 6, 'layer_scale': 0.1},
    {'classifier': 'unpooled', 'position': 'none', 'qkv_bias': False},
    {'norm_placement': 'post', 'position': 'sincos1d', 'layer_scale': 0.1},
    {'position': 'learned, conditional(count=2)', 'num_registers': 1},
    {
      'classifier': 'token_unpooled',
      'num_registers': 1,
      'image_size': (12, 16),
      'num_heads': 4,
    },
    {
      'classifier': 'gap', 'class_token': True, 'norm_after_pooling': True,
      'prefix_positions': 0, 'num_registers': 1,
    },
    {
      'classifier': 'map', 'class_token': True, 'num_registers': 2,
      'prefix_positions': 2, 'qk_norm': True, 'qk_norm_bias': True,
      'pool_prefix': False,
      'image_size': (12, 16), 'position_resize': 'bicubic',
    },
  ],
  ids=lambda fields: ' '.join(f'{k}={v}' for k, v in fields.items()) or 'plain',
)
def test_logits_equal_a_float64_numpy_implementation(fields):
  # Two cases also resize their position table: images are 8 × 12.
  model, images = build(**fields), random_images(2, 8, 12, 3)
  variables = random_variables(model, images)
  wide = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
  expected = [
    reference(model, wide['params'], np.asarray(image, np.float64))
    for image in images
  ]
  np.testing.assert_allclose(
    forward(model)(variables, images), expected, rtol=1e-5, atol=1e-5
  )


def test_parameter_names_and_shapes_are_the_original_ones():
  model = models.build(
    'vit', variant='B/16', num_classes=21843, representation_size=768
  )
  found = traverse_util.flatten_dict(
    shapes_of(model, jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))[
      'params'
    ],
    sep='/',
  )
  expected = {
    'cls': (1, 1, 768),
    'embedding/kernel': (16, 16, 3, 768),
    'embedding/bias': (768,),
    'Transformer/posembed_input/pos_embedding': (1, 197, 768),
    'Transformer/encoder_norm/scale': (768,),
    'Transformer/encoder_norm/bias': (768,),
    'pre_logits/kernel': (768, 768),
    'pre_logits/bias': (768,),
    'head/kernel': (768, 21843),
    'head/bias': (21843,),
  }
  for i in range(12):
    inside = {
      'LayerNorm_0/scale': (768,),
      'LayerNorm_0/bias': (768,),
      'LayerNorm_1/scale': (768,),
      'LayerNorm_1/bias': (768,),
      'MultiHeadDotProductAttention_0/out/kernel': (12, 64, 768),
      'MultiHeadDotProductAttention_0/out/bias': (768,),
      'MlpBlock_0/Dense_0/kernel': (768, 3072),
      'MlpBlock_0/Dense_0/bias': (3072,),
      'MlpBlock_0/Dense_1/kernel': (3072, 768),
      'MlpBlock_0/Dense_1/bias': (768,),
    }
    for name in ('query', 'key', 'value'):
      path = f'MultiHeadDotProductAttention_0/{name}'
      inside[f'{path}/kernel'] = (768, 12, 64)
      inside[f'{path}/bias'] = (12, 64)
    for path, shape in inside.items():
      expected[f'Transformer/encoderblock_{i}/{path}'] = shape
  assert {k: v.shape for k, v in found.items()} == expected


MHA = 'Transformer/encoderblock_{}/MultiHeadDotProductAttention_0/'


@pytest.mark.parametrize(
  ('fields', 'added', 'removed'),
  [
    ({'dropout_rate': 0.1, 'gelu': 'exact', 'remat': True}, {}, {}),
    ({'classifier': 'unpooled'}, {}, {'cls': (1, 1, 16)}),
    ({'num_registers': 3}, {'register': (1, 3, 16)}, {}),
    (
      {'qkv_bias': False}, {},
      {f'{MHA}{n}/bias': (2, 8) for n in ('query', 'key', 'value')},
    ),
    (
      {'qk_norm': True},
      {f'{MHA}{n}_ln/scale': (8,) for n in ('query', 'key')}, {},
    ),
    (
      {'qk_norm': True, 'qk_norm_bias': True},
      {f'{MHA}{n}_ln/{part}': (8,) for n in ('query', 'key')
       for part in ('scale', 'bias')}, {},
    ),
    (
      {'norm_after_pooling': True},
      {f'fc_norm/{n}': (16,) for n in ('scale', 'bias')},
      {f'Transformer/encoder_norm/{n}': (16,) for n in ('scale', 'bias')},
    ),
    ({'classifier': 'gap', 'class_token': True}, {}, {}),
    (
      {'prefix_positions': 0},
      {'Transformer/posembed_input/pos_embedding': (1, 6, 16)},
      {'Transformer/posembed_input/pos_embedding': (1, 7, 16)},
    ),
    (
      {'norm_placement': 'post'}, {},
      {f'Transformer/encoder_norm/{n}': (16,) for n in ('scale', 'bias')},
    ),
    (
      {'position': 'conditional(count=2), learned'},
      {f'Transformer/conditional_{i}/{n}': s for i in range(2)
       for n, s in (('kernel', (3, 3, 1, 16)), ('bias', (16,)))}, {},
    ),
    ({'initialization': 'truncated', 'position_resize': 'nearest'}, {}, {}),
    (
      {'layer_scale': 0.1},
      {f'Transformer/encoderblock_{{}}/LayerScale_{i}/scale': (16,)
       for i in (0, 1)}, {},
    ),
    (
      {'position': 'none'}, {},
      {'Transformer/posembed_input/pos_embedding': (1, 7, 16)},
    ),
    ({'num_classes': 0}, {}, {'head/kernel': (16, 5), 'head/bias': (5,)}),
  ],
  ids=str,
)  # fmt: skip
def test_an_option_adds_and_removes_exactly_its_parameters(
  fields, added, removed
):
  def shapes(**fields):
    images = jax.ShapeDtypeStruct((1, 8, 12, 3), jnp.float32)
    tree = shapes_of(build(**fields), images)['params']
    flat = traverse_util.flatten_dict(tree, sep='/')
    return {(path, leaf.shape) for path, leaf in flat.items()}

  in_all = lambda paths: {  # noqa: E731
    (path.format(i), shape) for path, shape in paths.items() for i in (0, 1)
  }
  plain, found = shapes(), shapes(**fields)
  table = {x for x in plain ^ found if 'pos_embedding' in x[0]}
  if fields.get('classifier'):  # the table has a row for the class token
    plain, found = plain - table, found - table
  assert found - plain == in_all(added)
  assert plain - found == in_all(removed)


def test_initial_values_are_the_original_ones():
  model = build(hidden_size=64, num_classes=9, head_bias=-2.5)

  @jax.jit
  def some(key):
    params = model.init(key, jnp.zeros((1, 8, 12, 3)), train=False)['params']
    inside = params['Transformer']['encoderblock_1']
    attention = inside['MultiHeadDotProductAttention_0']
    return (
      params['cls'],
      params['head'],
      params['Transformer']['posembed_input']['pos_embedding'],
      (attention['query'], inside['MlpBlock_0']['Dense_0']),
    )

  cls, head, table, drawn = some(jax.random.key(0))
  assert not np.any(cls)
  assert not np.any(head['kernel'])
  np.testing.assert_array_equal(head['bias'], -2.5)
  assert 0.018 < np.std(table) < 0.022
  for part, fans in zip(drawn, (64 + 64, 64 + 24), strict=True):
    bound = np.sqrt(6 / fans)  # Xavier uniform
    assert 0.95 * bound < np.abs(part['kernel']).max() <= bound
    assert np.abs(part['bias']).max() < 1e-5


@pytest.fixture(scope='module')
def trained():
  """The gradient of a model in training, with dropout."""
  model = build(attention_dropout_rate=0.3)
  images = random_images(2, 8, 12, 3)
  variables = random_variables(model, images)

  def of(model):
    return jax.jit(
      jax.value_and_grad(
        lambda variables: jnp.sum(
          model.apply(
            variables, images, train=True, rngs=jax.random.key(3)
          )
          ** 2
        )
      )
    )(variables)

  return model, of, of(model)


def test_rematerialisation_changes_neither_values_nor_gradients(trained):
  model, of, (value, gradient) = trained
  again, recomputed = of(model.clone(remat=True))
  np.testing.assert_allclose(value, again, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    gradient,
    recomputed,
  )


def test_rematerialisation_recomputes_the_blocks():
  images = jnp.zeros((1, 8, 12, 3))

  def jaxpr(model):
    variables = shapes_of(model, images)
    return str(
      jax.make_jaxpr(
        lambda v: model.apply(v, images, train=True).sum(),
      )(variables)
    )

  assert jaxpr(build(remat=True)).count('remat2[') == 2
  assert 'remat2[' not in jaxpr(build())


@pytest.mark.parametrize(
  'name',
  [
    'dropout_rate', 'attention_dropout_rate', 'drop_path_rate',
    'patch_dropout_rate',
  ],
)  # fmt: skip
def test_every_dropout_is_random_in_training_only(name):
  model, images = build(**{name: 0.5}), random_images(2, 8, 12, 3)
  variables = random_variables(model, images)
  run = jax.jit(functools.partial(model.apply, train=True))
  first = run(variables, images, rngs=jax.random.key(1))
  again = run(variables, images, rngs=jax.random.key(1))
  other = run(variables, images, rngs=jax.random.key(2))
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).max() > 1e-3
  jaxpr = str(
    jax.make_jaxpr(functools.partial(model.apply, train=False))(
      variables, images
    )
  )
  assert 'random' not in jaxpr
  assert 'threefry' not in jaxpr


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    ({}, (0.0, 0.2, 0.4)),
    ({'drop_path_rule': 'uniform'}, (0.4,) * 3),
    ({'num_layers': 1}, (0.0,)),
  ],
)
def test_the_rates_of_the_blocks_follow_the_rule(fields, expected):
  model = build(**{'num_layers': 3, 'drop_path_rate': 0.4, **fields})
  found = []

  def watch(call, args, kwargs, context):
    block = isinstance(context.module, vit.Encoder1DBlock)
    if block and context.method_name == '__call__':
      found.append(context.module.drop_path_rate)
    return call(*args, **kwargs)

  with nn.intercept_methods(watch):
    shapes_of(model, jax.ShapeDtypeStruct((1, 8, 12, 3), 'float32'))
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_drop_path_grows_linearly_from_the_first_block_to_the_last():
  model = build(
    num_layers=3, drop_path_rate=0.8, feature_layers=(0, 1, 2), image_size=8
  )
  images = jnp.broadcast_to(random_images(1, 4, 4, 3), (2000, 4, 4, 3))
  variables = random_variables(model, images)
  maps = forward(model, train=True, method='features')(
    variables, images, rngs=jax.random.key(0)
  )
  zeroth, first, second = (np.asarray(m).reshape(2000, -1) for m in maps)
  assert np.ptp(zeroth, axis=0).max() < 1e-5  # rate 0: all images alike
  # A block leaves its input as it is where both of its branches are dropped.
  kept = lambda a, b: np.mean(np.abs(a - b).max(-1) < 1e-6)  # noqa: E731
  assert abs(kept(zeroth, first) - 0.4**2) < 0.03
  assert abs(kept(first, second) - 0.8**2) < 0.03


def test_patch_dropout_keeps_a_uniform_share_of_patches_in_order():
  encoder = vit.Encoder(
    num_layers=1, mlp_dim=4, num_heads=1, patch_dropout_rate=0.25
  )
  # One-hot tokens: 2 prefix tokens, 12 patches. With all parameters 0 but the
  # last norm's scale, the encoder only normalises: a token keeps its argmax.
  x = jnp.broadcast_to(jnp.eye(14)[None], (3000, 14, 14))
  shapes = jax.eval_shape(
    lambda k: encoder.init(k, x, (3, 4), 2), jax.random.key(0)
  )
  params = jax.tree.map(lambda s: jnp.zeros(s.shape), shapes)
  params['params']['encoder_norm']['scale'] = jnp.ones(14)
  out, _ = jax.jit(
    lambda key: encoder.apply(
      params, x, (3, 4), 2, train=True, rngs={'dropout': key}
    )
  )(jax.random.key(0))
  assert out.shape == (3000, 2 + 9, 14)
  kept = np.argmax(out, axis=-1)
  np.testing.assert_array_equal(
    kept[:, :2], np.broadcast_to([0, 1], (3000, 2))
  )
  patches = kept[:, 2:]
  assert (np.diff(patches, axis=1) > 0).all()  # in order, each at most once
  assert len(np.unique(patches, axis=0)) > 200  # of 220: by example
  share = np.bincount(patches.ravel(), minlength=14)[2:] / 3000
  np.testing.assert_allclose(share, 0.75, atol=0.04)


def test_features_equal_the_normalised_output_of_their_blocks():
  model = build(num_registers=1, feature_layers=(0, -1))
  images = random_images(2, 8, 12, 3)
  variables = random_variables(model, images)
  first, last = forward(model, method='features')(variables, images)

  @jax.jit
  def encoded(variables):
    tokens, grid = model.apply(variables, images, method='embed')
    return model.apply(variables, tokens, grid, method='encode')[0]

  out = encoded(variables)
  np.testing.assert_allclose(
    last, out[:, 2:].reshape(2, 2, 3, 16), atol=1e-6
  )
  # The first block's map is that of a model that ends there.
  shallow = model.clone(num_layers=1, feature_layers=(-1,))
  (only,) = forward(shallow, method='features')(variables, images)
  np.testing.assert_allclose(first, only, atol=1e-6)
  assert np.abs(first - last).max() > 0.1


def test_without_the_encoders_norm_features_are_the_blocks_raw_outputs():
  model = build(norm_after_pooling=True, classifier='gap')
  images = random_images(2, 8, 12, 3)
  variables = random_variables(model, images)
  (map_,) = forward(model, method='features')(variables, images)
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables['params'])
  pooled = norm(
    np.asarray(map_, np.float64).mean((1, 2)), p['fc_norm'], model.epsilon
  )
  np.testing.assert_allclose(
    forward(model)(variables, images), dense(pooled, p['head']), atol=1e-5
  )


def test_a_position_table_of_another_size_gets_gradients():
  model = build(image_size=(8, 8))
  images = random_images(1, 12, 8, 3)
  variables = random_variables(model, images)

  @jax.jit
  def gradient(variables):
    value = lambda v: model.apply(v, images)[0, 0]  # noqa: E731
    return jax.grad(value)(variables)['params']['Transformer'][
      'posembed_input'
    ]['pos_embedding']

  found = gradient(variables)
  assert found.shape == (1, 5, 16)
  assert (np.abs(found).max(-1) > 1e-5).all()


def test_a_fixed_position_has_no_parameters():
  for position in ('sincos2d', 'sincos1d', 'none'):
    shapes = shapes_of(
      build(position=position), jax.ShapeDtypeStruct((1, 8, 12, 3), 'float32')
    )
    assert 'posembed_input' not in shapes['params']['Transformer']


def test_without_positions_the_order_of_patches_does_not_matter():
  model, images = build(position='none'), random_images(2, 8, 12, 3)
  variables = random_variables(model, images)
  run = forward(model)
  swapped = jnp.concatenate([images[:, 4:], images[:, :4]], axis=1)
  np.testing.assert_allclose(
    run(variables, images), run(variables, swapped), atol=1e-5
  )


@pytest.mark.parametrize(
  ('position', 'added', 'expected'),
  [
    ('rotary', False, {}),
    ('none, rotary_mixed', False, {'frequencies': (2, 2, 4)}),
    ('learned, relative_bias', True, {'table': (3, 5, 2), 'prefix': (3, 2)}),
    ('sincos2d, alibi', False, {}),
    ('decomposed_bias', False, {'row': (3, 8), 'column': (5, 8)}),
    ('relative_keys', False, {'row': (33, 8), 'column': (33, 8)}),
    (
      'rotary(base=20), relative_bias', False,
      {'relative_bias/table': (3, 5, 2), 'relative_bias/prefix': (3, 2)},
    ),
  ],
)  # fmt: skip
def test_positions_inside_attention_are_parameters_of_every_layer(
  position, added, expected
):
  images = random_images(2, 8, 12, 3)
  model = build(position=position)
  tree = shapes_of(model, images)['params']['Transformer']
  assert ('posembed_input' in tree) == added
  for i in range(2):
    layer = tree[f'encoderblock_{i}']['MultiHeadDotProductAttention_0']
    found = traverse_util.flatten_dict(
      layer['position'] if expected else {}, sep='/'
    )
    assert expected or 'position' not in layer
    assert {k: v.shape for k, v in found.items()} == expected


@pytest.mark.parametrize('position', ['rotary', 'rotary_mixed', 'alibi'])
def test_positions_inside_attention_tell_the_order_of_patches(position):
  model, images = build(position=position), random_images(2, 8, 12, 3)
  variables = random_variables(model, images)
  run = forward(model)
  # No reflection of the grid, which distances do not tell.
  swapped = images[:, :, np.r_[4:8, :4, 8:12]]
  # Of two heads ALiBi's slopes are 1/16 and 1/256; rounding is below 1e-6.
  assert np.abs(run(variables, images) - run(variables, swapped)).max() > 5e-5
  # Another grid needs no other parameters.
  assert run(variables, random_images(2, 16, 8, 3)).shape == (2, 5)


WORDS = (*positions.POSITIONS, 'conditional', *inside.POSITIONS)
ONE_GRID = ('relative_bias', 'decomposed_bias')


@pytest.mark.parametrize('word', WORDS)
def test_every_position_takes_another_grid_or_says_what_to_do(word):
  model = build(position=word)
  image = lambda *s: jax.ShapeDtypeStruct((2, *s, 3), 'float32')  # noqa: E731
  variables = shapes_of(model, image(8, 12))
  if word in ONE_GRID:
    with pytest.raises(ValueError, match='to one grid.* with image_size=…'):
      jax.eval_shape(model.apply, variables, image(12, 8))
    return
  for size in ((12, 8), (4, 20)):
    assert jax.eval_shape(model.apply, variables, image(*size)).shape == (2, 5)


def test_a_bias_with_a_table_refuses_another_grid():
  model, images = build(position='relative_bias'), random_images(2, 8, 12, 3)
  variables = random_variables(model, images)
  with pytest.raises(ValueError, match=r"'table' of shape \(3, 5, 2\) and now"):
    forward(model)(variables, random_images(2, 12, 8, 3))


def test_rematerialised_blocks_take_positions_inside_attention():
  images = random_images(2, 8, 12, 3)
  model = build(position='rotary, alibi')
  variables = random_variables(model, images)
  np.testing.assert_allclose(
    forward(model)(variables, images),
    forward(model.clone(remat=True))(variables, images),
    atol=1e-5,
  )


def test_an_unregistered_attention_class_works_as_a_partial():
  class Mine(attention.Attention):
    """The mean of the values, whatever the queries."""

    @nn.compact
    def __call__(self, q, k, v, *, train=False):
      mean = v.mean(axis=1, keepdims=True)
      return jnp.broadcast_to(mean, (*q.shape[:3], v.shape[-1]))

  layer = functools.partial(
    attention.MultiHeadDotProductAttention, attend=Mine
  )
  model, images = build(attention=layer), random_images(2, 8, 12, 3)
  plain = build()
  variables = random_variables(plain, images)
  # One parameter tree for all attentions.
  assert jax.tree.structure(shapes_of(model, images)) == jax.tree.structure(
    shapes_of(plain, images)
  )
  # With keys of zero, softmax is the mean too.
  for i in range(2):
    layer = variables['params']['Transformer'][f'encoderblock_{i}']
    layer = layer['MultiHeadDotProductAttention_0']
    layer['key'] = jax.tree.map(jnp.zeros_like, layer['key'])
  np.testing.assert_allclose(
    forward(model)(variables, images),
    forward(plain)(variables, images),
    atol=1e-5,
  )


def test_each_layer_has_the_attention_of_its_spec():
  model = build(
    attention='softmax(causal=True), softmax', feature_layers=(0, 1)
  )
  images = random_images(2, 8, 12, 3)
  variables = random_variables(model, images)
  run = forward(model, method='features')
  maps = run(variables, images)
  changed = run(variables, images.at[:, 4:, 8:].add(1.0))  # the last patch
  # The first patch sees it in the second layer only.
  np.testing.assert_array_equal(maps[0][:, 0, 0], changed[0][:, 0, 0])
  assert np.abs(maps[1] - changed[1])[:, 0, 0].max(-1).min() > 1e-4


@pytest.mark.parametrize(
  ('fields', 'images', 'message'),
  [
    ({}, (1, 8, 14, 3), r'8×14 .*patches of 4×4; the nearest .* 8×16'),
    ({'image_size': 9}, (1, 8, 8, 3), r'9×9 .*patches of 4×4.* 8×8'),
    ({'classifier': 'tok'}, None, "'tok'; choices: token, gap, map"),
    ({'position': 'learnt'}, None, "'learnt'; choices: learned, sincos2d, sin"),
    ({'position': 'learned, sincos2d'}, None, 'inside attention: rotary'),
    ({'position': 'rotary(bas=3)'}, None, "no option 'bas'"),
    ({'position': 'conditional(size=5)'}, None, "'size'.*choices: count"),
    ({'position': 'conditional(count=0)'}, None, r'count=0\) must be 1, 2, 3'),
    ({'position': 'conditional(count=3)'}, None, 'there are 2 blocks'),
    ({'position': 'conditional, conditional'}, None, 'choices: learned'),
    ({'norm_placement': 'last'}, None, "'last'; choices: pre, post"),
    ({'drop_path_rule': 'flat'}, None, "'flat'; choices: linear, uniform"),
    (
      {'position': 'conditional', 'patch_dropout_rate': 0.5}, None,
      "leaves no grid for the positions 'conditional'",
    ),
    ({'position': ''}, None, "position=''; choices: learned"),
    (
      {'position': 'alibi', 'attention': 'linear'}, None,
      'Linear does not honour bias=; these do: .*Softmax',
    ),
    (
      {'position': 'rotary', 'attention': sorted(attention.MIXERS)[0]}, None,
      "is a whole layer .*position='rotary'",
    ),
    (
      {'position': 'rotary', 'patch_dropout_rate': 0.5}, None,
      "leaves no grid for the positions 'rotary'",
    ),
    ({'gelu': 'erf'}, None, "gelu='erf'; choices: tanh, exact"),
    (
      {'class_token': False}, None,
      "'token' needs the class token: .*True or None .it is False",
    ),
    (
      {'position_resize': 'cubic'}, None,
      "position_resize='cubic'; choices: align_corners, bicubic_torch, bil",
    ),
    ({'prefix_positions': 2}, None, r'prefix_positions=2 must be in \[0, 1\]'),
    ({'prefix_positions': -1}, None, r'positions=-1 must be in \[0, 1\]'),
    (
      {'prefix_positions': 1, 'position': 'sincos2d'}, None,
      "prefix_positions=1 needs a learned position; position='sincos2d'",
    ),
    (
      {'pool_prefix': True}, None,
      "pool_prefix=True needs classifier='gap' or 'map'; it is 'token'",
    ),
    ({'qk_norm_bias': True}, None, 'qk_norm_bias=True needs qk_norm=True'),
    (
      {'qk_norm': True, 'qk_norm_bias': True, 'attention': 'isab'}, None,
      'InducedSetAttention has no normalize_bias: qk_norm_bias=True',
    ),
    ({'initialization': 'xavier'}, None, "'xavier'; choices: original, trunc"),
    ({'resnet_convention': 'timm'}, None, "convention='timm' need resnet"),
    ({'num_heads': 3}, None, 'width 16 is not divisible by num_heads=3'),
    ({'attention': 'softmaxx'}, None, "'softmaxx'; did you mean 'softmax'"),
    ({'attention': 'softmax(size=3)'}, None, "no option 'size'.*causal"),
    ({'attention': 'softmax, softmax, softmax'}, None, '3 specs for 2 layers'),
    ({'attention': ''}, None, '0 specs for 2 layers; give 1 to 2'),
    ({'position': 'sincos2d', 'hidden_size': 18}, None, '12, 16, …; got 18'),
    ({'drop_path_rate': 1.0}, None, r'\[0, 1\); got 1.0'),
    ({'patch_dropout_rate': 1.0}, None, r'=1.0 is not in \[0, 1\)'),
  ],
)
def test_a_wrong_field_is_an_error_with_the_constraint(fields, images, message):
  model = build(**fields)
  images = jax.ShapeDtypeStruct(images or (1, 8, 12, 3), 'float32')
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(
      functools.partial(model.init, train=True), jax.random.key(0), images
    )


def test_features_refuse_a_missing_block_and_dropped_patches():
  images = jax.ShapeDtypeStruct((1, 8, 12, 3), 'float32')
  model = build(feature_layers=(2,))
  run = functools.partial(model.apply, method='features')
  with pytest.raises(ValueError, match='no block 2.*0 to 1, or -1 to -2'):
    jax.eval_shape(run, shapes_of(model, images), images)
  model = build(patch_dropout_rate=0.5)
  run = functools.partial(model.apply, method='features', train=True)
  with pytest.raises(ValueError, match=r'whole grid.*it is 0\.5'):
    jax.eval_shape(run, shapes_of(model, images), images)
