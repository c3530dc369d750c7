"""Pieces of recipes, in locked ConfigDicts: a typo is an error."""

import importlib
import pathlib
import re

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def locked(**fields) -> ConfigDict:
  """A locked ConfigDict of these fields."""
  return ConfigDict(fields).lock()


def adamw(learning_rate=1e-3, weight_decay=0.05, warmup=0, **fields):
  """AdamW, cosine schedule, gradient norm clipped at 1."""
  return locked(
    name='adamw',
    learning_rate=learning_rate,
    weight_decay=weight_decay,
    warmup=warmup,
    **{'schedule': 'cosine', 'clip': 1.0, **fields},
  )


def classification(
  *, model, data, optimizer, steps, batch_size, task=None, **fields
) -> ConfigDict:
  """A classification run; `fields` are further arguments of `train.train`."""
  return locked(
    **{
      'run': 'train',
      'init': placeholder(str),
      'head': 'by_name',
      'seed': 0,
      'steps': steps,
      'batch_size': batch_size,
      'accumulate': 1,
      'log_every': 50,
      'eval_every': 1000,
      'checkpoint_every': 1000,
      'profile': (),
      'model': locked(**model),
      'task': locked(**{'name': 'classification', **(task or {})}),
      'data': locked(**data),
      'optimizer': optimizer,
      'sharding': locked(data=-1, fsdp=1, tensor=1, rules=()),
      **fields,
    }
  )


def matched() -> dict:
  """ViT, CNN and hybrid of about 82 MFLOP on 32×32 pixels, 10 classes.

  The CNN is ResNet-20 of He et al. 2016, §4.2.
  """
  every = {'image_size': 32, 'num_classes': 10, 'dtype': 'float32'}
  vit = {
    'name': 'vit', 'hidden_size': 128, 'num_layers': 4, 'num_heads': 4,
    'classifier': 'gap', 'attention': 'softmax', **every}
  return {
    'ViT': {**vit, 'patch_size': 4, 'mlp_dim': 288},
    'CNN': {
      'name': 'resnet', 'block': 'basic', 'depths': (3, 3, 3), 'stem': 'cifar',
      'hidden_sizes': (16, 32, 64), 'embedding_size': 16, **every},
    'hybrid': {
      **vit, 'resnet': (1,), 'resnet_width': 32, 'patch_size': 1,
      'mlp_dim': 256}}  # fmt: skip


def of_checkpoint(**fields) -> dict:
  """`config.model` of a run with an init: None leaves what it says as it is."""
  kinds = {
    'num_classes': int, 'image_size': int, 'patch_size': int,
    'attention': str, 'position_resize': str, 'dtype': str, 'remat': bool,
    'dropout_rate': float, 'attention_dropout_rate': float,
    'drop_path_rate': float, 'patch_dropout_rate': float,
  }  # fmt: skip
  return {**{name: placeholder(kind) for name, kind in kinds.items()}, **fields}


def split_arg(arg: str) -> list[str]:
  """'a,b(c,d)' → ['a', 'b(c,d)']: the commas outside brackets separate."""
  return [part.strip() for part in re.split(r',(?![^(]*\))', arg)]


def source(dataset: str) -> str:
  """A source by its spec, as 'tfds:NAME', or the path of a folder."""
  if re.fullmatch(r'\w+\(.*\)', dataset):
    return dataset
  if dataset.startswith('tfds:'):
    return f'tfds(name={dataset.removeprefix("tfds:")!r})'
  return f'folder(path={dataset!r})'


def finetuning(recipe: str) -> ConfigDict:
  """An optimiser: 'sgd' as the original fine-tunes, 'adamw' or 'probe'."""
  recipes = {
    'sgd': {'name': 'sgd', 'learning_rate': 0.03, 'weight_decay': 0.0},
    'adamw': {'learning_rate': 1e-3, 'layer_decay': 0.75},
    # Only the head learns.
    'probe': {
      'name': 'sgd', 'learning_rate': 0.3, 'weight_decay': 0.0,
      'freeze': r'^(?!head(_dist)?/)',
    },
  }  # fmt: skip
  if recipe not in recipes:
    raise ValueError(f'no recipe {recipe!r}; choices: {", ".join(recipes)}')
  return locked(
    **{
      'name': 'adamw', 'weight_decay': 0.05, 'warmup': 500,
      'schedule': 'cosine', 'clip': 1.0, 'layer_decay': 1.0, 'freeze': '',
      'ema': 0.0, **recipes[recipe],
    }
  )  # fmt: skip


