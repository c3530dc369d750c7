"""RoPE-ViTs: timm and ours compute the same from the same folder."""

import pytest
from live import families
from pretrained import jitter

from vit_jax import models
from vit_jax.pretrained import base, convert
from vit_jax.pretrained import families as formats
from vit_jax.pretrained import timm as format_timm

torch = pytest.importorskip('torch')
timm = pytest.importorskip('timm')

SMALL = {
  'img_size': 32, 'patch_size': 8, 'embed_dim': 32, 'depth': 2, 'num_heads': 2
}  # fmt: skip


def case(name, kind='', size=(32, 32), golden=False, **args):
  """A model; `kind` is of its name, `size` that of the images."""
  architecture = f'vit_small_patch16_rope{kind}_224'
  return pytest.param(architecture, size, golden, args, id=name)


CASES = (
  case('axial', golden=True),
  case('mixed', '_mixed', golden=True),
  case('axial_with_table', '_ape'),
  case('mixed_with_table', '_mixed_ape', golden=True),
  # Other sizes than the model's own, and rectangles.
  case('axial_larger', size=(48, 80), dynamic_img_size=True),
  case('mixed_larger', '_mixed', size=(80, 48), dynamic_img_size=True),
  case(
    'table_larger', '_mixed_ape', size=(40, 64), dynamic_img_size=True
  ),
  case('table_smaller', '_ape', size=(16, 24), dynamic_img_size=True),
  case('rectangle', '_ape', size=(24, 40), img_size=[24, 40]),
  # Everything else that its arguments can say.
  case('other_base', rope_temperature=31.0),
  case('other_base_mixed', '_mixed', rope_temperature=7),
  case('no_biases', qkv_bias=False, mlp_ratio=3),
  case('query_and_key_norms', '_mixed', qk_norm=True, num_heads=4),
  case('mean', global_pool='avg', class_token=False),
  case('mean_with_class_token', global_pool='avg', num_reg_tokens=2),
  case('mean_norm_before', '_mixed', global_pool='avg', use_fc_norm=False),
  case('norm_after', use_fc_norm=True, use_post_transformer_norm=False),
  case(
    'all_tokens_with_positions', '_ape', no_embed_class=False, num_reg_tokens=1
  ),
  case('table_by_argument', use_abs_pos_emb=True, rope_type='mixed'),
)


@pytest.mark.parametrize(('architecture', 'size', 'golden', 'args'), CASES)
def test_logits_and_features_are_timms_and_timm_opens_what_we_write(
  architecture, size, golden, args, tmp_path, request
):
  name = f'rope_{request.node.callspec.id}' * golden
  args = {**SMALL, **args}
  families.against_timm(
    architecture, args, tmp_path, request, size=size, golden=name, norm=True,
    feature_layers=(0, 1),
  )  # fmt: skip


@pytest.mark.parametrize('kind', ['', '_mixed'])
def test_gradients_are_timms(kind, tmp_path, request):
  model, found, images = families.against_timm(
    f'vit_small_patch16_rope{kind}_224', SMALL, tmp_path, request,
    size=(32, 32), norm=True, feature_layers=(0, 1),
  )  # fmt: skip
  families.gradients(model, found, images)


def test_without_layer_scale_timm_builds_none(tmp_path):
  built = models.build(
    'rope', num_classes=3, patch_size=8, hidden_size=32, num_layers=1,
    num_heads=2, mlp_dim=64, image_size=16, layer_scale=None,
  )  # fmt: skip
  images = jitter.images(2, 16, 16, 3)
  shapes = base.shapes(built, 3)
  drawn = {
    name: jitter.array(name, x.shape)
    for name, x in convert.flatten(shapes).items()
  }
  found = base.Pretrained(
    built, convert.unflatten(drawn),
    {'decode': 'decode(channels=3)', 'transform': 'resize(size=16)'}, (),
    {'name': 'rope'},
  )  # fmt: skip
  format_timm.write(tmp_path / 'ours', found)
  opened = timm.create_model(f'local-dir:{tmp_path / "ours"}', pretrained=True)
  with torch.no_grad():
    logits = opened.eval()(families.channels_first(images)).numpy()
  mine, _ = families.answer(built, found.variables, images)
  families.close(mine, logits, 1e-5)
  again = format_timm.read(tmp_path / 'ours')
  assert again.model == built


def test_published_models_have_timms_parameters():
  names = timm.list_models('vit_*_patch16_rope*_224')
  assert len(names) == len(models.RotaryViT.VARIANTS) == 12
  written = set()
  for row in models.RotaryViT.VARIANTS.values():
    ours = models.RotaryViT(num_classes=1000, **row)
    architecture, args = formats.TIMM['rope'].write(ours)
    args.pop('dynamic_img_size')
    with torch.device('meta'):
      theirs, same = (
        timm.create_model(architecture, **a) for a in ({}, args)
      )
    shapes = [
      {k: v.shape for k, v in m.state_dict().items()} for m in (theirs, same)
    ]
    assert shapes[0] == shapes[1]
    names_of_ours = {
      n for pair in formats.TIMM['rope'].table(ours) for n in pair.theirs
    }
    assert names_of_ours == set(shapes[0])
    written.add(architecture)
  assert written == set(names)
