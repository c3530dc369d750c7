"""What a timm folder may not be, and which models of ours timm has not."""

import dataclasses

import pytest
from pretrained import jitter
from pretrained.timm_folders import (
  MIXER,
  config_of,
  folder,
  golden_folder,
  model,
  with_arguments,
)

from vit_jax import models
from vit_jax.pretrained import timm, timm_names


@pytest.mark.parametrize(
  ('name', 'family', 'changes'),
  [
    ('vit_base_patch16_224.augreg_in21k_ft_in1k', 'vit', {}),
    ('vit_small_patch16_224.dino', 'vit', {'num_heads': 6}),
    (
      'vit_large_patch14_reg4_dinov2.lvd142m', 'vit',
      {
        'num_heads': 16, 'reg_tokens': 4, 'no_embed_class': True,
        'init_values': 1e-5,
      },
    ),
    (
      'vit_so400m_patch14_siglip_224', 'vit',
      {'num_heads': 16, 'class_token': False, 'global_pool': 'map'},
    ),
    (
      'deit3_huge_patch14_224.fb_in1k', 'deit',
      {'num_heads': 16, 'no_embed_class': True, 'init_values': 1e-6},
    ),
    (
      'deit_base_distilled_patch16_384', 'deit', {'distilled': True},
    ),
    ('vit_base_r50_s16_384', 'hybrid', {'resnet': (3, 4, 9)}),
    ('vit_tiny_r_s16_p8_224', 'hybrid', {'num_heads': 3, 'resnet': ()}),
    (
      'mixer_b16_224.goog_in21k', 'mixer',
      {'global_pool': 'avg', 'class_token': False},
    ),
  ],
)  # fmt: skip
def test_a_name_says_what_arrays_cannot(name, family, changes):
  # Against timm itself, all names: tests/live.
  plain = timm_names.Defaults(family, num_heads=12)
  assert timm_names.defaults('', name) == dataclasses.replace(plain, **changes)


