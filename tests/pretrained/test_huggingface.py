"""Folders of Hugging Face, without PyTorch: goldens hold what it answered."""

import dataclasses
import json
import pathlib
import tarfile

import jax
import ml_dtypes
import numpy as np
import pytest
from pretrained import jitter

from vit_jax import data, models
from vit_jax.pretrained import arrays, base, convert, huggingface

REAL = pathlib.Path(__file__).parents[2] / '../shared/data'
# The rectangle has 11 blocks, one channel, no query biases and tanh GELU.
GOLDENS = ('vit', 'vit_rectangle', 'vit_pooler', 'deit', 'deit_teacher')
TINY = {
  'model_type': 'vit', 'hidden_size': 8, 'num_hidden_layers': 1,
  'num_attention_heads': 2, 'intermediate_size': 12, 'image_size': 8,
  'patch_size': 4, 'id2label': {'0': 'b', '1': 'a', '2': 'c'},
}  # fmt: skip

# Of config.json: what we do not write, and what without a head or a pooler.
NOT_WRITTEN = (
  'dtype', 'encoder_stride', 'initializer_range', 'transformers_version',
)  # fmt: skip
LABELS = ('id2label', 'label2id')
POOLER = ('pooler_act', 'pooler_output_size')


def write_folder(path, config, weights, processor=None):
  path.mkdir()
  (path / 'config.json').write_text(json.dumps(config))
  arrays.write_safetensors(path / 'model.safetensors', weights)
  if processor is not None:
    (path / 'preprocessor_config.json').write_text(json.dumps(processor))
  return path


def layout(config, dim=8, mlp=12, classes=3):
  """name → shape of a ViT with one block, as transformers 4 names it."""
  block = 'vit.encoder.layer.0.'
  squares = [
    f'{block}attention.{m}'
    for m in (
      'attention.query', 'attention.key', 'attention.value', 'output.dense',
    )
  ]
  dense = {
    **dict.fromkeys(squares, (dim, dim)),
    f'{block}intermediate.dense': (mlp, dim),
    f'{block}output.dense': (dim, mlp),
    'classifier': (classes, dim),
    'vit.embeddings.patch_embeddings.projection': (dim, 3, 4, 4),
  }
  norms = [f'{block}layernorm_{w}' for w in ('before', 'after')]
  norms = dict.fromkeys((*norms, 'vit.layernorm'), (dim,))
  out = {f'{n}.weight': s for n, s in {**dense, **norms}.items()}
  out |= {f'{n}.bias': s[:1] for n, s in {**dense, **norms}.items()}
  out['vit.embeddings.cls_token'] = (1, 1, dim)
  out['vit.embeddings.position_embeddings'] = (1, 5, dim)
  return out


def tiny_folder(path, weights=None, processor=None, **changes):
  weights = jitter.arrays(layout(TINY)) if weights is None else weights
  return write_folder(path, {**TINY, **changes}, weights, processor)


def same_arrays(first, second):
  assert set(first) == set(second)
  for name in first:
    assert first[name].dtype == second[name].dtype, name
    assert first[name].tobytes() == second[name].tobytes(), name


