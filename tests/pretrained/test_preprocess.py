"""Preprocessing of Hugging Face's and timm's files ↔ ours."""

import dataclasses

import numpy as np
import pytest

from vit_jax import data
from vit_jax.pretrained import preprocess, steps

HALF = 'normalize(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))'
PLAIN = {  # as the real checkpoint has it
  'do_resize': True, 'size': {'height': 224, 'width': 224}, 'resample': 2,
  'do_rescale': True, 'rescale_factor': 0.00392156862745098,
  'do_normalize': True, 'image_mean': [0.5, 0.5, 0.5],
  'image_std': [0.5, 0.5, 0.5], 'image_processor_type': 'ViTImageProcessor',
}  # fmt: skip
DEIT = {
  **PLAIN, 'size': {'height': 256, 'width': 248}, 'resample': 3,
  'do_center_crop': True, 'crop_size': {'height': 224, 'width': 200},
  'image_mean': [0.485, 0.456, 0.406], 'image_std': [0.229, 0.224, 0.225],
  'image_processor_type': 'DeiTImageProcessor',
}  # fmt: skip
SCALED = {
  'do_resize': False, 'size': {'height': 32, 'width': 32}, 'do_rescale': True,
  'rescale_factor': 1 / 127.5, 'do_normalize': False,
  'image_processor_type': 'ViTImageProcessor',
}  # fmt: skip
RAW = {k: v for k, v in SCALED.items() if k != 'rescale_factor'}
SHORT = {
  **PLAIN, 'size': {'shortest_edge': 256}, 'resample': 1,
  'do_center_crop': True, 'crop_size': {'height': 224, 'width': 224},
  'image_processor_type': 'BitImageProcessor',
}  # fmt: skip


@pytest.mark.parametrize(
  ('config', 'transform'),
  [
    (PLAIN, f"resize(size=(224, 224), resample='bilinear'), {HALF}"),
    (
      DEIT,
      "resize(size=(256, 248), resample='bicubic'), "
      'center_crop(size=(224, 200)), '
      'normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))',
    ),
    (
      SHORT,
      f"resize_short(size=256, resample='lanczos'), "
      f'center_crop(size=(224, 224)), {HALF}',
    ),
    (SCALED, 'value_range(low=0.0, high=2.0)'),
    ({**RAW, 'do_rescale': False}, 'value_range(low=0.0, high=255.0)'),
  ],
)
def test_huggingface_files_come_back_equal(config, transform):
  ours = preprocess.from_huggingface('file', config)
  assert ours == {
    'decode': 'decode(channels=3, convert=True)', 'transform': transform
  }  # fmt: skip
  assert preprocess.to_huggingface(ours, 32) == config


@pytest.mark.parametrize(
  ('config', 'model_type', 'same'),
  [
    ({}, 'vit', PLAIN),
    ({'feature_extractor_type': 'ViTFeatureExtractor'}, 'deit', PLAIN),
    ({'size': 224, 'image_processor_type': None}, 'vit', PLAIN),
    ({'do_pad': False, 'pad_size': None}, 'vit', PLAIN),
    ({'image_processor_type': 'ViTImageProcessorFast', 'data_format':
      'channels_first', 'crop_size': 8, 'do_convert_rgb': True}, 'vit', PLAIN),
    ({'resample': 3, 'size': {'height': 256, 'width': 248, 'max_height': None},
      'do_center_crop': True, 'crop_size': {'height': 224, 'width': 200},
      'image_mean': [0.485, 0.456, 0.406], 'image_std': (0.229, 0.224, 0.225)},
     'vit', DEIT),
    ({'size': {'height': 256, 'width': 248},
      'crop_size': {'height': 224, 'width': 200},
      'image_mean': [0.485, 0.456, 0.406], 'image_std': (0.229, 0.224, 0.225)},
     'deit', DEIT),
    ({'do_resize': False, 'do_rescale': False, 'do_normalize': False,
      'resample': None, 'image_mean': [9]}, 'vit',
     {**RAW, 'do_rescale': False}),
  ],
)  # fmt: skip
def test_what_a_file_leaves_out_is_the_processors_own(
  config, model_type, same
):
  found = preprocess.from_huggingface('file', config, model_type)
  assert found == preprocess.from_huggingface('file', same)


CROPPED = 'center_crop(size=(224, 224))'
IMAGENET = 'normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))'


