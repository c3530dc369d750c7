"""How the folders of a family of models become a model of ours, and back.

A family has a module of its own here; `families` lists them.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from vit_jax.pretrained import base, convert

Arrays = Mapping[str, np.ndarray]
# Hugging Face's words for the forms of `layers.GELUS`.
GELUS = {
  'gelu': 'exact', 'gelu_pytorch_tanh': 'tanh', 'gelu_new': 'tanh',
  'quick_gelu': 'quick',
}  # fmt: skip
ACTIVATIONS = {form: name for name, form in reversed(GELUS.items())}  # back
Table = Callable[[nn.Module], list[convert.Pair]]


class Timm(NamedTuple):
  """A family in timm's format.

  Attributes:
    names: regular expression of its architectures, without their tag.
    read: (where, architecture, arguments, image_size, arrays) → the model's
      section of a config and the channels of its images; a ValueError where
      our model cannot follow, or where config.json and arrays disagree.
      `arguments` is what config.json says besides the name.
    table: which arrays are which variables of a model.
    write: model → (architecture, model_args); a ValueError where timm has no
      such model.
    first: names of the first convolution, of which the arrays have one.
    heads: names of the classifiers.
    dropped: regular expressions of arrays that nobody needs; the counts of
      PyTorch's BatchNorm are known.
    any_size: whether timm's models take images of any size, so that nothing but
      the preprocessing says which.
  """

  names: str
  read: Callable[
    [str, str, Mapping[str, Any], tuple[int, int], Arrays],
    tuple[dict[str, Any], int],
  ]
  table: Table
  write: Callable[[nn.Module], tuple[str, dict[str, Any]]]
  first: tuple[str, ...]
  heads: tuple[str, ...] = ('head',)
  dropped: tuple[str, ...] = ()
  any_size: bool = False


class HuggingFace(NamedTuple):
  """A family in Hugging Face's format.

  Attributes:
    architectures: classes of transformers that are read.
    read: (where, config.json, arrays) → the model's section of a config and
      the channels of its images; errors as in `Timm`.
    table: (model, names of the arrays) → which arrays are which variables; the
      names tell versions of transformers apart, None is the newest.
    write: what was loaded → config.json without labels, `architectures` and
      `model_type` included.
    dropped: as in `Timm`.
  """

  architectures: tuple[str, ...]
  read: Callable[
    [str, Mapping[str, Any], Arrays], tuple[dict[str, Any], int]
  ]
  table: Callable[[nn.Module, Arrays | None], list[convert.Pair]]
  write: Callable[[base.Pretrained], dict[str, Any]]
  dropped: tuple[str, ...] = ()
