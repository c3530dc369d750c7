"""CaiT on ImageNet-1k (Touvron et al. 2021b, table 8): 400 epochs.

python -m vit_jax.main --config=configs/cait_i1k.py:XXS24 --workdir=runs/cait

The paper reports 77.6, 79.1 and 82.7 % top-1 of XXS24, XXS36 and S24 at 224
pixels (not rerun here).
"""

from configs import common

DROP_PATH = {
  'XXS24': 0.05, 'XXS36': 0.1, 'XS24': 0.05, 'S24': 0.1, 'S36': 0.2,
  'M36': 0.3,
}  # fmt: skip


def get_config(variant='XXS24'):
  """DeiT's recipe, longer, with the drop-path rate of the depth."""
  return common.deit(
    model={
      'name': 'cait', 'variant': variant, 'image_size': 224,
      'drop_path_rate': DROP_PATH[variant],
    },
    epochs=400,
  )  # fmt: skip
