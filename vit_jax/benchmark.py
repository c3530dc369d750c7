"""Throughput, latency, memory, FLOPs and utilisation of any model and size."""

import contextlib
import functools
import itertools
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache

from vit_jax import flops, layers, models, optimizers, specs, train
from vit_jax import sharding as shardings
from vit_jax import state as states

COLUMNS = (
  # key in a row, heading, format
  ('model', 'model', 's'),
  ('pixels', 'pixels', 's'),
  ('batch_size', 'batch', 'd'),
  ('dtype', 'dtype', 's'),
  ('parameters', 'parameters', ',d'),
  ('gflop_per_image', 'GFLOP', '.2f'),
  ('forward/images_per_s', 'forward im/s', '.1f'),
  ('forward/latency_ms', 'p50 ms', '.1f'),
  ('forward/utilisation', 'util.', '.1%'),
  ('forward/memory_mib', 'MiB', '.0f'),
  ('forward/compile_s', 'compile s', '.1f'),
  ('train/images_per_s', 'train im/s', '.1f'),
  ('train/latency_ms', 'p50 ms', '.1f'),
  ('train/utilisation', 'util.', '.1%'),
  ('train/memory_mib', 'MiB', '.0f'),
  ('train/compile_s', 'compile s', '.1f'),
  ('error', 'error', 's'),
)

NOTES = """\
- GFLOP: matrix products and convolutions of one image's forward pass, 2 a
  multiply-add; training counts three times that.
- im/s: calls queued one after the other, as in training. p50: the median of
  calls waited for one by one.
- util.: share of the peak of all devices; where flops.PEAKS does not list the
  device, of the best large matrix product that it was seen to do.
- MiB: what XLA plans to hold at once on one device: arguments + outputs +
  temporaries, donated buffers once. What the device itself saw, where it
  counts, is device_peak_mib in the JSON: the highest since the process began.
- compile s: tracing and compiling, without the compilation cache.
"""


def benchmark(
  workdir: str | os.PathLike,
  *,
  task: Any,
  optimizer: optimizers.Optimizer,
  sharding: shardings.Sharding,
  record: Mapping[str, Any],
  variants: Sequence[str] = (),
  image_sizes: Sequence[int | Sequence[int]] = (),
  batch_sizes: Sequence[int] = (16,),
  dtypes: Sequence[str] = (),
  repeats: int = 10,
  channels: int = 3,
  seed: int = 0,
) -> list[dict[str, Any]]:
  """Measures the forward pass and the training step of every combination.

  Images are noise. A combination that cannot run (out of memory, patches that
  do not cover the image) is a row with an `error`.

  Args:
    workdir: gets benchmark.json and benchmark.md, rewritten after each row.
    task: what the training step trains for.
    optimizer: its update is part of the training step.
    sharding: the mesh; images/s are those of all its devices together.
    record: the config; 'model' is the section that `models.build` takes.
    variants: of the model; () is what the section says, as in the next two.
    image_sizes: in pixels, one number or (height, width).
    dtypes: of the computation.
    batch_sizes: over all devices.
    repeats: timed calls, after two that are not.
    channels: of the images.
    seed: of parameters and images.

  Returns:
    The rows of benchmark.json.

  Raises:
    ValueError: repeats < 1, no batch size, an unknown variant, or a field that
      the model does not have.
  """
  if repeats < 1 or not batch_sizes:
    raise ValueError(
      'a benchmark needs repeats ≥ 1 and a batch size; got '
      f'repeats={repeats}, batch_sizes={tuple(batch_sizes)}'
    )
  section = dict(record['model'])
  built = [  # all of them first: a typo must not wait for its row
    _build(section, variant, size, dtype)
    for variant, size, dtype in itertools.product(
      variants or (None,), image_sizes or (None,), dtypes or (None,)
    )
  ]
  rows, count = [], len(built) * len(batch_sizes)
  for (name, model, size), batch_size in itertools.product(built, batch_sizes):
    row = {
      'model': name,
      'pixels': '×'.join(str(n) for n in size),
      'batch_size': batch_size,
      'dtype': jnp.dtype(model.dtype).name,
    }
    try:
      measure(
        row, model, task, optimizer, sharding, (batch_size, *size, channels),
        repeats, seed,
      )  # fmt: skip
    # What XLA and our own checks raise on sizes that do not fit.
    except (ValueError, RuntimeError, MemoryError) as e:
      row['error'] = f'{type(e).__name__}: {e}'.splitlines()[0]
    rows.append(row)
    if jax.process_index() == 0:
      _write(pathlib.Path(workdir), rows, section)
      print(f'{len(rows)}/{count}: {name} {row["pixels"]}', flush=True)
  if jax.process_index() == 0:
    print((pathlib.Path(workdir) / 'benchmark.md').read_text())
  return rows


