"""ViTs with convolutional stems against torchvision's, weights mapped here."""

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip('torch')
vision = pytest.importorskip('torchvision.models.vision_transformer')

from live import families  # noqa: E402
from pretrained import jitter  # noqa: E402

from vit_jax.pretrained import base, convert, resnet, timm_tables  # noqa: E402

SIZES = {
  'hidden_size': 16, 'num_layers': 2, 'num_heads': 2, 'mlp_dim': 24,
  'patch_size': 8, 'image_size': 32, 'num_classes': families.CLASSES,
}  # fmt: skip


def table(stages):
  """Which of torchvision's arrays are which variables."""
  heads = SIZES['num_heads']
  block = 'encoder.layers.encoder_layer_{i}.'
  ours = 'Transformer/encoderblock_{i}/'
  attention = f'{ours}MultiHeadDotProductAttention_0/'
  parts = ('query', 'key', 'value')
  inner = f'{block}self_attention.'
  return convert.pairs(
    [
      *(
        row
        for i in range(stages)
        for row in (
          (
            f'conv_proj.conv_bn_relu_{i}.0.weight',
            f'embedding/conv{i + 1}/conv/kernel', convert.CONV,
          ),
          *resnet.norm(
            f'conv_proj.conv_bn_relu_{i}.1', f'embedding/conv{i + 1}/norm'
          ),
        )
      ),
      (
        'conv_proj.conv_last.weight', 'embedding/out/kernel',
        convert.Layout(
          lambda x: (x[..., 0, 0].T,), lambda x: (x.T[..., None, None],)
        ),
      ),
      ('conv_proj.conv_last.bias', 'embedding/out/bias', convert.SAME),
      ('class_token', 'cls', convert.SAME),
      (
        'encoder.pos_embedding', 'Transformer/posembed_input/pos_embedding',
        convert.SAME,
      ),
      *timm_tables.norm(f'{block}ln_1', f'{ours}LayerNorm_0'),
      *timm_tables.norm(f'{block}ln_2', f'{ours}LayerNorm_1'),
      (
        f'{inner}in_proj_weight',
        tuple(f'{attention}{p}/kernel' for p in parts),
        convert.fused(convert.heads(heads)),
      ),
      (
        f'{inner}in_proj_bias', tuple(f'{attention}{p}/bias' for p in parts),
        convert.fused(convert.heads_bias(heads)),
      ),
      (
        f'{inner}out_proj.weight', f'{attention}out/kernel',
        convert.heads_out(heads),
      ),
      (f'{inner}out_proj.bias', f'{attention}out/bias', convert.SAME),
      *timm_tables.dense(f'{block}mlp.0', f'{ours}MlpBlock_0/Dense_0'),
      *timm_tables.dense(f'{block}mlp.3', f'{ours}MlpBlock_0/Dense_1'),
      *timm_tables.norm('encoder.ln', 'Transformer/encoder_norm'),
      *timm_tables.dense('heads.head', 'head'),
    ],
    i=range(SIZES['num_layers']),
  )  # fmt: skip


def both(widths, strides):
  """torchvision's model and ours with its weights."""
  model = vision.VisionTransformer(
    SIZES['image_size'], SIZES['patch_size'], SIZES['num_layers'],
    SIZES['num_heads'], SIZES['hidden_size'], SIZES['mlp_dim'],
    num_classes=families.CLASSES,
    conv_stem_configs=[
      vision.ConvStemConfig(width, 3, stride)
      for width, stride in zip(widths, strides, strict=True)
    ],
  ).eval()  # fmt: skip
  families.draw(model)
  pairs = table(len(widths))
  found = base.fill(
    'torchvision',
    config={
      'name': 'vit', 'gelu': 'exact', **SIZES,
      'stem': f'conv(widths={widths}, strides={strides})',
    },
    arrays={k: x.numpy() for k, x in model.state_dict().items()},
    table=pairs, preprocess={'decode': 'decode', 'transform': 'value_range'},
    dropped=convert.COUNTED,
  )  # fmt: skip
  return model, found, pairs


@pytest.mark.parametrize(
  ('widths', 'strides'),
  [((4, 6, 8), (2, 2, 2)), ((4, 6, 6, 8), (2, 2, 1, 2))],
)
def test_torchvisions_stem_gives_the_same_logits_and_gradients(
  widths, strides
):
  model, found, pairs = both(widths, strides)
  images = jitter.images(4, 32, 32, 3)
  x = families.channels_first(images)
  with torch.no_grad():
    logits = model(x).numpy()
    tokens = model._process_input(x).numpy()
  assert np.abs(logits).max() > 0.1
  mine, _ = families.answer(found.model, found.variables, images)
  families.close(mine, logits, 1e-5)
  embedded, _ = found.model.apply(
    found.variables, jnp.asarray(images), method='embed'
  )
  families.close(embedded[:, 1:], tokens, 1e-5)
  families.gradients(model, found, images, table=pairs)
