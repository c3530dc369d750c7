"""CvT on ImageNet-1k (Wu et al. 2021, section 4.1): 300 epochs.

python -m vit_jax.main --config=configs/cvt_i1k.py:13 --workdir=runs/cvt

The paper reports 81.6 and 82.5 % top-1 of CvT-13 and 21 (not rerun here). It
prints a learning rate of 0.02; this one is DeiT's rule at its batch size.
"""

from configs import common


def get_config(variant='13'):
  """DeiT's augmentation without repeats, twice its batch size."""
  return common.deit(
    model={
      'name': 'cvt', 'variant': variant, 'image_size': 224,
      'drop_path_rate': 0.1,
    },
    repeats=1, batch_size=2048,
    optimizer={'weight_decay': 0.05 if variant == '13' else 0.1},
  )  # fmt: skip
