"""XCiT against timm: maps, logits and gradients, of images of any size."""

import pytest
from live import families
from models.table import SIZES

from vit_jax import models
from vit_jax.pretrained import xcit

torch = pytest.importorskip('torch')
timm = pytest.importorskip('timm')

TINY = {'embed_dim': 16, 'depth': 2, 'num_heads': 2, 'mlp_ratio': 1.5}


@pytest.mark.parametrize(
  ('name', 'args', 'size', 'golden'),
  [
    ('xcit_nano_12_p16_224', {}, (48, 64), 'xcit'),
    ('xcit_small_24_p8_384', {}, (35, 44), 'xcit_p8_tokens_normed'),
    (
      'xcit_tiny_12_p8_224',
      {
        'qkv_bias': False, 'use_pos_embed': False, 'cls_attn_layers': 1,
        'global_pool': 'avg', 'eta': 0.5, 'img_size': 32,
      },
      (32, 32), '',
    ),
  ],
)  # fmt: skip
def test_maps_and_logits_are_timms(
  name, args, size, golden, tmp_path, request
):
  _, found, _ = families.against_timm(
    name, {**TINY, **args}, tmp_path, request, size=size, golden=golden,
    norm=True, feature_layers=(0, 1),
  )  # fmt: skip
  native = (32, 32) if args else (384, 384) if '384' in name else (224, 224)
  assert found.model.image_size == native[0]


@pytest.mark.parametrize(
  'name', ['xcit_nano_12_p16_224', 'xcit_tiny_12_p8_224']
)
def test_gradients_and_running_averages_are_timms(name, tmp_path, request):
  families.gradients(*families.against_timm(
    name, TINY, tmp_path, request, size=(32, 48), norm=True,
    feature_layers=(0, 1),
  ))  # fmt: skip


def test_timms_names_mean_our_variants():
  for variant in models.MODELS['xcit'].VARIANTS:
    model = models.build('xcit', variant=variant, num_classes=1000)
    name, args = xcit.write(model)
    with torch.device('meta'):
      theirs = timm.create_model(name)
    defaults = timm.create_model(name, depth=1, embed_dim=16, num_heads=4)
    assert args['tokens_norm'] == defaults.cls_attn_blocks[0].tokens_norm
    assert defaults.blocks[0].gamma1[0].item() == pytest.approx(args['eta'])
    assert len(theirs.blocks) == model.num_layers
    assert theirs.blocks[0].attn.num_heads == model.num_heads
    count = sum(x.numel() for x in theirs.parameters())
    assert count == SIZES['xcit'][variant]
