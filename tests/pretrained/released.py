"""Names and shapes of the arrays in files that others released.

Each function gives [(the file's name, its shape, our name, ours' shape)], the
stacked rows with the names of all blocks; written down from the lists of the
released files, not from our reader. Small sizes unless told.
"""

TINY = {'width': 16, 'layers': 2, 'heads': 2, 'mlp': 24, 'patch': 4}
B16 = {'width': 768, 'layers': 12, 'heads': 12, 'mlp': 3072, 'patch': 16}

# Modules of a block: of the released files (pre-linen), and of linen.
OLD = ('LayerNorm_0', 'MultiHeadDotProductAttention_1', 'LayerNorm_2',
       'MlpBlock_3')  # fmt: skip
LINEN = ('LayerNorm_0', 'MultiHeadDotProductAttention_0', 'LayerNorm_1',
         'MlpBlock_0')  # fmt: skip


def same(rows):
  return [(name, shape, name, shape) for name, shape in rows]


def norm(name, width):
  return [(f'{name}/scale', (width,)), (f'{name}/bias', (width,))]


def dense(name, *shape):
  return [(f'{name}/kernel', shape), (f'{name}/bias', shape[-1:])]


def attention(name, width, heads):
  each = width // heads
  rows = []
  for part in ('query', 'key', 'value'):
    rows += [
      (f'{name}/{part}/kernel', (width, heads, each)),
      (f'{name}/{part}/bias', (heads, each)),
    ]
  return [*rows, *dense(f'{name}/out', heads, each, width)]


def block(modules, width, heads, mlp):
  """The 16 arrays of a block, in the same order for any spelling."""
  first, attend, second, hidden = modules
  return [
    *norm(first, width),
    *attention(attend, width, heads),
    *norm(second, width),
    *dense(f'{hidden}/Dense_0', width, mlp),
    *dense(f'{hidden}/Dense_1', mlp, width),
  ]


def blocks(modules, layers, **size):
  rows = []
  for i in range(layers):
    at = f'Transformer/encoderblock_{i}'
    for (theirs, shape), (ours, _) in zip(
      block(modules, **size), block(LINEN, **size), strict=True
    ):
      rows.append((f'{at}/{theirs}', shape, f'{at}/{ours}', shape))
  return rows


TABLE = 'Transformer/posembed_input/pos_embedding'


def vit(
  modules=OLD, tokens=17, classes=5, pre_logits=None, inputs=3, *, width,
  layers, heads, mlp, patch,
):  # fmt: skip
  """A ViT with a class token: B_16.npz and its like."""
  rows = [
    *dense('embedding', patch, patch, inputs, width),
    ('cls', (1, 1, width)),
    (TABLE, (1, tokens, width)),
    *norm('Transformer/encoder_norm', width),
    *dense('head', pre_logits or width, classes),
  ]
  if pre_logits:
    rows += dense('pre_logits', width, pre_logits)
  inside = blocks(modules, layers, width=width, heads=heads, mlp=mlp)
  return same(rows) + inside


def hybrid(units, tokens, root=32, flat=False, patch=1):
  """R50+B/16 and its like; `flat` GroupNorms are linen's."""
  size = {**TINY, 'patch': patch}
  inputs = root * 4 * 2 ** (len(units) - 1) if units else root
  rows = vit(tokens=tokens, inputs=inputs, **size)

  def group(name, width):
    shape = (width,) if flat else (1, 1, 1, width)
    return [
      (f'{name}/{part}', shape, f'{name}/{part}', (width,))
      for part in ('scale', 'bias')
    ]

  rows += same([('conv_root/kernel', (7, 7, 3, root))])
  rows += group('gn_root', root)
  came = root
  for stage, count in enumerate(units, 1):
    narrow = root * 2 ** (stage - 1)
    for unit in range(1, count + 1):
      at = f'block{stage}/unit{unit}'
      rows += same([
        (f'{at}/conv1/kernel', (1, 1, came, narrow)),
        (f'{at}/conv2/kernel', (3, 3, narrow, narrow)),
        (f'{at}/conv3/kernel', (1, 1, narrow, 4 * narrow)),
      ])
      rows += group(f'{at}/gn1', narrow) + group(f'{at}/gn2', narrow)
      rows += group(f'{at}/gn3', 4 * narrow)
      if unit == 1:
        rows += same([(f'{at}/conv_proj/kernel', (1, 1, came, 4 * narrow))])
        rows += group(f'{at}/gn_proj', 4 * narrow)
      came = 4 * narrow
  return rows


def mixer(layers=2, width=16, patch=4, tokens=16, token_mlp=6, channel_mlp=24):
  """Mixer-B_16.npz and its like."""
  rows = [
    *dense('stem', patch, patch, 3, width),
    *norm('pre_head_layer_norm', width),
    *dense('head', width, 5),
  ]
  for i in range(layers):
    at = f'MixerBlock_{i}'
    rows += norm(f'{at}/LayerNorm_0', width) + norm(f'{at}/LayerNorm_1', width)
    for name, inner, outer in (
      ('token', tokens, token_mlp), ('channel', width, channel_mlp),
    ):  # fmt: skip
      rows += dense(f'{at}/{name}_mixing/Dense_0', inner, outer)
      rows += dense(f'{at}/{name}_mixing/Dense_1', outer, inner)
  return same(rows)


def big_vision(
  prefix='params/', pool='gap', tokens=16, stack=False, classes=5,
  map_head='MAPHead_0/',
):  # fmt: skip
  """big_vision: no class row in the table, maybe one array for all blocks."""
  width, layers = TINY['width'], TINY['layers']
  size = {key: TINY[key] for key in ('width', 'heads', 'mlp')}
  rows = same([
    *dense('embedding', 4, 4, 3, width),
    *norm('Transformer/encoder_norm', width),
  ])
  if classes:
    rows += same(dense('head', width, classes))
  if tokens:
    shape = (1, tokens, width)
    rows += [('pos_embedding', shape, TABLE, shape)]
  if pool == 'tok':
    rows += same([('cls', (1, 1, width))])
  if pool == 'map':
    probe = [('probe', (1, 1, width))]
    for name, shape in probe + [
      row for row in block(LINEN, **size) if 'LayerNorm_1' not in row[0]
    ]:
      rows += [(f'{map_head}{name}', shape, f'MAPHead_0/{name}', shape)]
  if stack:
    for name, shape in block(LINEN, **size):
      at = 'Transformer/encoderblock'
      ours = tuple(f'{at}_{i}/{name}' for i in range(layers))
      rows += [(f'{at}/{name}', (layers, *shape), ours, shape)]
  else:
    rows += blocks(LINEN, layers, **size)
  return [(prefix + theirs, *rest) for theirs, *rest in rows]
