"""Folders of Swin and Twins that ours cannot be, and models that they cannot.

They are the committed goldens with something changed.
"""

import dataclasses
import json

import numpy as np
import pytest
from flax import traverse_util
from pretrained import jitter

from vit_jax import layers, pretrained
from vit_jax.pretrained import arrays, convert


def folder(name, path, model_args=None, **config):
  """A golden's folder, with other entries of config.json."""
  golden = jitter.golden(f'family_{name}')
  said = {**golden['config'], **config}
  if model_args:
    said['model_args'] = {**said['model_args'], **model_args}
  (path / name).mkdir()
  (path / name / 'config.json').write_text(json.dumps(said))
  weights = jitter.arrays(golden['layout'])
  arrays.write_safetensors(path / name / 'model.safetensors', weights)
  return path / name


@pytest.mark.parametrize(
  ('name', 'args', 'message'),
  [
    ('timm_swin', {'always_partition': True}, 'always_partition=True .* False'),
    ('timm_swin', {'head_dim': 2}, 'head_dim=2 .* None'),
    ('timm_swin', {'embed_dim': 16}, 'embed_dim is 16, by its arrays 8'),
    ('timm_swin', {'depths': [2, 1]}, r'depths is \[2, 1\], by its arrays \['),
    ('timm_swin', {'num_heads': [4, 4]}, r'num_heads is \[4, 4\], by its arr'),
    ('timm_swin', {'mlp_ratio': 3.0}, 'mlp_ratio=3.0 .* 32 hidden'),
    ('timm_swin', {'mlp_ratio': [4.0, 2.0]}, 'must be one number, or 2 alike'),
    ('timm_swin', {'window_size': [4, 2]}, 'window_size=.* a square window'),
    ('timm_swin', {'window_size': 3}, 'relative_position_bias_table .*49'),
    ('timm_swin', {'img_size': 30}, '30×30 pixels; .* a multiple of 4'),
    ('timm_swin', {'window': 7}, "window=7 .*did you mean 'window_size'"),
    ('timm_twins_svt', {'wss': [3, 2]}, r'wss=\[3, 2\]; ours has one size'),
    ('timm_twins_svt', {'wss': [3, '2']}, r"wss='2' must be a whole number"),
    ('timm_twins_svt', {'sr_ratios': [2]}, 'for each of its 2 stages'),
    ('timm_twins_svt', {'num_heads': [3, 4]}, '3 heads do not divide .* 8'),
    ('timm_twins_svt', {'mlp_ratios': [2, 2]}, 'mlp_ratio=2 .* 48 hidden'),
    ('timm_twins_svt', {'wss': None}, 'no such array: blocks.0.0.attn.q.'),
    ('timm_twins_svt', {'img_size': 20}, '20×20 pixels; .* a multiple of 8'),
  ],
)  # fmt: skip
def test_a_timm_folder_that_ours_cannot_be_is_refused(
  name, args, message, tmp_path
):
  with pytest.raises(ValueError, match=message):
    pretrained.load(folder(name, tmp_path, args))


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'use_absolute_embeddings': True}, 'use_absolute_embeddings=True'),
    ({'layer_norm_eps': 1e-6}, 'layer_norm_eps=1e-06'),
    ({'hidden_act': 'relu'}, "hidden_act='relu' .* 'gelu'"),
    ({'depths': [2, 3]}, r'depths=\[2, 3\] .* \[2, 2\]'),
    ({'window_size': [4, 4]}, r'window_size=\[4, 4\] must be a whole number'),
    ({'architectures': ['SwinForMaskedImageModeling']}, 'MaskedImageModeling'),
  ],
)  # fmt: skip
def test_a_folder_of_transformers_that_ours_cannot_be_is_refused(
  config, message, tmp_path
):
  with pytest.raises(ValueError, match=message):
    pretrained.load(folder('hf_swin', tmp_path, **config))


@pytest.mark.parametrize(
  ('name', 'form', 'changes', 'message'),
  [
    # Its map of 4×6 tokens is shifted along the columns alone.
    ('timm_swin_narrow', 'huggingface', {}, "'timm' .*stage 0 .* 4×6 tokens"),
    ('hf_swin_padded', 'timm', {}, "'original' at .*stage 0 .* 8×8 tokens"),
    ('timm_swin', 'timm', {'attention': 'linear'}, "attention='linear'"),
    ('timm_swin', 'timm', {'gelu': 'tanh'}, "gelu='tanh' .* 'exact'"),
    ('timm_swin', 'huggingface', {'window_size': (4, 5)}, 'one window for all'),
    ('timm_twins_svt', 'timm', {'attention': 'gsa, lsa'}, "'lsa, gsa' or 'gs"),
    ('timm_twins_svt', 'huggingface', {}, 'no place for Twins'),
  ],
)  # fmt: skip
def test_a_model_that_a_format_cannot_be_is_not_written(
  name, form, changes, message, tmp_path
):
  found = pretrained.load(folder(name, tmp_path))
  found = dataclasses.replace(found, model=found.model.clone(**changes))
  with pytest.raises(ValueError, match=message):
    pretrained.save(tmp_path / 'out', found, format=form)
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  ('name', 'attention'),
  [('timm_swin', 'softmax'), ('timm_twins_svt', 'window(size=3), gsa')],
)
def test_another_attention_keeps_the_weights_that_it_shares(
  name, attention, tmp_path
):
  exact = pretrained.load(folder(name, tmp_path))
  other = pretrained.load(tmp_path / name, attention=attention)
  assert other.model.attention == attention
  kept = traverse_util.flatten_dict(exact.variables, sep='/')
  shared = traverse_util.flatten_dict(other.variables, sep='/')
  assert {k for k in kept if k not in shared} == {
    k for k in kept if k.endswith('relative_bias')
  }
  for path, x in shared.items():
    np.testing.assert_array_equal(x, kept[path])


def test_tables_of_biases_follow_the_window(tmp_path):
  name = 'stage_1/block_0/MultiHeadDotProductAttention_0/attend/relative_bias'

  def table(found):
    return convert.flatten(found.variables)[name]

  found = pretrained.load(folder('hf_swin', tmp_path))
  # Hugging Face's are of whole windows, so images of any size have the same.
  other = pretrained.load(tmp_path / 'hf_swin', image_size=(40, 24))
  np.testing.assert_array_equal(table(other), table(found))
  wider = pretrained.load(tmp_path / 'hf_swin', window_size=7)
  matrix = layers.cubic_torch(13, 7)
  expected = np.einsum(
    'yr,xc,rch->yxh', matrix, matrix, np.reshape(table(found), (7, 7, -1))
  )
  np.testing.assert_allclose(
    table(wider), expected.reshape(169, -1), atol=1e-6
  )
  # timm's are of windows no larger than the map at the model's own size.
  pretrained.load(folder('timm_swin', tmp_path))
  narrow = pretrained.load(tmp_path / 'timm_swin', image_size=(16, 24))
  assert table(narrow).shape == (3 * 5, 4)
  for x in (narrow, wider):  # resized, not drawn anew
    assert np.abs(table(x)).max() > 0.1
