"""DeiT III on ImageNet-1k (Touvron et al. 2022, table 1): 400 epochs.

python -m vit_jax.main --config=configs/deit3_i1k.py:S/16 --workdir=runs/deit3

The paper reports 80.4, 83.5 and 84.5 % top-1 of S, B and L after 400 epochs
(not rerun here).
"""

from configs import common

DROP_PATH = {'S/16': 0.0, 'B/16': 0.1, 'L/16': 0.4, 'H/14': 0.5}


def get_config(variant='S/16'):
  """LAMB, binary cross-entropy, three augmentations, no label smoothing."""
  jitter = 'color_jitter(brightness=0.3, contrast=0.3, saturation=0.3)'
  return common.deit(
    model={
      'name': 'deit', 'variant': f'III-{variant}', 'image_size': 224,
      'attention': 'softmax', 'drop_path_rate': DROP_PATH[variant],
    },
    transforms=f'three_augment, {jitter}', resize=224,
    task={
      'loss': 'sigmoid', 'label_smoothing': 0.0, 'augment': 'mixup_or_cutmix'
    },
    epochs=400, batch_size=2048,
    optimizer={
      'name': 'lamb', 'learning_rate': 3e-3, 'weight_decay': 0.02, 'clip': 1.0
    },
  )  # fmt: skip