@pytest.mark.parametrize(
  ('config', 'steps'),
  [
    ({}, f"resize(size=(384, 384), resample='bicubic'), {HALF}"),
    (
      {'size': {'shortest_edge': 224}},
      f"resize_short(size=256, resample='bicubic'), {CROPPED}, {HALF}",
    ),
    (
      {'size': {'shortest_edge': 224}, 'crop_pct': 0.9, 'resample': 2},
      f"resize_short(size=248, resample='bilinear'), {CROPPED}, {HALF}",
    ),
    (
      {'size': 383, 'crop_pct': 1.0},
      "resize_short(size=383, resample='bicubic'), "
      f'center_crop(size=(383, 383)), {HALF}',
    ),
    ({'do_resize': False}, HALF),
  ],
)
def test_convnexts_processor_crops_small_images_and_warps_large(config, steps):
  for model_type in ('cvt', 'resnet'):
    found = preprocess.from_huggingface('file', config, model_type)
    assert found['transform'] == steps
  named = {**config, 'image_processor_type': 'ConvNextImageProcessor'}
  assert preprocess.from_huggingface('file', named) == found


@pytest.mark.parametrize(
  ('config', 'words'),
  [
    ({'size': {'height': 224, 'width': 224}}, 'must be a shortest_edge'),
    ({'crop_pct': 0}, 'crop_pct=0 must be a number'),
    ({'crop_pct': 1.2}, 'crop_pct=1.2 must be'),
    ({'do_center_crop': True}, 'do_center_crop=True is not read'),
  ],
)
def test_what_convnexts_processor_cannot_have_is_refused(config, words):
  with pytest.raises(ValueError, match=words):
    preprocess.from_huggingface('file', config, 'cvt')


@pytest.mark.parametrize(
  ('model_type', 'size', 'transform'),
  [
    ('swin', 256, f"resize(size=(256, 256), resample='bilinear'), {HALF}"),
    ('pvt', (64, 96), f"resize(size=(64, 96), resample='bicubic'), {IMAGENET}"),
    ('pvt_v2', 64, f"resize(size=(64, 64), resample='bicubic'), {IMAGENET}"),
    (
      'cvt', 224,
      f"resize_short(size=256, resample='bicubic'), {CROPPED}, {HALF}",
    ),
    ('cvt', 384, f"resize(size=(384, 384), resample='bicubic'), {HALF}"),
  ],
)  # fmt: skip
def test_without_a_file_it_is_the_processor_of_the_model_type(
  model_type, size, transform
):
  found = preprocess.default_huggingface(model_type, size)
  assert found['transform'] == transform


def test_without_a_file_the_size_is_the_models():
  assert preprocess.default_huggingface('vit', (32, 48), 1) == {
    'decode': 'decode(channels=1, convert=True)',
    'transform': "resize(size=(32, 48), resample='bilinear'), "
    'normalize(mean=(0.5,), std=(0.5,))',
  }
  assert preprocess.default_huggingface('deit', 384)['transform'] == (
    "resize(size=(439, 439), resample='bicubic'), "
    f'center_crop(size=(384, 384)), {HALF}'
  )
  # At its own size it is what transformers does.
  assert preprocess.default_huggingface('deit', 224) == (
    preprocess.from_huggingface('', {}, 'deit')
  )


@pytest.mark.parametrize(
  ('config', 'words'),
  [
    ({'image_processor_type': 'CLIPImageProcessor'}, "'CLIPImageProcessor' is"),
    ({'image_processor_type': ['ViT']}, 'is not read; choices: ViTImage'),
    ({'crop_pct': 0.9}, 'crop_pct=0.9 is not read'),
    ({'do_pad': True}, 'do_pad=True is not read'),
    ({'do_resize': 1}, 'do_resize=1 must be true or false'),
    ({'resample': 5}, r'resample=5; choices: 0 \(nearest\)'),
    ({'resample': True}, 'resample=True'),
    ({'resample': [2]}, r'resample=\[2\]'),
    ({'size': {'shortest_edge': 224, 'longest_edge': 300}}, 'longest_edge'),
    ({'size': {'height': 224}}, 'must be a number, or height and width'),
    ({'size': 'large'}, "size='large'"),
    ({'size': 10**9}, 'size.height=1000000000'),
    ({'size': True}, 'size.height=True'),
    ({'do_center_crop': True, 'crop_size': {'shortest_edge': 3}}, 'crop_size'),
    ({'do_center_crop': True}, 'crop_size=None'),
    ({'rescale_factor': 1 / 256}, 'rescale_factor=0.00390625'),
    ({'do_rescale': False}, 'do_rescale=False'),
    ({'rescale_factor': '1/255', 'do_normalize': False}, 'positive number'),
    ({'image_mean': [0.5, 0.5]}, r'image_mean=\[0.5, 0.5\] must be 3 numbers'),
    ({'image_mean': [123.7, 116.3, 103.5]}, 'for pixels in 0..1'),
    ({'image_std': [0.5, 0.5, 0]}, 'image_std'),
    ({'image_std': None, 'image_mean': 'imagenet'}, "image_mean='imagenet'"),
  ],
)
def test_what_we_cannot_express_is_refused_with_its_value(config, words):
  with pytest.raises(ValueError, match=words):
    preprocess.from_huggingface('file', config)


