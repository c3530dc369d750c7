"""transformers and ours compute the same from the same folder, either one's.

Weights are drawn from their names (see `pretrained.jitter`), so that nothing is
zero or one where an error could hide.
"""

import jax
import numpy as np
import pytest
from live import real
from pretrained import jitter

from vit_jax import data
from vit_jax.pretrained import arrays, huggingface, huggingface_config

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

SMALL = {
  'hidden_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 2,
  'intermediate_size': 24, 'image_size': 16, 'patch_size': 4,
}  # fmt: skip
LABELS = {
  'id2label': {0: 'b', 1: 'c', 2: 'a'}, 'label2id': {'b': 0, 'c': 1, 'a': 2}
}  # fmt: skip


def case(name, architecture, **fields):
  return pytest.param(architecture, {**SMALL, **LABELS, **fields}, id=name)


CASES = (
  case('vit', 'ViTForImageClassification'),
  case(
    'vit_rectangle', 'ViTForImageClassification', image_size=(12, 20),
    qkv_bias=False, hidden_act='gelu_pytorch_tanh', num_channels=1,
    layer_norm_eps=1e-3, num_hidden_layers=11, hidden_dropout_prob=0.25,
    attention_probs_dropout_prob=0.125,
  ),
  case('vit_gelu_new', 'ViTForImageClassification', hidden_act='gelu_new'),
  case('vit_pooler', 'ViTModel', pooler_output_size=10),
  case('vit_bare', 'ViTModel'),
  case('deit', 'DeiTForImageClassification'),
  case('deit_teacher', 'DeiTForImageClassificationWithTeacher'),
  case('deit_pooler', 'DeiTModel'),
)  # fmt: skip
GOLDENS = ('vit', 'vit_rectangle', 'vit_pooler', 'deit', 'deit_teacher')


def opened(folder, architecture, bare=False):
  """transformers' model of a folder, all of whose arrays it takes."""
  options = {'add_pooling_layer': False} if bare else {}
  model, report = getattr(transformers, architecture).from_pretrained(
    folder, output_loading_info=True, dtype=torch.float32, **options
  )
  assert not any(report.values()), report
  return model.eval()


def jittered(folder, architecture, fields, bare):
  """A folder that transformers wrote, with jittered arrays instead."""
  config = transformers.AutoConfig.for_model(
    'deit' if architecture.startswith('DeiT') else 'vit', **fields
  )
  options = {'add_pooling_layer': False} if bare else {}
  model = getattr(transformers, architecture)(config, **options)
  model.save_pretrained(folder)
  found = arrays.read_safetensors_folder(folder)
  layout = {name: list(x.shape) for name, x in found.items()}
  arrays.write_safetensors(folder / arrays.WEIGHTS, jitter.arrays(layout))
  return layout


def answers(model, images, resize=False):
  """transformers' logits (or pooled features), tokens, and every layer's."""
  x = torch.from_numpy(images).permute(0, 3, 1, 2)
  base = model.base_model
  with torch.no_grad():
    out = model(x, interpolate_pos_encoding=resize, output_hidden_states=True)
    layers = [base.layernorm(h).numpy() for h in out.hidden_states[1:]]
  if hasattr(out, 'logits'):
    return out.logits.numpy(), layers
  assert np.array_equal(out.last_hidden_state.numpy(), layers[-1])
  if out.pooler_output is None:
    return layers[-1][:, 0], layers
  return out.pooler_output.numpy(), layers


def ours(found, images):
  """Our logits, and the tokens of every layer."""
  blocks = tuple(range(found.model.num_layers))

  def tokens(model, x):
    return model.encode(*model.embed(x), collect=blocks)[1]

  @jax.jit
  def both(variables, x):
    collected = found.model.apply(variables, x, method=tokens)
    return found.model.apply(variables, x), collected

  return jax.tree.map(np.asarray, both(found.variables, images))


def close(mine, theirs):
  np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(('architecture', 'fields'), CASES)
