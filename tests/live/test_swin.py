"""Swin against timm's and transformers' with drawn weights, tiny."""

import numpy as np
import pytest
from live.families import (
  against_huggingface,
  against_timm,
  answer,
  channels_first,
  close,
  gradients,
)
from pretrained import jitter

from vit_jax import pretrained
from vit_jax.pretrained import timm as format_timm

torch = pytest.importorskip('torch')
timm = pytest.importorskip('timm')
transformers = pytest.importorskip('transformers')

NAME = 'swin_tiny_patch4_window7_224'
TIMM = {
  'embed_dim': 8, 'depths': (2, 2), 'num_heads': (2, 4), 'drop_path_rate': 0.0
}  # fmt: skip
HUGGINGFACE = {
  'embed_dim': 8, 'depths': [2, 2], 'num_heads': [2, 4], 'drop_path_rate': 0.0
}  # fmt: skip


@pytest.mark.parametrize(
  ('name', 'args', 'golden'),
  [
    (  # the first stage is shifted, the second one window
      NAME, {'img_size': 32, 'window_size': 4}, 'swin'
    ),
    (  # rows and columns that windows do not divide: rolled, then filled up
      NAME, {'img_size': [36, 52], 'window_size': 4}, 'swin_padded'
    ),
    (  # shifted along the columns alone; windows of 2×3 in the second stage
      NAME, {'img_size': [16, 24], 'window_size': 4}, 'swin_narrow'
    ),
    ('swin_s3_tiny_224', {'img_size': 32, 'window_size': [[2, 2], [3, 3]]}, ''),
    (
      'swin_base_patch4_window12_384',
      {'img_size': 64, 'qkv_bias': False, 'mlp_ratio': 3.0}, '',
    ),
    (NAME, {'img_size': 32, 'patch_size': 2, 'window_size': 8}, ''),
  ],
)  # fmt: skip
def test_swin_of_timm(name, args, golden, tmp_path, request):
  size = args['img_size']
  size = (size, size) if isinstance(size, int) else size
  against_timm(name, {**TIMM, **args}, tmp_path, request, size=size,
               golden=golden)  # fmt: skip


@pytest.mark.parametrize('size', [(40, 28), (12, 60), (8, 8)])
def test_swin_of_timm_at_sizes_other_than_its_own(size, tmp_path):
  args = {**TIMM, 'img_size': 32, 'window_size': 4, 'num_classes': 3}
  model = timm.create_model(NAME, **args, dynamic_img_size=True).eval()
  for name, x in model.state_dict().items():
    x.copy_(torch.from_numpy(jitter.array(name, x.shape)))
  timm.models.save_for_hf(
    model, tmp_path / 'theirs', model_args=args, safe_serialization=True
  )
  images = jitter.images(2, *size, 3)
  with torch.no_grad():
    logits = model(channels_first(images)).numpy()
  found = format_timm.read(tmp_path / 'theirs')
  close(answer(found.model, found.variables, images)[0], logits, 1e-5)


def test_gradients_of_swin_equal_those_of_timm(tmp_path, request):
  args = {**TIMM, 'img_size': [28, 44], 'window_size': 4}
  made = against_timm(NAME, args, tmp_path, request, size=(28, 44))
  gradients(*made)


def test_swin_without_classes_gives_the_pooled_features_of_timm(tmp_path):
  args = {**TIMM, 'img_size': 32, 'window_size': 4, 'num_classes': 0}
  model = timm.create_model(NAME, **args).eval()
  for name, x in model.state_dict().items():
    x.copy_(torch.from_numpy(jitter.array(name, x.shape)))
  timm.models.save_for_hf(
    model, tmp_path / 'theirs', model_args=args, safe_serialization=True
  )
  images = jitter.images(2, 32, 32, 3)
  with torch.no_grad():
    pooled = model(channels_first(images)).numpy()
  found = format_timm.read(tmp_path / 'theirs')
  close(answer(found.model, found.variables, images)[0], pooled, 1e-5)


def maps(model, x):
  out = model.swin(
    x, output_hidden_states=True, output_hidden_states_before_downsampling=True
  )
  return [m.permute(0, 2, 3, 1) for m in out.reshaped_hidden_states[1:]]


