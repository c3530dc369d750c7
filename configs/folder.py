"""A ViT on your own pictures: PATH/CLASS/*.jpg, or PATH/{train,test}/CLASS.

python -m vit_jax.main --config=configs/folder.py:PATH --workdir=runs/mine
"""

from ml_collections.config_dict import placeholder

from configs import common


def get_config(path='data/pictures'):
  """S/16 at 224 pixels; as many classes as there are folders."""
  return common.classification(
    model={
      'name': 'vit', 'variant': 'S/16', 'image_size': 224,
      'num_classes': placeholder(int), 'attention': 'softmax',
      'classifier': 'gap', 'drop_path_rate': 0.1, 'dtype': 'bfloat16',
    },
    task={'label_smoothing': 0.1, 'augment': 'mixup_or_cutmix'},
    data={
      'source': f'folder(path={path!r}, test_fraction=0.2, seed=0)',
      'train': 'inception_crop(size=224), flip, trivial_augment, '
               'value_range(low=-1.0, high=1.0)',
      'test': 'resize_short(size=256), center_crop(size=224), '
              'value_range(low=-1.0, high=1.0)',
      'decode': 'decode(channels=3, min_side=256)',
      'on_bad': 'skip', 'workers': 4,
    },
    optimizer=common.adamw(learning_rate=5e-4, warmup=1000),
    steps=20_000, batch_size=256,
  )  # fmt: skip
