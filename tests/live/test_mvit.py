"""MViTv2 against timm: maps and logits, sizes, and resized tables."""

import dataclasses

import numpy as np
import pytest
from live import families
from models.table import SIZES

from vit_jax import models
from vit_jax.models.mvit import MViT
from vit_jax.pretrained import change, mvit

torch = pytest.importorskip('torch')
timm = pytest.importorskip('timm')

TINY = {
  'depths': (1, 2, 1), 'embed_dim': (8, 16, 32), 'num_heads': (1, 2, 4),
  'stride_q': ((1, 1), (2, 2), (2, 2)),
}  # fmt: skip


@pytest.fixture
def shrink(monkeypatch):
  """Lets a name of timm's stand for a small model, in timm and in ours."""

  def shrink(name, **fields):
    module = timm.models.mvitv2
    small = dataclasses.replace(
      module.model_cfgs[name], stride_kv=None, **fields
    )
    monkeypatch.setitem(module.model_cfgs, name, small)
    monkeypatch.setitem(MViT.VARIANTS, mvit.NAMES[name], {
      'depths': small.depths, 'hidden_sizes': small.embed_dim,
      'num_heads': small.num_heads, 'class_token': small.use_cls_token,
    })  # fmt: skip

  return shrink


@pytest.mark.parametrize(
  ('name', 'golden'),
  [('mvitv2_tiny', 'mvit'), ('mvitv2_small_cls', 'mvit_class_token')],
)
def test_maps_and_logits_are_timms(name, golden, shrink, tmp_path, request):
  shrink(name, **TINY)
  families.against_timm(
    name, {'img_size': 64}, tmp_path, request, size=(64, 64), golden=golden,
    refused='timm has no MViTv2 with',
  )  # fmt: skip


def test_gradients_are_timms(shrink, tmp_path, request):
  shrink('mvitv2_base_cls', **TINY)
  families.gradients(*families.against_timm(
    'mvitv2_base_cls', {'img_size': 64}, tmp_path, request, size=(64, 64),
  ))  # fmt: skip


@pytest.mark.parametrize('side', [32, 96])
def test_tables_are_resized_as_timm_resizes_them(
  side, shrink, tmp_path, request
):
  shrink('mvitv2_tiny', **TINY)
  model, found, _ = families.against_timm(
    'mvitv2_tiny', {'img_size': 64}, tmp_path, request, size=(64, 64)
  )
  images = np.random.default_rng(0).standard_normal((2, side, side, 3))
  images = images.astype(np.float32)
  other = timm.create_model(
    'mvitv2_tiny', img_size=side, num_classes=families.CLASSES
  ).eval()
  state = timm.models.mvitv2.checkpoint_filter_fn(model.state_dict(), other)
  other.load_state_dict(state)
  with torch.no_grad():
    theirs = other(families.channels_first(images)).numpy()
  # Inside the model, or once and for all.
  mine, _ = families.answer(found.model, found.variables, images)
  families.close(mine, theirs, 1e-5)
  changed = change(found, image_size=side)
  mine, _ = families.answer(changed.model, changed.variables, images)
  families.close(mine, theirs, 1e-5)


def test_timms_names_mean_our_variants():
  for name, variant in mvit.NAMES.items():
    model = models.build('mvit', variant=variant, num_classes=1000)
    assert mvit.write(model) == (name, {'img_size': [224, 224]})
    with torch.device('meta'):
      theirs = timm.create_model(name, num_classes=1000).state_dict()
    table = mvit.table(model)
    assert {n for pair in table for n in pair.theirs} == set(theirs)
    rows = timm.models.mvitv2.model_cfgs[name]
    assert (model.depths, model.hidden_sizes, model.num_heads) == (
      rows.depths, rows.embed_dim, rows.num_heads
    )  # fmt: skip
    count = sum(x.numel() for x in theirs.values())
    assert count == SIZES['mvit'][variant]
