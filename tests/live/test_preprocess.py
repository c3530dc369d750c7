"""Pixels are those of transformers' and timm's own preprocessing."""

import io
import json

import numpy as np
import pytest
from live import real
from PIL import Image

from vit_jax import data
from vit_jax.pretrained import arrays, preprocess

pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
timm = pytest.importorskip('timm')

ARCHIVES = (
  ('coco128_instances.tar', '.jpg'),  # of many sizes
  ('tiny_imagenet_20classes.tar', 'val/images/'),  # 64×64, some of them grey
)


def rgb(encoded):
  return Image.open(io.BytesIO(encoded)).convert('RGB')


def close(mine, theirs):
  # In float32 a pixel is scaled in two steps or in one.
  np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6)


PROCESSORS = {
  'vit': ('ViT', {'size': {'height': 48, 'width': 40}}),
  'vit_number': ('ViT', {'size': 100, 'resample': 3}),
  'deit': ('DeiT', {'image_mean': [.4, .5, .6], 'image_std': [.2, .3, .4]}),
  'scaled': ('ViT', {'do_normalize': False, 'resample': 1}),
  'raw': ('ViT', {'do_normalize': False, 'do_rescale': False, 'resample': 4}),
  'nearest': ('ViT', {'resample': 0}),
  'pvt': ('Pvt', {'size': {'height': 40, 'width': 48}}),
  'warped': ('ConvNext', {'size': {'shortest_edge': 384}, 'resample': 2}),
  'short_uncropped': (
    'Bit', {'size': {'shortest_edge': 60}, 'do_center_crop': False},
  ),
}  # fmt: skip


@pytest.mark.parametrize(
  ('kind', 'fields'), PROCESSORS.values(), ids=PROCESSORS
)
@pytest.mark.parametrize(('archive', 'names'), ARCHIVES)
def test_pixels_are_those_of_the_image_processor(
  kind, fields, archive, names, tmp_path
):
  processor = getattr(transformers, f'{kind}ImageProcessorPil')(**fields)
  processor.save_pretrained(tmp_path)
  config = arrays.read_json(tmp_path / 'preprocessor_config.json')
  mine = preprocess.from_huggingface('theirs', config)
  (tmp_path / 'preprocessor_config.json').write_text(
    json.dumps(preprocess.to_huggingface(mine, 224))
  )
  again = transformers.AutoImageProcessor.from_pretrained(
    tmp_path, backend='pil'
  )
  assert 'Pil' in type(again).__name__
  for encoded in real.pictures(archive, names, 12).values():
    theirs, written = (
      p(rgb(encoded), return_tensors='np')['pixel_values'][0].transpose(1, 2, 0)
      for p in (processor, again)
    )
    np.testing.assert_array_equal(written, theirs)
    close(data.load_image(encoded, mine), theirs)


@pytest.mark.parametrize(
  'fields', [{'size': {'shortest_edge': 56}},
             {'size': {'shortest_edge': 50}, 'crop_pct': 0.9}],
)  # fmt: skip
@pytest.mark.parametrize(('archive', 'names'), ARCHIVES)
def test_pixels_are_those_of_convnexts_processor(
  fields, archive, names, tmp_path
):
  processor = transformers.ConvNextImageProcessorPil(**fields)
  processor.save_pretrained(tmp_path)
  config = arrays.read_json(tmp_path / 'preprocessor_config.json')
  mine = preprocess.from_huggingface('theirs', config)
  (tmp_path / 'preprocessor_config.json').write_text(
    json.dumps(preprocess.to_huggingface(mine, 224))
  )
  again = transformers.AutoImageProcessor.from_pretrained(
    tmp_path, backend='pil'
  )
  side = fields['size']['shortest_edge']
  compared = 0
  for encoded in real.pictures(archive, names, 24).values():
    theirs, written = (
      p(rgb(encoded), return_tensors='np')['pixel_values'][0].transpose(1, 2, 0)
      for p in (processor, again)
    )
    np.testing.assert_array_equal(written, theirs)
    size, short = rgb(encoded).size, min(rgb(encoded).size)
    portion = fields.get('crop_pct', 224 / 256)
    margins = [int(side / portion) * n // short - side for n in size]
    if all(m // 2 == round(m / 2) for m in margins):  # see the next test
      compared += 1
      close(data.load_image(encoded, mine), theirs)
  assert compared > 5


def test_a_crop_rounds_odd_margins_to_even_and_theirs_down(tmp_path):
  config = {
    'image_processor_type': 'BitImageProcessor',
    'size': {'shortest_edge': 60}, 'crop_size': {'height': 50, 'width': 40},
  }  # fmt: skip
  whole = transformers.BitImageProcessorPil(**config, do_center_crop=False)
  cropped = transformers.BitImageProcessorPil(**config)
  mine = preprocess.from_huggingface('theirs', config)
  further = 0
  for encoded in real.pictures('coco128_instances.tar', '.jpg', 24).values():
    uncut, theirs = (
      p(rgb(encoded), return_tensors='np')['pixel_values'][0].transpose(1, 2, 0)
      for p in (whole, cropped)
    )
    margins = uncut.shape[0] - 50, uncut.shape[1] - 40
    for x, rounded in (
      (theirs, [m // 2 for m in margins]),
      (data.load_image(encoded, mine), [round(m / 2) for m in margins]),
    ):
      top, left = rounded
      close(x, uncut[top : top + 50, left : left + 40])
    further += any(m // 2 != round(m / 2) for m in margins)
  assert further  # the pictures tell the difference


TIMM = {
  'default': {'tag': 'says nothing else'},
  'vit': {
    'input_size': (3, 96, 96), 'crop_pct': 0.9, 'interpolation': 'bicubic',
    'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5),
  },
  'whole': {'input_size': (3, 56, 56), 'crop_pct': 1.0},
  'squash': {
    'input_size': (3, 40, 56), 'crop_mode': 'squash', 'crop_pct': 1.0,
    'interpolation': 'bilinear',
  },
  'squash_and_crop': {
    'input_size': (3, 48, 48), 'crop_mode': 'squash', 'crop_pct': 0.95,
    'interpolation': 'lanczos',
  },
}  # fmt: skip


@pytest.mark.parametrize('config', TIMM.values(), ids=TIMM)
@pytest.mark.parametrize(('archive', 'names'), ARCHIVES)
def test_pixels_are_those_of_timms_evaluation(config, archive, names):
  mine = preprocess.from_timm('theirs', config)
  written = preprocess.to_timm(mine, 224)
  theirs, again = (
    timm.data.create_transform(
      **timm.data.resolve_data_config(pretrained_cfg=c, verbose=False)
    )
    for c in (config, written)
  )
  for encoded in real.pictures(archive, names, 12).values():
    x = theirs(rgb(encoded)).numpy()
    np.testing.assert_array_equal(again(rgb(encoded)).numpy(), x)
    close(data.load_image(encoded, mine), x.transpose(1, 2, 0))