EPOCH = 1_281_167  # images of ImageNet-1k
NORMALIZE = 'normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))'
RANDAUGMENT = "randaugment(layers=2, magnitude=9, magnitude_std=0.5)"


def deit(
  *, model, size=224, resize=256, transforms=RANDAUGMENT, repeats=3, task=None,
  epochs=300, batch_size=1024, optimizer=None, **fields,
) -> ConfigDict:  # fmt: skip
  """Training on ImageNet-1k as DeiT's (Touvron et al. 2021, table 9).

  What the recipes that followed changed is an argument: the transforms after
  crop and flip, repeated augmentation, fields of the task and the optimiser
  (whose `warmup` is in epochs), `resize` before the central crop.
  """
  epoch = EPOCH / batch_size
  settings = {
    'name': 'adamw', 'learning_rate': 5e-4 * batch_size / 512,
    'weight_decay': 0.05, 'warmup': 5, 'clip': 0.0,
    'schedule': 'cosine(end=0.01)',
    **(optimizer or {}),
  }  # fmt: skip
  settings['warmup'] = round(settings['warmup'] * epoch)
  return classification(
    model={'num_classes': 1000, 'dtype': 'bfloat16', **model},
    task={
      'augment': 'erasing(probability=0.25), mixup_or_cutmix',
      'label_smoothing': 0.1, **(task or {}),
    },
    data={
      'source': "tfds(name='imagenet2012')",
      'train_split': 'train', 'test_split': 'validation',
      'train': f"inception_crop(size={size}, area_min=0.08, "
               f"resample='bicubic'), flip, {transforms}, {NORMALIZE}",
      'test': f"resize_short(size={resize}, resample='bicubic'), "
              f'center_crop(size={size}), {NORMALIZE}',
      'decode': 'decode(channels=3, convert=True)', 'workers': 16,
      'repeats': repeats,
    },
    optimizer=locked(**settings),
    steps=round(epochs * epoch), batch_size=batch_size, eval_every=5000,
    checkpoint_every=5000, **fields,
  )  # fmt: skip


def board(recipe, name, **fields) -> ConfigDict:
  """A recipe as a board of the arena.

  Every choice is tuned over a third, one and three times the recipe's rate,
  unless `fields`, further arguments of `vit_jax.arena.arena`, say otherwise.
  """
  rate = recipe.optimizer.learning_rate
  with recipe.unlocked():
    recipe.update({
      'run': 'arena', 'board': name, 'leaf': 'model.attention', 'choices': (),
      'rates': tuple(float(f'{rate * by:.2g}') for by in (1 / 3, 1, 3)),
      'seeds': 3, 'validation': 0.1, 'evaluations': 4, 'shard': '0/1',
      'timeout': 7200.0, **fields,
    })  # fmt: skip
  return recipe


def untrained(suite, *rest) -> ConfigDict:
  """The suites that train nothing: 'scaling', 'probe' of a model and data."""
  fields = {'run': suite, 'choices': (), 'shard': '0/1'}
  if suite == 'scaling':
    lengths = tuple(4**i for i in range(3, 9))
    return locked(
      lengths=lengths, dtypes=(), rounds=7, cell_seconds=20.0,
      max_seconds=20.0, **fields,
    )  # fmt: skip
  if len(rest) != 2:
    raise ValueError(
      f"probe takes a checkpoint and data, 'probe,CHECKPOINT,DATA', not {rest}"
    )
  return locked(
    init=rest[0], source=source(rest[1]), split='test', images=32, **fields
  )


