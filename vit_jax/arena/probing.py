"""The probe: what every attention does to real images with trained weights.

`probe` needs no training. Run as a module, this is one choice's process.
"""

import json
import math
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import attention, data, pretrained, specs
from vit_jax.arena import board, checks, maps, process, results, suite

MODULE = 'vit_jax.arena.probing'
EXACT = 'softmax'


def probe(
  workdir: str | os.PathLike,
  *,
  init: str,
  source: str,
  split: str = 'test',
  choices: Sequence[str] = (),
  images: int = 32,
  map_images: int = 8,
  influence_images: int = 2,
  batch_size: int = 16,
  transform: str = '',
  decode: str = '',
  check: bool = True,
  seed: int = 0,
  shard: str = '0/1',
  timeout: float = 3600.0,
) -> list[dict[str, Any]]:
  """Puts every attention into a trained ViT, and measures and checks it.

  A row has, by layer, the relative errors to exact softmax attention
  (`pretrained.layer_errors`) and the measures of the maps on what the exact
  model feeds the layer (`maps.by_layer`); and what `checks.check` says of the
  kernel on small random inputs. The attention's own parameters, `fresh` of
  them, are initialised; all others are the checkpoint's.

  Every choice runs in a process of its own, one after another; killed and
  started again, the probe goes on with those that have no row. A choice that
  cannot take softmax's place with the same weights is a row 'refused', checked
  all the same.

  Args:
    workdir: gets results.jsonl, report.md, report.html, pictures and logs.
    init: a ViT, what `pretrained.load` takes.
    source: of the images, a spec of `data.SOURCES`.
    split: of the source.
    choices: specs of attentions, or several in one, comma separated, which
      take turns over the layers; () is every attention there is.
    images: how many, drawn from the split in the order of `seed`.
    map_images: the first ones of them, for the maps.
    influence_images: the first ones of those, for maps that are gradients.
    batch_size: images at a time; the errors do not depend on it.
    transform: specs of `data.TRANSFORMS`; '' is the checkpoint's.
    decode: spec of `data.DECODERS`; '' is the checkpoint's.
    check: whether to check the kernels.
    seed: of the order of the images.
    shard: 'i/n' does every n-th choice from the i-th on and writes
      results-iofn.jsonl.
    timeout: seconds for one choice.

  Returns:
    All rows.

  Raises:
    ValueError: a bad argument, or the workdir has rows of other settings.
  """
  counts = {
    'images': images, 'map_images': map_images,
    'influence_images': influence_images, 'batch_size': batch_size,
  }  # fmt: skip
  for name, value in counts.items():
    if not isinstance(value, int) or value < 1:
      raise ValueError(f'{name}={value!r} must be an integer of at least 1')
  workdir = pathlib.Path(workdir)
  settings = {
    'init': str(init), 'source': source, 'split': split, 'images': images,
    'map_images': map_images, 'influence_images': influence_images,
    'transform': transform, 'decode': decode, 'check': check, 'seed': seed,
  }  # fmt: skip
  recipe = board.digest(json.dumps(settings, sort_keys=True).encode())
  labels = board.share_of(_choices(choices), shard)
  file = workdir / board.file_name(shard)
  before = [r for r in results.read(workdir) if r['suite'] == 'probe']
  for row in before:
    if row['recipe'] != recipe:
      raise ValueError(
        f'{workdir} has rows of another probe ({row["recipe"]}; this one is '
        f'{recipe}): take another workdir'
      )
  job = {
    **settings, 'batch_size': batch_size, 'recipe': recipe,
    'file': str(file.absolute()),
    'cache': str((workdir / 'compiled').absolute()),
  }  # fmt: skip
  there = results.keys(before)

  def each(label):
    if key(label) not in there:
      _run({**job, 'choice': label}, file, timeout)
    rows = {r['key']: r for r in results.read(workdir)}
    return summary(rows[key(label)])

  return suite.run(workdir, labels, each)


def _choices(choices: Sequence[str]) -> list[str]:
  """The specs that are to be probed.

  Raises:
    ValueError: an unknown attention or option, or the same twice.
  """
  found = list(board.choices_of(choices, 'model.attention', EXACT))
  for label in found:
    if not specs.parse(label):
      raise ValueError(f'choices={found}: {label!r} is no attention')
    for spec in specs.parse(label):
      attention.layer(str(spec))  # raises early
  return found


def key(choice: str) -> str:
  """The name of a row."""
  return f'probe/{choice}'


def _run(job: Mapping[str, Any], file: pathlib.Path, timeout: float) -> None:
  """One choice in a process of its own, which leaves a row."""
  label = job['choice']
  log = file.parent / 'logs' / f'{board.digest(key(label).encode())}.log'
  end = process.run(MODULE, job, log, timeout)
  if key(label) in results.keys(results.read(file)):
    return
  if end.status == 'ok':
    end = process.End('failed', f'ended without a row; see {log}')
  there = suite.machine(file)
  results.append(file, {**_row(job, there), **end._asdict()})


