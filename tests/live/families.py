"""Compares a family of models with timm's or transformers' from one folder.

Weights are drawn from their names (`pretrained.jitter`), so that nothing is
zero or one where an error could hide.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from pretrained import jitter

from vit_jax.pretrained import arrays, convert, families, huggingface
from vit_jax.pretrained import timm as format_timm

CLASSES = 3


def draw(model):
  """Gives a PyTorch model drawn weights; returns the layout of its floats."""
  import torch

  state = model.state_dict()
  layout = {
    name: list(x.shape) for name, x in state.items() if x.is_floating_point()
  }
  drawn = {k: torch.from_numpy(x) for k, x in jitter.arrays(layout).items()}
  model.load_state_dict({**state, **drawn})
  return layout


def channels_first(images):
  """[B Y X C] → a tensor [B C Y X]."""
  import torch

  return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


@functools.partial(jax.jit, static_argnums=0)
def answer(model, variables, images):
  """Logits and feature maps [B rows columns C] of ours, in one program."""
  return model.apply(variables, images), model.apply(
    variables, images, method='features'
  )


def close(mine, theirs, atol):
  np.testing.assert_allclose(mine, theirs, rtol=0, atol=atol)


def close_maps(mine, theirs, atol):
  """Maps without a norm may be large: float32 has seven digits of them."""
  for ours, other in zip(mine, theirs, strict=True):
    close(ours, other, atol * max(1.0, float(np.abs(other).max())))


def against_timm(
  architecture, args, folder, request, *, size, golden='', norm=False,
  indices=None, atol=1e-5, writes=True, exact=True, refused='', **fields,
):  # fmt: skip
  """Logits and maps of a timm model and of ours, from the folder it saved.

  Args:
    architecture, args: for `timm.create_model`.
    folder: a temporary one.
    request: pytest's.
    size: (height, width) of the images.
    golden: name under which to keep the answers, '' for none.
    norm: whether their maps pass the last norm, as ours do in flat models.
    indices: which of their maps are compared; None for all.
    atol: largest difference; of maps whose largest value is above 1, relative
      to that.
    writes: whether ours can be written in timm's format, and timm opens it.
    exact: whether timm then gives its very own logits.
    refused: what the golden's model is told that cannot be written, where
      `architecture` only stands for it as long as the test changes timm.
    **fields: what to change in our model to get all their maps.
  """
  import timm
  import torch

  # Its 'center' is for squares.
  rectangle = 'img_size' in args and isinstance(args['img_size'], list)
  overlay = {'crop_mode': 'squash'} if rectangle else {}
  model = timm.create_model(
    architecture, num_classes=CLASSES, pretrained_cfg_overlay=overlay, **args
  ).eval()
  layout = draw(model)
  timm.models.save_for_hf(
    model, folder / 'theirs', model_args=args, safe_serialization=True,
    model_config={'label_names': list('abc')},
  )  # fmt: skip
  images = jitter.images(2, *size, 3)
  with torch.no_grad():
    logits = model(channels_first(images)).numpy()
    maps = model.forward_intermediates(
      channels_first(images), indices, norm=norm, intermediates_only=True
    )
  maps = [m.permute(0, 2, 3, 1).numpy() for m in maps]
  assert np.abs(logits).max() > 0.1

  found = format_timm.read(folder / 'theirs')
  assert found.labels == ('a', 'b', 'c')
  mine = answer(found.model.clone(**fields), found.variables, images)
  close(mine[0], logits, atol)
  close_maps(mine[1], maps, atol)
  if writes:
    format_timm.write(folder / 'ours', found)
    path = f'local-dir:{folder / "ours"}'
    opened = timm.create_model(path, pretrained=True).eval()
    assert type(opened) is type(model)
    with torch.no_grad():
      again = opened(channels_first(images)).numpy()
    close(again, logits, 0 if exact else atol)
  keep(f'family_timm_{golden}' * bool(golden), request, {
    'config': arrays.read_json(folder / 'theirs' / 'config.json'),
    'layout': layout, 'images': list(images.shape), 'logits': logits.tolist(),
    'fields': fields, 'features': [m[0, 0, :2, :8].tolist() for m in maps],
    **({'refused': refused} if refused else {}),
  }, atol)  # fmt: skip
  return model, found, images


def against_huggingface(
  architecture, config, folder, request, *, size, maps=None, golden='',
  atol=1e-5, writes=True, **fields,
):  # fmt: skip
  """The same with transformers.

  Args:
    architecture: a class of transformers with a classifier.
    config: an instance of its configuration class.
    folder: a temporary one.
    request: pytest's.
    size: (height, width) of the images.
    maps: (model, tensor) → their maps [B rows columns C]; None for those of
      `hidden_states`, [B C rows columns].
    golden, atol, writes, fields: as in `against_timm`.
  """
  import torch
  import transformers

  cls = getattr(transformers, architecture)
  config.num_labels = CLASSES
  config.id2label = dict(enumerate('abc'))
  config.label2id = {name: i for i, name in enumerate('abc')}
  cls(config).save_pretrained(folder / 'theirs')
  # Drawn by the names of the file, which are not those of its modules.
  file = folder / 'theirs' / arrays.WEIGHTS
  saved = arrays.read_safetensors(file)
  layout = {
    name: list(x.shape) for name, x in saved.items() if x.dtype == np.float32
  }
  arrays.write_safetensors(file, {**saved, **jitter.arrays(layout)})
  model = cls.from_pretrained(folder / 'theirs').eval()
  images = jitter.images(2, *size, 3)
  x = channels_first(images)
  with torch.no_grad():
    out = model(x, output_hidden_states=True)
    logits = out.logits.numpy()
    theirs = (
      [m.permute(0, 2, 3, 1).numpy() for m in out.hidden_states]
      if maps is None
      else [m.numpy() for m in maps(model, x)]
    )
  assert np.abs(logits).max() > 0.1

  found = huggingface.read(folder / 'theirs')
  assert found.labels == ('a', 'b', 'c')
  mine = answer(found.model.clone(**fields), found.variables, images)
  close(mine[0], logits, atol)
  close_maps(mine[1], theirs, atol)
  if writes:
    huggingface.write(folder / 'ours', found)
    again, report = cls.from_pretrained(
      folder / 'ours', output_loading_info=True, dtype=torch.float32
    )
    assert not any(report.values()), report
    with torch.no_grad():
      close(again.eval()(x).logits.numpy(), logits, 1e-6)
  keep(f'family_hf_{golden}' * bool(golden), request, {
    'config': arrays.read_json(folder / 'theirs' / 'config.json'),
    'layout': layout, 'images': list(images.shape), 'logits': logits.tolist(),
    'fields': fields, 'features': [m[0, 0, :2, :8].tolist() for m in theirs],
  }, atol)  # fmt: skip
  return model, found, images


def keep(name, request, fresh, atol):
  """Compares answers with the committed golden, or writes it anew."""
  if not name:
    return
  if request.config.getoption('--regenerate'):
    jitter.write_golden(name, fresh)
  committed = jitter.golden(name)
  assert committed['layout'] == fresh['layout']
  close(committed['logits'], fresh['logits'], atol)
  for one, other in zip(committed['features'], fresh['features'], strict=True):
    close(one, other, atol * max(1.0, np.abs(other).max()))


def gradients(model, found, images, table=None, atol=1e-4, logits=None):
  """The gradients of cross-entropy, in training, of theirs and of ours.

  Running statistics after one step are compared as well.

  Args:
    model: PyTorch's, whose rates of dropout and drop-path are 0.
    found: ours, read from its folder.
    images: [B Y X C].
    table: of `found`; None for that of its timm family.
    atol: largest difference, relative to the largest gradient of an array.
    logits: what their model returns → logits.
  """
  import torch

  labels = np.arange(len(images)) % CLASSES
  model.train().zero_grad()
  out = model(channels_first(images))
  out = out if logits is None else logits(out)
  theirs = torch.nn.functional.cross_entropy(out, torch.from_numpy(labels))
  theirs.backward()
  params = dict(model.named_parameters())
  expected = {
    k: params[k].grad.numpy() if k in params else x.detach().numpy()
    for k, x in model.state_dict().items()
    if x.is_floating_point()
  }

  def loss(params):
    variables = {**found.variables, 'params': params}
    rest = [k for k in variables if k != 'params']
    out, changed = found.model.apply(
      variables, jnp.asarray(images), train=True, rngs=jax.random.key(0),
      mutable=rest,
    )
    picked = jax.nn.log_softmax(out)[jnp.arange(len(labels)), labels]
    return -picked.mean(), changed

  value, (grads, changed) = jax.jit(
    lambda p: (
      lambda out: (out[0][0], (out[1], out[0][1]))
    )(jax.value_and_grad(loss, has_aux=True)(p))
  )(found.variables['params'])
  close(value, theirs.item(), 1e-5)
  if table is None:
    table = families.TIMM[found.config['name']].table(found.model)
  flat = convert.flatten({'params': grads, **changed})
  mine = convert.write(flat, table, {}, 'the gradients')
  assert set(mine) <= set(expected)
  for name, x in mine.items():
    scale = max(1.0, float(np.abs(expected[name]).max()))
    np.testing.assert_allclose(
      x, expected[name], rtol=0, atol=atol * scale, err_msg=name
    )
