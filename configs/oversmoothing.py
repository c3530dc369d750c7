"""Deep and narrow: do patches become alike? benchmarks/oversmoothing.py asks.

python -m vit_jax.main --config=configs/oversmoothing.py:deepvit \
  --workdir=runs/oversmoothing/deepvit

MODEL is vit, deepvit, cait, diverse (a ViT with two losses of Gong et al. 2021)
or mixed (with their third, and CutMix); 'MODEL,PATH' takes MNIST's folder.
"""

from configs import common

PAIR = 'cosine, contrastive'
LOSSES = {'diverse': PAIR, 'mixed': f'{PAIR}, mixing'}


def get_config(arg='vit'):
  """24 blocks of 48 channels on 4×4 patches (7×7 of MNIST)."""
  name, _, path = arg.partition(',')
  size, patch = (28, 4) if path else (8, 2)
  return common.classification(
    model={
      'name': 'vit' if name in LOSSES else name, 'patch_size': patch,
      'hidden_size': 48, 'num_layers': 24, 'num_heads': 4, 'mlp_dim': 96,
      'image_size': size, 'num_classes': 10, 'initialization': 'original',
      'gelu': 'exact', 'dtype': 'float32',
    },
    task={
      'augment': 'cutmix' * (name == 'mixed'),
      'diversity': {name: '', **LOSSES}[name],
    },
    data={
      'source': f'folder(path={path!r})' if path else 'digits',
      'train': 'affine(rotate=0.2, scale=0.1, shift=0.6), '
               'value_range(low=-1.0, high=1.0)',
      'test': 'value_range(low=-1.0, high=1.0)',
      'decode': 'decode(channels=1)', 'cache': True, 'workers': 0,
    },
    optimizer=common.adamw(learning_rate=2e-3, warmup=100),
    steps=400, batch_size=64, eval_every=0, checkpoint_every=200,
  )  # fmt: skip
