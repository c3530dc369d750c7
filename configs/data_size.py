"""ViT, CNN and hybrid of equal FLOPs on 1 to 100 % of CIFAR-10, from scratch.

python -m vit_jax.main --config=configs/data_size.py:cifar10,data/cifar10 \
  --workdir=runs/data_size

'latency' in place of 'cifar10,DATA' measures one image's latency and the
largest training batch; into the same workdir, they share a report.
"""

from configs import common


def get_config(arg='cifar10,data/cifar10'):
  """About 82 MFLOP each; the CNN is ResNet-20 of He et al. 2016, §4.2."""
  name, *rest = common.split_arg(arg)
  if name not in ('cifar10', 'latency') or (name == 'cifar10') != len(rest):
    raise ValueError(f'{arg!r}; choices: cifar10,DATA, latency')
  every = {'image_size': 32, 'num_classes': 10, 'dtype': 'float32'}
  vit = {
    'name': 'vit', 'hidden_size': 128, 'num_layers': 4, 'num_heads': 4,
    'classifier': 'gap', 'attention': 'softmax', **every}
  choices = {
    'ViT': {**vit, 'patch_size': 4, 'mlp_dim': 288},
    'CNN': {
      'name': 'resnet', 'block': 'basic', 'depths': (3, 3, 3), 'stem': 'cifar',
      'hidden_sizes': (16, 32, 64), 'embedding_size': 16, **every},
    'hybrid': {
      **vit, 'resnet': (1,), 'resnet_width': 32, 'patch_size': 1,
      'mlp_dim': 256}}  # fmt: skip
  values = 'value_range(low=-1.0, high=1.0)'
  suite = {'run': 'latency', 'image_sizes': (32, 64, 128)} if not rest else {
    'run': 'data_size', 'board': name, 'shares': (.01, .03, .1, .3, 1.0),
    'rates': (3e-4, 1e-3, 3e-3), 'seeds': 3, 'epochs': 0.0}
  return common.classification(
    choices=choices, shard='0/1', model=choices['ViT'], **suite,
    task={'label_smoothing': 0.1, 'augment': 'pad_crop(padding=4), flip'},
    data={'source': common.source(*rest or ('data/cifar10',)), 'train': values,
          'test': values, 'decode': 'decode(channels=3)', 'cache': True},
    optimizer=common.adamw(warmup=200), steps=2000, batch_size=128)
