"""The arena: every attention in the same model, tuned alike, with three seeds.

python -m vit_jax.main --config=configs/arena.py:digits --workdir=runs/arena

Boards for a CPU: digits, mnist[,PATCH], flowers[,PATCH], listops, wrong (known
faults); for a GPU: cifar10[,PATCH], lra,TASK[,short], and swap,CHECKPOINT,DATA
(in a trained ViT, to relearn). Folders: --config.data.source. Some of them
--config.choices="('softmax', 'linformer(rank=8)')"; another leaf:
--config.leaf=model.num_heads --config.choices='(1, 2, 4)'; a machine of four:
--config.shard=0/4. 'scaling' measures them alone, 'probe,CHECKPOINT,DATA' puts
them into a trained ViT and checks them.
"""

from configs import common


def get_config(suite='digits'):
  """'digits': 2 blocks on 4×4 patches; 300 steps a cell, five cells a row."""
  name, *rest = common.split_arg(suite)
  scaling = 'value_range(low=-1.0, high=1.0)'
  if name in ('scaling', 'probe'):
    return common.untrained(name, *rest)
  if name != 'digits':
    return common.board_of(name, *rest)
  recipe = common.classification(
    model={
      'name': 'vit', 'patch_size': 2, 'hidden_size': 64, 'num_layers': 2,
      'num_heads': 4, 'mlp_dim': 128, 'image_size': 8, 'num_classes': 10,
      'classifier': 'gap', 'attention': 'softmax', 'dtype': 'float32',
    }, data={
      'source': 'digits', 'test': scaling, 'cache': True, 'workers': 0,
      'train': f'affine(rotate=0.2, scale=0.1, shift=0.6), {scaling}',
      'decode': 'decode(channels=1)',
    }, optimizer=common.adamw(warmup=50),
    steps=300, batch_size=64,
  )  # fmt: skip
  return common.board(
    recipe, 'digits', rates=(1e-3, 3e-3, 1e-2), evaluations=6, timeout=1800.0
  )
