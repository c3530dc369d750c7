"""PVT and PVTv2 against transformers and timm."""

import functools

import jax
import numpy as np
import pytest
from live import families
from pretrained import jitter

from vit_jax.pretrained import families as tables

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
pytest.importorskip('timm')

SMALL = {
  'hidden_sizes': [8, 12, 16, 24], 'depths': [1, 2, 1, 1],
  'num_attention_heads': [1, 2, 4, 3], 'mlp_ratios': [2, 3, 1, 2],
}  # fmt: skip


def config(cls, **fields):
  return getattr(transformers, f'{cls}Config')(**{**SMALL, **fields})


def maps(model, x):
  """The last of each stage's hidden states, without the class token."""
  states = model(x, output_hidden_states=True).hidden_states
  last = np.cumsum(model.config.depths) - 1
  sides = [x.shape[2] // 4 // 2**s for s in range(len(last))]
  return [
    states[i][:, -side * side:].reshape(len(x), side, side, -1)
    for i, side in zip(last, sides, strict=True)
  ]


PVT = {
  'default': ({'image_size': 64}, ''),
  'no_bias': ({'image_size': 32, 'qkv_bias': False, 'layer_norm_eps': 1e-3,
               'sequence_reduction_ratios': [2, 4, 1, 1],
               'hidden_act': 'gelu_new'}, ''),
  'two_stages': (
    {'image_size': 24, 'num_encoder_blocks': 2, 'depths': [1, 1],
     'hidden_sizes': [8, 16], 'num_attention_heads': [2, 2],
     'mlp_ratios': [2, 2], 'patch_sizes': [4, 2], 'strides': [4, 2],
     # 6 is no multiple of 4: two rows and columns are left out.
     'sequence_reduction_ratios': [4, 1], 'hidden_act': 'quick_gelu'}, 'pvt'),
}  # fmt: skip


@pytest.mark.parametrize(('fields', 'golden'), PVT.values(), ids=PVT)
def test_pvt_is_transformers(fields, golden, tmp_path, request):
  side = fields['image_size']
  model, found, images = families.against_huggingface(
    'PvtForImageClassification', config('Pvt', **fields), tmp_path, request,
    size=(side, side), maps=maps, golden=golden,
  )  # fmt: skip
  table = tables.HUGGINGFACE['pvt'].table(found.model, None)
  families.gradients(model, found, images, table, logits=lambda o: o.logits)


def resized(table, old, new):
  """The authors' rule, which transformers means to have."""
  cells = table[:, -old[0] * old[1] :].reshape(1, *old, -1)
  cells = torch.nn.functional.interpolate(
    cells.permute(0, 3, 1, 2), size=new, mode='bilinear'
  )
  cells = cells.flatten(2).transpose(1, 2)
  return torch.cat([table[:, : -old[0] * old[1]], cells], 1)


@pytest.mark.parametrize('size', [(96, 32), (32, 64), (128, 160)])
def test_other_sizes_resize_pvts_tables_as_its_authors_do(
  size, tmp_path, request
):
  # transformers 5.23 resizes nothing: it takes images with as many patches as
  # the table has, however they lie, and fails with others. Its model of the
  # same weights with the tables resized beforehand is the reference.
  families.against_huggingface(
    'PvtForImageClassification', config('Pvt', image_size=64), tmp_path,
    request, size=(64, 64), maps=maps, writes=False,
  )  # fmt: skip
  found = tables_read(tmp_path / 'theirs')
  model = transformers.PvtForImageClassification.from_pretrained(
    tmp_path / 'theirs'
  ).eval()
  for s, patches in enumerate(model.pvt.encoder.patch_embeddings):
    old, new = ([side // 4 // 2**s for side in sides]
                for sides in ((64, 64), size))  # fmt: skip
    table = resized(patches.position_embeddings.data, old, new)
    patches.position_embeddings.data = table
    patches.interpolate_pos_encoding = lambda table, *_: table
  images = jitter.images(2, *size, 3)
  with torch.no_grad():
    expected = model(families.channels_first(images)).logits.numpy()
  mine, _ = families.answer(found.model, found.variables, images)
  families.close(mine, expected, 1e-5)


def tables_read(folder):
  from vit_jax.pretrained import huggingface

  return huggingface.read(folder)


V2 = {
  # Both sides leave rests in every stage; 7×9 cells in the first.
  'default': ({}, (37, 42), ''),
  'linear': ({'linear_attention': True}, (40, 64), ''),
  'other_patches': (
    {'patch_sizes': [5, 3, 5, 3], 'strides': [3, 2, 2, 1], 'qkv_bias': False,
     'sr_ratios': [4, 1, 2, 1], 'layer_norm_eps': 1e-3,
     'image_size': [30, 36], 'hidden_act': 'gelu_new'}, (30, 41), ''),
  'two_stages': (
    {'num_encoder_blocks': 2, 'depths': [1, 1], 'hidden_sizes': [8, 16],
     'num_attention_heads': [2, 2], 'mlp_ratios': [2, 2],
     'patch_sizes': [7, 3], 'strides': [4, 2], 'sr_ratios': [2, 1],
     'linear_attention': True}, (36, 32), 'pvt_v2'),
}  # fmt: skip


@pytest.mark.parametrize(('fields', 'size', 'golden'), V2.values(), ids=V2)
def test_pvt_v2_is_transformers(fields, size, golden, tmp_path, request):
  fields = {'sr_ratios': [4, 2, 2, 1], **fields}
  model, found, images = families.against_huggingface(
    'PvtV2ForImageClassification', config('PvtV2', **fields), tmp_path,
    request, size=size, golden=golden,
  )  # fmt: skip
  table = tables.HUGGINGFACE['pvt_v2'].table(found.model, None)
  families.gradients(model, found, images, table, logits=lambda o: o.logits)


ARGS = {
  'embed_dims': [8, 12, 16, 24], 'depths': [1, 2, 1, 1],
  'num_heads': [1, 2, 4, 3], 'mlp_ratios': [2.0, 2.5, 1.0, 2.0],
}  # fmt: skip
TIMM = {
  'default': ('pvt_v2_b0', ARGS, (64, 96), ''),
  'odd': ('pvt_v2_b3', {**ARGS, 'qkv_bias': False}, (61, 75), ''),
  'linear': ('pvt_v2_b2_li', ARGS, (64, 40), ''),
  'linear_large': ('pvt_v2_b0', {**ARGS, 'linear': True}, (224, 288), ''),
  'two_stages': (
    'pvt_v2_b1',
    {'embed_dims': [8, 16], 'depths': [1, 1], 'num_heads': 2, 'mlp_ratios': 2,
     'sr_ratios': [3, 1], 'in_chans': 3}, (40, 48), 'pvt_v2'),
}  # fmt: skip


@pytest.mark.parametrize(
  ('name', 'args', 'size', 'golden'), TIMM.values(), ids=TIMM
)
def test_pvt_v2_is_timms(name, args, size, golden, tmp_path, request):
  families.against_timm(
    name, args, tmp_path, request, size=size, golden=golden
  )


@pytest.mark.parametrize('name', ['Pvt', 'PvtV2'])
def test_bare_models_are_read_and_written(name, tmp_path):
  cls = getattr(transformers, f'{name}Model')
  model = cls(config(name, image_size=32)).eval()
  families.draw(model)
  model.save_pretrained(tmp_path / 'theirs')
  found = tables_read(tmp_path / 'theirs')
  assert (found.model.num_classes, found.labels) == (0, ())
  images = jitter.images(2, 32, 32, 3)
  with torch.no_grad():
    last = model(families.channels_first(images)).last_hidden_state
  expected = last[:, 0] if name == 'Pvt' else last.mean((2, 3))
  mine = jax.jit(functools.partial(found.model.apply))(
    found.variables, images
  )
  families.close(mine, expected.numpy(), 1e-5)

  from vit_jax.pretrained import huggingface

  huggingface.write(tmp_path / 'ours', found)
  again, report = cls.from_pretrained(
    tmp_path / 'ours', output_loading_info=True
  )
  assert not any(report.values()), report
  with torch.no_grad():
    after = again.eval()(families.channels_first(images)).last_hidden_state
  np.testing.assert_array_equal(after.numpy(), last.numpy())
