"""A small DeiT on CIFAR-10 that learns from a trained CNN, configs/teacher.py.

python -m vit_jax.main --config=configs/distill.py:TEACHER,data/cifar10 \
  --workdir=runs/distill

TEACHER is what vit_jax.pretrained.load takes, such as runs/teacher, or 'none',
which learns from the labels alone. Hard distillation; the soft one is
--config.task.{labels=0.9,soft=0.1,hard=0.0}. benchmarks/data_hunger.py compares
them, and the stem --config.model.stem='conv(widths=(24, 48, 96))'.
"""

from configs import common


def get_config(arg='runs/teacher'):
  """'TEACHER' or 'TEACHER,PATH'; patches of 8×8 pixels, for a CPU."""
  teacher, path = [*common.split_arg(arg), 'data/cifar10'][:2]
  told = teacher != 'none'
  hard = {
    'name': 'distillation', 'teacher': teacher, 'token': True, 'labels': 0.5,
    'hard': 0.5, 'soft': 0.0, 'temperature': 3.0,
  }  # fmt: skip
  scaling = 'value_range(low=-1.0, high=1.0)'
  return common.classification(
    model={
      'name': 'deit', 'patch_size': 8, 'hidden_size': 96, 'num_layers': 4,
      'num_heads': 4, 'mlp_dim': 192, 'image_size': 32, 'num_classes': 10,
      'distilled': told, 'stem': 'patches', 'dtype': 'float32',
    },
    task={'augment': 'pad_crop(padding=4), flip', **(hard if told else {})},
    data={
      'source': f'folder(path={path!r})', 'train': scaling, 'test': scaling,
      'decode': 'decode(channels=3)', 'cache': True, 'workers': 0,
    },
    optimizer=common.adamw(learning_rate=2e-3, warmup=200),
    steps=2000, batch_size=64, eval_every=0, checkpoint_every=0,
  )  # fmt: skip
