"""Folders of every family of models, without PyTorch: goldens of its answers.

`tests/live` asks timm and transformers again.
"""

import json

import jax
import numpy as np
import pytest
from pretrained import jitter

from vit_jax.pretrained import arrays, families, huggingface, timm

FORMATS = {'timm': timm, 'hf': huggingface}
NAMES = sorted(path.stem for path in jitter.GOLDENS.glob('family_*.json'))
# Each family once; CI reads these too, other settings of families read already.
FURTHER = {
  'family_hf_resnet_basic', 'family_hf_swin_padded',
  'family_timm_convit_qkv_bias', 'family_timm_mvit_class_token',
  'family_timm_rope_mixed_with_table', 'family_timm_swin_narrow',
  'family_timm_swin_padded', 'family_timm_tnt_legacy',
  'family_timm_xcit_p8_tokens_normed',
}  # fmt: skip


def test_there_is_a_golden_of_every_family():
  assert set(NAMES) >= FURTHER
  found = {'timm': set(), 'hf': set()}
  for name in NAMES:
    config = jitter.golden(name)['config']
    if name.startswith('family_hf'):
      found['hf'].add(config['model_type'])
    else:
      architecture = config['architecture']
      found['timm'] |= {
        key for key, family in families.TIMM.items()
        if family is families.of_timm(architecture)
      }  # fmt: skip
  assert found['hf'] == set(families.HUGGINGFACE)
  assert found['timm'] == set(families.TIMM)


@pytest.mark.parametrize('name', [
  pytest.param(name, marks=[pytest.mark.slow] * (name in FURTHER))
  for name in NAMES
])  # fmt: skip
def test_a_folder_gives_what_the_reference_gave_and_comes_back(name, tmp_path):
  golden, module = jitter.golden(name), FORMATS[name.split('_')[1]]
  folder, weights = tmp_path / 'theirs', jitter.arrays(golden['layout'])
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(golden['config']))
  arrays.write_safetensors(folder / 'model.safetensors', weights)
  found = module.read(folder)
  model = found.model.clone(**{
    k: tuple(v) if isinstance(v, list) else v
    for k, v in golden['fields'].items()
  })  # fmt: skip

  @jax.jit
  def answer(variables, images):
    return model.apply(variables, images), model.apply(
      variables, images, method='features'
    )

  logits, maps = answer(found.variables, jitter.images(*golden['images']))
  np.testing.assert_allclose(logits, golden['logits'], rtol=0, atol=1e-5)
  for mine, theirs in zip(maps, golden['features'], strict=True):
    np.testing.assert_allclose(  # a map without a norm may be large
      mine[0, 0, :2, :8], theirs, rtol=0, atol=1e-5 * max(1, np.max(theirs))
    )

  if 'refused' in golden:
    with pytest.raises(ValueError, match=golden['refused']):
      module.write(tmp_path / 'ours', found)
    return
  module.write(tmp_path / 'ours', found)
  written = arrays.read_safetensors(tmp_path / 'ours' / 'model.safetensors')
  counts = {n for n in written if n.endswith('num_batches_tracked')}
  assert set(written) - counts <= set(weights)
  for array in set(written) - counts:
    np.testing.assert_array_equal(
      written[array], weights[array], err_msg=array
    )
  again = module.read(tmp_path / 'ours')
  assert (again.config, again.labels) == (found.config, found.labels)