@pytest.mark.parametrize(
  ('name', 'reason'),
  [
    ('vit_base_patch16_clip_224.openai', 'norm before its first block'),
    ('vit_giant_patch14_reg4_dinov2', 'SwiGLU'),
    ('vit_base_patch16_rope_reg1_gap_256', 'rotates'),
    ('vit_relpos_base_patch16_224', 'relative positions'),
    ('vit_small_resnet26d_224', 'stem'),
    ('vit_base_patch16_rpn_224', 'after its branches'),
    ('vit_dwee_patch16_reg1_gap_256', 'differential'),
    ('resmlp_12_224', 'than the Mixer'),
    ('efficientnet_b0.ra_in1k', 'is no model of ours; of'),
    ('vit_base_patch16_224_and_more', 'is no model of ours; of'),
  ],
)
def test_other_models_of_timm_are_refused_by_name(name, reason, tmp_path):
  path = golden_folder(tmp_path / 'a', 'token', architecture=name)
  with pytest.raises(ValueError, match=reason):
    timm.read(path)


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    ({'depth': 10**9}, 'depth is 1000000000, by its arrays 2'),
    ({'depth': 3}, 'depth is 3'),
    ({'embed_dim': 64}, 'embed_dim is 64'),
    ({'patch_size': 16}, 'patch_size is 16'),
    ({'in_chans': 1}, 'in_chans is 1'),
    ({'num_classes': 10}, 'num_classes is 3, and in its model_args 10'),
    ({'class_token': False}, 'class_token is False'),
    ({'reg_tokens': 4}, 'reg_tokens is 4'),
    ({'qkv_bias': False}, 'qkv_bias is False'),
    ({'qk_norm': True}, 'qk_norm is True'),
    ({'init_values': 1e-5}, 'init_values is True'),
    ({'pos_embed': 'none'}, 'pos_embed is False'),
    ({'fc_norm': True}, 'fc_norm is True'),
    ({'num_classes': [3]}, r'in its model_args \[3\]'),
    ({'init_values': 'small'}, "init_values='small'"),
    ({'mlp_ratio': 3}, 'mlp_ratio=3 of a width of 32'),
    ({'mlp_ratio': 'wide'}, "mlp_ratio='wide'"),
    ({'num_heads': 5}, '5 heads do not divide the width 32'),
    ({'num_heads': 10**9}, 'num_heads=1000000000'),
    ({'num_heads': 'many'}, "num_heads='many'"),
    ({'img_size': 33}, 'a multiple of 8'),
    ({'img_size': 10**9}, 'img_size=1000000000'),
    ({'img_size': [32, 32, 32]}, 'a number or two'),
    ({'pre_norm': True}, 'pre_norm=True'),
    ({'final_norm': False}, 'final_norm=False'),
    ({'proj_bias': False}, 'proj_bias=False'),
    ({'act_layer': 'silu'}, "act_layer='silu'"),
    ({'norm_layer': 'rmsnorm'}, "norm_layer='rmsnorm'"),
    ({'attn_layer': 'diff'}, "attn_layer='diff'"),
    ({'global_pool': 'max'}, "global_pool='max'"),
    ({'pool_include_prefix': 'no'}, "pool_include_prefix='no'"),
    ({'no_embed_class': 'maybe'}, "no_embed_class='maybe'"),
    ({'block_fn': 'Parallel'}, "block_fn='Parallel' in model_args is not kn"),
    ({'regtokens': 4}, "did you mean 'reg_tokens'"),
  ],
  ids=lambda x: next(iter(x)) if isinstance(x, dict) else '',
)
def test_arguments_that_are_not_the_arrays_are_refused(
  args, message, tmp_path, monkeypatch
):
  # Nothing is built before a config is believed.
  monkeypatch.setattr(models, 'build', lambda **_: pytest.fail('built'))
  with pytest.raises(ValueError, match=message):
    timm.read(with_arguments(tmp_path / 'a', **args))


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'blocks.999999999.norm1.weight': (32,)}, 'numbered 0 to 999999999'),
    ({'blocks.3.norm1.weight': (32,)}, 'numbered 0 to 3, there are 3'),
    ({'blocks.1.mlp.fc2.bias': None}, r'no such array: blocks.1.mlp.fc2.bias'),
    ({'blocks.1.mlp.fc3.bias': (32,)}, r'nothing uses: blocks.1.mlp.fc3'),
    ({'blocks.1.attn.qkv.weight': (90, 32)}, r'\(90, 32\)'),
    ({'blocks.1.attn.qkv.weight': (95, 32)}, '3 equal blocks'),
    ({'patch_embed.proj.weight': (32, 3, 8, 4)}, 'square'),
    ({'patch_embed.proj.weight': (32, 192)}, 'should have 4 axes'),
    ({'patch_embed.proj.weight': None}, "no array 'patch_embed.proj.weight'"),
    ({'cls_token': None}, 'class_token is True'),
    ({'pos_embed': (1, 16, 32)}, 'for 15 patches; .* 4×4'),
    ({'pos_embed': (1, 1, 32)}, 'for 0 patches'),
    ({'pos_embed': None}, 'pos_embed is True, by its arrays False'),
    ({'blocks.0.attn.q_norm.weight': (8,)}, 'qk_norm is False'),
    ({'head.weight': (7, 32), 'head.bias': (7,)}, 'num_classes is 3'),
    ({'head.weight': None, 'head.bias': None}, 'num_classes is 3'),
    ({'norm_pre.weight': (32,)}, 'nothing uses: norm_pre.weight'),
  ],
  ids=lambda x: next(iter(x)) if isinstance(x, dict) else '',
)
def test_arrays_that_are_not_the_models_are_refused(changed, message, tmp_path):
  config, layout = config_of('token')
  layout = {
    k: v for k, v in {**layout, **changed}.items() if v is not None
  }
  path = folder(tmp_path / 'a', config, jitter.arrays(layout))
  with pytest.raises(ValueError, match=message):
    timm.read(path)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'architecture': ['vit']}, 'must be a name'),
    ({'model_args': [1]}, 'must be objects'),
    ({'pretrained_cfg': 'none'}, 'must be objects'),
    ({'num_classes': 10}, 'num_classes is 10, and in its model_args 3'),
    ({'label_names': ['a', 'b']}, 'names 2 labels for 3 classes'),
    ({'label_names': {'0': 'a', '1': 'b', '5': 'c'}}, 'classes 0 to 2'),
    ({'label_names': [1, 2, 3]}, 'must hold names'),
    ({'label_descriptions': 'none'}, 'must be an object'),
    ({'global_pool': 'token', 'pretrained_cfg': {'label_offset': 1}}, 'offset'),
  ],
)
def test_a_config_that_makes_no_sense_is_refused(changes, message, tmp_path):
  path = golden_folder(tmp_path / 'a', 'token', **changes)
  with pytest.raises(ValueError, match=message):
    timm.read(path)


