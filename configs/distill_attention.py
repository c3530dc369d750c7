r"""Another attention in a trained ViT learns to do what the exact one did.

python -m vit_jax.main --config=configs/distill_attention.py:MODEL,ATTENTION \
  --workdir=runs/swapped --config.data.source="folder(path='data/pictures')"

MODEL is what vit_jax.pretrained.load takes, ATTENTION one spec or several:
'performer(features=128)'. The exact model teaches: the student matches its
probabilities and, after every block, its features. Labels do not count, and the
pictures may be of some of the model's classes. docs/swap.md has a table.
"""

from configs import common


def get_config(arg='runs/folder,performer'):
  """All weights of MODEL, and those that ATTENTION brings, are trained."""
  model, _, attention = arg.partition(',')
  return common.classification(
    init=model, model=common.of_checkpoint(attention=attention.strip()),
    task={
      'name': 'distillation', 'teacher': model, 'labels': 0.0, 'soft': 1.0,
      'hard': 0.0, 'features': 1.0, 'temperature': 1.0, 'layers': (),
      'augment': '',
    },
    data={
      'source': "folder(path='data/pictures')",
      'train_split': 'train', 'test_split': 'test',
      'train': 'inception_crop(area_min=0.25), flip', 'test': '', 'decode': '',
      'on_bad': 'refuse', 'cache': False, 'workers': 0,
    },
    optimizer=common.adamw(
      learning_rate=5e-4, weight_decay=0.0, warmup=20, layer_decay=1.0,
      freeze='',
    ),
    steps=2000, batch_size=64,
  )  # fmt: skip
