"""A small ResNet with BatchNorm on CIFAR-10: a teacher for configs/distill.py.

python -m vit_jax.main --config=configs/teacher.py:data/cifar10 \
  --workdir=runs/teacher

PATH holds train/CLASS/*.jpg and test/CLASS/*.jpg. Written for a CPU; on a GPU
take more blocks, --config.model.depths='(2, 2, 2)', and more steps.
"""

from configs import common


def get_config(path='data/cifar10'):
  """Three stages of one basic block, 32 to 128 channels at 16 to 4 cells."""
  return common.classification(
    model={
      'name': 'resnet', 'block': 'basic', 'depths': (1, 1, 1),
      'hidden_sizes': (32, 64, 128), 'embedding_size': 32, 'stem': 'cifar',
      'downsample_in_first_stage': True, 'image_size': 32, 'num_classes': 10,
      'dtype': 'float32',
    },
    task={
      'label_smoothing': 0.1, 'augment': 'pad_crop(padding=4), flip'
    },
    data={
      'source': f'folder(path={path!r})',
      'train': 'value_range(low=-1.0, high=1.0)',
      'test': 'value_range(low=-1.0, high=1.0)',
      'decode': 'decode(channels=3)',
      'cache': True, 'workers': 0,
    },
    optimizer=common.adamw(learning_rate=5e-3, warmup=100),
    steps=2000, batch_size=64, eval_every=0, checkpoint_every=0,
  )  # fmt: skip
