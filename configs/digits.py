"""scikit-learn's 1,797 handwritten 8×8 digits: real data, no download.

python -m vit_jax.main --config=configs/digits.py --workdir=runs/digits
"""

from configs import common


def get_config():
  """A small ViT with patches of 2×2 pixels; 20 % of the images held out."""
  return common.classification(
    model={
      'name': 'vit', 'patch_size': 2, 'hidden_size': 64, 'num_layers': 4,
      'num_heads': 4, 'mlp_dim': 256, 'image_size': 8, 'num_classes': 10,
      'classifier': 'gap', 'attention': 'softmax', 'dtype': 'float32',
    },
    task={'label_smoothing': 0.1},
    data={
      'source': 'digits',
      'train': 'affine(rotate=0.2, scale=0.1, shift=0.6), '
               'value_range(low=-1.0, high=1.0)',
      'test': 'value_range(low=-1.0, high=1.0)',
      'decode': 'decode(channels=1)',
      'cache': True, 'workers': 0,
    },
    optimizer=common.adamw(learning_rate=3e-3, warmup=200, ema=0.99),
    steps=2000, batch_size=128, eval_every=500, checkpoint_every=500,
  )  # fmt: skip
