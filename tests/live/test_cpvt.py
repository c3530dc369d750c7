"""CPVT: timm's DeiT blocks and the convolution of its Twins, put together."""

import jax
import numpy as np
import pytest
from live import families
from pretrained import jitter

from vit_jax import models
from vit_jax.models.conditional import ConditionalPosition
from vit_jax.pretrained import timm as format_timm

torch = pytest.importorskip('torch')
timm = pytest.importorskip('timm')


def convolution(width, seed=''):
  """timm's, with drawn weights, and the same as parameters of ours."""
  from timm.models import twins

  module = twins.PosConv(width, width)
  drawn = {
    name: jitter.array(seed + name, x.shape)
    for name, x in module.state_dict().items()
  }
  module.load_state_dict({k: torch.from_numpy(x) for k, x in drawn.items()})
  kernel = drawn['proj.0.weight'].transpose(2, 3, 1, 0)
  return module, {'kernel': kernel, 'bias': drawn['proj.0.bias']}


@pytest.mark.parametrize('grid', [(1, 1), (1, 5), (4, 7)])
@pytest.mark.parametrize('prefix', [0, 2])
def test_the_convolution_is_that_of_timms_twins(grid, prefix):
  theirs, params = convolution(12)
  x = jitter.images(2, prefix + grid[0] * grid[1], 12)
  found = jax.jit(ConditionalPosition(prefix).apply, static_argnums=2)(
    {'params': params}, x, grid
  )
  with torch.no_grad():
    expected = theirs(torch.from_numpy(x[:, prefix:]), grid)
  families.close(found[:, prefix:], expected.numpy(), 1e-6)
  np.testing.assert_array_equal(found[:, :prefix], x[:, :prefix])


@pytest.mark.parametrize('count', [1, 2])
@pytest.mark.parametrize('pooled', [False, True])
def test_a_model_is_deit_without_positions_and_the_convolution(
  pooled, count, tmp_path
):
  args = {
    'img_size': 32, 'patch_size': 8, 'embed_dim': 16, 'depth': 3,
    'num_heads': 2, 'pos_embed': 'none', 'dynamic_img_size': True,
  }  # fmt: skip
  if pooled:
    args |= {'global_pool': 'avg', 'class_token': False, 'fc_norm': False}
  deit = timm.create_model('deit_tiny_patch16_224', num_classes=3, **args)
  families.draw(deit.eval())
  timm.models.save_for_hf(
    deit, tmp_path, model_args=args, safe_serialization=True
  )
  found = format_timm.read(tmp_path)
  parts = [convolution(16, f'{i}.') for i in range(count)]
  encoder = {
    **found.variables['params']['Transformer'],
    **{f'conditional_{i}': p for i, (_, p) in enumerate(parts)},
  }
  params = {**found.variables['params'], 'Transformer': encoder}
  config = {k: v for k, v in found.config.items() if k != 'name'}
  model = models.CPVT(**{
    **config, 'position': f'conditional(count={count})',
    'feature_layers': (0, 1, 2),
  })  # fmt: skip

  images, prefix = jitter.images(2, 24, 40, 3), int(not pooled)
  grid, maps = (3, 5), []
  with torch.no_grad():
    x = deit.patch_embed(families.channels_first(images)).reshape(2, -1, 16)
    if not pooled:
      x = torch.cat([deit.cls_token.expand(2, -1, -1), x], dim=1)
    for i, block in enumerate(deit.blocks):
      x = block(x)
      if i < count:
        y = parts[i][0](x[:, prefix:], grid)
        x = torch.cat([x[:, :prefix], y], dim=1)
      maps.append(deit.norm(x)[:, prefix:].reshape(2, *grid, 16).numpy())
    logits = deit.forward_head(deit.norm(x)).numpy()
  mine = families.answer(model, {'params': params}, images)
  families.close(mine[0], logits, 1e-5)
  for ours, theirs in zip(mine[1], maps, strict=True):
    families.close(ours, theirs, 1e-5)
