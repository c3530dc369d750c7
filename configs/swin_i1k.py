"""Swin on ImageNet-1k (Liu et al. 2021, appendix A2.1): 300 epochs.

python -m vit_jax.main --config=configs/swin_i1k.py:T --workdir=runs/swin

The paper reports 81.3, 83.0 and 83.5 % top-1 of T, S and B (not rerun here).
"""

from configs import common

DROP_PATH = {'T': 0.2, 'S': 0.3, 'B': 0.5}


def get_config(variant='T'):
  """DeiT's augmentation without repeats, a warm-up of 20 epochs, clipping."""
  return common.deit(
    model={
      'name': 'swin', 'variant': variant, 'image_size': 224,
      'drop_path_rate': DROP_PATH[variant],
    },
    repeats=1, optimizer={'warmup': 20, 'clip': 5.0},
  )  # fmt: skip