def test_only_a_folder_with_an_architecture_is_timms(tmp_path):
  config = tmp_path / 'config.json'
  assert not timm.matches(tmp_path)
  assert not timm.matches(tmp_path / 'none')
  for text, there in (
    ('{"architecture": "vit_tiny_patch16_224"}', True),
    ('{"architectures": ["ViTModel"], "model_type": "vit"}', False),
    ('{"architecture": "resnet18", "model_type": "timm_wrapper"}', False),
  ):
    config.write_text(text)
    assert timm.matches(tmp_path) == there
  config.write_text('{"architecture": ')
  with pytest.raises(ValueError, match=r'config\.json'):
    timm.matches(tmp_path)


def test_a_pickle_is_not_loaded(tmp_path):
  path = golden_folder(tmp_path / 'a', 'token')
  (path / 'model.safetensors').rename(path / 'pytorch_model.bin')
  with pytest.raises(ValueError, match='is a pickle'):
    timm.read(path)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'attention': 'linformer(rank=4)'}, 'attention='),
    ({'epsilon': 1e-12}, 'epsilon=1e-12'),
    ({'representation_size': 8}, 'representation_size=8'),
    ({'position': 'sincos2d'}, "position='sincos2d'"),
    ({'position': 'learned, rotary'}, 'position='),
    ({'position': 'conditional'}, "position='conditional'"),
    ({'norm_placement': 'post'}, "norm_placement='post'"),
    ({'name': 'cpvt'}, "is for vit, deit, mixer, .*not 'cpvt'"),
    ({'num_registers': 2}, 'learned_prefix=1 .* 0 or 3'),
    ({'qk_norm': True}, 'qk_norm_bias=False'),
    (
      {'name': 'deit', 'distilled': True, 'norm_after_pooling': True},
      'norm_after_pooling=True of a distilled DeiT',
    ),
    (
      {
        'name': 'deit', 'distilled': True, 'num_registers': 1,
        'prefix_positions': 3,
      },
      'num_registers=1',
    ),
    ({'resnet': ()}, "resnet_convention='original'"),
    (
      {'resnet': (1, 1), 'resnet_convention': 'timm', 'patch_size': 1},
      'no hybrid with resnet',
    ),
    (
      {'resnet': (), 'resnet_convention': 'timm', 'resnet_width': 32},
      'resnet_width=32',
    ),
    ({**MIXER, 'hidden_size': 64}, 'no Mixer of width 64'),
    ({**MIXER, 'gelu': 'tanh'}, "gelu='tanh'"),
    ({'image_size': 24}, r'images of \[16, 16\] pixels'),
  ],
)  # fmt: skip
def test_models_that_timm_has_not_are_refused(fields, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    timm.write(tmp_path / 'a', model(weights=False, **fields))
  assert not (tmp_path / 'a').exists()
