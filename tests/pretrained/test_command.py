"""python -m vit_jax.pretrained: converts, and says what became what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models, pretrained
from vit_jax.pretrained import __main__ as command

CONFIG = {
  'name': 'vit', 'patch_size': 4, 'hidden_size': 16, 'num_layers': 2,
  'num_heads': 2, 'mlp_dim': 32, 'image_size': 8, 'num_classes': 3,
  'gelu': 'exact', 'position_resize': 'bicubic_torch',
}  # fmt: skip
PREPROCESS = {
  'decode': 'decode(channels=3, convert=True)',
  'transform': "resize(size=(8, 8), resample='bilinear'), "
               'normalize(mean=0.5, std=0.5)',
}  # fmt: skip


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  model = models.build(**CONFIG)
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3))
  )
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), shapes
  )
  found = pretrained.Pretrained(
    model, variables, PREPROCESS, ('cat', 'dog', 'owl'), CONFIG
  )
  path = tmp_path_factory.mktemp('source') / 'ours'
  pretrained.save(path, found)
  return path


def test_without_a_target_it_says_what_the_source_is(source, capsys):
  assert command.main([str(source), '--quiet']) == 0
  out = capsys.readouterr().out
  loaded = pretrained.load(source)
  count = sum(x.size for x in jax.tree.leaves(loaded.variables))
  assert f'{count:,} parameters' in out
  assert "gelu='exact'" in out
  assert PREPROCESS['transform'] in out
  assert 'encoderblock' not in out


@pytest.mark.parametrize('form', ['huggingface', 'timm', 'npz', 'vit_jax'])
def test_it_converts_there_and_back(source, tmp_path, capsys, form):
  there = tmp_path / ('there.npz' if form == 'npz' else 'there')
  back = tmp_path / 'back'
  assert command.main([str(source), str(there), f'--format={form}']) == 0
  out = capsys.readouterr().out
  assert 'Transformer/encoderblock_1/MlpBlock_0/Dense_0/kernel  written' in out
  assert command.main([str(there), str(back), '--quiet']) == 0
  a, b = (pretrained.load(p) for p in (source, back))
  assert jax.tree.structure(a.variables) == jax.tree.structure(b.variables)
  jax.tree.map(np.testing.assert_array_equal, a.variables, b.variables)
  assert a.labels == b.labels


def test_a_fault_is_one_line_and_a_status(source, tmp_path, capsys):
  assert command.main([str(tmp_path / 'none'), 'x']) == 2
  assert 'does not exist' in capsys.readouterr().err
  (tmp_path / 'taken').mkdir()
  assert command.main([str(source), str(tmp_path / 'taken'), '--quiet']) == 2
  assert 'exists; give a new name' in capsys.readouterr().err
  with pytest.raises(SystemExit):
    command.main([str(source), 'x', '--format=onnx'])


def test_a_failed_write_leaves_nothing(source, tmp_path):
  found = pretrained.load(source, attention='linear')
  with pytest.raises(ValueError, match='attention'):
    pretrained.save(tmp_path / 'out', found, 'huggingface')
  assert not list(tmp_path.iterdir())
