"""MNIST from a folder of PNGs: PATH/{train,test}/DIGIT/*.png.

python -m vit_jax.main --config=configs/mnist.py:data/mnist --workdir=runs/mnist
"""

from configs import common


def get_config(path='data/mnist'):
  """A small ViT with patches of 4×4 pixels, for a CPU."""
  return common.classification(
    model={
      'name': 'vit', 'patch_size': 4, 'hidden_size': 64, 'num_layers': 4,
      'num_heads': 4, 'mlp_dim': 256, 'image_size': 28, 'num_classes': 10,
      'classifier': 'gap', 'attention': 'softmax', 'dtype': 'float32',
    },
    task={'label_smoothing': 0.1},
    data={
      'source': f'folder(path={path!r})',
      'train': 'affine(rotate=0.2, scale=0.1, shift=2.0), '
               'value_range(low=-1.0, high=1.0)',
      'test': 'value_range(low=-1.0, high=1.0)',
      'decode': 'decode(channels=1)',
      'cache': True, 'workers': 0,
    },
    optimizer=common.adamw(learning_rate=2e-3, warmup=300, ema=0.995),
    steps=4000, batch_size=128, eval_every=1000,
  )  # fmt: skip
