"""TNT on ImageNet-1k (Han et al. 2021, table 2): 300 epochs.

python -m vit_jax.main --config=configs/tnt_i1k.py:S/16 --workdir=runs/tnt

The paper reports 81.5 and 82.9 % top-1 of S and B (not rerun here).
"""

from configs import common


def get_config(variant='S/16'):
  """DeiT's recipe, with the drop-path rate 0.1."""
  return common.deit(
    model={
      'name': 'tnt', 'variant': variant, 'image_size': 224,
      'drop_path_rate': 0.1,
    },
  )  # fmt: skip