@pytest.mark.parametrize('name', GOLDENS)
def test_a_folder_gives_what_transformers_gave_and_comes_back(name, tmp_path):
  golden = jitter.golden(f'hf_{name}')
  weights = jitter.arrays(golden['layout'])
  folder = write_folder(tmp_path / 'theirs', golden['config'], weights)
  found = huggingface.read(folder)

  def answers(variables, images, larger):
    tokens, grid = found.model.apply(variables, images, method='embed')
    tokens, _ = found.model.apply(variables, tokens, grid, method='encode')
    out = {
      'tokens': tokens[0, :3],
      'logits': found.model.apply(variables, tokens, method='head'),
    }
    if golden['resized'] is not None:
      out['resized'] = found.model.apply(variables, larger)
    return out

  images = jitter.images(*golden['images'])
  larger = jitter.images(2, 20, 28, 3)
  for key, mine in jax.jit(answers)(found.variables, images, larger).items():
    np.testing.assert_allclose(mine, golden[key], rtol=0, atol=1e-5)

  mapping = huggingface.write(tmp_path / 'ours', found)
  assert mapping == found.mapping
  written = arrays.read_safetensors(tmp_path / 'ours' / 'model.safetensors')
  same_arrays(written, weights)
  left_out = (
    *NOT_WRITTEN, *(LABELS if 'pooler' in name else POOLER)
  )  # fmt: skip
  assert arrays.read_json(tmp_path / 'ours' / 'config.json') == {
    k: v for k, v in golden['config'].items() if k not in left_out
  }


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_dtypes_come_back_and_variables_are_float32(dtype, tmp_path):
  weights = jitter.arrays(layout(TINY))
  weights = {
    n: x.astype(dtype) if 'layernorm' not in n else x
    for n, x in weights.items()
  }
  found = huggingface.read(tiny_folder(tmp_path / 'theirs', weights))
  assert {x.dtype for x in jax.tree.leaves(found.variables)} == {
    np.dtype('float32')
  }
  huggingface.write(tmp_path / 'ours', found)
  same_arrays(arrays.read_safetensors_folder(tmp_path / 'ours'), weights)


def renamed(weights):
  """As transformers 5 can write it."""
  out = {}
  for name, x in weights.items():
    for old, new in (
      ('encoder.layer.', 'layers.'),
      ('attention.attention.query', 'attention.q_proj'),
      ('attention.attention.key', 'attention.k_proj'),
      ('attention.attention.value', 'attention.v_proj'),
      ('attention.output.dense', 'attention.o_proj'),
      ('intermediate.dense', 'mlp.fc1'),
      ('output.dense', 'mlp.fc2'),
    ):
      name = name.replace(old, new)
    out[name] = x
  return out


def test_names_of_version_5_parts_and_defaults_say_the_same(tmp_path):
  weights = jitter.arrays(layout(TINY))
  plain = huggingface.read(tiny_folder(tmp_path / 'plain', weights))
  assert plain.labels == ('b', 'a', 'c')

  new = renamed(weights)
  assert len(set(new) - set(weights)) == 16  # a block's
  said = {'qkv_bias': True, 'hidden_act': 'gelu', 'layer_norm_eps': 1e-12,
          'architectures': ['ViTForImageClassification'], 'num_labels': 3,
          'id2label': dict(reversed(TINY['id2label'].items()))}  # fmt: skip
  folder = tiny_folder(tmp_path / 'parts', {}, **said)
  (folder / 'model.safetensors').unlink()
  files = 'model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'
  where = {name: files[i % 2] for i, name in enumerate(new)}
  for file in files:
    part = {name: x for name, x in new.items() if where[name] == file}
    arrays.write_safetensors(folder / file, part)
  index = {'metadata': {}, 'weight_map': where}
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
  parts = huggingface.read(folder)
  assert parts.config == plain.config
  assert parts.labels == plain.labels
  jax.tree.map(
    np.testing.assert_array_equal, parts.variables, plain.variables
  )


def test_two_classes_without_names_are_two_classes(tmp_path):
  weights = jitter.arrays(layout(TINY, classes=2))
  found = huggingface.read(tiny_folder(tmp_path / 'a', weights, id2label=None))
  assert (found.model.num_classes, found.labels) == (2, ())
  huggingface.write(tmp_path / 'b', found)
  written = arrays.read_json(tmp_path / 'b' / 'config.json')
  assert written['num_labels'] == 2
  assert 'id2label' not in written


