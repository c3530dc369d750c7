"""Known-wrong kernels of public code, each beside the right one.

Written by us from a description of the fault; each is the right kernel but for
that fault. They are no entries of the attention tables: only the arena's boards
know their names. Not here: faults of cost alone (the Long-Range Arena's Sparse
and Longformer are dense N² with a mask) and of interfaces (options or masks
dropped without a word by whatever library), which change no right result.
"""

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn

from vit_jax import specs
from vit_jax.attention import Mixer, MultiHeadDotProductAttention

PREFIX = 'wrong_'


class Wrong(NamedTuple):
  """A known-wrong kernel.

  Attributes:
    right: name of the right attention.
    name: of the wrong one's class, and its module of the arena.
    fault: in a line.
    where: whose public code has it.
    padding: whether the fault can only show where there is padding.
  """

  right: str
  name: str
  fault: str
  where: str
  padding: bool = False

  @property
  def kernel(self) -> type[nn.Module]:
    """The wrong `Attention` or `Mixer`, with the options of the right one.

    Loaded when it is asked for: errors name all the kernels that are loaded.
    """
    module, _, name = self.name.partition('.')
    return getattr(importlib.import_module(f'vit_jax.arena.{module}'), name)


LRA = 'Long-Range Arena'
TORCH = 'a popular PyTorch Sinkhorn'

# Name → kernel, `PREFIX` and the right one's name first.
WRONG: dict[str, Wrong] = {
  'wrong_performer': Wrong(
    'performer', 'wrong_kernels.UnsignedPerformer',
    'orthogonal features from QR without the signs of R: the kernel is biased',
    f'{LRA}; scenic; a popular PyTorch Performer',
  ),
  'wrong_window': Wrong(
    'window', 'wrong_kernels.StridedWindow',
    'reshape to (block, blocks) makes a block a stride through the sequence',
    f'{LRA}, Local',
  ),
  'wrong_sinkhorn': Wrong(
    'sinkhorn', 'wrong_kernels.SummedSinkhorn',
    'einsum sums blocks and order apart: each place holds the sum of all '
    'blocks, the sort net gets no gradient', f'{LRA}, Sinkhorn',
  ),
  'wrong_reformer': Wrong(
    'reformer', 'wrong_reformer.ReformerOfLRA',
    'a set: logits times √D, keys not normalised, no mask of buckets, of self '
    'and of padding, the same rotations always, no output projection',
    f'{LRA}, Reformer',
  ),
  'wrong_synthesizer_dense': Wrong(
    'synthesizer_dense', 'wrong_kernels.MixedSynthesizer',
    'reshape without transpose mixes heads and positions',
    f'{LRA}, Synthesizer',
  ),
  'wrong_linear': Wrong(
    'linear', 'wrong_kernels.UnmaskedLinear', 'the mask of padding is ignored',
    f'{LRA}, Linear', padding=True,
  ),
  'wrong_linformer': Wrong(
    'linformer', 'wrong_kernels.UnmaskedLinformer',
    'the mask of padding is ignored', f'{LRA}, Linformer', padding=True,
  ),
  'wrong_sinkhorn_keys': Wrong(
    'sinkhorn', 'wrong_kernels.KeysForValuesSinkhorn',
    'the sorted keys are taken for the sorted values', TORCH,
  ),
  'wrong_sinkhorn_noise': Wrong(
    'sinkhorn', 'wrong_kernels.NoisySinkhorn',
    'Gumbel noise at evaluation too', TORCH,
  ),
}  # fmt: skip


def spelled(choice: str) -> str:
  """A choice's words as specs are written; a label that is none stays."""
  try:
    return ', '.join(map(str, specs.parse(choice)))
  except ValueError:  # a label of a notebook, not words of ours
    return choice


def of(choice: str) -> specs.Spec | None:
  """The spec of a choice that names one known-wrong kernel; None of others."""
  try:
    found = specs.parse(choice)
  except ValueError:  # a label of a notebook, not words of ours
    return None
  return found[0] if len(found) == 1 and found[0].name in WRONG else None


def right(choice: str) -> str:
  """'window(size=2)' for 'wrong_window(size=2)'.

  Raises:
    ValueError: no known-wrong kernel.
  """
  found = of(choice)
  if found is None:
    raise ValueError(
      f'{choice!r} is no known-wrong kernel; {specs.nearest(choice, WRONG)}'
    )
  return str(found._replace(name=WRONG[found.name].right))


def layer(value: Any) -> Any:
  """The layer class of words that name a known-wrong kernel; others as is.

  As `attention.layer`, which knows the right ones.

  Raises:
    ValueError: an unknown one, an unknown option, or several specs.
  """
  if not isinstance(value, str):
    return value
  found = specs.parse(value)
  if not any(spec.name.startswith(PREFIX) for spec in found):
    return value
  if len(found) > 1:
    raise ValueError(
      f'{value!r}: a known-wrong kernel is in all layers; give it alone'
    )
  spec = found[0]
  kernel = specs.lookup(WRONG, spec.name, 'known-wrong kernel').kernel
  specs.check_options(kernel, spec.options, f'the kernel {spec.name!r}')
  if issubclass(kernel, Mixer):
    return functools.partial(kernel, **spec.options)
  return functools.partial(
    MultiHeadDotProductAttention,
    attend=functools.partial(kernel, **spec.options),
  )


def pairs(options: Mapping[str, str] | None = None) -> tuple[str, ...]:
  """Choices for a board: every right kernel and its wrong ones, and softmax.

  Args:
    options: name of a right kernel → its options as they are written, as
      {'window': 'size=2'}; both of a pair have them.

  Raises:
    ValueError: options for a kernel without a wrong one.
  """
  options = options or {}
  known = {wrong.right for wrong in WRONG.values()}
  for name in options:
    if name not in known:
      raise ValueError(
        f'options for {name!r}, which has no known-wrong kernel; '
        f'{specs.nearest(name, known)}'
      )
  out = ['softmax']
  for name, wrong in WRONG.items():
    said = f'({options[wrong.right]})' if wrong.right in options else ''
    out += [wrong.right + said, name + said]
  return tuple(dict.fromkeys(out))


@contextlib.contextmanager
def watched() -> Iterator[Callable[[], bool]]:
  """Says whether a module that was called inside had a mask of padding."""
  seen = []

  def look(call, args, kwargs, context):
    del context
    seen.append(kwargs.get('key_mask') is not None)
    return call(*args, **kwargs)

  with nn.intercept_methods(look):
    yield lambda: any(seen)
