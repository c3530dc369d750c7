"""Our ViT beside PyTorch's, on the same machine, in one run.

pip install torch transformers && python benchmarks/against_torch.py

On a CPU: Hugging Face's ViT in PyTorch eager, float32, with its own choice of
attention (SDPA) and with plain attention, each also with our malloc settings.
On a GPU that both see: bfloat16, beside torch.compile with SDPA. Both sides run
exact GELU, random weights, no dropout and AdamW, and must have the same number
of parameters.

Each side is a process of its own, so that thread pools do not fight, with the
same number of threads; rounds are interleaved and only one side computes at a
time. Ratios are of neighbouring rounds: median (lowest–highest).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

SIZES = {'Ti/16': (192, 12, 3, 768), 'S/16': (384, 12, 6, 1536),
         'B/16': (768, 12, 12, 3072)}  # fmt: skip
KINDS = ('forward', 'training')
PIXELS, CLASSES, LEARNING_RATE, WEIGHT_DECAY = 224, 1000, 1e-3, 0.05
# glibc gives large blocks back to the kernel when they are freed, and the next
# step faults them in again, page by page. vit_jax.main keeps them, so our side
# does here; PyTorch runs as its users find it, and again with these settings.
MALLOC = {
  'MALLOC_ARENA_MAX': '1',
  'MALLOC_MMAP_MAX_': '0',
  'MALLOC_TRIM_THRESHOLD_': str(2**40),
  'MALLOC_TOP_PAD_': str(2**26),
}


def ours(size: str, batch: int, kind: str, gpu: bool):
  """Parameters, and a function that runs so many calls and waits for them."""
  import jax
  import jax.numpy as jnp

  from vit_jax import models, optimizers, tasks, train
  from vit_jax import state as states

  if gpu != (jax.default_backend() == 'gpu'):
    raise ValueError(f'JAX runs on {jax.default_backend()}; gpu={gpu}')
  model = models.build(
    'vit', variant=size, num_classes=CLASSES, image_size=PIXELS, gelu='exact',
    epsilon=1e-12, dtype='bfloat16' if gpu else 'float32',
  )  # fmt: skip
  optimizer = optimizers.build(
    1000, learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY,
    schedule='constant', decay='.',
  )  # fmt: skip
  key = jax.random.key(0)
  image = jax.random.normal(key, (batch, PIXELS, PIXELS, 3))
  state = jax.jit(
    lambda k, x: states.init_state(k, x, model=model, optimizer=optimizer)
  )(key, image[:1])
  count = sum(x.size for x in jax.tree.leaves(state.params))
  if kind == 'forward':
    forward = jax.jit(lambda v, x: model.apply(v, x, train=False))
    variables = state.served

    def run(calls):
      for _ in range(calls):
        out = forward(variables, image)
      out.block_until_ready()

    return count, run
  task = tasks.build('classification', num_classes=CLASSES)
  data = {
    'image': image,
    'label': jnp.arange(batch) % CLASSES,
    'weight': jnp.ones(batch),
  }
  step = jax.jit(
    lambda s, t, b, k: train.train_step(
      s, t, b, k, model=model, optimizer=optimizer
    ),
    donate_argnums=0,
  )

  def run(calls):
    nonlocal state
    for _ in range(calls):
      state, _ = step(state, task, data, key)
    jax.block_until_ready(state)

  return count, run


def theirs(
  size: str, batch: int, kind: str, gpu: bool, attention: str, threads: int
):
  """As `ours`, for transformers' ViTForImageClassification."""
  import torch
  import transformers

  torch.manual_seed(0)
  torch.set_num_threads(threads)
  width, layers, heads, mlp = SIZES[size]
  config = transformers.ViTConfig(
    hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
    intermediate_size=mlp, image_size=PIXELS, num_labels=CLASSES,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    attn_implementation=attention,
  )  # fmt: skip
  device = 'cuda' if gpu else 'cpu'
  model = transformers.ViTForImageClassification(config).to(device)
  count = sum(p.numel() for p in model.parameters())
  if gpu:  # TF32 products, as XLA's default
    torch.set_float32_matmul_precision('high')
  image = torch.randn(batch, 3, PIXELS, PIXELS, device=device)
  label = torch.arange(batch, device=device) % CLASSES
  wait = torch.cuda.synchronize if gpu else lambda: None
  cast = lambda: torch.autocast(  # noqa: E731
    device, dtype=torch.bfloat16, enabled=gpu
  )
  apply = torch.compile(model) if gpu else model
  if kind == 'forward':
    model.eval()

    def run(calls):
      with torch.inference_mode(), cast():
        for _ in range(calls):
          apply(image)
      wait()

    return count, run
  model.train()
  # Fused is the fastest of its implementations, on either device.
  optimizer = torch.optim.AdamW(
    model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
  )

  def run(calls):
    for _ in range(calls):
      with cast():
        logits = apply(image).logits
      loss = torch.nn.functional.cross_entropy(logits.float(), label)
      optimizer.zero_grad()
      loss.backward()
      optimizer.step()
    wait()

  return count, run


def work(args: argparse.Namespace) -> None:
  """A worker: answers each line `calls` on stdin with the seconds they took."""
  out, sys.stdout = sys.stdout, sys.stderr  # libraries print
  side, attention, *_ = [*args.worker.split(':'), '']
  common = (args.sizes[0], args.batch, args.kinds[0], args.gpu)
  count, run = (
    ours(*common)
    if side == 'ours'
    else theirs(*common, attention, args.threads)
  )
  serve(run, out, parameters=count)


def serve(run, out, **about) -> None:
  """Answers each line `calls` on stdin with the seconds that they took."""
  run(2)
  print(json.dumps(about), file=out, flush=True)
  for line in sys.stdin:
    begin = time.perf_counter()
    run(int(line))
    print(json.dumps(time.perf_counter() - begin), file=out, flush=True)