def test_without_a_processor_file_the_model_types_own_is_taken(tmp_path):
  found = huggingface.read(tiny_folder(tmp_path / 'a'))
  assert found.preprocess['transform'] == (
    "resize(size=(8, 8), resample='bilinear'), "
    'normalize(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))'
  )
  given = {'size': 12, 'resample': 3, 'image_mean': [0.1, 0.2, 0.3]}
  found = huggingface.read(tiny_folder(tmp_path / 'b', None, given))
  assert found.preprocess['transform'] == (
    "resize(size=(12, 12), resample='bicubic'), "
    'normalize(mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))'
  )
  huggingface.write(tmp_path / 'c', found)
  written = arrays.read_json(tmp_path / 'c' / 'preprocessor_config.json')
  assert written == {
    'do_resize': True, 'size': {'height': 12, 'width': 12}, 'resample': 3,
    'do_rescale': True, 'rescale_factor': 1 / 255, 'do_normalize': True,
    'image_mean': [0.1, 0.2, 0.3], 'image_std': [0.5, 0.5, 0.5],
    'image_processor_type': 'ViTImageProcessor',
  }  # fmt: skip


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'model_type': 'beit'}, "'beit' is not read; choices: vit, deit"),
    ({'model_type': ['vit']}, 'is not read; choices: vit, deit'),
    ({'architectures': ['ViTForMaskedImageModeling']}, 'not read; choices'),
    ({'hidden_act': 'relu'}, "'relu' is not read; choices: 'gelu'"),
    ({'hidden_act': ['gelu']}, 'is not read; choices'),
    ({'qkv_bias': 1}, 'qkv_bias=1 must be true or false'),
    ({'pruned_heads': {'0': [1]}}, 'pruned_heads'),
    ({'head_dim': 8}, 'head_dim=8'),
    ({'num_attention_heads': 3}, 'must share hidden_size=8 equally'),
    ({'num_hidden_layers': 10**9}, r'must be a whole number in \[1, 4096\]'),
    ({'num_hidden_layers': 12}, '12, but the arrays are of 1 blocks'),
    ({'hidden_size': 10**9}, 'hidden_size=1000000000'),
    ({'hidden_size': 16}, r'has shape \(8, 3, 4, 4\).*\(16, 3, 4, 4\)'),
    ({'intermediate_size': 2**40}, 'intermediate_size'),
    ({'intermediate_size': 13}, 'Dense_0/kernel'),
    ({'image_size': 10**9}, 'image_size=1000000000'),
    ({'image_size': 16}, r'position_embeddings has shape \(1, 5, 8\)'),
    ({'image_size': [8, 8, 8]}, 'one number or two'),
    ({'image_size': None}, 'image_size=None'),
    ({'image_size': 10}, 'not divisible into patches'),
    ({'patch_size': [2, 4]}, r'patch_size=\[2, 4\] must be square'),
    ({'num_channels': 4}, r'\(8, 4, 4, 4\)'),
    ({'layer_norm_eps': '1e-6'}, "layer_norm_eps='1e-6'"),
    ({'hidden_dropout_prob': 1.0}, 'hidden_dropout_prob=1.0'),
    ({'num_labels': 4}, 'num_labels=4; the classifier has 3'),
    ({'id2label': {'0': 'a'}}, 'id2label must name the classes "0" to "2"'),
    ({'id2label': {'0': 'a', '1': 'b', '2': 3}}, 'id2label must name'),
    ({'qkv_bias': False}, r'nothing uses.*query\.bias'),
    ({'model_type': 'deit'}, 'arrays are of 0 blocks'),
  ],
)
def test_what_cannot_be_followed_is_refused(changes, words, tmp_path):
  folder = tiny_folder(tmp_path / 'a', **changes)
  with pytest.raises(ValueError, match=words) as caught:
    huggingface.read(folder)
  assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (lambda x: x.pop('vit.layernorm.bias'), r'no such array: vit\.layernorm'),
    (
      lambda x: x.update({'vit.pooler.dense.bias': np.zeros(8, 'f4')}),
      r'nothing uses: vit\.pooler',
    ),
    (
      lambda x: x.update({'vit.embeddings.cls_token': np.zeros(8, 'f4')}),
      'wrong shapes',
    ),
    (
      lambda x: x.update({'classifier.bias': np.zeros(3, 'i4')}), 'int32',
    ),
  ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_refused(change, words, tmp_path):
  weights = jitter.arrays(layout(TINY))
  change(weights)
  with pytest.raises(convert.ConversionError, match=words):
    huggingface.read(tiny_folder(tmp_path / 'a', weights))


