"""Five flowers from a folder of class folders, a seeded fifth held out.

python -m vit_jax.main --config=configs/flowers.py:data/flowers \
  --workdir=runs/flowers
"""

from configs import common


def get_config(path='data/flowers'):
  """A small ViT on 64×64 pixels in patches of 8×8, for a CPU."""
  return common.classification(
    model={
      'name': 'vit', 'patch_size': 8, 'hidden_size': 96, 'num_layers': 6,
      'num_heads': 3, 'mlp_dim': 384, 'image_size': 64, 'num_classes': 5,
      'classifier': 'gap', 'drop_path_rate': 0.1, 'attention': 'softmax',
      'dtype': 'float32',
    },
    task={'label_smoothing': 0.1, 'augment': 'cutmix(alpha=1.0)'},
    data={
      'source': f'folder(path={path!r}, test_fraction=0.2, seed=0)',
      'train': 'inception_crop(size=64, area_min=0.25), flip, '
               'color_jitter(brightness=0.2, contrast=0.2, saturation=0.2), '
               'value_range(low=-1.0, high=1.0)',
      'test': 'resize(size=64), value_range(low=-1.0, high=1.0)',
      'decode': 'decode(channels=3)',
      'cache': True, 'workers': 0,
    },
    optimizer=common.adamw(learning_rate=1e-3, warmup=200, ema=0.995),
    steps=2000, batch_size=64, eval_every=500, checkpoint_every=500,
  )  # fmt: skip
