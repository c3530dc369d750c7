"""Every model of the table beside timm's or transformers', in one run.

pip install torch timm transformers && \
  python -m benchmarks.family_speed [MODEL …] --workdir=runs/family [--write]

On a CPU in float32 beside PyTorch eager; on a GPU that both see in bfloat16
beside torch.compile. Random weights, 224 pixels; training is one step of AdamW
on cross-entropy. Sides are processes whose rounds are interleaved, as in
against_torch.py. Ours loads what another process compiled, as every run after
the first does: there it was seen to run in .8 to .9 of the time. What
results.jsonl holds is not run again; with --write the table goes into
docs/models.md. --prepare compiles all that is missing and measures nothing.
"""

import argparse
import functools
import importlib.util
import json
import os
import pathlib
import resource
import statistics
import sys

from benchmarks import against_torch
from benchmarks.attention_digits import read
from docs import attention_table as page

PAGE = pathlib.Path(page.__file__).with_name('models.md')
# Our model and its small size; the same of timm, or a class of transformers
# whose default configuration it is; '' where neither package has it.
ROWS = {
  'vit': ('S/16', 'vit_small_patch16_224'),
  'deit': ('S/16-distilled', 'deit_small_distilled_patch16_224'),
  'mixer': ('S/16', 'mixer_s16_224'),
  'resnet': ('50', 'resnet50'),
  'swin': ('T', 'swin_tiny_patch4_window7_224'),
  'twins': ('SVT-S', 'twins_svt_small'),
  'pvt': ('T', 'PvtForImageClassification'),
  'pvt_v2': ('b0', 'pvt_v2_b0'),
  'cvt': ('13', 'CvtForImageClassification'),
  'mvit': ('T', 'mvitv2_tiny'),
  'xcit': ('N12/16', 'xcit_nano_12_p16_224'),
  'cait': ('XXS24', 'cait_xxs24_224'),
  'tnt': ('S/16', 'tnt_s_patch16_224'),
  'convit': ('Ti/16', 'convit_tiny'),
  'rope': ('S/16-axial', 'vit_small_patch16_rope_224'),
  'cpvt': ('S/16', ''),
  'deepvit': ('16', ''),
  'compact': ('CCT-14/7x2', ''),
}
KINDS, PIXELS, CLASSES = ('forward', 'training'), 224, 1000


def peak() -> int:
  """Most bytes that this process has held."""
  scale = 1 if sys.platform == 'darwin' else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def ours(name: str, batch: int, kind: str, gpu: bool):
  """What is known of the model, and a function that runs so many calls."""
  import jax
  import jax.numpy as jnp

  from vit_jax import flops, models, optimizers, tasks, train
  from vit_jax import state as states

  model = models.build(
    name, variant=ROWS[name][0], num_classes=CLASSES, image_size=PIXELS,
    dtype='bfloat16' if gpu else 'float32',
  )  # fmt: skip
  optimizer = optimizers.build(1000, weight_decay=0.05, schedule='constant')
  key = jax.random.key(0)
  image = jax.random.normal(key, (batch, PIXELS, PIXELS, 3))
  state = jax.jit(
    lambda k, x: states.init_state(k, x, model=model, optimizer=optimizer)
  )(key, image[:1])
  apply = functools.partial(model.apply, train=False)
  about = {
    'parameters': sum(x.size for x in jax.tree.leaves(state.params)),
    'gflop': flops.count(apply, state.served, image[:1]) / 1e9,
  }
  if kind == 'forward':
    forward, variables = jax.jit(apply), state.served

    def run(calls):
      for _ in range(calls):
        out = forward(variables, image)
      out.block_until_ready()

    return about, run
  task = tasks.build('classification', num_classes=CLASSES)
  data = {
    'image': image,
    'label': jnp.arange(batch) % CLASSES,
    'weight': jnp.ones(batch),
  }
  step = jax.jit(
    functools.partial(train.train_step, model=model, optimizer=optimizer),
    donate_argnums=0,
  )

  def run(calls):
    nonlocal state
    for _ in range(calls):
      state, _ = step(state, task, data, key)
    jax.block_until_ready(state)

  return about, run


def theirs(name: str, batch: int, kind: str, gpu: bool, threads: int):
  """As `ours`."""
  import torch

  # Lets timm and transformers be imported beside any torchvision.
  from tests.live import conftest  # noqa: F401

  torch.manual_seed(0)
  torch.set_num_threads(threads)
  rival, logits = ROWS[name][1], lambda out: out
  if rival[0].isupper():
    import transformers

    cls = getattr(transformers, rival)
    model = cls(cls.config_class(num_labels=CLASSES))
    logits = lambda out: out.logits  # noqa: E731
  else:
    import timm

    model = timm.create_model(rival)
  device = 'cuda' if gpu else 'cpu'
  model = model.to(device)
  about = {'parameters': sum(p.numel() for p in model.parameters())}
  if gpu:
    torch.set_float32_matmul_precision('high')
  image = torch.randn(batch, 3, PIXELS, PIXELS, device=device)
  label = torch.arange(batch, device=device) % CLASSES
  wait = torch.cuda.synchronize if gpu else lambda: None
  cast = functools.partial(
    torch.autocast, device, dtype=torch.bfloat16, enabled=gpu
  )
  apply = torch.compile(model) if gpu else model
  if kind == 'forward':
    model.eval()

    def run(calls):
      with torch.inference_mode(), cast():
        for _ in range(calls):
          apply(image)
      wait()

    return about, run
  model.train()
  optimizer = torch.optim.AdamW(
    model.parameters(), lr=1e-3, weight_decay=0.05, fused=True
  )

  def run(calls):
    for _ in range(calls):
      with cast():
        out = logits(apply(image))
        out = sum(out) / len(out) if isinstance(out, tuple) else out
      loss = torch.nn.functional.cross_entropy(out.float(), label)
      optimizer.zero_grad()
      loss.backward()
      optimizer.step()
    wait()

  return about, run


