"""CaiT against timm: logits, maps of the blocks, gradients."""

import pytest
from live import families

torch = pytest.importorskip('torch')
pytest.importorskip('timm')

SMALL = {
  'embed_dim': 16, 'depth': 1, 'num_heads': 2, 'patch_size': 8,
  'img_size': [24, 40],
}  # fmt: skip


@pytest.mark.parametrize(
  ('name', 'args', 'golden'),
  [
    ('cait_xxs24_224', {}, 'cait'),
    (
      'cait_m48_448',
      {
        'depth': 2, 'qkv_bias': False, 'global_pool': 'avg', 'mlp_ratio': 2.0,
        'depth_token_only': 1, 'mlp_ratio_token_only': 1.5, 'in_chans': 3,
        'init_values': 0.1, 'num_heads': 4,
      },
      '',
    ),
  ],
)  # fmt: skip
def test_cait_answers_as_timms(name, args, golden, tmp_path, request):
  args = {**SMALL, **args}
  families.against_timm(
    name, args, tmp_path, request, size=(24, 40), golden=golden, norm=True,
    feature_layers=tuple(range(args['depth'])),
  )  # fmt: skip


def test_the_gradients_are_timms(tmp_path, request):
  model, found, images = families.against_timm(
    'cait_s24_224', {**SMALL, 'depth': 2}, tmp_path, request, size=(24, 40),
    norm=True, feature_layers=(0, 1),
  )  # fmt: skip
  families.gradients(model, found, images)


@pytest.mark.parametrize(
  'name', ['xxs24', 'xxs36', 'xs24', 's24', 's36', 'm36', 'm48']
)
def test_every_published_size_is_timms(name):
  import timm

  from vit_jax import models
  from vit_jax.pretrained import cait

  model = models.build('cait', variant=name.upper(), num_classes=1000)
  architecture, args = cait.write(model)
  with torch.device('meta'):
    theirs = timm.create_model(architecture, img_size=224)
    said = timm.create_model(architecture, **args)
  sizes = [
    {k: tuple(x.shape) for k, x in m.state_dict().items()}
    for m in (theirs, said)
  ]
  assert sizes[0] == sizes[1]
  table = cait.table(model)
  assert {n for pair in table for n in pair.theirs} == set(sizes[0])
  with torch.device('cpu'):
    short = timm.create_model(architecture, img_size=32, depth=1)
  assert short.blocks[0].gamma_1[0].item() == pytest.approx(model.layer_scale)
  assert short.blocks[0].attn.num_heads == model.num_heads
