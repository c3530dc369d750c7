"""ViT, CNN and hybrid of equal FLOPs on 1 to 100 % of CIFAR-10, from scratch.

python -m vit_jax.main --config=configs/data_size.py:cifar10,data/cifar10 \
  --workdir=runs/data_size

'flowers,DATA,STARTS': fine-tuned from the runs STARTS/ViT, STARTS/CNN and so on
of 'start,data/cifar10,MODEL'. 'latency': one image's, and the largest batch.
"""

from configs import common

WORDS = {'cifar10': 1, 'flowers': 2, 'start': 2, 'latency': 0}


def get_config(arg='cifar10,data/cifar10'):
  """One recipe; `common.matched()` are the models."""
  name, *rest = common.split_arg(arg)
  models, few = common.matched(), name == 'flowers'
  if name not in WORDS or WORDS[name] != len(rest) or (
      name == 'start' and rest[1] not in models):
    raise ValueError(f'{arg!r}; choices: cifar10,DATA, flowers,DATA,STARTS, '
                     f'start,DATA,MODEL ({", ".join(models)}), latency')
  choices = {k: f'{rest[1]}/{k}' for k in models} if few else models
  model = models[rest[1] if name == 'start' else 'ViT']
  board = {
    'run': 'data_size', 'board': name, 'shares': (.01, .03, .1, .3, 1.0),
    'rates': (1e-4, 3e-4, 1e-3) if few else (3e-4, 1e-3, 3e-3), 'seeds': 3,
    'epochs': 0.0, 'choices': choices, 'shard': '0/1', **(
      {'init': choices['ViT'], 'head': 'new'} if few else {})}
  own = {'cifar10': board, 'flowers': board, 'start': {}, 'latency': {
    'run': 'latency', 'image_sizes': (32, 64, 128), 'choices': choices,
    'shard': '0/1'}}
  values = 'resize(size=(32, 32)), ' * few + 'value_range(low=-1.0, high=1.0)'
  return common.classification(
    model=common.of_checkpoint() if few else model,
    task={'label_smoothing': 0.1, 'augment': 'pad_crop(padding=4), flip'},
    data={'source': common.source(rest[0] if rest else 'data/cifar10'),
          'train': values, 'test': values, 'decode': 'decode(channels=3)',
          'cache': True}, optimizer=common.adamw(warmup=50 if few else 200),
    steps=500 if few else 2000, batch_size=128, **own[name])  # fmt: skip
