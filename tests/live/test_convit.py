"""ConViT against timm: maps, logits and gradients."""

import pytest
from live import families
from models.table import SIZES

from vit_jax import models
from vit_jax.pretrained import convit

torch = pytest.importorskip('torch')
timm = pytest.importorskip('timm')

TINY = {
  'patch_size': 4, 'embed_dim': 4, 'depth': 3, 'num_heads': 4, 'mlp_ratio': 2.5,
  'local_up_to_layer': 2,
}  # fmt: skip


@pytest.mark.parametrize(
  ('name', 'args', 'side', 'golden'),
  [
    ('convit_tiny', {}, 16, 'convit'),
    (
      'convit_small',
      {
        'num_heads': 9, 'embed_dim': 2, 'qkv_bias': True, 'depth': 4,
        'local_up_to_layer': 1, 'global_pool': 'avg',
      },
      20, 'convit_qkv_bias',
    ),
    ('convit_base', {'use_pos_embed': False, 'local_up_to_layer': 1}, 16, ''),
  ],
)  # fmt: skip
def test_maps_and_logits_are_timms(
  name, args, side, golden, tmp_path, request
):
  args = {**TINY, 'img_size': side, **args}
  families.against_timm(
    name, args, tmp_path, request, size=(side, side), golden=golden,
    norm=True, feature_layers=tuple(range(args['depth'])),
  )  # fmt: skip


def test_gradients_are_timms(tmp_path, request):
  families.gradients(*families.against_timm(
    'convit_tiny', {**TINY, 'img_size': 16}, tmp_path, request, size=(16, 16),
    norm=True, feature_layers=(0, 1, 2),
  ))  # fmt: skip


def test_timms_names_mean_our_variants():
  for name, variant in convit.NAMES.items():
    model = models.build('convit', variant=variant, num_classes=1000)
    with torch.device('meta'):
      theirs, again = timm.create_model(name), timm.create_model(
        name, **convit.write(model)[1]
      )
    assert convit.write(model)[0] == name
    assert theirs.local_up_to_layer == model.num_layers
    shapes = {k: x.shape for k, x in theirs.state_dict().items()}
    assert shapes == {k: x.shape for k, x in again.state_dict().items()}
    count = sum(x.numel() for x in theirs.parameters())
    assert count == SIZES['convit'][variant]