WRONG = (
  ('flip', "no place for 'flip'"),
  ('center_crop(size=4), resize(size=4)', 'no place for.*in this order'),
  ('normalize(mean=0.5, std=0.5), resize(size=4)', 'no place for'),
  ('resize', "'resize' in the preprocessing: resize takes size, resample"),
  ('resize(size=4, side=3)', 'resize takes size, resample'),
)


@pytest.mark.parametrize(('transform', 'words'), WRONG)
@pytest.mark.parametrize('to', [preprocess.to_huggingface, preprocess.to_timm])
def test_steps_that_they_have_not_are_refused(to, transform, words):
  ours = {'decode': 'decode', 'transform': transform}
  with pytest.raises(ValueError, match=words):
    to(ours, 4)


def image():
  return np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)


def pixels(ours):
  chain = data.specs.build_all(ours['transform'], data.TRANSFORMS, 'transform')
  example = {'image': image()}
  for transform in chain:
    example = transform(example, None)
  return example['image']


@pytest.mark.parametrize(
  'transform',
  ['value_range', 'value_range(low=0, high=1)', 'normalize(mean=0.3, std=0.2)'],
)
def test_numbers_of_ours_mean_the_same_there(transform):
  ours = {  # as a run of ours spells it out
    'decode': 'decode(channels=3, max_pixels=9, min_side=None, convert=False)',
    'transform': f"resize(size=4, resample='box'), {transform}",
  }
  files = preprocess.to_huggingface(ours, 4), preprocess.to_timm(ours, 4)
  for back in (
    preprocess.from_huggingface('file', files[0]),
    preprocess.from_timm('file', files[1]),
  ):
    np.testing.assert_allclose(pixels(back), pixels(ours), rtol=0, atol=1e-6)


def test_defaults_are_those_of_the_transforms():
  tables = {**data.TRANSFORMS, **data.DECODERS}
  for name, options in steps.OPTIONS.items():
    fields = {f.name: f.default for f in dataclasses.fields(tables[name])}
    fields = {
      k: None if v is dataclasses.MISSING else v for k, v in fields.items()
    }
    if name == 'decode':
      assert fields.pop('min_side') is None
      assert options['min_side'] == 0  # None means that it must be given
      options = {k: v for k, v in options.items() if k != 'min_side'}
    assert fields == options
  for resample in steps.RESAMPLES:
    assert resample in data.geometry.RESAMPLE


# timm.

INCEPTION = {'mean': [0.5, 0.5, 0.5], 'std': [0.5, 0.5, 0.5]}