class Worker:
  """A process that runs one side; waits until it is warm.

  Attributes:
    about: what `serve` says of it.
  """

  def __init__(self, command: list[str], threads: int, gpu: bool, tuned: bool):
    env = os.environ | {'OMP_NUM_THREADS': str(threads)}
    if tuned:
      env |= MALLOC
    # XLA takes as many threads as it may use cores.
    if hasattr(os, 'sched_getaffinity') and not gpu:
      cores = sorted(os.sched_getaffinity(0))[:threads]
      command = ['taskset', '-c', ','.join(map(str, cores)), *command]
    self._process = subprocess.Popen(
      command + ['--gpu'] * gpu, env=env, text=True,
      stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    self.about = self._read()

  def _read(self):
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError(f'the worker died: {self._process.args}')
    return json.loads(line)

  def time(self, calls: int) -> float:
    """Seconds of one call, over so many."""
    time.sleep(0.3)  # the other side's threads stop spinning
    self._process.stdin.write(f'{calls}\n')
    self._process.stdin.flush()
    return self._read() / calls

  def close(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait()


def start(side: str, size: str, kind: str, args: argparse.Namespace) -> Worker:
  """The process of one side."""
  command = [
    sys.executable, __file__, f'--worker={side}', f'--sizes={size}',
    f'--kinds={kind}', f'--batch={args.batch}', f'--threads={args.threads}',
  ]  # fmt: skip
  tuned = side == 'ours' or side.endswith(':tuned')
  return Worker(command, args.threads, args.gpu, tuned)


def interleave(
  workers: dict[str, Worker], rounds: int, seconds: float
) -> dict[str, list[float]]:
  """Seconds of a call of each side, in every round."""
  found = {side: [] for side in workers}
  once = {side: w.time(1) for side, w in workers.items()}
  for _ in range(rounds):
    for side, worker in workers.items():
      calls = max(1, round(seconds / once[side]))
      found[side].append(worker.time(calls))
  return found


def compare(size: str, kind: str, args: argparse.Namespace) -> list[dict]:
  """One row for each rival: images/s of both sides, and the ratio's spread."""
  sides = ['ours', *(['torch:sdpa'] if args.gpu else args.rivals)]
  workers = {}
  try:
    for side in sides:
      workers[side] = start(side, size, kind, args)
    counts = {side: w.about['parameters'] for side, w in workers.items()}
    if len(set(counts.values())) != 1:
      raise RuntimeError(f'not the same model: parameters {counts}')
    seconds = interleave(workers, args.rounds, args.seconds)
  finally:
    for worker in workers.values():
      worker.close()
  rows = []
  for side in sides[1:]:
    ratios = sorted(
      a / b for a, b in zip(seconds[side], seconds['ours'], strict=True)
    )
    rows.append({
      'model': size, 'pass': kind, 'rival': side,
      'ours_images_per_s': args.batch / statistics.median(seconds['ours']),
      'rival_images_per_s': args.batch / statistics.median(seconds[side]),
      'ratio': statistics.median(ratios), 'low': ratios[0], 'high': ratios[-1],
      'parameters': counts['ours'],
    })  # fmt: skip
  return rows


def parse(argv=None) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  names = lambda text: text.split(',')  # noqa: E731
  add('--sizes', type=names, default=['Ti/16', 'S/16'])
  add('--kinds', type=names, default=list(KINDS))
  add(
    '--rivals', type=names,
    default=[
      'torch:sdpa', 'torch:eager', 'torch:sdpa:tuned', 'torch:eager:tuned',
    ],
    help='torch:ATTENTION[:tuned], tuned with our malloc settings',
  )  # fmt: skip
  add('--batch', type=int, default=16)
  add('--rounds', type=int, default=7)
  add('--seconds', type=float, default=2.0, help='of a side in a round')
  add('--threads', type=int, default=2)
  add('--json', help='also write the rows there')
  add('--gpu', action='store_true', help=argparse.SUPPRESS)
  add('--worker', help=argparse.SUPPRESS)
  return parser.parse_args(argv)


def gpu_for_both() -> bool:
  """Whether PyTorch and JAX both see a GPU; asked in a process of its own."""
  code = (
    'import torch, jax, sys;'
    'sys.exit(not (torch.cuda.is_available() and '
    'jax.default_backend() == "gpu"))'
  )
  return subprocess.run([sys.executable, '-c', code]).returncode == 0


def main() -> None:
  """Runs the comparison and prints the table."""
  args = parse()
  if args.worker:
    work(args)
    return
  args.gpu = gpu_for_both()
  where = 'GPU, bfloat16' if args.gpu else f'CPU, {args.threads} threads'
  print(f'{where}, batch {args.batch}, {args.rounds} interleaved rounds')
  # Other work on the same cores slows either side, not both alike.
  print(f'{os.getloadavg()[0]:.1f} threads busy in the last minute')
  form = '{:6} {:9} {:17} {:>9} {:>9} {:>6}  {}'.format
  print(form('model', 'pass', 'beside', 'ours im/s', 'its im/s', 'ratio', ''))
  rows = []
  for size in args.sizes:
    for kind in args.kinds:
      for row in compare(size, kind, args):
        rows.append(row)
        print(form(
          row['model'], row['pass'], row['rival'],
          f'{row["ours_images_per_s"]:.1f}', f'{row["rival_images_per_s"]:.1f}',
          f'{row["ratio"]:.2f}', f'({row["low"]:.2f}–{row["high"]:.2f})',
        ), flush=True)  # fmt: skip
  if args.json:
    with open(args.json, 'w') as f:
      json.dump(rows, f, indent=2)


if __name__ == '__main__':
  main()