@pytest.mark.parametrize(
  ('fields', 'size', 'golden'),
  [
    ({'image_size': 32, 'window_size': 4}, (32, 32), 'swin'),
    # Odd numbers of pixels, tokens and neighbours: filled up, then rolled.
    ({'image_size': 32, 'window_size': 3}, (45, 58), 'swin_padded'),
    # Nothing is shifted where one side of the map is one window.
    ({'image_size': 32, 'window_size': 4}, (16, 56), ''),
    (
      {'image_size': [32, 48], 'window_size': 2, 'qkv_bias': False,
       'mlp_ratio': 2.0, 'hidden_act': 'gelu_pytorch_tanh'},
      (32, 48), '',
    ),
  ],
)  # fmt: skip
def test_swin_of_huggingface(fields, size, golden, tmp_path, request):
  if size == (16, 56):  # its second stage would need windows of 2×4
    fields = {**fields, 'depths': [2], 'num_heads': [2]}
  config = transformers.SwinConfig(**{**HUGGINGFACE, **fields})
  against_huggingface(
    'SwinForImageClassification', config, tmp_path, request, size=size,
    maps=maps, golden=golden,
  )  # fmt: skip


def test_the_bare_swin_of_huggingface_is_ours_without_classes(tmp_path):
  config = transformers.SwinConfig(
    **HUGGINGFACE, image_size=32, window_size=4
  )
  model = transformers.SwinModel(config).eval()
  for name, x in model.named_parameters():
    x.data.copy_(torch.from_numpy(jitter.array(name, x.shape)))
  model.save_pretrained(tmp_path / 'theirs')
  images = jitter.images(2, 32, 32, 3)
  with torch.no_grad():
    pooled = model(channels_first(images)).pooler_output.numpy()
  found = pretrained.load(tmp_path / 'theirs')
  close(answer(found.model, found.variables, images)[0], pooled, 1e-5)
  pretrained.save(tmp_path / 'ours', found, format='huggingface')
  again = transformers.SwinModel.from_pretrained(tmp_path / 'ours').eval()
  with torch.no_grad():
    close(again(channels_first(images)).pooler_output.numpy(), pooled, 1e-6)


def test_a_swin_goes_from_one_format_to_the_other(tmp_path, request):
  # At a size at which windows divide every map the conventions agree.
  args = {**TIMM, 'img_size': 32, 'window_size': 4}
  model, found, images = against_timm(
    NAME, args, tmp_path, request, size=(32, 32)
  )
  pretrained.save(tmp_path / 'hf', found, format='huggingface')
  other = transformers.SwinForImageClassification.from_pretrained(
    tmp_path / 'hf'
  ).eval()
  with torch.no_grad():
    close(
      other(channels_first(images)).logits.numpy(),
      model(channels_first(images)).numpy(),
      1e-5,
    )
  again = pretrained.load(tmp_path / 'hf')
  pretrained.save(tmp_path / 'timm', again, format='timm')
  third = timm.create_model(f'local-dir:{tmp_path / "timm"}', pretrained=True)
  with torch.no_grad():
    np.testing.assert_array_equal(
      third.eval()(channels_first(images)).numpy(),
      model(channels_first(images)).numpy(),
    )


def test_wider_windows_are_those_of_biases_interpolated_by_torch(tmp_path):
  fields = {**HUGGINGFACE, 'image_size': 32}
  config = transformers.SwinConfig(**fields, window_size=4, num_labels=3)
  model = transformers.SwinForImageClassification(config).eval()
  for name, x in model.named_parameters():
    x.data.copy_(torch.from_numpy(jitter.array(name, x.shape)))
  model.save_pretrained(tmp_path / 'theirs')
  state = model.state_dict()
  for name, x in state.items():
    if name.endswith('relative_position_bias_table'):
      grid = x.T.reshape(1, -1, 7, 7)
      grid = torch.nn.functional.interpolate(grid, (11, 11), mode='bicubic')
      state[name] = grid.reshape(-1, 121).T
  config = transformers.SwinConfig(**fields, window_size=6, num_labels=3)
  wider = transformers.SwinForImageClassification(config).eval()
  wider.load_state_dict(state)
  images = jitter.images(2, 48, 48, 3)
  with torch.no_grad():
    logits = wider(channels_first(images)).logits.numpy()
  found = pretrained.load(
    tmp_path / 'theirs', image_size=48, window_size=6
  )
  close(answer(found.model, found.variables, images)[0], logits, 1e-5)
