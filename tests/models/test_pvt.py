"""PVT and PVTv2: their odd parts by loops, starts, sizes, errors."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from models.table import TINY
from pretrained import jitter
from scipy import special

from vit_jax import attention, models
from vit_jax.attention.depthwise import DepthwiseConv
from vit_jax.attention.strides import TileConv
from vit_jax.models import pvt_v2
from vit_jax.pretrained import families
from vit_jax.pretrained.adapt import adapt


def normal(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def drawn(module, *args, seed=1):
  """Jittered variables, without compiling the module's initialisers."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda s: jnp.asarray(0.3 * rng.standard_normal(s.shape), s.dtype),
    jax.eval_shape(module.init, jax.random.key(0), *args),
  )


def build(label, **fields):
  return models.build(
    label.split()[0], **{**TINY[label], 'num_classes': 3, **fields}
  )


def wide(tree):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def norm(x, p, epsilon):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)
  return x * p['scale'] + p['bias']


def dense(x, p):
  axes = 2 if p['kernel'].ndim == 3 and p['bias'].ndim == 1 else 1
  return np.tensordot(x, p['kernel'], axes) + p['bias']


def windows(x, size, stride, padding):
  """(row, column, window) of every output cell of one map [Y X C]."""
  x = np.pad(x, [padding, padding, (0, 0)])
  rows, columns = ((n - size) // stride + 1 for n in x.shape[:2])
  for r, c in np.ndindex(rows, columns):
    y, u = r * stride, c * stride
    yield r, c, x[y : y + size, u : u + size]


def gather(found):
  found = {(r, c): value for r, c, value in found}
  return np.stack([
    np.stack([value for (r, _), value in found.items() if r == row])
    for row in range(1 + max(r for r, _ in found))
  ])  # fmt: skip


@pytest.mark.parametrize(('size', 'stride', 'pad'), [(3, 1, 1), (5, 2, 2)])
def test_a_depthwise_convolution_is_linens_and_its_definition(
  size, stride, pad
):
  x, around = normal(1, 7, 6, 4), ((pad, pad), (pad, pad))
  layer = DepthwiseConv((size,) * 2, (stride,) * 2, around)
  linen = nn.Conv(
    4, (size,) * 2, (stride,) * 2, around, feature_group_count=4
  )
  variables = drawn(layer, x)
  p = wide(variables['params'])
  expected = p['bias'] + gather(
    (r, c, np.einsum('yxc,yxc->c', part, p['kernel'][:, :, 0]))
    for r, c, part in windows(wide(x)[0], size, stride, (pad, pad))
  )
  for module in (layer, linen):
    found = jax.jit(module.apply)(variables, x)
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
  half = layer.clone(dtype='bfloat16').apply(variables, x)
  assert half.dtype == jnp.bfloat16
  # One rounding of each input and of the sum: nothing is summed in bfloat16.
  np.testing.assert_allclose(
    half[0].astype(jnp.float32), expected, atol=0.03
  )


@pytest.mark.parametrize(('size', 'stride', 'pad'), [(3, 1, 1), (5, 2, 2)])
def test_gradients_of_a_depthwise_convolution_are_linens(size, stride, pad):
  x, around = normal(2, 7, 6, 4), ((pad, pad), (pad, pad))
  layer = DepthwiseConv((size,) * 2, (stride,) * 2, around)
  linen = nn.Conv(
    4, (size,) * 2, (stride,) * 2, around, feature_group_count=4
  )
  variables = drawn(layer, x)
  found, expected = (
    jax.jit(jax.grad(
      lambda v, x, m=module: jnp.square(m.apply(v, x)).sum(), argnums=(0, 1)
    ))(variables, x)
    for module in (layer, linen)
  )  # fmt: skip
  for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


def test_a_convolution_of_tiles_is_its_definition_and_leaves_rests_out():
  x = normal(1, 7, 6, 4)
  layer = TileConv(5, (3, 2), ((0, -1), (0, 0)))
  variables = drawn(layer, x)
  p = wide(variables['params'])
  expected = np.stack([
    np.stack([
      np.einsum('yxc,yxco->o', tile, p['kernel']) + p['bias']
      for tile in np.split(row, 3, axis=1)
    ])
    for row in np.split(wide(x)[0][:6], 2, axis=0)
  ])  # fmt: skip
  found = jax.jit(layer.apply)(variables, x)
  np.testing.assert_allclose(found[0], expected, atol=1e-5)


def attended(x, keys, p, heads):
  """Softmax attention of tokens [N C] to keys [M C], projections included."""
  q, k, v = (
    dense(tokens, p[part])
    for tokens, part in ((x, 'query'), (keys, 'key'), (keys, 'value'))
  )
  logits = np.einsum('nhd,mhd->hnm', q, k) / np.sqrt(x.shape[1] / heads)
  weights = special.softmax(logits, axis=-1)
  return dense(np.einsum('hnm,mhd->nhd', weights, v), p['out'])


# A ratio of 3 leaves out row 6 and column 9; 7 cells cover 5 rows, some twice.
@pytest.mark.parametrize(
  ('grid', 'fields'), [((7, 10), {'ratio': 3}), ((5, 9), {'pool': 7})]
)
def test_reduction_as_code_leaves_rests_out_and_stretches_small_grids(
  grid, fields
):
  layer = attention.MIXERS['spatial_reduction'](
    num_heads=2, grid=grid, as_code=True, reduce_epsilon=0.1, **fields
  )
  x = normal(1, grid[0] * grid[1], 8)
  variables = drawn(layer, x)
  p, flat = wide(variables['params']), wide(x)[0]
  cells = flat.reshape(*grid, 8)
  if 'ratio' in fields:
    made = gather(
      (r, c, np.einsum('yxc,yxco->o', part, p['reduce']['kernel']))
      for r, c, part in windows(cells, 3, 3, (0, 0))
    ) + p['reduce']['bias']
    made = norm(made, p['reduce_ln'], 0.1)
  else:
    spans = [
      [slice(i * n // 7, -(-(i + 1) * n // 7)) for i in range(7)] for n in grid
    ]
    made = np.stack([
      np.stack([cells[rows, columns].mean((0, 1)) for columns in spans[1]])
      for rows in spans[0]
    ])  # fmt: skip
    made = norm(dense(made, p['reduce']), p['reduce_ln'], 0.1)
    made = made * (1 + special.erf(made / np.sqrt(2))) / 2
  found = jax.jit(layer.apply)(variables, x)
  expected = attended(flat, made.reshape(-1, 8), p, 2)
  np.testing.assert_allclose(found[0], expected, atol=1e-5)


@pytest.mark.parametrize('relu', [False, True])
def test_the_mlp_convolves_between_its_layers(relu):
  layer, x = pvt_v2.ConvMlp(6, (3, 4), relu), normal(1, 12, 4)
  variables = drawn(layer, x)
  p = wide(variables['params'])
  y = dense(wide(x)[0], p['Dense_0']).reshape(3, 4, 6)
  y = np.maximum(y, 0) if relu else y
  y = p['depthwise']['bias'] + gather(
    (r, c, np.einsum('yxc,yxc->c', part, p['depthwise']['kernel'][:, :, 0]))
    for r, c, part in windows(y, 3, 1, (1, 1))
  )
  y = y * (1 + special.erf(y / np.sqrt(2))) / 2
  expected = dense(y.reshape(12, 6), p['Dense_1'])
  found = jax.jit(layer.apply)(variables, x)
  np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_images_of_another_size_resize_the_tables_of_all_stages():
  model, images = build('pvt'), normal(2, 16, 24, 3)
  other = model.clone(image_size=(16, 24))
  variables = drawn(model, images[:, :, :16])
  changed = adapt(variables, model, other, 3)
  assert changed['params']['stage_1']['posembed_input'][
    'pos_embedding'
  ].shape == (1, 1 + 2 * 3, 16)
  np.testing.assert_allclose(
    jax.jit(model.apply)(variables, images),
    jax.jit(other.apply)(changed, images),
    atol=1e-6,
  )


def deviation(name, path, shape):
  """The standard deviation with which the authors' code starts a parameter."""
  cells = int(np.prod(shape[:-2]))
  if 'depthwise' in path:
    return (2 / cells) ** 0.5
  if len(shape) < 4 and not (name == 'pvt_v2' and 'reduce' in path):
    return 0.02
  if name == 'pvt_v2':
    return (2 / (cells * shape[-1])) ** 0.5
  return (3 * cells * shape[-2]) ** -0.5  # PyTorch's


@pytest.mark.parametrize(
  ('label', 'names'),
  [
    ('pvt', ('reduce/kernel', 'key/kernel', 'pos_embedding', 'cls')),
    ('pvt_v2', ('reduce/kernel', 'depthwise/kernel', 'Dense_1/kernel')),
    ('cvt', ('query_conv/kernel', 'query/kernel', 'cls')),
  ],
)
def test_parameters_start_as_in_the_authors_code(label, names):
  model = build(label, hidden_sizes=(48, 160), num_classes=40)
  names = (*names, 'projection/kernel', 'head/kernel')

  @jax.jit
  def draw(key):
    flat = traverse_util.flatten_dict(
      model.init(key, jnp.zeros((1, 16, 16, 3)))['params'], sep='/'
    )
    return {k: x for k, x in flat.items() if k.endswith(names)}

  found = draw(jax.random.key(0))
  assert all(any(k.endswith(name) for k in found) for name in names)
  for path, x in found.items():
    spread, x = deviation(label, path, x.shape), np.asarray(x)
    np.testing.assert_allclose(
      x.std(), spread, rtol=4 / x.size**0.5, err_msg=path
    )
    most = np.abs(x).max() / spread
    if spread == 0.02:
      assert most < 2 / 0.8796 + 1e-4, path  # truncated at two deviations
    elif label == 'pvt_v2':
      assert most > 2.3, path  # not truncated
    else:
      assert most <= 3**0.5 + 1e-4, path  # uniform


def test_drop_path_grows_over_all_blocks_but_in_cvt_over_the_last_stage():
  rates = lambda name, depths: np.concatenate(  # noqa: E731
    build(name, depths=depths, drop_path_rate=0.3).drop_path_rates()
  )
  for name in ('pvt', 'pvt_v2'):
    np.testing.assert_allclose(rates(name, (2, 2)), [0, 0.1, 0.2, 0.3])
  np.testing.assert_allclose(rates('cvt', (2, 3)), [0, 0, 0, 0.15, 0.3])


def parameters(model, side=16):
  images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  tree = jax.eval_shape(model.init, jax.random.key(0), images)['params']
  return traverse_util.flatten_dict(tree, sep='/')


@pytest.mark.parametrize('label', ['pvt', 'pvt_v2', 'cvt'])
@pytest.mark.parametrize('spec', ['linear', 'window(size=2)', 'fnet'])
def test_blocks_take_any_attention_on_their_grid(label, spec):
  found = parameters(build(label, attention=spec))
  own = ('reduce', 'query_conv', 'query_norm')
  assert not [name for name in found if any(part in name for part in own)]


def test_specs_take_turns_in_every_stage():
  found = parameters(
    build('cvt', depths=(2, 2), attention='conv_projection, linear')
  )
  layers = {
    name.split('/Multi')[0] for name in found if 'query_conv' in name
  }
  assert layers == {'stage_0/block_0', 'stage_1/block_0'}


@pytest.mark.parametrize(
  ('label', 'fields', 'size', 'words'),
  [
    ('pvt', {'num_heads': (2,)}, 16, r'num_heads=\(2,\) has 1 entries for 2'),
    ('pvt', {'reductions': (8, 4, 2)}, 16, 'reductions=.* 3 entries for 2'),
    ('pvt', {'feature_layers': (2,)}, 16, 'no stage 2: .* 0 to 1'),
    ('pvt', {}, 20, '20×20 .*patches of 8×8; the nearest .* 16×16'),
    ('pvt', {'image_size': 20}, 16, '20×20 .*patches of 8×8'),
    ('pvt', {'attention': 'spatial_reducton'}, 16, "n 'spatial_reduction'"),
    ('pvt_v2', {'patch_strides': (4,)}, 16, 'patch_strides=.* 1 entries'),
    ('pvt_v2', {'reductions': (8, 1)}, 16, '4×4 tokens has no whole .* 8×8'),
    ('cvt', {}, 2, '2×2 is smaller than the least .* 7×7 takes, 3×3'),
    ('cvt', {'key_strides': (2,)}, 16, 'key_strides=.* 1 entries'),
  ],
)  # fmt: skip
def test_a_bad_field_or_size_is_an_error_that_says_what_fits(
  label, fields, size, words
):
  with pytest.raises(ValueError, match=words):
    parameters(build(label, **fields), size)


# Folders.


@pytest.mark.parametrize(
  ('kind', 'said', 'words'),
  [
    ('pvt', {'depths': 3}, 'depths=3 must be a list of numbers'),
    ('pvt', {'num_encoder_blocks': 3}, 'num_encoder_blocks=3 is not read'),
    ('pvt', {'patch_sizes': [4, 2, 2, 4]}, r'choices: \[4, 2, 2, 2\]'),
    ('pvt', {'strides': [7, 3, 3, 3]}, r'strides=\[7, 3, 3, 3\] is not'),
    ('pvt', {'hidden_act': 'relu'}, "'relu' is not read; .*'quick_gelu'"),
    ('pvt', {'mlp_ratios': [8, 8, 4]}, '4 positive numbers'),
    ('pvt', {'layer_norm_eps': 0}, 'layer_norm_eps=0 must be'),
    ('pvt', {'image_size': [32, 64]}, r'image_size=\[32, 64\]'),
    ('pvt', {'drop_path_rate': 1}, 'drop_path_rate=1 must be'),
    ('pvt_v2', {'sr_ratios': [8, 4, 2, 0]}, 'sr_ratios=0'),
    ('pvt_v2', {'linear_attention': 1}, 'linear_attention=1 is not read'),
    ('cvt', {'patch_padding': [3, 1, 1]}, r'choices: \[2, 1, 1\]'),
    ('cvt', {'stride_q': [1, 1, 2]}, 'stride_q'),
    ('cvt', {'stride_kv': [3, 2, 2]}, 'odd, with strides of 1 or 2'),
    ('cvt', {'cls_token': [True] * 3}, 'cls_token'),
    ('cvt', {'qkv_projection_method': ['avg'] * 3}, "'avg'"),
    ('cvt', {'drop_path_rate': 0.1}, 'must be a list of 3 numbers'),
  ],
)
def test_what_a_config_cannot_say_is_refused(kind, said, words):
  with pytest.raises(ValueError, match=words):
    families.HUGGINGFACE[kind].read('folder', said, {})


def test_every_gelu_of_transformers_is_read():
  for act, form in (('quick_gelu', 'quick'), ('gelu_new', 'tanh')):
    fields, _ = families.HUGGINGFACE['pvt'].read(
      'folder', {'hidden_act': act}, {}
    )
    assert fields['gelu'] == form


@pytest.mark.parametrize(
  ('said', 'words'),
  [
    ({'depths': [1, 2]}, r'depths is \[1, 2\], by its arrays \[1, 1\]'),
    ({'linear': True}, 'linear is True, by its arrays False'),
    ({'mlp_ratios': [2, 3]}, 'mlp_ratio=3 of a width of 16'),
    ({'num_heads': [1, 2, 4]}, 'num_heads=.* must be a list of 2'),
    ({'global_pool': ''}, "global_pool='' in model_args"),
    ({'img_size': 64}, 'img_size=64 in model_args is not known'),
  ],
)
def test_what_a_timm_folder_cannot_say_is_refused(said, words):
  golden = jitter.golden('family_timm_pvt_v2')
  args = {**golden['config']['model_args'], **said}
  args.pop('num_classes', None)
  with pytest.raises(ValueError, match=words):
    families.TIMM['pvt_v2'].read(
      'folder', 'pvt_v2_b0', args, (64, 64), jitter.arrays(golden['layout'])
    )
