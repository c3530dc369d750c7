"""The published sizes of plain and hybrid ViTs."""

from typing import Any

SIZES = {
  # name   width layers heads  MLP
  'Ti': (   192,    12,    3,  768),
  'S':  (   384,    12,    6, 1536),
  'B':  (   768,    12,   12, 3072),
  'L':  (  1024,    24,   16, 4096),
  'H':  (  1280,    32,   16, 5120),
  'g':  (  1408,    40,   16, 6144),
}  # fmt: skip
PATCHES = (8, 14, 16, 32)
# name       size patch  units of the ResNet's stages
HYBRIDS = {
  'R+Ti/16':  ('Ti',  8, ()),  # of stride 32, in spite of its name
  'R26+S/32': ('S',   1, (2, 2, 2, 2)),
  'R26+B/32': ('B',   1, (2, 2, 2, 2)),
  'R50+B/16': ('B',   1, (3, 4, 9)),
  'R50+L/32': ('L',   1, (3, 4, 6, 3)),
}  # fmt: skip
# Xiao et al. 2021, table 2: a ViT with patches of 16×16, and one with a block
# fewer whose stem is of convolutions, by the work of both.
WORK = {
  # name   width layers heads  MLP   widths of the convolutions
  '1GF':  (   192,    12,    3,  576, (24, 48, 96, 192)),
  '4GF':  (   384,    12,    6, 1152, (48, 96, 192, 384)),
  '18GF': (   768,    12,   12, 3072, (64, 128, 128, 256, 256, 512)),
  '36GF': (  1024,    14,   16, 4096, (64, 128, 128, 256, 256, 512)),
}  # fmt: skip
STRIDES = {4: (2, 2, 2, 2), 6: (2, 2, 1, 2, 1, 2)}  # by their number


def fields(size: str, patch_size: int) -> dict[str, Any]:
  """The fields of a ViT of a size of `SIZES`."""
  return {**_named(*SIZES[size]), 'patch_size': patch_size}


def _named(*row: int) -> dict[str, Any]:
  names = ('hidden_size', 'num_layers', 'num_heads', 'mlp_dim')
  return dict(zip(names, row, strict=True))


def variants() -> dict[str, dict[str, Any]]:
  """'B/16' → its fields: every size with every patch size, and the hybrids.

  'P-4GF' and 'C-4GF' are the plain and the convolutional one of `WORK`.
  """
  plain = {f'{s}/{p}': fields(s, p) for s in SIZES for p in PATCHES}
  hybrid = {
    name: {**fields(size, patch), 'resnet': depths}
    for name, (size, patch, depths) in HYBRIDS.items()
  }
  work = {}
  for name, (width, layers, heads, mlp, widths) in WORK.items():
    common = {'patch_size': 16, 'gelu': 'exact'}
    work[f'P-{name}'] = {**_named(width, layers, heads, mlp), **common}
    work[f'C-{name}'] = {
      **_named(width, layers - 1, heads, mlp), **common,
      'stem': f'conv(widths={widths}, strides={STRIDES[len(widths)]})',
    }  # fmt: skip
  return {**plain, **hybrid, **work}
