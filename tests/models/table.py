"""The sizes of every model in the table, and small instances with every part.

A new model needs a row in `SIZES` and one in `TINY`; it then has the tests of
test_models.py.
"""

# Parameters at 224 pixels and 1000 classes, as published.
SIZES = {
  'vit': {
    'Ti/16': 5_717_416,
    'S/16': 22_050_664,
    'S/32': 22_878_952,
    'B/8': 86_576_872,
    'B/16': 86_567_656,
    'B/32': 88_224_232,
    'L/16': 304_326_632,
    'L/32': 306_535_400,
    'H/14': 632_045_800,
    'g/14': 1_012_611_432,
    'R+Ti/16': 6_337_704,
    'R26+S/32': 36_431_912,
    'R26+B/32': 101_383_976,
    'R50+B/16': 98_659_112,
    'R50+L/32': 328_994_856,
  },
  'deit': {
    'Ti/16': 5_717_416,
    'S/16': 22_050_664,
    'B/16': 86_567_656,
    'Ti/16-distilled': 5_910_800,
    'S/16-distilled': 22_436_432,
    'B/16-distilled': 87_338_192,
    'III-S/16': 22_059_496,
    'III-B/16': 86_585_320,
    'III-L/16': 304_374_760,
    'III-H/14': 632_126_440,
  },
  'mixer': {
    'S/16': 18_528_264,
    'B/16': 59_880_472,
    'B/32': 60_293_428,
    'L/16': 208_196_168,
  },
}
# Traced at their whole depth: one of each class with `num_layers` blocks that
# are alike, or `depths`; and the models whose blocks differ otherwise.
WHOLE = (('vit', 'Ti/16'), ('deit', 'Ti/16-distilled'), ('mixer', 'S/16'))

# The smallest instances that have every part. The first word is the model's
# name; images are RGB, `image_size` pixels wide and high.
WIDTHS = {
  'hidden_size': 16, 'num_layers': 2, 'num_heads': 2, 'mlp_dim': 24,
  'image_size': 8, 'feature_layers': (0, -1),
}  # fmt: skip
TINY = {
  'vit': {'patch_size': 4, **WIDTHS},
  'vit hybrid': {
    'patch_size': 1, 'resnet': (1,), 'resnet_width': 32, **WIDTHS
  },
  'deit distilled': {
    'patch_size': 4, 'distilled': True, 'layer_scale': 0.1, **WIDTHS
  },
  'mixer': {
    'patch_size': 4, 'hidden_size': 16, 'num_layers': 2, 'tokens_mlp_dim': 12,
    'channels_mlp_dim': 24, 'image_size': 8, 'feature_layers': (0, -1),
  },
}  # fmt: skip
# Models that take images of their own size only.
FIXED_SIZE = ('mixer',)
# Sides of an image must be multiples of this; 1 where the model pads.
MULTIPLE = {'vit': 4, 'vit hybrid': 4, 'deit distilled': 4, 'mixer': 4}
# Endings of parameters whose gradient is exactly 0, and why.
FLAT = (
  'key/bias',  # softmax is unchanged by a shift of all logits of a query
  'token_mixing/Dense_1/bias',  # a norm by a shift of all channels of a token
)
# Compared operation by operation too, which takes long in deep models.
EAGER = ('vit', 'deit distilled', 'mixer')
