"""ListOps of the Long-Range Arena (Tay et al. 2021), with any attention.

python -m vit_jax.main --config=configs/listops.py:full --workdir=runs/listops \
  --config.model.attention=performer

'full' is the published task: lists of 500 to 2,000 symbols, 4 layers of 512,
5,000 steps of 32, for a GPU (Transformer: 36.37 %). 'short' has lists of 10 to
64 symbols and a small model: minutes on two CPU cores.
"""

from configs import common

SHORT = 'listops(min_length=10, max_length=64, max_depth=5, max_args=5)'


def get_config(size='short'):
  """'full' or 'short'."""
  full = {'full': True, 'short': False}[size]
  shape = {'variant': 'listops'} if full else {
    'vocabulary_size': 16, 'length': 64, 'hidden_size': 64, 'num_layers': 2,
    'num_heads': 4, 'mlp_dim': 128,
  }  # fmt: skip
  return common.classification(
    model={
      'name': 'sequence', 'num_classes': 10, 'attention': 'softmax',
      'position': 'learned', 'classifier': 'token', 'dropout_rate': 0.1 * full,
      'dtype': 'bfloat16' if full else 'float32', **shape,
    },
    data={
      'source': 'listops' if full else SHORT, 'train': '', 'test': '',
      'cache': not full, 'workers': 8 * full,
    },
    optimizer=common.adamw(
      learning_rate=5e-4 if full else 2e-3, weight_decay=0.1,
      warmup=1000 if full else 200,
    ),
    steps=5000 if full else 2000, batch_size=32 if full else 64,
    eval_every=1000, checkpoint_every=1000,
  )  # fmt: skip
