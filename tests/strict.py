"""The run-time type checker of the tests."""

import beartype

# An int is a float (PEP 484's numeric tower): learning_rate=1 is good.
check = beartype.beartype(
  conf=beartype.BeartypeConf(is_pep484_tower=True)
)