def _row(
  job: Mapping[str, Any], environment: Mapping[str, Any]
) -> dict[str, Any]:
  """A row before anything was measured."""
  return {
    'key': key(job['choice']), 'suite': 'probe', 'choice': job['choice'],
    'status': 'ok', 'error': '', 'recipe': job['recipe'],
    'init': job['init'], 'images': job['images'], 'map': None, 'fresh': None,
    'layers': [], 'checks': {}, 'flagged': False, 'seconds': None,
    'environment': dict(environment),
  }  # fmt: skip


def measure(job: Mapping[str, Any]) -> dict[str, Any]:
  """The row of one choice.

  Raises:
    ValueError: the checkpoint or the images cannot be used; a choice that
      cannot take the place is a row.
  """
  begin = time.perf_counter()
  row, choice = _row(job, results.environment()), job['choice']
  if job['check']:
    row['checks'] = check(choice)
  exact = pretrained.load(job['init'], attention=EXACT)
  images = pictures(exact, job)
  try:
    swapped = pretrained.change(exact, attention=choice)
  except ValueError as e:
    row |= {'status': 'refused', 'error': ' '.join(str(e).split())}
  else:
    row['fresh'] = fresh(exact.variables, swapped.variables)
    errors = pretrained.layer_errors(
      exact, swapped, images, job['batch_size']
    )
    found = maps.by_layer(
      exact, swapped, images[: job['map_images']], job['influence_images']
    )
    layers = [a | b for a, b in zip(found, errors, strict=True)]
    strange = [r['layer'] for r in layers if not _finite(r)]
    if strange:
      row['checks']['on_images'] = f'not finite in the layers {strange}'
    row['layers'] = [_plain(r) for r in layers]
    row['map'] = ', '.join(sorted({r['map'] for r in layers}))
  row['flagged'] = any(row['checks'].values())
  row['seconds'] = round(time.perf_counter() - begin, 2)
  return row


def check(choice: str) -> dict[str, str]:
  """The checks of a choice; of several kernels, what is said names them."""
  found = {str(spec): checks.check(str(spec)) for spec in specs.parse(choice)}
  if len(found) == 1:
    return next(iter(found.values()))
  out = {}
  for spec, some in found.items():
    for name, said in some.items():
      wrong = [out[name]] if name in out and out[name] else []
      out[name] = '; '.join([*wrong, *([f'{spec}: {said}'] if said else [])])
  return out


def pictures(found: pretrained.Pretrained, job: Mapping[str, Any]) -> Any:
  """Images as the checkpoint wants them, float32 [B Y X C].

  Raises:
    ValueError: the split has fewer, or they have other channels.
  """
  transform = job['transform'] or found.preprocess['transform']
  built = data.build(
    job['source'], train=transform, test=transform,
    decode=job['decode'] or found.preprocess['decode'],
    train_split=job['split'], test_split=job['split'],
  )  # fmt: skip
  # Folders come class by class: all training examples in the seed's order.
  count, mixed = job['images'], built.few(0, job['seed'])
  if mixed.test_size < count:
    raise ValueError(
      f'images={count}, but the split {job["split"]!r} of {job["source"]!r} '
      f'has {mixed.test_size}'
    )
  shape = mixed.spec['image'][0]
  if shape[-1] != found.channels:
    raise ValueError(
      f'the images have {shape[-1]} channels, and the checkpoint takes '
      f'{found.channels}: set decode="decode(channels={found.channels})"'
    )
  with mixed.test_batches(count) as batches:
    return jnp.asarray(next(batches)['image'])


def fresh(old: Any, new: Any) -> int:
  """Numbers among the new parameters that the old model does not have."""
  before, after = (
    flax.traverse_util.flatten_dict(dict(v['params'])) for v in (old, new)
  )
  return sum(
    x.size
    for path, x in after.items()
    if path not in before or before[path].shape != x.shape
  )


def _finite(row: Mapping[str, Any]) -> bool:
  numbers = jax.tree.leaves({k: v for k, v in row.items() if k != 'map'})
  return bool(np.isfinite(np.asarray(numbers, np.float64)).all())


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
  """The row as JSON has it: what is not finite is None."""
  return jax.tree.map(
    lambda x: None if isinstance(x, float) and not math.isfinite(x) else x,
    dict(row),
  )


def summary(row: Mapping[str, Any]) -> str:
  """One line on a row."""
  wrong = [name for name, said in row['checks'].items() if said]
  flag = f'; flagged: {", ".join(wrong)}' if wrong else ''
  if row['status'] != 'ok':
    return f'{row["status"]}: {row["error"][:120]}{flag}'
  said = []
  for name in ('local', 'accumulated', 'entropy', 'rank', 'distance'):
    some = [r[name] for r in row['layers'] if r[name] is not None]
    if some:
      said.append(f'{name} {np.mean(some):.3g}')
  return ', '.join(said) + flag


def main() -> None:
  """One choice: a job on the standard input, a row in its file."""
  job = process.receive()
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    jax.config.update('jax_compilation_cache_dir', job['cache'])
  results.append(job['file'], measure(job))


if __name__ == '__main__':
  main()
