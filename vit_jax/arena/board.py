"""A board: one recipe, and the one leaf of it in which its rows differ."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vit_jax import attention, identity, specs

# Read by the arena, not by the recipe; a row's result does not depend on them.
ARENA = (
  'run', 'board', 'leaf', 'choices', 'rates', 'seeds', 'validation',
  'evaluations', 'shard', 'timeout',
)  # fmt: skip
# What a recipe may hold that a cell has no use for: it keeps no checkpoints,
# and starts at random unless the recipe has an init.
UNUSED = (
  'init', 'head', 'log_every', 'eval_every', 'checkpoint_every', 'profile',
)  # fmt: skip
START = ('init', 'head')  # of a trained model, if the recipe has one
INIT = 'init'  # a leaf that compares checkpoints, which brings other models
RATE = 'optimizer.learning_rate'


@dataclasses.dataclass(frozen=True)
class Board:
  """What is compared, and all that is equal.

  Attributes:
    name: of the board, as 'digits'.
    base: the recipe, a plain config.
    leaf: path of what is compared, as 'model.attention'.
    rates: learning rates that every choice is tuned over, with the first seed.
    seeds: how many, from the base's `seed` on.
    validation: share of the training examples that tunes; no cell trains on it.
    evaluations: points of a cell's curve, the last of them at its end.
  """

  name: str
  base: Mapping[str, Any]
  leaf: str
  rates: tuple[float, ...]
  seeds: int
  validation: float
  evaluations: int

  def __post_init__(self):
    if not self.rates or len(set(self.rates)) != len(self.rates):
      raise ValueError(f'rates={self.rates} must be one or more, all different')
    for rate in self.rates:
      if not (isinstance(rate, float | int) and 0 < rate < math.inf):
        raise ValueError(f'rates={self.rates}: {rate!r} is no learning rate')
    if not isinstance(self.seeds, int) or self.seeds < 1:
      raise ValueError(f'seeds={self.seeds!r} must be a number of at least 1')
    if not 0 < self.validation < 1:
      raise ValueError(
        f'validation={self.validation!r} must be a share between 0 and 1: a '
        'rate chosen on the test examples would not be a fair one'
      )
    steps = self.base['steps']
    if not 1 <= self.evaluations <= steps:
      raise ValueError(
        f'evaluations={self.evaluations!r} must be in [1, {steps}], the steps'
      )
    if self.leaf == RATE or self.leaf.partition('.')[0] in self._unread():
      raise ValueError(
        f'leaf={self.leaf!r} is not part of the recipe, or is tuned for every '
        'choice; compare a leaf such as model.attention or model.num_heads'
      )
    at(self.base, self.leaf)  # raises early

  def config(self, value: Any) -> dict[str, Any]:
    """The recipe with that value, and no other difference.

    Raises:
      ValueError: something else changed.
    """
    out = json.loads(json.dumps(self.recipe_sections()))
    put(out, self.leaf, value)
    found = identity.differences(out, self.recipe_sections())
    # A section, such as a whole model, may differ in all of its own leaves.
    own = (f'{self.leaf} ', f'{self.leaf}.')
    other = [line for line in found if not line.startswith(own)]
    if other:
      raise ValueError(
        f'{value!r} changes more than {self.leaf}: {"; ".join(other)}'
      )
    return out

  def recipe_sections(self) -> dict[str, Any]:
    """The recipe: what of the config every cell is built from."""
    unread = self._unread()
    return {k: v for k, v in self.base.items() if k not in unread}

  def _unread(self) -> tuple[str, ...]:
    unused = UNUSED
    if 'init' in self.base and self.base['init']:
      unused = tuple(name for name in UNUSED if name not in START)
    return ARENA + unused

  @property
  def recipe(self) -> str:
    """A digest of all that must be equal in the rows of a board."""
    same = json.loads(json.dumps(self.recipe_sections()))
    for leaf in (self.leaf, RATE, 'seed'):
      put(same, leaf, None)
    del same['sharding']  # where it runs changes no result
    same['validation'] = self.validation
    return digest(json.dumps(same, sort_keys=True).encode())

  def key(self, choice: str, rate: float, seed: int) -> str:
    """The name of a cell."""
    return f'{self.name}/{choice}/{rate:g}/{seed}'

  def seeds_of(self) -> tuple[int, ...]:
    """All seeds; the first one tunes."""
    first = self.base['seed']
    return tuple(range(first, first + self.seeds))


def digest(*parts: bytes) -> str:
  """Sixteen hexadecimal digits of SHA-256."""
  found = hashlib.sha256()
  for part in parts:
    found.update(part)
  return found.hexdigest()[:16]


def at(config: Mapping[str, Any], leaf: str) -> Any:
  """The value of a leaf; a ValueError if there is none."""
  found = config
  for name in leaf.split('.'):
    if not isinstance(found, Mapping) or name not in found:
      known = sorted(found) if isinstance(found, Mapping) else []
      raise ValueError(
        f'leaf={leaf!r} is not in the recipe; {specs.nearest(name, known)}'
      )
    found = found[name]
  return found


def put(config: dict[str, Any], leaf: str, value: Any) -> None:
  """Sets the value of a leaf."""
  *path, last = leaf.split('.')
  for name in path:
    config = config[name]
  config[last] = value


def choices_of(
  choices: str | Sequence[Any] | Mapping[str, Any], leaf: str, base: Any
) -> dict[str, Any]:
  """Label → value of what is compared; () is every attention there is.

  Words may be one string, specs with commas between them.

  Raises:
    ValueError: none are given and the leaf is not an attention, two are equal,
      or an attention's spec cannot be read.
  """
  if isinstance(choices, Mapping):
    return dict(choices)
  if isinstance(choices, str):
    choices = [str(spec) for spec in specs.parse(choices)]
  if not choices:
    if leaf != 'model.attention':
      raise ValueError(
        f'choices=() stands for all attentions, but leaf={leaf!r}: say what '
        'to compare'
      )
    tables = {**attention.ATTENTIONS, **attention.MIXERS}
    # The baseline first: the others are held against it.
    choices = sorted(tables, key=lambda name: (name != base, name))
  out = {}
  for value in choices:
    label = value if isinstance(value, str) else json.dumps(value)
    if label in out:
      raise ValueError(f'choices={tuple(choices)}: {label!r} is there twice')
    if leaf == 'model.attention':
      specs.parse(value)
    out[label] = value
  return out


def share_of(labels: Iterable[str], shard: str) -> list[str]:
  """Every n-th choice from the i-th on, of shard 'i/n'.

  Raises:
    ValueError: not 'i/n' with 0 ≤ i < n.
  """
  index, count = parse_shard(shard)
  return list(labels)[index::count]


def parse_shard(shard: str) -> tuple[int, int]:
  """(index, count) of 'i/n'."""
  left, _, right = str(shard).partition('/')
  if not (left.isdecimal() and right.isdecimal() and int(left) < int(right)):
    raise ValueError(f"shard={shard!r} must be 'i/n' with 0 ≤ i < n, as '3/16'")
  return int(left), int(right)


def file_name(shard: str) -> str:
  """Where a shard writes; one shard alone writes results.jsonl."""
  index, count = parse_shard(shard)
  return 'results.jsonl' if count == 1 else f'results-{index}of{count}.jsonl'