def _build(
  section: Mapping[str, Any],
  variant: str | None,
  size: int | Sequence[int] | None,
  dtype: str | None,
) -> tuple[str, nn.Module, tuple[int, int]]:
  """A model's label, the model, and the (height, width) of its images."""
  section = {
    k: tuple(v) if isinstance(v, list) else v for k, v in section.items()
  }
  if variant is not None:
    section['variant'] = variant
  if dtype is not None:
    section['dtype'] = dtype
  sized = 'image_size' in specs.accepted(
    specs.lookup(models.MODELS, section['name'], 'model')
  )
  if size is not None:
    size = layers.pair(size)
    if sized:
      section['image_size'] = size
  elif not sized:
    raise ValueError(
      f'the model {section["name"]!r} fits any image: give image_sizes'
    )
  model = models.build(**section)
  name = section['name']
  if section.get('variant'):
    name = f'{name} {section["variant"]}'
  return name, model, size or layers.pair(model.image_size)


def measure(
  row: dict[str, Any],
  model: nn.Module,
  task: Any,
  optimizer: optimizers.Optimizer,
  sharding: shardings.Sharding,
  shape: Sequence[int],
  repeats: int,
  seed: int = 0,
) -> None:
  """Fills `row` with what can be measured on images of shape [B Y X C].

  Raises:
    ValueError: the model refuses the shape.
    MemoryError, RuntimeError: too large for the device.
  """
  sharding.check_batch(shape[0])
  key = jax.device_put(jax.random.key(seed), sharding.replicated)
  start = functools.partial(
    states.init_state, model=model, optimizer=optimizer
  )
  example = jax.ShapeDtypeStruct((1, *shape[1:]), jnp.float32)
  make_batch = functools.partial(
    _noise, shape=tuple(shape), classes=model.num_classes
  )
  shapes = jax.eval_shape(start, key, example)
  batch = jax.eval_shape(make_batch, key)
  placed = states.place(shapes, sharding)
  forward = functools.partial(model.apply, train=False)
  work = flops.count(forward, shapes.served, batch['image'])
  row['parameters'] = sum(x.size for x in jax.tree.leaves(shapes.params))
  row['gflop_per_image'] = work / shape[0] / 1e9
  peak = _peak(jnp.dtype(model.dtype).name) * jax.device_count()

  def put_speed(name, call, flop):
    seconds, latency = _time(call, repeats)
    row[f'{name}/images_per_s'] = shape[0] / seconds
    row[f'{name}/latency_ms'] = 1e3 * latency
    row[f'{name}/utilisation'] = flop / seconds / peak

  # Shapes only, up to here and in `_compile`: what is too large is refused
  # before anything of that size is made.
  forward, row['forward/compile_s'], row['forward/memory_mib'] = _compile(
    jax.jit(forward, in_shardings=(placed.served, sharding.batch)),
    shapes.served, batch['image'],
  )  # fmt: skip
  example = jnp.zeros(example.shape, example.dtype)
  state = jax.jit(start, out_shardings=placed)(key, example)
  image = jax.jit(make_batch, out_shardings=sharding.batch)(key)['image']
  put_speed('forward', lambda: forward(state.served, image), work)

  task = jax.device_put(task, sharding.replicated)
  step, row['train/compile_s'], row['train/memory_mib'] = _compile(
    jax.jit(
      functools.partial(train.train_step, model=model, optimizer=optimizer),
      in_shardings=(
        placed, sharding.replicated, sharding.batch, sharding.replicated,
      ),
      out_shardings=(placed, sharding.replicated),
      donate_argnums=0,
    ),
    shapes, task, batch, key,
  )  # fmt: skip
  batch = jax.jit(make_batch, out_shardings=sharding.batch)(key)

  def train_once():
    nonlocal state
    state, found = step(state, task, batch, key)
    return found

  put_speed('train', train_once, 3 * work)
  found = jax.local_devices()[0].memory_stats() or {}
  if 'peak_bytes_in_use' in found:
    row['device_peak_mib'] = found['peak_bytes_in_use'] / 2**20


