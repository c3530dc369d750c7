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


def fields(size: str, patch_size: int) -> dict[str, Any]:
  """The fields of a ViT of a size of `SIZES`."""
  names = ('hidden_size', 'num_layers', 'num_heads', 'mlp_dim')
  row = dict(zip(names, SIZES[size], strict=True))
  return {**row, 'patch_size': patch_size}


def variants() -> dict[str, dict[str, Any]]:
  """'B/16' → its fields: every size with every patch size, and the hybrids."""
  plain = {f'{s}/{p}': fields(s, p) for s in SIZES for p in PATCHES}
  hybrid = {
    name: {**fields(size, patch), 'resnet': depths}
    for name, (size, patch, depths) in HYBRIDS.items()
  }
  return {**plain, **hybrid}
