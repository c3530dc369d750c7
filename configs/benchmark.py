r"""Speed, memory and FLOPs of any model: forward pass and training step.

python -m vit_jax.main --config=configs/benchmark.py --workdir=runs/bench \
  --config.variants="('Ti/16', 'S/16')" --config.batch_sizes='(1, 16)' \
  --config.dtypes="('float32', 'bfloat16')" --config.model.attention=softmax

About a minute a row on two CPU cores; the table is runs/bench/benchmark.md.
"""

from configs import common


def get_config():
  """Every variant at every size, batch size and dtype; () keeps the model's."""
  return common.locked(
    run='benchmark', seed=0,
    variants=('Ti/16', 'S/16'), image_sizes=(), batch_sizes=(16,), dtypes=(),
    repeats=10, channels=3,
    model=common.locked(
      name='vit', variant='S/16', image_size=224, num_classes=1000,
      attention='softmax', dtype='float32', remat=False,
    ),
    task=common.locked(name='classification'),
    optimizer=common.adamw(),
    sharding=common.locked(data=-1, fsdp=1, tensor=1, rules=()),
  )  # fmt: skip
