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
    'P-1GF': 4_830_376,
    'P-4GF': 18_507_112,
    'P-18GF': 86_567_656,
    'P-36GF': 178_364_392,
    'C-1GF': 4_567_936,
    'C-4GF': 17_754_136,
    'C-18GF': 81_573_160,
    'C-36GF': 167_796_008,
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
  'cpvt': {  # computed; the paper rounds to 6, 23 and 88 million
    'Ti/16': 5_681_512,
    'S/16': 21_978_856,
    'B/16': 86_424_040,
    'Ti/16-GAP': 5_681_320,
    'S/16-GAP': 21_978_472,
    'B/16-GAP': 86_423_272,
  },
  'rope': {
    'S/16-axial': 21_984_232,
    'S/16-axial-APE': 22_059_496,
    'S/16-mixed': 21_988_840,
    'S/16-mixed-APE': 22_064_104,
    'B/16-axial': 86_434_792,
    'B/16-axial-APE': 86_585_320,
    'B/16-mixed': 86_444_008,
    'B/16-mixed-APE': 86_594_536,
    'L/16-axial': 304_174_056,
    'L/16-axial-APE': 304_374_760,
    'L/16-mixed': 304_198_632,
    'L/16-mixed-APE': 304_399_336,
  },
  'convit': {
    'Ti/16': 5_710_512,
    'S/16': 27_777_322,
    'B/16': 86_540_040,
  },
  'xcit': {
    'N12/16': 3_053_224,
    'T12/16': 6_716_272,
    'S12/16': 26_253_304,
    'T24/16': 12_116_896,
    'S24/16': 47_671_384,
    'M24/16': 84_395_752,
    'L24/16': 189_096_136,
    'N12/8': 3_049_016,
    'T12/8': 6_706_504,
    'S12/8': 26_213_032,
    'T24/8': 12_107_128,
    'S24/8': 47_631_112,
    'M24/8': 84_323_624,
    'L24/8': 188_932_648,
  },
  'mvit': {
    'T': 24_173_320,
    'S': 34_870_216,
    'B': 51_472_744,
    'S-cls': 34_870_312,
    'B-cls': 51_472_840,
  },
  'deepvit': {'16': 24_426_664, '24': 36_261_448, '32': 48_096_232},
  'cait': {
    'XXS24': 11_956_264,
    'XXS36': 17_299_720,
    'XS24': 26_560_648,
    'S24': 46_916_200,
    'S36': 68_220_712,
    'M36': 270_929_512,
    'M48': 356_008_936,
  },
  'tnt': {
    'S/16': 23_768_584, 'B/16': 65_428_680, 'S/16-legacy': 23_755_336
  },
  'pvt': {
    'T': 13_229_288, 'S': 24_485_864, 'M': 44_208_104, 'L': 61_369_320
  },
  'pvt_v2': {
    'b0': 3_666_760,
    'b1': 14_009_000,
    'b2': 25_362_856,
    'b3': 45_238_696,
    'b4': 62_556_072,
    'b5': 81_956_008,
    'b2-li': 22_553_512,
  },
  'cvt': {'13': 19_997_480, '21': 31_622_696, 'W24': 277_196_392},
  'mixer': {
    'S/16': 18_528_264,
    'B/16': 59_880_472,
    'B/32': 60_293_428,
    'L/16': 208_196_168,
  },
  'compact': {  # 990 · (width + 1) more than at 10 classes
    'ViT-Lite-7/4': 3_971_304,
    'ViT-Lite-7/8': 3_995_880,
    'ViT-Lite-7/16': 4_140_264,
    'ViT-Lite-6/4': 3_444_968,
    'CVT-7/4': 3_971_049,
    'CVT-7/8': 3_995_625,
    'CCT-7/3x1': 4_014_569,
    'CCT-2/3x2': 411_433,
    'CCT-4/3x2': 609_833,
    'CCT-6/3x2': 3_581_353,
    'CCT-7/3x2': 4_107_689,
    'CCT-14/7x2': 22_367_273,
  },
  'resnet': {
    '18': 11_689_512,
    '34': 21_797_672,
    '50': 25_557_032,
    '101': 44_549_160,
    '152': 60_192_808,
  },
  'swin': {
    'T': 28_288_354, 'S': 49_606_258, 'B': 87_768_224, 'L': 196_532_476
  },
  'twins': {
    'SVT-S': 24_060_776,
    'SVT-B': 56_070_952,
    'SVT-L': 99_271_400,
    'PCPVT-S': 24_106_216,
    'PCPVT-B': 43_828_456,
    'PCPVT-L': 60_989_672,
  },
}
# Traced at their whole depth: one of each class with `num_layers` blocks that
# are alike, or `depths`; and the models whose blocks differ otherwise.
WHOLE = (
  ('vit', 'Ti/16'),
  ('deit', 'Ti/16-distilled'),
  ('cpvt', 'Ti/16'),
  ('rope', 'S/16-mixed'),
  ('mvit', 'T'),
  ('pvt', 'T'),
  ('pvt_v2', 'b0'),
  ('cvt', '13'),
  ('mixer', 'S/16'),
  ('resnet', '34'),
  ('compact', 'CCT-7/3x1'),
  ('swin', 'T'),
  ('twins', 'SVT-S'),
)

