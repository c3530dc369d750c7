"""timm folders of CaiT and TNT that ours cannot be, and the other way round."""

import json

import pytest
from pretrained import jitter

from vit_jax import models
from vit_jax.pretrained import arrays, cait, timm, tnt


def folder(path, name, **changes):
  """The folder of a golden, its model_args changed."""
  golden = jitter.golden(f'family_timm_{name}')
  golden['config']['model_args'] |= changes
  (path / 'config.json').write_text(json.dumps(golden['config']))
  weights = jitter.arrays(golden['layout'])
  arrays.write_safetensors(path / 'model.safetensors', weights)
  return path


@pytest.mark.parametrize(
  ('name', 'changes', 'message'),
  [
    ('cait', {'act_layer': 'gelu'}, "act_layer='gelu' .*is not known"),
    ('cait', {'global_pool': ''}, "global_pool='' .*'token', 'avg'"),
    ('cait', {'depth': 2}, 'depth is 2, by its arrays 1'),
    ('cait', {'depth_token_only': 1}, 'depth_token_only is 1, by its arrays 2'),
    ('cait', {'mlp_ratio': 2.0}, 'mlp_ratio=2.0 of a width of 16'),
    ('cait', {'mlp_ratio_token_only': 1.0}, 'mlp_ratio=1.0 of a width of 16'),
    ('cait', {'num_heads': 3}, 'num_heads=3 does not divide the width 16'),
    ('cait', {'init_values': '1e-5'}, "init_values='1e-5' must be a number"),
    ('cait', {'img_size': 72}, r'72×72.*9×9|15 patches'),
    ('tnt', {'legacy': True}, 'legacy is True, by its arrays False'),
    ('tnt', {'patch_size': 16}, '4 words a side, but pixel_pos has 2'),
    ('tnt', {'first_stride': 0}, 'first_stride=0 must be a positive'),
    ('tnt', {'patch_size': [8, 4]}, r'patch_size=\[8, 4\] .*are square'),
    ('tnt', {'num_heads_inner': 3}, 'num_heads_inner=3 does not divide'),
    ('tnt', {'qkv_bias': True}, 'qkv_bias is True, by its arrays False'),
  ],
)
def test_a_folder_that_contradicts_itself_is_refused(
  name, changes, message, tmp_path
):
  with pytest.raises(ValueError, match=message):
    timm.read(folder(tmp_path, name, **changes))


@pytest.mark.parametrize(
  ('module', 'variant', 'fields', 'message'),
  [
    (cait, 'XXS24', {'attention': 'softmax'}, "attention='softmax' of a CaiT"),
    (cait, 'XXS24', {'gelu': 'tanh'}, "gelu='tanh' .*to be 'exact'"),
    (tnt, 'S/16', {'inner_attention': 'linear'}, "'linear' of a TNT"),
    (tnt, 'S/16', {'epsilon': 1e-6}, 'epsilon=1e-06 .*1e-05'),
  ],
)
def test_a_model_that_timm_has_not_is_not_written(
  module, variant, fields, message
):
  name = module.__name__.split('.')[-1]
  model = models.build(name, variant=variant, num_classes=3, **fields)
  with pytest.raises(ValueError, match=message):
    module.write(model)
