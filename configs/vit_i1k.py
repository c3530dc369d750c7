"""ViT-S/16 from scratch on ImageNet-1k: "Better plain ViT baselines".

python -m vit_jax.main --config=configs/vit_i1k.py --workdir=runs/vit_i1k

Beyer et al. 2022 report 76.5 % top-1 after these 90 epochs (not rerun here).
"""

from configs import common

EPOCH = 1_281_167 / 1024


def get_config(variant='S/16'):
  """Batch 1024, AdamW 1e-3, RandAugment, mixup, fixed positions, mean pool."""
  return common.classification(
    model={
      'name': 'vit', 'variant': variant, 'image_size': 224,
      'num_classes': 1000, 'classifier': 'gap', 'position': 'sincos2d',
      'attention': 'softmax', 'dtype': 'bfloat16',
    },
    task={'augment': 'mixup(alpha=0.2)'},
    data={
      'source': "tfds(name='imagenet2012')",
      'train_split': 'train', 'test_split': 'validation',
      'train': 'inception_crop(size=224), flip, '
               'randaugment(layers=2, magnitude=10), '
               'value_range(low=-1.0, high=1.0)',
      'test': 'resize_short(size=256), center_crop(size=224), '
              'value_range(low=-1.0, high=1.0)',
      'decode': 'decode(channels=3, convert=True)', 'workers': 16,
    },
    optimizer=common.adamw(learning_rate=1e-3, weight_decay=0.1, warmup=10_000),
    steps=round(90 * EPOCH), batch_size=1024, eval_every=5000,
    checkpoint_every=5000,
  )  # fmt: skip