def _noise(key: jax.Array, shape: tuple[int, ...], classes: int):
  """A batch of noise with random labels."""
  pixels, labels = jax.random.split(key)
  return {
    'image': jax.random.uniform(pixels, shape, minval=-1.0),
    'label': jax.random.randint(labels, shape[:1], 0, max(classes, 1)),
    'weight': jnp.ones(shape[:1]),
  }


@contextlib.contextmanager
def _no_compilation_cache() -> Iterator[None]:
  """A context in which everything is compiled, so that the time means it."""
  before = jax.config.jax_enable_compilation_cache
  # JAX decides once a process whether to use its cache; this asks again.
  try:
    jax.config.update('jax_enable_compilation_cache', False)
    compilation_cache.reset_cache()
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', before)
    compilation_cache.reset_cache()


def _compile(fn: Any, *args: Any) -> tuple[Callable[..., Any], float, float]:
  """The compiled function, the seconds it took, and the MiB it will hold.

  Raises:
    MemoryError: more than the host has; a CPU would be killed, not refuse.
  """
  begin = time.perf_counter()
  with _no_compilation_cache():
    compiled = fn.lower(*args).compile()
  seconds = time.perf_counter() - begin
  size = planned(compiled)
  if jax.default_backend() == 'cpu':
    host = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    if size * jax.local_device_count() > host:
      raise MemoryError(
        f'needs {size / 2**30:.1f} GiB a device, {jax.local_device_count()} '
        f'devices share {host / 2**30:.1f} GiB'
      )
  return compiled, seconds, size / 2**20


def planned(compiled: Any) -> int:
  """Bytes that XLA plans to hold at once: arguments, outputs, temporaries."""
  plan = compiled.memory_analysis()
  return (
    plan.argument_size_in_bytes + plan.output_size_in_bytes
    + plan.temp_size_in_bytes - plan.alias_size_in_bytes
  )  # fmt: skip


def _time(call: Callable[[], Any], repeats: int) -> tuple[float, float]:
  """Seconds a call when queued, and the median when waited for one by one."""
  latencies = []
  for _ in range(repeats + 2):
    begin = time.perf_counter()
    jax.block_until_ready(call())
    latencies.append(time.perf_counter() - begin)
  begin = time.perf_counter()
  for _ in range(repeats):
    out = call()
  jax.block_until_ready(out)
  each = (time.perf_counter() - begin) / repeats
  return each, statistics.median(latencies[2:])


@functools.cache
def _peak(dtype: str) -> float:
  return flops.peak(dtype)


def _write(
  workdir: pathlib.Path, rows: list[dict[str, Any]], section: Mapping[str, Any]
) -> None:
  """Writes benchmark.json and benchmark.md."""
  device = jax.local_devices()[0]
  found = {
    'versions': {
      'jax': jax.__version__,
      'jaxlib': jax.lib.__version__,
      'flax': flax.__version__,
    },
    'device': {
      'kind': device.device_kind,
      'platform': device.platform,
      'count': jax.device_count(),
      'host_cores': os.cpu_count(),
    },
    'model': dict(section),
    'rows': rows,
  }
  title = (
    f'{jax.device_count()} × {device.device_kind}, jax {jax.__version__}, '
    f'flax {flax.__version__}'
  )
  workdir.mkdir(parents=True, exist_ok=True)
  (workdir / 'benchmark.json').write_text(json.dumps(found, indent=2) + '\n')
  (workdir / 'benchmark.md').write_text(
    f'# {title}\n\n{table(rows)}\n\n{NOTES}'
  )


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """The rows as an aligned Markdown table, without columns that are empty."""
  columns = [c for c in COLUMNS if any(c[0] in row for row in rows)]
  cells = [[heading for _, heading, _ in columns]]
  for row in rows:
    cells.append([
      format(row[key], form) if key in row else ''
      for key, _, form in columns
    ])  # fmt: skip
  rule = []
  for i, (_, _, form) in enumerate(columns):
    width = max(len(line[i]) for line in cells)
    pad = str.ljust if form == 's' else str.rjust
    for line in cells:
      line[i] = pad(line[i], width)
    rule.append(pad(':', width, '-') if form != 's' else '-' * width)
  cells.insert(1, rule)
  return '\n'.join(f'| {" | ".join(line)} |' for line in cells)
