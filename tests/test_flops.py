"""FLOPs counted from a jaxpr are those of the formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import flops, models


def shaped(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def counted(model, size=32, batch=2):
  image = shaped(batch, size, size, 3)
  variables = jax.eval_shape(
    functools.partial(model.init, train=False), jax.random.key(0), image
  )
  return flops.count(
    functools.partial(model.apply, train=False), variables, image
  )


def vit(**fields):
  return models.build(
    'vit', num_classes=10, patch_size=8, hidden_size=24, num_layers=3,
    num_heads=2, mlp_dim=56, image_size=32, **fields,
  )  # fmt: skip


def test_vit_is_its_projections_and_products():
  b, n, c, mlp, blocks = 2, 17, 24, 56, 3
  embed = 16 * (8 * 8 * 3) * c
  projections = 4 * n * c * c
  products = 2 * n * n * c  # Q Kᵀ and the weights times V, all heads
  block = projections + products + 2 * n * c * mlp
  head = c * 10
  assert counted(vit()) == 2 * b * (embed + blocks * block + head)


def test_rematerialisation_leaves_the_forward_pass_as_it_is():
  assert counted(vit(remat=True)) == counted(vit())


def test_gradient_is_about_twice_the_forward_pass():
  w, x = shaped(32, 64), shaped(8, 32)
  forward = 2 * 8 * 32 * 64
  loss = lambda w, x: jnp.sum(jnp.tanh(x @ w))  # noqa: E731
  assert flops.count(loss, w, x) == forward
  assert flops.count(jax.grad(loss), w, x) == 2 * forward
  assert flops.count(jax.grad(loss, (0, 1)), w, x) == 3 * forward


def test_rematerialised_gradient_counts_the_recomputation():
  w, x = shaped(16, 16), shaped(4, 16)
  each = 2 * 4 * 16 * 16

  def loss(w, x):
    return jnp.sum(jnp.tanh(jnp.tanh(x @ w) @ w))

  plain = flops.count(jax.grad(loss), w, x)
  again = flops.count(jax.grad(jax.checkpoint(loss)), w, x)
  assert plain == 5 * each
  assert again > plain


def test_scan_multiplies_its_body_and_nests():
  x = shaped(8, 8)

  def body(carry, _):
    inner = jax.lax.scan(lambda c, _: (c @ c, None), carry, None, length=3)
    return inner[0], None

  fn = lambda x: jax.lax.scan(body, x, None, length=5)[0]  # noqa: E731
  assert flops.count(fn, x) == 15 * 2 * 8**3


def test_map_and_fori_loop_of_known_length_multiply_too():
  x = shaped(6, 8, 8)
  assert flops.count(lambda x: jax.lax.map(lambda a: a @ a, x), x) == (
    6 * 2 * 8**3
  )
  fori = lambda a: jax.lax.fori_loop(0, 4, lambda _, a: a @ a, a)  # noqa: E731
  assert flops.count(fori, shaped(8, 8)) == 4 * 2 * 8**3


def test_while_counts_once():
  fn = lambda x: jax.lax.while_loop(  # noqa: E731
    lambda a: a[0, 0] < 1, lambda a: a @ a, x
  )
  assert flops.count(fn, shaped(8, 8)) == 2 * 8**3


def test_cond_is_its_most_expensive_branch():
  def fn(x):
    return jax.lax.cond(x[0, 0] > 0, lambda a: a @ a @ a, lambda a: a @ a, x)

  assert flops.count(fn, shaped(8, 8)) == 2 * 2 * 8**3


def test_jit_custom_derivatives_and_vmap_are_seen_through():
  @jax.custom_vjp
  def product(a):
    return a @ a

  product.defvjp(lambda a: (a @ a, a), lambda a, g: (g @ a.T,))
  x = shaped(8, 8)
  assert flops.count(jax.jit(product), x) == 2 * 8**3
  grad = jax.grad(lambda a: product(a).sum())
  assert flops.count(grad, x) == 2 * 2 * 8**3
  assert flops.count(jax.vmap(product), shaped(5, 8, 8)) == 5 * 2 * 8**3


@pytest.mark.parametrize('groups', [1, 2, 8])
def test_convolution_is_kernel_times_positions(groups):
  x, kernel = shaped(2, 12, 12, 8), shaped(3, 3, 8 // groups, 16)

  def fn(x, kernel):
    return jax.lax.conv_general_dilated(
      x, kernel, (2, 2), 'VALID', feature_group_count=groups,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )  # fmt: skip

  positions = 2 * 5 * 5
  assert flops.count(fn, x, kernel) == (
    2 * positions * 16 * 3 * 3 * 8 // groups
  )


def test_convolution_gradients_count_as_the_convolution_does():
  x, kernel = shaped(2, 12, 12, 8), shaped(3, 3, 8, 16)

  def fn(x, kernel):
    return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    ).sum()

  forward = flops.count(fn, x, kernel)
  assert flops.count(jax.grad(fn, (0, 1)), x, kernel) == 3 * forward


def test_transposed_convolution_does_not_count_the_zeros_between_pixels():
  x, kernel = shaped(2, 6, 6, 8), shaped(2, 2, 8, 16)

  def fn(x, kernel):
    return jax.lax.conv_transpose(x, kernel, (2, 2), 'VALID')

  # Each input pixel meets each kernel element once.
  assert flops.count(fn, x, kernel) == 2 * (2 * 6 * 6) * (2 * 2 * 8 * 16)


def test_fft_is_five_n_log_n_and_half_of_it_for_real_numbers():
  x = jnp.zeros((3, 8, 16))
  whole = 5.0 * 3 * 8 * 16 * 7
  assert flops.count(lambda x: jnp.fft.fft2(x).real, x) == whole
  assert flops.count(jnp.fft.rfft2, x) == whole / 2
  half = jnp.fft.rfft2(x)
  assert flops.count(jnp.fft.irfft2, half) == whole / 2


def test_sharded_body_counts_for_all_devices():
  mesh = jax.make_mesh(
    (4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  spec = jax.sharding.PartitionSpec('data')
  fn = jax.shard_map(
    lambda x: x @ x.swapaxes(1, 2), mesh=mesh, in_specs=spec, out_specs=spec
  )
  assert flops.count(fn, shaped(8, 5, 5)) == 8 * 2 * 5**3


def test_cudnn_attention_counts_as_its_two_products(monkeypatch):
  # Tracing it needs no GPU, only the belief that there is a cuDNN.
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  monkeypatch.setattr(cudnn, 'check_cudnn_version', lambda: 91000)
  b, n, m, h, d = 2, 16, 32, 3, 8
  half = lambda *s: jax.ShapeDtypeStruct(s, jnp.bfloat16)  # noqa: E731

  def fn(q, k, v):
    return jax.nn.dot_product_attention(q, k, v, implementation='cudnn').sum()

  arrays = half(b, n, h, d), half(b, m, h, d), half(b, m, h, d)
  products = 2 * 2 * b * h * n * m * d
  assert flops.count(fn, *arrays) == products
  assert flops.count(jax.grad(fn, (0, 1, 2)), *arrays) == 3 * products


def test_measured_peak_is_a_speed_and_unknown_devices_are_measured():
  found = flops.measured_peak(size=64)
  assert np.isfinite(found)
  assert found > 0
  assert flops.peak('float32') > 0