SECTION = {
  'name': 'vit', 'num_classes': 3, 'patch_size': 4, 'hidden_size': 8,
  'num_layers': 1, 'num_heads': 2, 'mlp_dim': 12, 'image_size': 8,
}  # fmt: skip
OURS = {
  'decode': 'decode(channels=3, convert=True)',
  'transform': 'resize(size=8), value_range(low=-1, high=1)',
}


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'classifier': 'gap'}, "classifier='gap', only for 'token'"),
    ({'layer_scale': 0.1}, 'layer_scale=0.1'),
    ({'qk_norm': True}, 'qk_norm=True'),
    ({'position': 'sincos2d'}, 'sincos2d'),
    ({'position': 'learned, rotary'}, 'rotary'),
    ({'name': 'cpvt'}, "position='conditional'"),
    ({'norm_placement': 'post'}, "norm_placement='post'"),
    ({'num_registers': 1}, 'num_registers=1'),
    ({'prefix_positions': 0}, 'prefix_positions=0'),
    ({'representation_size': 5}, 'representation_size=5 with a classifier'),
    ({'attention': 'linformer'}, "attention='linformer'"),
    ({'attention': 'softmax, window'}, "attention='softmax, window'"),
    ({'norm_after_pooling': True}, 'norm_after_pooling'),
    ({'resnet': (1,)}, 'resnet'),
    ({'name': 'deit', 'distilled': True, 'num_classes': 0}, 'distilled=True'),
  ],
)
def test_models_that_transformers_has_not_are_refused(fields, words, tmp_path):
  section = {**SECTION, **fields}
  found = base.Pretrained(models.build(**section), {}, OURS, (), section)
  with pytest.raises(ValueError, match=words):
    huggingface.write(tmp_path / 'a', found)
  assert not (tmp_path / 'a').exists()


def test_a_preprocessing_that_it_has_not_is_refused(tmp_path):
  ours = {**OURS, 'transform': 'grayscale, value_range'}
  found = base.Pretrained(models.build(**SECTION), {}, ours, (), SECTION)
  with pytest.raises(ValueError, match='no place for'):
    huggingface.write(tmp_path / 'a', found)
  assert not (tmp_path / 'a').exists()


def test_fields_that_matter_in_training_only_are_left_out(tmp_path):
  found = huggingface.read(tiny_folder(tmp_path / 'a'))
  model = found.model.clone(
    drop_path_rate=0.1, patch_dropout_rate=0.2, remat=True,
    position_resize='bicubic', head_bias=-3.0, attention='softmax, softmax',
  )  # fmt: skip
  huggingface.write(
    tmp_path / 'b', dataclasses.replace(found, model=model)
  )
  again = huggingface.read(tmp_path / 'b')
  assert again.config == found.config


def real():
  folder, archive = (
    REAL / n for n in ('vit_tiny_tinyimagenet', 'tiny_imagenet_20classes.tar')
  )
  for path in (folder, archive):
    if not path.exists():
      pytest.skip(f'{path} is not there')
  return folder, archive


def test_the_real_checkpoint_says_what_it_says_in_transformers(tmp_path):
  folder, archive = real()
  found = huggingface.read(folder)
  assert len(found.labels) == 200
  assert found.labels[10] == 'n01784675 centipede'
  assert found.labels[199] == 'n07747607 orange'
  assert found.model.epsilon == 1e-12
  assert set(found.dtypes.values()) == {'float16'}
  golden = jitter.golden('hf_real')
  with tarfile.open(archive) as tar:
    images = np.stack([
      data.load_image(tar.extractfile(name).read(), found.preprocess)
      for name in golden
    ])
  logits = np.asarray(jax.jit(found.model.apply)(found.variables, images))
  for row, best in zip(logits, golden.values(), strict=True):
    # From the third best to the best, as transformers has them.
    assert row.argsort()[-3:].tolist() == [int(k) for k in best]
    np.testing.assert_allclose(
      np.sort(row)[-3:], list(best.values()), rtol=0, atol=1e-3
    )

  huggingface.write(tmp_path / 'ours', found)
  same_arrays(
    arrays.read_safetensors_folder(tmp_path / 'ours'),
    arrays.read_safetensors_folder(folder),
  )
  for name, left_out in (
    ('config.json', {'initializer_range': 0.02}),
    ('preprocessor_config.json', {}),
  ):
    written = arrays.read_json(tmp_path / 'ours' / name)
    assert {**written, **left_out} == arrays.read_json(folder / name)
