"""The Long-Range Arena (Tay et al. 2021), with any attention.

python -m vit_jax.main --config=configs/lra.py:pathfinder --workdir=runs/lra

'image' (grey CIFAR-10), 'pathfinder', 'text' (--config.data.source="text(path=
'aclImdb')"), 'retrieval', 'listops'; ',short' after it is small, minutes on two
CPU cores. Models are variants of these names, the rest the arena's released
base configs: the paper's rate for pixels, 0.01, learns nothing (its issue 16).
"""

from configs import common, listops

TASKS = {  # source, the same if short; steps, batch, rate, warm-up, dropout
  'image': ("tfds(name='cifar10')", 'digits', 35_000, 256, 5e-4, 175, 0.3),
  'pathfinder': ('pathfinder', 'pathfinder(contour_length=6, examples=2000)',
                 62_400, 512, 1e-3, 312, 0.1),
  **{k: (f"{k}(path='{k}')", f"{k}(path='{k}', max_length=256)", steps, 32,
         0.05 / 8000**0.5, 8000, 0.1)
     for k, steps in {'text': 20_000, 'retrieval': 5_000}.items()},
}  # fmt: skip
SHORT = {'num_layers': 2, 'hidden_size': 32, 'num_heads': 2, 'mlp_dim': 64}


def get_config(task='listops,short'):
  """A key of `TASKS` or 'listops', and ',short' perhaps."""
  name, *short = common.split_arg(task)
  if name == 'listops':
    return listops.get_config('short' if short else 'full')
  *sources, steps, batch, rate, warmup, dropout = TASKS[name]
  words = name in ('text', 'retrieval')
  grey = {} if words else {'decode': 'decode(channels=1)', 'tokens': 'pixels'}
  part = {'train_split': 'train[:90%]'} if name == 'image' else {}
  return common.classification(model={
      'name': 'pair' if name == 'retrieval' else 'sequence', 'variant': name,
      'attention': 'softmax', 'dtype': 'float32' if short else 'bfloat16',
      'dropout_rate': dropout * (not short), **(SHORT if short else {}),
    }, data={'source': sources[len(short)], 'cache': not words, **grey, **part},
    optimizer=common.adamw(1e-3 if short else rate, 0.1 * words, warmup,
      schedule='rsqrt(timescale=8000)' if words else 'cosine', clip=0.0),
    steps=500 if short else steps, batch_size=16 if short else batch)
