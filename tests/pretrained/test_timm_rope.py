"""RoPE-ViTs in timm's format that are not read or not written, and why."""

import pytest
from pretrained import jitter
from pretrained.timm_folders import folder, model

from vit_jax.pretrained import timm


@pytest.mark.parametrize(
  ('name', 'args', 'message'),
  [
    ('axial', {'rope_grid_indexing': 'ij'}, "indexing='ij'.*may be 'xy'"),
    ('axial', {'ref_feat_shape': [14, 14]}, 'ref_feat_shape'),
    ('axial', {'attn_type': 'eva'}, "may be 'rope'"),
    ('axial', {'rope_type': 'dinov3'}, "may be 'cat', 'mixed'"),
    ('axial', {'use_post_norm': True}, 'use_post_norm=True'),
    ('axial', {'rope_temperture': 3}, "not known; did you mean 'rope_temper"),
    ('axial', {'rope_temperature': 0}, 'must be a number above 0'),
    ('axial', {'rope_temperature': 'hot'}, 'must be a number above 0'),
    ('axial', {'init_values': 'small'}, 'must be a number'),
    ('axial', {'init_values': None}, 'init_values is False, by its arrays Tr'),
    ('axial', {'num_heads': 5}, 'not divisible by num_heads=5'),
    ('axial', {'num_heads': 0}, 'num_heads=0'),
    ('axial', {'depth': 3}, 'depth is 3, by its arrays 2'),
    ('axial', {'mlp_ratio': 3}, 'mlp_ratio=3 .* 128 hidden'),
    ('axial', {'use_fc_norm': True}, 'use_fc_norm is True, by its arrays F'),
    ('axial', {'rope_type': 'mixed'}, "'mixed', by its arrays 'cat'"),
    ('mixed', {'rope_type': 'cat'}, "'cat', by its arrays 'mixed'"),
    ('mixed', {'use_abs_pos_emb': True}, 'use_abs_pos_emb is True'),
    ('mixed_with_table', {'no_embed_class': False}, 'are for 15 patches'),
  ],
)
def test_what_ours_cannot_follow_is_named(name, args, message, tmp_path):
  golden = jitter.golden(f'family_timm_rope_{name}')
  config = golden['config']
  config['model_args'] |= args
  found = jitter.arrays(golden['layout'])
  with pytest.raises(ValueError, match=message):
    timm.read(folder(tmp_path / 'a', config, found))


def test_frequencies_of_another_depth_are_refused(tmp_path):
  golden = jitter.golden('family_timm_rope_mixed')
  golden['layout']['rope.freqs'][1] = 3
  found = jitter.arrays(golden['layout'])
  with pytest.raises(ValueError, match='not one of 2 layers'):
    timm.read(folder(tmp_path / 'a', golden['config'], found))


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'position': 'learned'}, "position='learned' .* rotary or rotary_mixed"),
    ({'position': 'rotary, alibi'}, "position='rotary, alibi'"),
    ({'position': 'sincos2d, rotary'}, "position='sincos2d, rotary'"),
    ({'position': 'conditional, rotary'}, "position='conditional, rotary'"),
    ({'classifier': 'map'}, "classifier='map'.*'token' or 'gap'"),
    ({'classifier': 'gap', 'pool_prefix': True}, 'pool_prefix=True'),
    ({'gelu': 'tanh'}, "gelu='tanh'"),
    ({'qk_norm': True}, 'qk_norm_bias=False'),
    (
      {'position': 'learned, rotary', 'num_registers': 2,
       'prefix_positions': 2}, 'learned_prefix=2 .* 0 or 3',
    ),
    ({'epsilon': 1e-12}, 'epsilon=1e-12'),
    ({'norm_placement': 'post'}, "norm_placement='post'"),
    ({'attention': 'linear'}, "attention='linear'"),
  ],
)  # fmt: skip
def test_models_that_timm_has_not_are_refused(fields, message, tmp_path):
  found = model(weights=False, name='rope', **fields)
  with pytest.raises(ValueError, match=message):
    timm.write(tmp_path / 'a', found)
  assert not (tmp_path / 'a').exists()
