"""timm folders of drawn weights, and models of ours to write as one."""

import functools
import json

import jax
import jax.numpy as jnp
from pretrained import jitter

from vit_jax import models
from vit_jax.pretrained import arrays, base


@functools.partial(jax.jit, static_argnums=(0, 1))
def answer(built, blocks, variables, images):
  """Logits, tokens [B N C] after each of `blocks`, and the grid of patches.

  What a call and `features` give, in one program.
  """

  def run(module, images):
    tokens, grid = module.embed(images)
    x, outputs = module.encode(tokens, grid, False, blocks)
    return module.head(x), outputs, grid

  return built.apply(variables, images, method=run)


def config_of(name):
  """A golden's config.json, and the layout of its arrays."""
  golden = jitter.golden(f'timm_{name}')
  return golden['config'], golden['layout']


def folder(path, config, found):
  path.mkdir(parents=True)
  (path / 'config.json').write_text(json.dumps(config))
  arrays.write_safetensors(path / 'model.safetensors', found)
  return path


def golden_folder(path, name, **changes):
  config, layout = config_of(name)
  return folder(path, {**config, **changes}, jitter.arrays(layout))


def with_arguments(path, name='token', **args):
  """A golden's folder whose model_args are changed."""
  config, _ = config_of(name)
  args = {**config['model_args'], **args}
  return golden_folder(path, name, model_args=args)


def model(size=16, weights=True, **fields):
  """A model of ours with its first weights, for images of a size."""
  config = {
    'name': 'vit', 'num_classes': 3, 'patch_size': 8, 'hidden_size': 16,
    'num_layers': 1, 'num_heads': 2, 'mlp_dim': 32, 'image_size': 16,
    'gelu': 'exact', **fields,
  }  # fmt: skip
  config = {k: v for k, v in config.items() if v != 'absent'}
  built = models.build(**config)
  variables = {}
  if weights:
    variables = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype), base.shapes(built, 3)
    )
  look = {
    'decode': 'decode(channels=3, convert=True)',
    'transform': f"resize(size={size}, resample='bicubic'), "
    'normalize(mean=0.5, std=0.5)',
  }
  return base.Pretrained(built, variables, look, (), config)


MIXER = {
  'name': 'mixer', 'tokens_mlp_dim': 8, 'channels_mlp_dim': 8,
  'num_heads': 'absent', 'mlp_dim': 'absent', 'hidden_size': 512,
  'num_layers': 8, 'patch_size': 16,
}  # fmt: skip
