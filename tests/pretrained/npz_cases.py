"""Small files as others released them, and the models that they are of."""

import numpy as np
from pretrained import jitter, released

from vit_jax import pretrained

VIT = {
  'name': 'vit', 'patch_size': 4, 'hidden_size': 16, 'num_classes': 5,
  'num_layers': 2, 'num_heads': 2, 'mlp_dim': 24, 'classifier': 'token',
  'image_size': 16,
}  # fmt: skip
MIXER = {
  'name': 'mixer', 'patch_size': 4, 'hidden_size': 16, 'num_classes': 5,
  'num_layers': 2, 'tokens_mlp_dim': 6, 'channels_mlp_dim': 24,
  'image_size': 16,
}  # fmt: skip


def save(path, rows, dtype='float32', **more):
  """Writes a file of jittered arrays, shuffled, and returns them."""
  out = {
    theirs: jitter.array(theirs, shape).astype(dtype)
    for theirs, shape, *_ in rows
  }
  names = list(out)
  np.random.default_rng(0).shuffle(names)
  np.savez(path, **{name: out[name] for name in names}, **more)
  return out


CASES = {
  'pre-linen': (released.vit(**released.TINY), VIT),
  'linen': (released.vit(released.LINEN, **released.TINY), VIT),
  'pre-trained head': (
    released.vit(pre_logits=10, **released.TINY),
    {**VIT, 'representation_size': 10},
  ),
  'one grey channel, no head': (
    [r for r in released.vit(inputs=1, **released.TINY) if 'head' not in r[0]],
    {**VIT, 'num_classes': 0},
  ),
  'R50+B/16': (
    released.hybrid((3, 4, 9), tokens=5),
    {**VIT, 'patch_size': 1, 'image_size': 32, 'resnet': (3, 4, 9),
     'resnet_width': 32},
  ),
  'R26, linen GroupNorms': (
    released.hybrid((2, 2, 2, 2), tokens=5, flat=True),
    {**VIT, 'patch_size': 1, 'image_size': 64, 'resnet': (2, 2, 2, 2),
     'resnet_width': 32},
  ),
  'R+Ti/16': (
    released.hybrid((), tokens=5, patch=8),
    {**VIT, 'patch_size': 8, 'image_size': 64, 'resnet': (),
     'resnet_width': 32},
  ),
  'Mixer': (released.mixer(), MIXER),
  'big_vision': (released.big_vision(), {**VIT, 'classifier': 'gap'}),
  'big_vision, before 2022': (
    [(r[0].replace('pos_e', 'Transformer/pos_e'), *r[1:])
     for r in released.big_vision('opt/target/')],
    {**VIT, 'classifier': 'gap'},
  ),
  'big_vision, sincos2d': (
    released.big_vision(tokens=0),
    {**VIT, 'classifier': 'gap', 'position': 'sincos2d', 'image_size': 224},
  ),
  'big_vision, map, stacked': (
    released.big_vision(pool='map', stack=True, classes=0),
    {**VIT, 'classifier': 'map', 'num_classes': 0},
  ),
  'big_vision, inlined map': (
    released.big_vision(prefix='', pool='map', map_head=''),
    {**VIT, 'classifier': 'map'},
  ),
  'big_vision, free class token': (
    released.big_vision(pool='tok'), {**VIT, 'prefix_positions': 0},
  ),
  'big_vision, image tower alone': (
    released.big_vision('params/img/', pool='map', classes=0),
    {**VIT, 'classifier': 'map', 'num_classes': 0},
  ),
}  # fmt: skip


def loaded(tmp_path, name='linen'):
  save(tmp_path / 'x.npz', CASES[name][0])
  return pretrained.load(tmp_path / 'x.npz')
