"""Properties that every attention must have, as checks of any kernel.

`check('linformer')`, `check(Mine)` or `check(Mine, size=3)` runs them on small
random inputs. What is required is what the kernel says of itself (its class
attributes, its signature, its fields) and what `promises` has of it. What a
kernel does not declare is not checked, so that a pass means something.
"""

from collections.abc import Callable
from typing import Any

import flax
import flax.linen as nn

from vit_jax import attention, specs
from vit_jax.arena import promises, properties, structure, subject

# What Python code raises on arguments that it cannot take.
RAISED = (
  ArithmeticError, AssertionError, AttributeError, LookupError,
  NotImplementedError, TypeError, ValueError, flax.errors.FlaxError,
)  # fmt: skip


CHECKS: dict[str, Callable[[subject.Subject], str | None]] = {
  'finite': properties.finite,  # shape, finite output and gradients
  'dtype': properties.dtype,
  'batch': properties.batch,  # examples are independent
  'jit': properties.jit,
  'deterministic': properties.deterministic,
  'linear': properties.linear,  # in the values
  'row_sums': properties.row_sums,  # 1
  'positive': properties.positive,
  'masked_keys': properties.masked_keys,  # no influence at all
  'empty_rows': properties.empty_rows,  # zeros
  'causal': structure.causal,
  'support': structure.support,  # the declared pattern
  'equivariant': structure.equivariant,
  'exact': structure.exact,  # softmax, in the limit that is one
  'features': structure.features,  # random ones
  'flops': structure.work,
}


def check(
  entry: str | type[nn.Module] | nn.Module,
  *,
  promise: promises.Promise | None = None,
  only: tuple[str, ...] = (),
  **options: Any,
) -> dict[str, str]:
  """Checks an attention, or a layer x → x, on small random inputs.

  Args:
    entry: spec of the tables, a class, or a built kernel.
    promise: what is required beyond what the class says; by default that of
      the entry of the tables which it is, or is a subclass of.
    only: names of `CHECKS`; () is all of them.
    **options: fields of the kernel; grid and prefix too.

  Returns:
    Name → '' if it passed, else what was found and what was expected. Checks
    of what the kernel does not declare are not among them.

  Raises:
    ValueError: no attention, or an unknown name or option.
  """
  for name in only:
    specs.lookup(CHECKS, name, 'check')
  kernel = _build(entry, options)
  if promise is None:
    promise = promises.of(kernel)
  chosen = only or tuple(CHECKS)
  try:
    s = subject.Subject(kernel, promise)
  except RAISED as e:
    return {chosen[0]: _said(e)}
  found = {}
  for name in chosen:
    try:
      said = CHECKS[name](s)
    except RAISED as e:
      said = _said(e)
    if said is not None:
      found[name] = said
  return found


def _said(error: Exception) -> str:
  first = str(error).strip().partition('\n')[0]
  return f'raised {type(error).__name__}: {first}'


def _build(entry: Any, options: dict[str, Any]) -> nn.Module:
  layout = {'grid': subject.GRID, 'prefix': subject.PREFIX}
  if isinstance(entry, str):
    (spec,) = specs.parse(entry)
    both = {**attention.ATTENTIONS, **attention.MIXERS}
    entry = specs.lookup(both, spec.name, 'attention')
    options = {**spec.options, **options}
  cls = entry if isinstance(entry, type) else type(entry)
  if not issubclass(cls, attention.Attention | attention.Mixer):
    raise ValueError(
      f'{cls.__name__} is neither an Attention nor a Mixer: derive it from one'
    )
  specs.check_options(cls, options, cls.__name__)
  options = {**layout, **options}
  if issubclass(cls, attention.Mixer):
    options = {'num_heads': subject.HEADS, **options}
  return entry(**options) if isinstance(entry, type) else entry.clone(**options)