def shortened(recipe, steps) -> ConfigDict:
  """The recipe in fewer steps: warm-up and averaging keep their share."""
  with recipe.unlocked():
    optimizer, share = recipe.optimizer, steps / recipe.steps
    optimizer.warmup = round(optimizer.warmup * share)
    if 'ema' in optimizer:
      optimizer.ema = max(0.0, round(1 - (1 - optimizer.ema) / share, 6))
    recipe.steps = steps
  return recipe


# Boards of images: steps of a cell, of which there are five for every choice;
# seconds that a choice may take.
IMAGES = {'mnist': (400, 7200.0), 'flowers': (400, 7200.0),
          'cifar10': (5000, 36_000.0)}  # fmt: skip
TASKS = ('pathfinder', 'image', 'text', 'retrieval', 'listops')
# Attentions of the published comparison, the faults of its code beside them.
KNOWN = ('performer', 'window(size=8)', 'sinkhorn', 'reformer(chunk=16)',
         'synthesizer_dense', 'linear', 'linformer(rank=16)')  # fmt: skip
WRONG = ('softmax', *KNOWN, *(f'wrong_{word}' for word in KNOWN),
         'wrong_sinkhorn_keys', 'wrong_sinkhorn_noise')  # fmt: skip


def board_of(name, *rest) -> ConfigDict:
  """A board made from the recipe of that name.

  Args:
    name: 'mnist', 'flowers' or 'cifar10', 'listops', 'wrong' (known faults, on
      ListOps), 'lra' or 'swap'.
    *rest: of images the patch size; of 'lra' the task, and 'short' for small
      models; of 'swap' a checkpoint and a data set.

  Raises:
    ValueError: another name, or another number of words after it.
  """
  counts = {**dict.fromkeys(IMAGES, (0, 1)), 'listops': (0,), 'wrong': (0,),
            'lra': (1, 2), 'swap': (2,)}  # fmt: skip
  if name not in counts:
    raise ValueError(
      f'no suite {name!r}; choices: digits, {", ".join(counts)}, scaling, probe'
    )
  if len(rest) not in counts[name]:
    raise ValueError(
      f'{",".join((name, *rest))!r} has {len(rest)} words after the name; '
      f'choices: {", ".join(map(str, counts[name]))}'
    )
  if name == 'swap':
    return _swapped(*rest)
  if name == 'lra' and (
    rest[0] not in TASKS or rest[1:] not in ((), ('short',))
  ):
    raise ValueError(
      f"{name},{','.join(rest)}: it takes a task, {', '.join(TASKS)}, and "
      "after a comma 'short' or nothing"
    )
  if name in ('listops', 'wrong'):
    recipe = importlib.import_module('configs.listops').get_config('short')
    kind = 'known-wrong' if name == 'wrong' else 'short'
    choices = WRONG if name == 'wrong' else ()
    return board(recipe, f'listops {kind}', validation=0.05, choices=choices)
  module = importlib.import_module(f'configs.{name}')
  if name == 'lra':
    return board(
      module.get_config(','.join(rest)), ' '.join(('lra', *rest)),
      validation=0.05, timeout=7200.0 if rest[1:] else 5 * 86_400.0,
    )  # fmt: skip
  steps, timeout = IMAGES[name]
  recipe = shortened(module.get_config(), steps)
  side = recipe.model.image_size
  patch = rest[0] if rest else str(recipe.model.patch_size)
  if not patch.isdecimal() or not int(patch) or side % int(patch):
    fit = [str(p) for p in range(1, side) if side % p == 0]
    raise ValueError(
      f'{name},{patch}: patches must divide the {side} pixels of a side; '
      f'choices: {", ".join(fit)}'
    )
  recipe.model.patch_size = int(patch)
  tokens = (side // int(patch)) ** 2
  return board(recipe, f'{name} {tokens} tokens', timeout=timeout)


def _swapped(checkpoint, dataset) -> ConfigDict:
  """Every attention in a trained model, which teaches it for 200 steps."""
  from configs import distill_attention

  recipe = distill_attention.get_config(f'{checkpoint},softmax')
  recipe.data.source = source(dataset)
  name = f'swap {pathlib.PurePath(checkpoint).name}'
  return board(shortened(recipe, 200), name, timeout=36_000.0)