def work(args: argparse.Namespace) -> None:
  """One side, in a process of its own."""
  out, sys.stdout = sys.stdout, sys.stderr  # libraries print
  side, name, kind = args.worker.split(':')
  if side == 'ours':
    import jax  # noqa: F401  before the memory is looked at
  else:
    import torch  # noqa: F401
  before = peak()
  if side == 'ours':
    about, run = ours(name, args.batch, kind, args.gpu)
  else:
    about, run = theirs(name, args.batch, kind, args.gpu, args.threads)
  run(2)
  about['mib'] = (peak() - before) / 2**20
  against_torch.serve(run, out, **about)


def start(
  side: str, name: str, kind: str, args: argparse.Namespace
) -> against_torch.Worker:
  """The process of one side, warm."""
  return against_torch.Worker(
    [
      sys.executable, '-m', 'benchmarks.family_speed',
      f'--worker={side}:{name}:{kind}', f'--batch={args.batch}',
      f'--threads={args.threads}',
    ],
    args.threads, args.gpu, tuned=side == 'ours',
  )  # fmt: skip


def prepare(name: str, kind: str, args: argparse.Namespace) -> None:
  """Has a process compile our side, unless one did."""
  done = args.workdir / 'compiled' / f'{name}-{kind}-{args.batch}'
  if not done.exists():
    start('ours', name, kind, args).close()
    done.touch()


def compare(name: str, kind: str, args: argparse.Namespace) -> dict:
  """A row: images/s and memory of both sides."""
  sides = ['ours', 'theirs'] if ROWS[name][1] else ['ours']
  workers = {}
  try:
    for side in sides:
      workers[side] = start(side, name, kind, args)
    seconds = against_torch.interleave(workers, args.rounds, args.seconds)
    about = {side: w.about for side, w in workers.items()}
  finally:
    for worker in workers.values():
      worker.close()
  row = {'name': f'{name} {kind}', 'gpu': args.gpu, 'batch': args.batch}
  for side in sides:
    rate = args.batch / statistics.median(seconds[side])
    row |= {side: {**about[side], 'images_per_s': rate}}
  if len(sides) == 2:
    if about['ours']['parameters'] != about['theirs']['parameters']:
      raise RuntimeError(f'not the same model: {about}')
    ratios = sorted(
      a / b for a, b in zip(seconds['theirs'], seconds['ours'], strict=True)
    )
    row['ratio'] = [statistics.median(ratios), ratios[0], ratios[-1]]
  return row


def markdown(rows: dict[str, dict]) -> str:
  """One line a model."""
  lines = [
    '| model | parameters | GFLOP | forward im/s | beside | MiB | beside '
    '| training im/s | beside | MiB | beside |',
    '|' + '---|' * 11,
  ]
  for name, (variant, rival) in ROWS.items():
    cells = [f'| `{name}` {variant}']
    for kind in KINDS:
      if f'{name} {kind}' not in rows:
        break
      row = rows[f'{name} {kind}']
      mine = row['ours']
      if kind == 'forward':
        cells += [f'{mine["parameters"]:,}', f'{mine["gflop"]:.1f}']
      cells.append(f'{mine["images_per_s"]:.1f}')
      if rival:
        median, low, high = row['ratio']
        cells.append(f'**{median:.2f}×** ({low:.2f}–{high:.2f})')
      else:
        cells.append('–')
      cells.append(f'{mine["mib"]:.0f}')
      ratio = mine['mib'] / row['theirs']['mib'] if rival else None
      cells.append(f'{ratio:.2f}×' if rival else '–')
    else:
      lines.append(' | '.join(cells) + ' |')
  return '\n'.join(lines) + '\n'


def main() -> None:
  """Runs what is missing and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  add('models', nargs='*')
  add('--workdir', type=pathlib.Path)
  add('--kinds', nargs='+', default=list(KINDS))
  add('--batch', type=int, default=8)
  add('--rounds', type=int, default=5)
  add('--seconds', type=float, default=1.0, help='of a side in a round')
  add('--threads', type=int, default=2)
  add('--write', action='store_true')
  add('--prepare', action='store_true')
  add('--gpu', action='store_true', help=argparse.SUPPRESS)
  add('--worker', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.worker:
    work(args)
    return
  if importlib.util.find_spec('torch') is None:
    raise SystemExit('pip install torch timm transformers first')
  args.gpu = against_torch.gpu_for_both()
  cache = args.workdir.absolute() / 'compiled'
  cache.mkdir(parents=True, exist_ok=True)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = str(cache)
  file = args.workdir / 'results.jsonl'
  print(f'{os.getloadavg()[0]:.1f} threads busy in the last minute')
  for name in args.models or ROWS:
    for kind in args.kinds:
      if f'{name} {kind}' in read(file):
        continue
      prepare(name, kind, args)
      if args.prepare:
        continue
      row = compare(name, kind, args)
      print(row, flush=True)
      with file.open('a') as f:
        f.write(json.dumps(row) + '\n')
  table = markdown(read(file))
  print(table)
  if args.write:
    begin, end = page.marks('speed')
    head, _, rest = PAGE.read_text().partition(begin)
    PAGE.write_text(head + begin + table + end + rest.partition(end)[2])


if __name__ == '__main__':
  main()
