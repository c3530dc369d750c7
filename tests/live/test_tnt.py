"""TNT against timm: logits, maps of the blocks, gradients."""

import pytest
from live import families

torch = pytest.importorskip('torch')
pytest.importorskip('timm')

SMALL = {
  'embed_dim': 16, 'depth': 1, 'num_heads_outer': 2, 'patch_size': 8,
  'inner_dim': 8, 'img_size': [24, 40],
}  # fmt: skip


@pytest.mark.parametrize(
  ('name', 'args', 'golden'),
  [
    ('tnt_s_patch16_224', {}, 'tnt'),
    (
      'tnt_b_patch16_224',
      # Three words a side, of patches that they do not divide.
      {
        'depth': 2, 'qkv_bias': True, 'global_pool': 'avg', 'mlp_ratio': 2.0,
        'first_stride': 3, 'num_heads_inner': 2,
      },
      '',
    ),
    ('tnt_s_legacy_patch16_224', {}, 'tnt_legacy'),
  ],
)  # fmt: skip
def test_tnt_answers_as_timms(name, args, golden, tmp_path, request):
  args = {**SMALL, **args}
  families.against_timm(
    name, args, tmp_path, request, size=(24, 40), golden=golden, norm=True,
    feature_layers=tuple(range(args['depth'])),
  )  # fmt: skip


@pytest.mark.parametrize(
  'name', ['tnt_s_patch16_224', 'tnt_s_legacy_patch16_224']
)
def test_the_gradients_are_timms(name, tmp_path, request):
  model, found, images = families.against_timm(
    name, {**SMALL, 'depth': 2}, tmp_path, request, size=(24, 40), norm=True,
    feature_layers=(0, 1),
  )  # fmt: skip
  families.gradients(model, found, images)


def test_positions_are_resized_as_timm_does_when_it_loads(tmp_path):
  import timm
  from pretrained import jitter

  from vit_jax.pretrained import timm as format_timm

  name, small = 'tnt_s_patch16_224', {**SMALL, 'img_size': [24, 24]}
  args = {**small, 'num_classes': families.CLASSES}
  model = timm.create_model(name, **args).eval()
  families.draw(model)
  timm.models.save_for_hf(
    model, tmp_path / 'theirs', model_args=small, safe_serialization=True
  )
  found = format_timm.read(tmp_path / 'theirs')
  grown = timm.create_model(
    name, **{**args, 'img_size': [40, 56]}, pretrained=True,
    pretrained_cfg_overlay={
      'file': str(tmp_path / 'theirs' / 'model.safetensors'),
      'num_classes': families.CLASSES,
    },
  ).eval()  # fmt: skip
  images = jitter.images(2, 40, 56, 3)
  with torch.no_grad():
    logits = grown(families.channels_first(images)).numpy()
  mine, _ = families.answer(found.model, found.variables, images)
  families.close(mine, logits, 1e-5)


@pytest.mark.parametrize('variant', ['S/16', 'B/16', 'S/16-legacy'])
def test_every_published_size_is_timms(variant):
  import timm

  from vit_jax import models
  from vit_jax.pretrained import tnt

  model = models.build('tnt', variant=variant, num_classes=1000)
  architecture, args = tnt.write(model)
  assert architecture == {
    'S/16': 'tnt_s_patch16_224', 'B/16': 'tnt_b_patch16_224',
    'S/16-legacy': 'tnt_s_legacy_patch16_224',
  }[variant]  # fmt: skip
  with torch.device('meta'):
    theirs = timm.create_model(architecture)
    said = timm.create_model(architecture, **args)
  sizes = [
    {k: tuple(x.shape) for k, x in m.state_dict().items()}
    for m in (theirs, said)
  ]
  assert sizes[0] == sizes[1]
  table = tnt.table(model)
  assert {n for pair in table for n in pair.theirs} == set(sizes[0])
  assert theirs.blocks[0].attn_in.num_heads == model.inner_heads
  assert theirs.blocks[0].attn_out.num_heads == model.num_heads
