"""ListOps (Nangia and Bowman 2018), as long as in the Long-Range Arena.

Nested lists of digits and operators, as '[MAX 4 [MIN 2 3 ] 0 ]', whose value,
a digit, is the label. Examples are generated, not read: each from its own seed,
so that any of them can be made without the others.
"""

import functools
import hashlib
import random
import statistics
from collections.abc import Callable, Sequence

import numpy as np

from vit_jax.data.transforms import Example

# Tay et al. 2021 (Long-Range Arena), section 2.2.1, and its generator.
SIZES = {'train': 96_000, 'validation': 2_000, 'test': 2_000}
SHARE = 0.25  # of the nodes that are lists, where the depth allows them
OPERATORS: dict[str, Callable[[Sequence[int]], int]] = {
  '[MIN': min,
  '[MAX': max,
  '[MED': lambda values: int(statistics.median(values)),
  '[SM': lambda values: sum(values) % 10,
}
END = ']'
PADDING = '<pad>'
VOCABULARY = (PADDING, *map(str, range(10)), *OPERATORS, END)
NUMBERS = {word: i for i, word in enumerate(VOCABULARY)}


class Listops:
  """Examples {'tokens': int32 [n], 'label': int}, numbers of `VOCABULARY`.

  A node at depth d ≤ max_depth is a list with probability `SHARE`, else a digit
  (at max_depth always); a list has an operator and 2 to max_args nodes, drawn
  uniformly, as the digits are. Trees whose length (operators, digits and ends)
  does not lie between min_length and max_length, both excluded, are rejected.

  Args:
    split: 'train', 'validation' or 'test'.
    min_length: see above, as are the next three.
    max_length: also the length that batches are padded to.
    max_depth: of a node; the root has depth 1.
    max_args: of a list.
    size: examples; None is the published number of the split.
    seed: of all examples.

  Raises:
    ValueError: an unknown split, or settings that no tree fulfils.
  """

  labels = tuple(map(str, range(10)))
  vocabulary = VOCABULARY
  location = ()

  def __init__(
    self, split: str = 'train', min_length: int = 500, max_length: int = 2000,
    max_depth: int = 10, max_args: int = 10, size: int | None = None,
    seed: int = 0,
  ):  # fmt: skip
    if split not in SIZES:
      raise ValueError(
        f'ListOps has no split {split!r}; choices: {", ".join(SIZES)}'
      )
    if not 0 <= min_length < max_length - 1 or max_args < 2 or max_depth < 1:
      raise ValueError(
        f'no list is longer than min_length={min_length} and shorter than '
        f'max_length={max_length} with max_depth={max_depth} and '
        f'max_args={max_args} (of at least 1 and 2)'
      )
    # The longest tree: every node above max_depth is a list of max_args.
    longest = 1
    for _ in range(max_depth - 1):
      longest = 2 + max_args * longest
      if longest > min_length:
        break
    if longest <= min_length:
      raise ValueError(
        f'with max_depth={max_depth} and max_args={max_args} the longest list '
        f'has {longest} symbols, not more than min_length={min_length}'
      )
    self.length = max_length
    self._size = SIZES[split] if size is None else size
    self._draw = functools.partial(
      draw, min_length=min_length, max_length=max_length, max_depth=max_depth,
      max_args=max_args,
    )  # fmt: skip
    self._name = f'listops/{split}/{seed}'
    said = (
      min_length, max_length, max_depth, max_args, self._size, self._name
    )  # fmt: skip
    self.fingerprint = hashlib.sha256(repr(said).encode()).hexdigest()

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> Example:
    if not 0 <= index < self._size:
      raise IndexError(f'example {index} of {self._size}')
    name = f'{self._name}/{index}'
    words, value = self._draw(random.Random(name))
    return {
      'tokens': np.array([NUMBERS[word] for word in words], np.int32),
      'label': value, 'name': name,
    }  # fmt: skip


def draw(
  rng: random.Random, min_length: int, max_length: int, max_depth: int,
  max_args: int,
) -> tuple[list[str], int]:  # fmt: skip
  """The symbols and the value of a random tree of such a length."""
  while True:
    found = tree(rng, max_length, max_depth, max_args)
    if found is not None and len(found[0]) > min_length:
      return found


def tree(
  rng: random.Random, max_length: int, max_depth: int, max_args: int
) -> tuple[list[str], int] | None:
  """The symbols and the value of a random tree; None if it gets too long."""
  operators = tuple(OPERATORS)
  words, lists = [], []  # (operator, how many nodes, values so far), nested
  while len(words) + len(lists) < max_length:  # what is open needs its ends
    if len(lists) + 1 < max_depth and rng.random() <= SHARE:
      lists.append((rng.choice(operators), rng.randint(2, max_args), []))
      words.append(lists[-1][0])
      continue
    value = rng.randrange(10)
    words.append(str(value))
    while lists:  # which the value may have completed
      operator, count, values = lists[-1]
      values.append(value)
      if len(values) < count:
        break
      value = OPERATORS[operator](values)
      words.append(END)
      lists.pop()
    if not lists:
      return (words, value) if len(words) < max_length else None
  return None


def evaluate(words: Sequence[str]) -> int:
  """The value of an expression: a stack machine, apart from the generator.

  Raises:
    ValueError: not a whole expression.
  """
  stack = [[]]
  for word in words:
    if word in OPERATORS:
      stack.append([word])
    elif word == END:
      if len(stack) < 2 or len(stack[-1]) < 2:
        raise ValueError(f'{END!r} ends no list in {" ".join(words)!r}')
      operator, *values = stack.pop()
      stack[-1].append(OPERATORS[operator](values))
    else:
      stack[-1].append(int(word))
  if len(stack) != 1 or len(stack[0]) != 1:
    raise ValueError(f'{" ".join(words)!r} is not one whole expression')
  return stack[0][0]
