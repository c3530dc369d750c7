"""The device mesh, and which parameter lies where: regex rules → shardings.

Mesh axes: `data` splits the batch, `fsdp` splits the batch and the parameters,
`tensor` splits heads and hidden units. Modules know nothing of it; XLA derives
the communication from where the arrays lie.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vit_jax.optimizers import path_of

AXES = ('data', 'fsdp', 'tensor')

# Megatron's split (Shoeybi et al. 2019): heads and hidden units over `tensor`,
# so that each block communicates once after attention and once after the MLP.
TENSOR_RULES = (
  (r'(query|key|value)/kernel$', ('fsdp', 'tensor', None)),
  (r'(query|key|value)/bias$', ('tensor', None)),
  (r'MultiHeadDotProductAttention_\d+/out/kernel$', ('tensor', None, 'fsdp')),
  (r'MlpBlock_\d+/Dense_0/kernel$', ('fsdp', 'tensor')),
  (r'MlpBlock_\d+/Dense_0/bias$', ('tensor',)),
  (r'MlpBlock_\d+/Dense_1/kernel$', ('tensor', 'fsdp')),
)


@dataclasses.dataclass(frozen=True)
class Sharding:
  """A mesh and the rules over parameter paths; build it with `build`."""

  mesh: Mesh
  rules: tuple[tuple[str, Any], ...] = ()
  users: int = 0  # the first `users` rules must each match something

  @property
  def replicated(self) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(self.mesh, PartitionSpec())

  @property
  def batch(self) -> NamedSharding:
    """First axis over `data` and `fsdp`."""
    return NamedSharding(self.mesh, PartitionSpec(('data', 'fsdp')))

  @property
  def batch_devices(self) -> int:
    """Parts into which a batch is split."""
    return self.mesh.shape['data'] * self.mesh.shape['fsdp']

  def check_batch(self, batch_size: int, accumulate: int = 1) -> None:
    """Raises a ValueError unless micro-batches divide over devices."""
    parts = self.batch_devices * accumulate
    if batch_size % parts or batch_size <= 0:
      near = max(1, round(batch_size / parts)) * parts
      raise ValueError(
        f'batch_size={batch_size} is not divisible by {parts} '
        f'({self.batch_devices} devices along data·fsdp × {accumulate} '
        f'micro-batches); the nearest size that is: {near}'
      )

  def parameters(self, params: Any) -> Any:
    """A NamedSharding for each parameter (arrays or ShapeDtypeStructs).

    Raises:
      ValueError: a user's rule matches nothing, has another rank than the
        parameter, or splits an axis that does not divide.
    """
    used = set()

    def place(path, leaf):
      text = path_of(path)
      for index, (pattern, spec) in enumerate(self.rules):
        if re.search(pattern, text):
          used.add(index)
          return self._place(text, leaf.shape, pattern, spec)
      return self._place(text, leaf.shape, 'fsdp', 'fsdp')

    placed = jax.tree_util.tree_map_with_path(place, params)
    for index in set(range(self.users)) - used:
      paths = [
        path_of(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)
      ]
      raise ValueError(
        f'the sharding rule {self.rules[index][0]!r} matches no parameter; '
        f'parameters: {", ".join(paths[:8])}, …'
      )
    return placed

  def _place(self, path, shape, pattern, spec) -> NamedSharding:
    if spec == 'fsdp':
      return NamedSharding(self.mesh, self._fsdp(shape))
    if len(spec) != len(shape):
      raise ValueError(
        f'the sharding rule {pattern!r}: {spec} has {len(spec)} axes but '
        f'{path} has shape {shape}'
      )
    for size, axes in zip(shape, spec, strict=True):
      axes = (axes,) if isinstance(axes, str) else axes or ()
      parts = math.prod(self.mesh.shape[a] for a in axes)
      if size % parts:
        raise ValueError(
          f'the sharding rule {pattern!r} splits {path} of shape {shape} as '
          f'{spec}, but {size} is not divisible by {parts} devices'
        )
    return NamedSharding(self.mesh, PartitionSpec(*spec))

  def _fsdp(self, shape) -> PartitionSpec:
    """The largest axis that divides over `fsdp`; replicated if none does."""
    parts = self.mesh.shape['fsdp']
    able = [i for i, size in enumerate(shape) if size % parts == 0 and size]
    if parts == 1 or not able:
      return PartitionSpec()
    axis = max(able, key=lambda i: shape[i])
    return PartitionSpec(*(None,) * axis, 'fsdp')

  def like(self, tree: Any, params: Any, placed: Any) -> Any:
    """Shardings for `tree`: a leaf shaped like a parameter lies where it does.

    Optimiser states hold trees of the parameters' structure; a leaf is matched
    by the end of its path and its shape. Anything else is replicated.
    """
    table = {
      path_of(path): (leaf.shape, sharding)
      for (path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(params),
        jax.tree.leaves(placed),
        strict=True,
      )
    }

    def place(path, leaf):
      parts = path_of(path).split('/')
      for start in range(len(parts)):
        found = '/'.join(parts[start:])
        if found in table and table[found][0] == leaf.shape:
          return table[found][1]
      return self.replicated

    return jax.tree_util.tree_map_with_path(place, tree)


def build(
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
  rules: Sequence[Sequence[Any]] = (),
) -> Sharding:
  """Builds a mesh over all devices.

  Args:
    data: devices that split the batch; -1 takes the rest.
    fsdp: devices that split batch and parameters; -1 takes the rest.
    tensor: devices that split heads and hidden units; -1 takes the rest.
    rules: pairs of a regex over parameter paths and either 'fsdp' or one mesh
      axis (or None) for each array axis; tried before the built-in ones.

  Raises:
    ValueError: the axes do not multiply to the number of devices.
  """
  sizes, count = [data, fsdp, tensor], jax.device_count()
  given = math.prod(s for s in sizes if s != -1)
  if (
    sizes.count(-1) > 1
    or any(s < 1 and s != -1 for s in sizes)
    or (sizes.count(-1) and count % given)
  ):
    given = 0
  elif -1 in sizes:
    sizes[sizes.index(-1)] = count // given
  if not given or math.prod(sizes) != count:
    raise ValueError(
      f'sharding data={data}, fsdp={fsdp}, tensor={tensor} does not fit '
      f'{count} devices: the product must be {count}; one axis may be -1 '
      'for the rest'
    )
  mesh = jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3)
  users = []
  for rule in rules:
    if len(rule) != 2 or not isinstance(rule[0], str):
      raise ValueError(
        f'a sharding rule is a pair (regex, axes or "fsdp"); got {rule!r}'
      )
    pattern, spec = rule
    try:
      re.compile(pattern)
    except re.error as e:
      raise ValueError(
        f'{pattern!r} is not a regular expression: {e}'
      ) from None
    if isinstance(spec, str) and spec != 'fsdp':
      raise ValueError(
        f'the sharding rule {pattern!r} is {spec!r}: write "fsdp", or one of '
        f'{", ".join(AXES)}, None for each array axis, as in {(None, spec)}'
      )
    if spec != 'fsdp':
      spec = tuple(tuple(a) if isinstance(a, list) else a for a in spec)
      used = set()
      for axes in spec:
        for a in (axes,) if isinstance(axes, str) else axes or ():
          if a not in AXES:
            raise ValueError(
              f'the sharding rule {pattern!r} names the mesh axis {a!r}; '
              f'choices: {", ".join(AXES)}, None'
            )
          if a in used:
            raise ValueError(
              f'the sharding rule {pattern!r}: {spec} uses the mesh axis '
              f'{a!r} twice; each splits one array axis at most'
            )
          used.add(a)
    users.append((pattern, spec))
  builtin = TENSOR_RULES if sizes[2] > 1 else ()
  return Sharding(mesh, (*users, *builtin), len(users))


def replicate(tree: Any, sharding: Sharding) -> Any:
  """Arrays that every process has, whole on every device of all of them."""
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(
      sharding.replicated, np.asarray(x)
    ),
    tree,
  )


def put_batch(
  batch: dict[str, np.ndarray], sharding: Sharding
) -> dict[str, jax.Array]:
  """The global batch on the devices, from this process' part of it."""
  return {
    k: jax.make_array_from_process_local_data(sharding.batch, v)
    for k, v in batch.items()
  }
