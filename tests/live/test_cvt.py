"""CvT against transformers: logits, maps, gradients, running statistics."""

import pytest
from live import families

from vit_jax.pretrained import families as tables

pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

SMALL = {
  'embed_dim': [8, 12, 16], 'depth': [1, 2, 3], 'num_heads': [1, 3, 2],
  'mlp_ratio': [2.0, 2.5, 1.0], 'drop_path_rate': [0.0, 0.0, 0.0],
}  # fmt: skip
CASES = {
  'default': ({}, (32, 48), ''),
  # 39 is 4·10 - 1, 42 is 4·10 + 2; keys of 5 of 9 rows.
  'odd': ({}, (39, 42), ''),
  'kernels': (
    {'kernel_qkv': [5, 3, 1], 'padding_q': [2, 1, 0], 'padding_kv': [2, 1, 0],
     'stride_kv': [2, 1, 1], 'qkv_bias': [False] * 3,
     'patch_sizes': [5, 3, 2], 'patch_stride': [2, 2, 2],
     'patch_padding': [2, 1, 0]}, (24, 30), ''),
  'two_stages': (
    {'embed_dim': [8, 16], 'depth': [1, 2], 'num_heads': [1, 2],
     'mlp_ratio': [2.0, 2.0], 'patch_sizes': [7, 3], 'patch_stride': [4, 2],
     'patch_padding': [2, 1], 'kernel_qkv': [3, 3], 'padding_q': [1, 1],
     'padding_kv': [1, 1], 'stride_kv': [2, 2], 'stride_q': [1, 1],
     'cls_token': [False, True], 'qkv_bias': [True, True],
     'drop_rate': [0.0, 0.0], 'attention_drop_rate': [0.0, 0.0],
     'drop_path_rate': [0.0, 0.0],
     'qkv_projection_method': ['dw_bn', 'dw_bn']}, (32, 32), 'cvt'),
}  # fmt: skip


@pytest.mark.parametrize(
  ('fields', 'size', 'golden'), CASES.values(), ids=CASES
)
def test_cvt_is_transformers_and_so_are_its_gradients(
  fields, size, golden, tmp_path, request
):
  config = transformers.CvtConfig(**{**SMALL, **fields})
  model, found, images = families.against_huggingface(
    'CvtForImageClassification', config, tmp_path, request, size=size,
    golden=golden,
  )  # fmt: skip
  table = tables.HUGGINGFACE['cvt'].table(found.model, None)
  families.gradients(model, found, images, table, logits=lambda o: o.logits)
