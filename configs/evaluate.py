r"""Any checkpoint on any labelled set; classes are matched by their names.

python -m vit_jax.main --config=configs/evaluate.py:MODEL,DATASET \
  --workdir=runs/evaluated

MODEL is what vit_jax.pretrained.load takes. DATASET is a folder, 'tfds:NAME' or
a source: "tiny_imagenet(path='data/tiny')" (with --config.data.test_split=val).
Preprocessing is the checkpoint's; --config.data.test changes it, but for the
scaling of pixels: 'resize_short(size=256), center_crop(size=224)'.
--config.run=fewshot measures the features instead of the head.
"""

from configs import common


def get_config(arg='runs/folder,data/pictures'):
  """Of the training split, only few-shot evaluation takes anything."""
  model, dataset = common.split_arg(arg)
  return common.locked(
    run='evaluate', init=model, head='by_name', seed=0, batch_size=64,
    shots=(5, 10, 25), standardize=True,
    model=common.locked(**common.of_checkpoint()),
    task=common.locked(name='classification'),
    data=common.locked(
      source=common.source(dataset), train_split='train', test_split='test',
      train='', test='', decode='', on_bad='refuse', workers=0,
    ),
    sharding=common.locked(data=-1, fsdp=1, tensor=1, rules=()),
  )  # fmt: skip
