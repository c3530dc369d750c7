"""Twins against timm's with drawn weights, tiny."""

import jax.numpy as jnp
import pytest
from live.families import (
  against_timm,
  answer,
  channels_first,
  close,
  gradients,
)
from pretrained import jitter

from vit_jax.models.conditional import ConditionalPosition
from vit_jax.pretrained import timm as format_timm

torch = pytest.importorskip('torch')
timm = pytest.importorskip('timm')

SVT = {
  'embed_dims': [8, 16], 'depths': [2, 2], 'num_heads': [2, 4],
  'mlp_ratios': [2, 3], 'sr_ratios': [2, 1], 'wss': [3, 3],
}  # fmt: skip
PCPVT = {
  'embed_dims': [8, 16, 20, 24], 'depths': [2, 1, 1, 1],
  'num_heads': [1, 2, 5, 8], 'mlp_ratios': [4, 4, 2, 2],
}  # fmt: skip


@pytest.mark.parametrize(
  ('name', 'args', 'size', 'golden'),
  [
    ('twins_svt_small', SVT, (48, 48), 'twins_svt'),
    # 8×10 and 4×5 tokens, filled up to windows of 3.
    ('twins_svt_base', SVT, (32, 40), ''),
    # Windows larger than the map, and reductions that do not divide it.
    (
      'twins_svt_large', {**SVT, 'wss': [5, 5], 'sr_ratios': [3, 2]},
      (16, 40), '',
    ),
    ('twins_pcpvt_small', PCPVT, (64, 32), 'twins_pcpvt'),
    (
      'twins_pcpvt_base',
      {**SVT, 'wss': [1, 1], 'patch_size': 2, 'img_size': [16, 24]},
      (16, 24), '',
    ),
  ],
)  # fmt: skip
def test_twins_of_timm(name, args, size, golden, tmp_path, request):
  against_timm(name, args, tmp_path, request, size=size, golden=golden)


@pytest.mark.parametrize(
  ('name', 'args', 'size'),
  [('twins_svt_small', SVT, (32, 40)), ('twins_pcpvt_small', PCPVT, (64, 32))],
)
def test_gradients_of_twins_equal_those_of_timm(
  name, args, size, tmp_path, request
):
  gradients(*against_timm(name, args, tmp_path, request, size=size))


def test_twins_without_classes_gives_the_pooled_features_of_timm(tmp_path):
  model = timm.create_model('twins_svt_small', num_classes=0, **SVT).eval()
  for name, x in model.state_dict().items():
    x.copy_(torch.from_numpy(jitter.array(name, x.shape)))
  timm.models.save_for_hf(
    model, tmp_path / 'theirs', model_args={**SVT, 'num_classes': 0},
    safe_serialization=True,
  )  # fmt: skip
  images = jitter.images(2, 32, 32, 3)
  with torch.no_grad():
    pooled = model(channels_first(images)).numpy()
  found = format_timm.read(tmp_path / 'theirs')
  close(answer(found.model, found.variables, images)[0], pooled, 1e-5)


def test_the_conditional_position_is_the_one_of_twins():
  theirs = timm.models.twins.PosConv(6, 6)
  x = jitter.images(2, 3, 5, 6).reshape(2, 15, 6)
  with torch.no_grad():
    expected = theirs(torch.from_numpy(x), (3, 5)).numpy()
  conv = theirs.proj[0]
  params = {
    'kernel': jnp.asarray(conv.weight.detach().numpy().transpose(2, 3, 1, 0)),
    'bias': jnp.asarray(conv.bias.detach().numpy()),
  }
  mine = ConditionalPosition().apply(
    {'params': params}, jnp.asarray(x), (3, 5)
  )
  close(mine, expected, 1e-6)
