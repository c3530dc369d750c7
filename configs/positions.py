"""The same small ViT with any position encoding, on MNIST at 24 pixels.

python -m vit_jax.main --config=configs/positions.py:rotary,data/mnist \
  --workdir=runs/rotary

The word is any `position` of the ViT: none, learned, sincos1d, sincos2d,
conditional, rotary, rotary_mixed, relative_bias, decomposed_bias,
relative_keys, alibi. Half a minute on two CPU cores; learned: 93 %.
benchmarks/positions.py compares them all, at 36 pixels too.
"""

from configs import common


def get_config(arg='learned'):
  """'WORD' or 'WORD,PATH': patches of 6×6 pixels, a grid of 4×4."""
  word, path = [*common.split_arg(arg), 'data/mnist'][:2]
  return common.classification(
    model={
      'name': 'vit', 'patch_size': 6, 'hidden_size': 64, 'num_layers': 2,
      'num_heads': 4, 'mlp_dim': 128, 'image_size': 24, 'num_classes': 10,
      'classifier': 'gap', 'position': word, 'attention': 'softmax',
      'dtype': 'float32',
    },
    data={
      'source': f'folder(path={path!r})',
      'train': 'resize(size=24), value_range(low=-1.0, high=1.0)',
      'test': 'resize(size=24), value_range(low=-1.0, high=1.0)',
      'decode': 'decode(channels=1)',
      'cache': True, 'workers': 0,
    },
    optimizer=common.adamw(learning_rate=6e-3, warmup=50),
    steps=500, batch_size=64, eval_every=0, checkpoint_every=0,
  )  # fmt: skip
