"""What the papers say of every attention, written independently of the code.

One module a family; each has `FACTS`, name of the table → `Facts`. An oracle
is the paper's formula in float64 NumPy, over one example, with plain loops or
dense N×M maps, never calling the library.
"""

import importlib
import pkgutil

FACTS = {}
for _module in pkgutil.iter_modules(__path__):
  if _module.name != 'facts':
    _found = importlib.import_module(f'{__name__}.{_module.name}').FACTS
    assert not set(_found) & set(FACTS), set(_found) & set(FACTS)
    FACTS |= _found