@pytest.mark.parametrize(
  ('config', 'transform'),
  [
    (
      {'input_size': [3, 224, 224], 'interpolation': 'bicubic',
       'crop_pct': 0.9, 'crop_mode': 'center', **INCEPTION},
      "resize_short(size=248, resample='bicubic'), "
      f'center_crop(size=(224, 224)), {HALF}',
    ),
    (
      {'input_size': [3, 384, 384], 'interpolation': 'bilinear',
       'crop_pct': 1.0, 'crop_mode': 'center', **INCEPTION},
      "resize_short(size=384, resample='bilinear'), "
      f'center_crop(size=(384, 384)), {HALF}',
    ),
    (
      {'input_size': [3, 518, 500], 'interpolation': 'lanczos',
       'crop_pct': 1.0, 'crop_mode': 'squash', **INCEPTION},
      f"resize(size=(518, 500), resample='lanczos'), {HALF}",
    ),
    (
      {'input_size': [3, 224, 208], 'interpolation': 'box', 'crop_pct': 0.875,
       'crop_mode': 'squash', **INCEPTION},
      f"resize(size=(256, 237), resample='box'), "
      f'center_crop(size=(224, 208)), {HALF}',
    ),
  ],
)  # fmt: skip
def test_timm_files_come_back_equal(config, transform):
  more = {'num_classes': 7, 'architecture': 'x', 'crop_border': None}
  ours = preprocess.from_timm('file', {**config, **more})
  assert ours == {
    'decode': 'decode(channels=3, convert=True)', 'transform': transform
  }  # fmt: skip
  assert preprocess.to_timm(ours, 32) == config


@pytest.mark.parametrize(
  'portion',
  [0.875, 0.9, 0.95, 0.96, 0.94, 0.965, 0.93, 0.88, 0.8, 0.985, 1.0],
)
@pytest.mark.parametrize('side', [224, 240, 256, 288, 384, 448, 518])
def test_crop_pct_comes_back_as_people_write_it(side, portion):
  config = {'input_size': [3, side, side], 'crop_pct': portion}
  ours = preprocess.from_timm('file', config)
  assert preprocess.to_timm(ours, side)['crop_pct'] == portion


@pytest.mark.parametrize('portion', [0.922, 0.8333, 2 / 3, 0.51, 0.999])
def test_any_crop_pct_comes_back_as_one_that_means_the_same(portion):
  config = {'input_size': [3, 224, 224], 'crop_pct': portion}
  ours = preprocess.from_timm('file', config)
  assert preprocess.from_timm('file', preprocess.to_timm(ours, 224)) == ours


def test_what_a_timm_file_leaves_out_is_timms_own():
  ours = preprocess.from_timm('file', {'crop_pct': None})
  assert ours['transform'] == (
    "resize_short(size=256, resample='bicubic'), center_crop(size=(224, 224)), "
    'normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))'
  )
  assert preprocess.from_timm('file', preprocess.to_timm(ours, 1)) == ours


def test_images_that_are_not_resized_are_left_alone_by_timms_resize():
  ours = {'decode': 'decode(channels=1)', 'transform': 'value_range'}
  found = preprocess.to_timm(ours, (8, 12))
  assert (found['input_size'], found['crop_mode'], found['crop_pct']) == (
    [1, 8, 12], 'squash', 1.0
  )  # fmt: skip


@pytest.mark.parametrize(
  ('config', 'words'),
  [
    ({'crop_mode': 'border'}, "crop_mode='border'"),
    ({'input_size': [3, 224, 192]}, "crop_mode='center' with input_size"),
    ({'input_size': [3, 224]}, 'must be channels, height and width'),
    ({'input_size': [3, 0, 224]}, 'input_size=0'),
    ({'input_size': [3, 10**9, 10**9]}, 'input_size=1000000000'),
    ({'crop_pct': 0}, 'crop_pct=0 must be'),
    ({'crop_pct': 1e-9}, 'crop_pct=1e-09 must be'),
    ({'crop_pct': 1.1}, 'crop_pct=1.1 must be'),
    ({'crop_pct': '0.9'}, "crop_pct='0.9'"),
    ({'interpolation': 'random'}, "interpolation='random'; choices"),
    ({'interpolation': ['bicubic']}, 'interpolation='),
    ({'mean': [0.5]}, r'mean=\[0.5\] must be 3 numbers'),
    ({'std': [0, 0, 0]}, 'std='),
  ],
)
def test_timm_values_that_we_cannot_express_are_refused(config, words):
  with pytest.raises(ValueError, match=words):
    preprocess.from_timm('file', config)


@pytest.mark.parametrize(
  'transform',
  [
    'resize_short(size=8)', 'resize_short(size=8), center_crop(size=(4, 6))',
    'center_crop(size=4)', 'resize(size=8), center_crop(size=(4, 8))',
    'resize(size=8), center_crop(size=9)',
  ],
)  # fmt: skip
def test_sizes_that_timm_cannot_reach_are_refused(transform):
  ours = {'decode': 'decode', 'transform': transform}
  with pytest.raises(ValueError, match='timm'):
    preprocess.to_timm(ours, 8)
