"""What XLA's matrix products and convolutions reach beside PyTorch's, on a CPU.

pip install torch && python -m benchmarks.products

The products that training consists of, alone: y = x·w, its two gradients
x̄ = ȳ·wᵀ and w̄ = xᵀ·ȳ, and the same of convolutions, in float32, with the shapes
of the small models at 224 pixels and batch 8. GFLOP/s, and the median of the
ratios over rounds in which both sides take turns. They bound what the table of
benchmarks.family_speed can show.
"""

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp

# Name: (rows, in, out) of a matrix, or (size, in, out, kernel, stride, groups)
# of a convolution of a square image.
SHAPES = {
  'matmul 1576×384×1536': (1576, 384, 1536),
  'matmul 25088×96×384': (25088, 96, 384),
  'matmul 6272×192×192': (6272, 192, 192),
  'conv 3×3, 56², 64→64': (56, 64, 64, 3, 1, 1),
  'conv 3×3, 14², 256→256': (14, 256, 256, 3, 1, 1),
  'conv 1×1, 28², 512→128': (28, 512, 128, 1, 1, 1),
  'conv 7×7/2, 224², 3→64': (224, 3, 64, 7, 2, 1),
  'depthwise 3×3, 28², 192': (28, 192, 192, 3, 1, 192),
}
DERIVED = ('y', 'x̄', 'w̄')


def gflop(shape: tuple[int, ...], batch: int) -> float:
  """Of one product; its gradients have as many."""
  if len(shape) == 3:
    rows, width, out = shape
    return 2 * rows * width * out / 1e9
  size, width, out, kernel, stride, groups = shape
  return 2 * batch * (size // stride) ** 2 * kernel**2 * width // groups * (
    out
  ) / 1e9


def ours(shape: tuple[int, ...], batch: int):
  """A function that runs the n-th of the products so many times."""
  if len(shape) == 3:
    rows, width, out = shape
    x, w = jnp.ones((rows, width)), jnp.ones((width, out))
    apply = jnp.matmul
  else:
    size, width, out, kernel, stride, groups = shape
    x = jnp.ones((batch, size, size, width))
    w = jnp.ones((kernel, kernel, width // groups, out))
    pad = (kernel // 2, kernel // 2)
    apply = functools.partial(
      jax.lax.conv_general_dilated, window_strides=(stride, stride),
      padding=(pad, pad), feature_group_count=groups,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )  # fmt: skip
  g = jnp.ones(jax.eval_shape(apply, x, w).shape)
  transposed = (
    apply,
    lambda x, w, g: jax.vjp(lambda x: apply(x, w), x)[1](g)[0],
    lambda x, w, g: jax.vjp(lambda w: apply(x, w), w)[1](g)[0],
  )
  calls = [jax.jit(f) for f in transposed]

  def run(which, count):
    args = (x, w) if which == 0 else (x, w, g)
    for _ in range(count):
      out = calls[which](*args)
    out.block_until_ready()

  return run


def theirs(shape: tuple[int, ...], batch: int):
  """As `ours`."""
  import torch

  torch.set_num_threads(2)
  if len(shape) == 3:
    rows, width, out = shape
    x, w = torch.ones(rows, width), torch.ones(out, width)
    apply = torch.nn.functional.linear
    gradients = (lambda: g @ w, lambda: g.T @ x)
  else:
    size, width, out, kernel, stride, groups = shape
    x = torch.ones(batch, width, size, size)
    w = torch.ones(out, width // groups, kernel, kernel)
    apply = functools.partial(
      torch.nn.functional.conv2d, stride=stride, padding=kernel // 2,
      groups=groups,
    )  # fmt: skip
    given = {'stride': stride, 'padding': kernel // 2, 'groups': groups}
    gradients = (
      lambda: torch.nn.grad.conv2d_input(x.shape, w, g, **given),
      lambda: torch.nn.grad.conv2d_weight(x, w.shape, g, **given),
    )
  g = torch.ones_like(apply(x, w))
  calls = (lambda: apply(x, w), *gradients)

  def run(which, count):
    with torch.inference_mode():
      for _ in range(count):
        calls[which]()

  return run


def seconds(run, which: int, least: float) -> float:
  """Of one call, over at least so many seconds."""
  time.sleep(0.1)  # the other side's threads stop spinning
  begin, count, spent = time.perf_counter(), 0, 0.0
  while spent < least:
    run(which, 4)
    count += 4
    spent = time.perf_counter() - begin
  return spent / count


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  add('--batch', type=int, default=8)
  add('--rounds', type=int, default=5)
  add('--seconds', type=float, default=0.3, help='of a side in a round')
  args = parser.parse_args()
  cells = [f'{d}: GFLOP/s | beside' for d in DERIVED]
  print('| product | ' + ' | '.join(cells) + ' |')
  print('|' + '---|' * (1 + 2 * len(DERIVED)))
  for name, shape in SHAPES.items():
    sides, cells = (ours(shape, args.batch), theirs(shape, args.batch)), [name]
    for which in range(len(DERIVED)):
      for run in sides:
        run(which, 2)
      rounds = [
        [seconds(run, which, args.seconds) for run in sides]
        for _ in range(args.rounds)
      ]
      rate = gflop(shape, args.batch) / statistics.median(a for a, _ in rounds)
      ratio = statistics.median(b / a for a, b in rounds)
      cells += [f'{rate:.3g}', f'{ratio:.2f}×']
    print('| ' + ' | '.join(cells) + ' |', flush=True)


if __name__ == '__main__':
  main()
