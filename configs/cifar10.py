"""CIFAR-10 from scratch with a plain ViT, from a folder; written for a GPU.

python -m vit_jax.main --config=configs/cifar10.py:data/cifar10 \
  --workdir=runs/cifar10
"""

from configs import common


def get_config(path='data/cifar10'):
  """Patches of 4×4 pixels; augmented on the device, workers only decode."""
  return common.classification(
    model={
      'name': 'vit', 'patch_size': 4, 'hidden_size': 384, 'num_layers': 7,
      'num_heads': 6, 'mlp_dim': 768, 'image_size': 32, 'num_classes': 10,
      'classifier': 'gap', 'drop_path_rate': 0.1, 'attention': 'softmax',
      'dtype': 'bfloat16',
    },
    task={
      'label_smoothing': 0.1,
      'augment': 'pad_crop(padding=4), flip, mixup_or_cutmix, '
                 'erasing(probability=0.25)',
    },
    data={
      'source': f'folder(path={path!r})',
      'train': 'trivial_augment, value_range(low=-1.0, high=1.0)',
      'test': 'value_range(low=-1.0, high=1.0)',
      'decode': 'decode(channels=3)',
      'cache': True, 'workers': 12,
    },
    optimizer=common.adamw(learning_rate=1e-3, warmup=2000, ema=0.9995),
    steps=20_000, batch_size=512, eval_every=2000,
  )  # fmt: skip
