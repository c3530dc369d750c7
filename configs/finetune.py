r"""Fine-tunes any checkpoint on your own pictures, with a new head for them.

python -m vit_jax.main --config=configs/finetune.py:MODEL,DATASET[,RECIPE] \
  --workdir=runs/tuned

MODEL is what vit_jax.pretrained.load takes, DATASET a folder, 'tfds:NAME' or a
source. RECIPE is sgd (the original's, for 512 images a step), adamw (with a
lower learning rate for lower blocks) or probe (only the head learns). What the
transforms leave out, size and scaling of pixels, is the checkpoint's.
--config.model.image_size=384 changes the resolution;
--config.optimizer.freeze='^embedding/' freezes the stem.

A ViT-Ti/16 of Tiny ImageNet on five flowers, adamw at 5e-4, batches of 32,
--config.data.train='inception_crop(area_min=0.3), flip': 82.6 % of the held-out
fifth after 432 steps (15 minutes on two CPU cores); at 160 px 80.7 % after 216;
at 128 px 80.6 % after 108 (the same model from scratch: 41.3 %), and 82.4 %
after 1,296 with mixup_or_cutmix. Those pictures were enlarged from about 32 px.
"""

from configs import common


def get_config(arg='runs/folder,data/pictures'):
  """Momentum SGD, warm-up, cosine, clipped at 1; random crops and flips."""
  model, dataset, recipe = (*common.split_arg(arg), 'sgd')[:3]
  return common.classification(
    init=model, head='new', model=common.of_checkpoint(),
    task={'label_smoothing': 0.0, 'augment': ''},
    data={
      'source': common.source(dataset),
      'train_split': 'train', 'test_split': 'test',
      'train': 'inception_crop, flip', 'test': '', 'decode': '',
      'on_bad': 'refuse', 'cache': False, 'workers': 0,
    },
    optimizer=common.finetuning(recipe),
    steps=10_000, batch_size=512,
  )  # fmt: skip