def test_logits_and_tokens_are_transformers_and_it_opens_what_we_write(
  architecture, fields, tmp_path, request
):
  name = request.node.callspec.id
  bare = name.endswith('bare')
  folder = tmp_path / 'theirs'
  layout = jittered(folder, architecture, fields, bare)
  model = opened(folder, architecture, bare)
  height, width = np.broadcast_to(fields['image_size'], 2).tolist()
  images = jitter.images(2, height, width, model.config.num_channels)
  logits, tokens = answers(model, images)
  assert np.abs(logits).max() > 0.1

  found = huggingface.read(folder)
  assert found.labels == (() if 'Model' in architecture else ('b', 'c', 'a'))
  our_logits, our_tokens = ours(found, images)
  close(our_logits, logits)
  for mine, theirs in zip(our_tokens, tokens, strict=True):
    close(mine, theirs)

  mapping = huggingface.write(tmp_path / 'ours', found)
  assert mapping == found.mapping
  again = opened(tmp_path / 'ours', architecture, bare)
  # Its two tanh forms of GELU differ in the last bit.
  np.testing.assert_allclose(answers(again, images)[0], logits, rtol=1e-6)
  written = arrays.read_json(tmp_path / 'ours' / 'config.json')
  for key in set(written) - {'hidden_act'}:
    assert getattr(again.config, key) == getattr(model.config, key)
  forms = huggingface_config.GELUS
  assert forms[written['hidden_act']] == forms[model.config.hidden_act]

  resized = None
  if height == width:  # transformers resizes the positions of squares only
    larger = jitter.images(2, 20, 28, 3)
    resized, theirs = answers(model, larger, resize=True)
    mine, our_tokens = ours(found, larger)
    close(mine, resized)
    close(our_tokens[-1], theirs[-1])
    resized = resized.tolist()

  if name in GOLDENS:
    fresh = {
      'config': arrays.read_json(folder / 'config.json'),
      'layout': layout,
      'images': list(images.shape),
      'logits': logits.tolist(),
      'tokens': tokens[-1][0, :3].tolist(),  # the first three of one image
      'resized': resized,
    }
    if request.config.getoption('--regenerate'):
      jitter.write_golden(f'hf_{name}', fresh)
    committed = jitter.golden(f'hf_{name}')
    for key in ('config', 'layout', 'images'):
      assert committed[key] == fresh[key]
    for key in ('logits', 'tokens') + ('resized',) * (resized is not None):
      close(committed[key], fresh[key])


@pytest.mark.parametrize('architecture', ['ViTModel', 'DeiTModel'])
def test_the_array_names_of_version_5_say_the_same(architecture, tmp_path):
  kind = architecture.removesuffix('Model').lower()
  config = transformers.AutoConfig.for_model(kind, **SMALL)
  model = getattr(transformers, architecture)(config)
  for name, original in (('four', True), ('five', False)):
    model.save_pretrained(tmp_path / name, save_original_format=original)
  four, five = (huggingface.read(tmp_path / n) for n in ('four', 'five'))
  jax.tree.map(
    np.testing.assert_array_equal, five.variables, four.variables
  )
  assert not set(dict(five.mapping)) <= set(dict(four.mapping))


def test_the_real_checkpoint_gives_transformers_logits_on_100_images(request):
  folder = real.found('vit_tiny_tinyimagenet')
  found = huggingface.read(folder)
  chosen = real.pictures('tiny_imagenet_20classes.tar', 'val/images/', 100)
  images = np.stack([
    data.load_image(encoded, found.preprocess) for encoded in chosen.values()
  ])
  assert images.shape == (100, 224, 224, 3)
  model = opened(folder, 'ViTForImageClassification')
  apply = jax.jit(found.model.apply)
  mine, theirs = [], []
  for part in np.split(images, 4):
    mine.append(np.asarray(apply(found.variables, part)))
    with torch.inference_mode():
      x = torch.from_numpy(part).permute(0, 3, 1, 2)
      theirs.append(model(x).logits.numpy())
  mine, theirs = np.concatenate(mine), np.concatenate(theirs)
  worst = np.abs(mine - theirs).max()
  print(f'largest difference {worst:.1e} of logits to {np.abs(theirs).max()}')
  assert worst < 1e-4
  np.testing.assert_array_equal(mine.argmax(axis=1), theirs.argmax(axis=1))
  names = [model.config.id2label[i] for i in theirs.argmax(axis=1).tolist()]
  assert [found.labels[i] for i in mine.argmax(axis=1)] == names

  best = theirs[:8].argsort(axis=1)[:, -3:].tolist()
  fresh = {
    name: {str(k): round(float(row[k]), 4) for k in classes}
    for name, row, classes in zip(list(chosen)[:8], theirs, best, strict=False)
  }
  if request.config.getoption('--regenerate'):
    jitter.write_golden('hf_real', fresh)
  committed = jitter.golden('hf_real')
  assert {n: list(x) for n, x in committed.items()} == {
    n: list(x) for n, x in fresh.items()
  }
