"""ResNets with BatchNorm against timm's and transformers', from one folder."""

import pytest

pytest.importorskip('torch')
timm = pytest.importorskip('timm')
transformers = pytest.importorskip('transformers')

from live import families  # noqa: E402

from vit_jax.pretrained import convert, resnet  # noqa: E402
from vit_jax.pretrained import timm as format_timm  # noqa: E402

STAGES = [1, 2, 3, 4]  # timm's first map is the stem's, before its pooling
CHANNELS = [4, 8, 12, 16]


def stages(model, x):
  """The maps of transformers' stages; the first is the stem's."""
  maps = model(x, output_hidden_states=True).hidden_states[1:]
  return [m.permute(0, 2, 3, 1) for m in maps]


@pytest.mark.parametrize(
  ('name', 'layers', 'size', 'golden'),
  [
    ('resnet18', [2, 1, 1, 1], (50, 71), 'resnet18'),
    ('resnet50', [1, 2, 1, 1], (64, 47), 'resnet50'),
    ('resnet26', [1, 1, 1, 2], (33, 32), ''),
  ],
)
def test_timms_resnets_give_the_same_maps_and_logits(
  name, layers, size, golden, tmp_path, request
):
  _, found, _ = families.against_timm(
    name, {'layers': layers, 'channels': CHANNELS}, tmp_path, request,
    size=size, golden=golden, indices=STAGES,
  )  # fmt: skip
  assert found.model.depths == tuple(layers)
  # Their folder says 224 pixels; a model of any size goes by that alone.
  assert found.model.image_size == 224


@pytest.mark.parametrize('name', ['resnet18', 'resnet50'])
def test_timms_gradients_and_running_statistics_are_the_same(
  name, tmp_path, request
):
  args = {'layers': [1, 2, 1, 1], 'channels': CHANNELS}
  families.gradients(
    *families.against_timm(
      name, args, tmp_path, request, size=(64, 80), indices=STAGES
    )
  )


def test_another_width_has_a_shortcut_where_timm_has_one(tmp_path, request):
  # 64 planes: the basic block of the first stage keeps the stem's shape.
  families.against_timm(
    'resnet18', {'layers': [1, 1, 1, 1], 'channels': [64, 8, 8, 8]}, tmp_path,
    request, size=(32, 32), indices=STAGES,
  )  # fmt: skip


def test_a_published_name_needs_no_arguments(tmp_path):
  model = timm.create_model('resnet18', num_classes=3)
  timm.models.save_for_hf(model, tmp_path / 'theirs', safe_serialization=True)
  found = format_timm.read(tmp_path / 'theirs')
  assert found.model.depths == (2, 2, 2, 2)
  assert resnet.write_timm(found.model)[0] == 'resnet18'


@pytest.mark.parametrize(
  ('fields', 'golden'),
  [
    ({'layer_type': 'basic', 'depths': [2, 1]}, 'resnet_basic'),
    ({'depths': [1, 2]}, 'resnet'),
    ({'depths': [1, 1], 'downsample_in_first_stage': True}, ''),
    ({'depths': [1, 1], 'downsample_in_bottleneck': True}, ''),
    (
      {
        'depths': [1, 1], 'layer_type': 'basic',
        'downsample_in_bottleneck': True, 'downsample_in_first_stage': True,
      },
      '',
    ),
  ],
)  # fmt: skip
def test_transformers_resnets_give_the_same_maps_and_logits(
  fields, golden, tmp_path, request
):
  config = transformers.ResNetConfig(
    embedding_size=8, hidden_sizes=[8, 20], **fields
  )
  families.against_huggingface(
    'ResNetForImageClassification', config, tmp_path, request, size=(45, 62),
    maps=stages, golden=golden,
  )  # fmt: skip


def test_transformers_gradients_and_running_statistics_are_the_same(
  tmp_path, request
):
  config = transformers.ResNetConfig(
    embedding_size=8, hidden_sizes=[16, 24], depths=[2, 1],
    downsample_in_bottleneck=True,
  )  # fmt: skip
  found = families.against_huggingface(
    'ResNetForImageClassification', config, tmp_path, request, size=(64, 50),
    maps=stages,
  )  # fmt: skip
  families.gradients(
    *found, table=resnet.huggingface_table(found[1].model, None),
    logits=lambda out: out.logits,
  )  # fmt: skip


def test_a_bare_model_is_read_and_written_without_a_prefix(tmp_path):
  config = transformers.ResNetConfig(
    embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1]
  )
  model = transformers.ResNetModel(config).eval()
  families.draw(model)
  model.save_pretrained(tmp_path / 'theirs')
  from pretrained import jitter

  from vit_jax.pretrained import huggingface

  found = huggingface.read(tmp_path / 'theirs')
  images = jitter.images(2, 32, 32, 3)
  import torch

  with torch.no_grad():
    pooled = model(families.channels_first(images)).pooler_output[..., 0, 0]
  mine, _ = families.answer(found.model, found.variables, images)
  families.close(mine, pooled.numpy(), 1e-5)
  huggingface.write(tmp_path / 'ours', found)
  _, report = transformers.ResNetModel.from_pretrained(
    tmp_path / 'ours', output_loading_info=True
  )
  assert not any(report.values()), report
  assert convert.flatten(found.variables)
