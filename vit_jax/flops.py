"""Floating-point operations: counted from a jaxpr, and what a device can do."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np

# Dense peak in FLOP/s without sparsity, from the makers' data sheets:
# (device kind contains, bfloat16, float32; on NVIDIA float32 is TF32's rate,
# which XLA's default precision uses).
PEAKS = (
  ('H200', 989e12, 494e12),
  ('H100', 989e12, 494e12),
  ('A100', 312e12, 156e12),
  ('L4', 121e12, 60e12),
  ('V100', 125e12, 15.7e12),
  ('T4', 65e12, 8.1e12),
  ('TPU v6', 918e12, 459e12),
  ('TPU v5 lite', 197e12, 98e12),
  ('TPU v5', 459e12, 229e12),
  ('TPU v4', 275e12, 137e12),
)  # fmt: skip


def count(fn: Callable, *args: Any, **kwargs: Any) -> float:
  """FLOPs of matrix products, convolutions and FFTs in `fn(*args)`, 2 a MAC.

  Walks the jaxpr, multiplying loop bodies by their length, which XLA's own cost
  analysis does not; `args` may be ShapeDtypeStructs. A `while` loop, whose
  length is unknown, counts once; zeros that pad a convolution's border count.
  A complex FFT of n numbers is 5 n log₂ n, as its benchmarks have it.
  """
  return _count(jax.make_jaxpr(fn)(*args, **kwargs).jaxpr)


def _count(jaxpr: Any) -> float:
  total = 0.0
  for eqn in jaxpr.eqns:
    total += _equation(eqn)
  return total


def _equation(eqn: Any) -> float:
  name = eqn.primitive.name
  if name == 'dot_general':
    (contract, _), _ = eqn.params['dimension_numbers']
    lhs = eqn.invars[0].aval.shape
    inner = math.prod(lhs[i] for i in contract)
    return 2.0 * inner * math.prod(eqn.outvars[0].aval.shape)
  if name == 'conv_general_dilated':
    kernel = eqn.invars[1].aval.shape
    out_features = kernel[eqn.params['dimension_numbers'].rhs_spec[0]]
    each = math.prod(kernel) / out_features
    # A transposed convolution's zeros between the pixels are no work.
    each /= math.prod(eqn.params['lhs_dilation'])
    return 2.0 * each * math.prod(eqn.outvars[0].aval.shape)
  if name == 'fft':
    lengths = math.prod(eqn.params['fft_lengths'])
    whole = max(math.prod(v.aval.shape) for v in (*eqn.invars, *eqn.outvars))
    complex_ = eqn.params['fft_type'].name in ('FFT', 'IFFT')
    return (5.0 if complex_ else 2.5) * whole * math.log2(max(lengths, 2))
  if name.startswith('dot_product_attention_'):  # cuDNN's, opaque; [B N H D]
    q, k = (v.aval.shape for v in eqn.invars[:2])
    products = 2.0 if '_fwd' in name else 4.0
    return products * 2.0 * math.prod(q) * k[1]
  if name == 'cond':  # the most expensive branch
    return max(_count(b.jaxpr) for b in eqn.params['branches'])
  times = 1
  if name == 'scan':
    times = eqn.params['length']
  elif name == 'shard_map':  # its shapes are those of one device's part
    sizes = eqn.params['mesh'].shape
    axes = eqn.params['newly_manual_axes']
    times = math.prod(sizes[axis] for axis in axes)
  inside = 0.0
  for value in eqn.params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(item, jax.extend.core.ClosedJaxpr):
        inside += _count(item.jaxpr)
      elif isinstance(item, jax.extend.core.Jaxpr):
        inside += _count(item)
  return times * inside


def peak(dtype: Any = 'float32') -> float:
  """FLOP/s that one device can do in that dtype.

  From the data sheets where the device is listed; else measured, as the best of
  some large matrix products: then utilisation is a share of what XLA reaches.
  """
  device = jax.local_devices()[0]
  half = jnp.dtype(dtype).itemsize == 2
  for kind, bfloat16, float32 in PEAKS:
    if kind in device.device_kind:
      return bfloat16 if half else float32
  return measured_peak(dtype)


def measured_peak(dtype: Any = 'float32', size: int = 1024) -> float:
  """FLOP/s of the best of ten products of size×size matrices."""
  import time  # an effect, kept away from the pure functions above

  # The default device may stand for a part of the CPU: use it as training does.
  x = jax.device_put(np.ones((size, size), np.float32)).astype(dtype)
  product = jax.jit(lambda a: a @ a)
  product(x).block_until_ready()
  best = math.inf
  for _ in range(10):
    begin = time.perf_counter()
    product(x).block_until_ready()
    best = min(best, time.perf_counter() - begin)
  return 2.0 * size**3 / best