# The smallest instances that have every part. The first word is the model's
# name; images are RGB, `image_size` pixels wide and high.
WIDTHS = {
  'hidden_size': 16, 'num_layers': 2, 'num_heads': 2, 'mlp_dim': 24,
  'image_size': 8, 'feature_layers': (0, -1),
}  # fmt: skip
STAGES = {
  'hidden_sizes': (8, 16), 'depths': (1, 1), 'num_heads': (2, 2),
  'mlp_ratios': (2, 2), 'image_size': 16, 'feature_layers': (0, 1),
}  # fmt: skip
TINY = {
  'vit': {'patch_size': 4, **WIDTHS},
  'vit hybrid': {
    'patch_size': 1, 'resnet': (1,), 'resnet_width': 32, **WIDTHS
  },
  'vit conv': {'patch_size': 4, 'stem': 'conv(widths=(6, 8))', **WIDTHS},
  'deit distilled': {
    'patch_size': 4, 'distilled': True, 'layer_scale': 0.1, **WIDTHS
  },
  'cpvt': {'patch_size': 4, **WIDTHS},
  'rope': {
    'patch_size': 4, 'position': 'learned, rotary_mixed', **WIDTHS
  },
  'convit': {
    'patch_size': 4, 'num_class_layers': 1, 'hidden_size': 16, 'num_layers': 1,
    'num_heads': 2, 'mlp_dim': 24, 'image_size': 8, 'feature_layers': (0, -1),
  },
  'xcit': {
    'patch_size': 2, 'hidden_size': 16, 'num_layers': 1, 'num_heads': 2,
    'mlp_dim': 12, 'num_class_layers': 1, 'image_size': 8,
    'feature_layers': (0, -1),
  },
  'mvit': {
    'depths': (1, 1), 'hidden_sizes': (8, 16), 'num_heads': (2, 4),
    'mlp_ratio': 2.0, 'key_stride': 2, 'image_size': 16,
  },
  'deepvit': {**WIDTHS, 'patch_size': 4, 'num_layers': 1},
  'cait': {
    **WIDTHS, 'patch_size': 4, 'layer_scale': 0.1, 'num_layers': 1,
    'num_class_layers': 1,
  },
  'tnt': {
    **WIDTHS, 'patch_size': 4, 'inner_size': 8, 'inner_heads': 2,
    'word_stride': 2, 'num_layers': 1,
  },
  'pvt': {**STAGES, 'reductions': (2, 1)},
  'pvt_v2': {
    **STAGES, 'reductions': (2, 1), 'patch_sizes': (7, 3),
    'patch_strides': (4, 2),
  },
  'cvt': {
    **STAGES, 'patch_sizes': (7, 3), 'patch_strides': (4, 2),
    'kernel_sizes': (3, 3), 'key_strides': (2, 2),
  },
  'mixer': {
    'patch_size': 4, 'hidden_size': 16, 'num_layers': 2, 'tokens_mlp_dim': 12,
    'channels_mlp_dim': 24, 'image_size': 8, 'feature_layers': (0, -1),
  },
  'compact': {'patch_size': 2, **WIDTHS},
  'resnet': {
    'depths': (1, 2), 'hidden_sizes': (8, 16), 'embedding_size': 8,
    'image_size': 16,
  },
  'swin': {
    'depths': (2, 1), 'hidden_sizes': (8, 16), 'num_heads': (2, 2),
    'mlp_ratio': 2.0, 'window_size': 2, 'image_size': 16,
    'feature_layers': (0, 1),
  },
  'twins': {
    **STAGES, 'depths': (2, 1), 'reductions': (2, 1), 'window_size': 3
  },
}  # fmt: skip
# Models that take images of their own size only.
FIXED_SIZE = ('mixer',)
# Sides of an image must be multiples of this; 1 where the model pads.
MULTIPLE = {
  'vit': 4,
  'vit hybrid': 4,
  'vit conv': 4,
  'deit distilled': 4,
  'cpvt': 4,
  'rope': 4,
  'mvit': 1,
  'convit': 4,
  'xcit': 1,
  'deepvit': 4,
  'cait': 4,
  'tnt': 4,
  'pvt': 8,
  'pvt_v2': 1,
  'cvt': 1,
  'mixer': 4,
  'resnet': 1,
  'compact': 2,
  'swin': 1,
  'twins': 8,
}
LAST = 'stage_1/block_0/MultiHeadDotProductAttention_0'
# Endings of parameters whose gradient is exactly 0, and why.
FLAT = (
  'key/bias',  # softmax is unchanged by a shift of all logits of a query
  'sequence_pool/weight/bias',  # or of the logits of all tokens
  'key_norm/bias',  # likewise, in stages without a class token
  'key_pool/LayerNorm_0/bias',  # likewise
  'attend/bias',  # likewise, of the offsets of GPSA
  'attend/logits_bias',  # and so before talking heads
  'attend/bias',  # a batch norm by a shift of all it normalises
  'token_mixing/Dense_1/bias',  # a norm by a shift of all channels of a token
  # CvT's last block has an answer for its patches, and nobody reads it.
  *(
    f'{LAST}/{name}'
    for name in ('query_conv/kernel', 'query_norm/scale', 'query_norm/bias')
  ),
)
# Compared operation by operation too, which takes long in deep models.
EAGER = ('vit', 'deit distilled', 'mixer')
