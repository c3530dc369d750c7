"""DeiT on ImageNet-1k (Touvron et al. 2021): 300 epochs without more data.

python -m vit_jax.main --config=configs/deit_i1k.py:S/16 --workdir=runs/deit

The paper reports 72.2, 79.9 and 81.8 % top-1 of Ti/16, S/16 and B/16 (not rerun
here). With a teacher: configs/distill.py.
"""

from configs import common


def get_config(variant='S/16'):
  """AdamW, RandAugment, mixup or CutMix, erasing, repeated augmentation."""
  return common.deit(
    model={
      'name': 'deit', 'variant': variant, 'image_size': 224,
      'attention': 'softmax', 'drop_path_rate': 0.1,
    },
  )  # fmt: skip
