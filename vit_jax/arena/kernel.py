"""An attention alone at one length: its program, compiled or as shapes only."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import attention, benchmark, flops, specs
from vit_jax.arena import memory
from vit_jax.attention.base import Described, honours

DIRECTIONS = ('forward', 'backward')


class Shape(NamedTuple):
  """What is measured: N tokens of H heads of D channels.

  Attributes:
    batch_size, length, heads, width: B, N, H and D; C is H·D.
    dtype: of the inputs and the computation; parameters are float32.
  """

  batch_size: int
  length: int
  heads: int
  width: int
  dtype: str


class Kernel:
  """An attention at one length; nothing of its size is made before `make`.

  A word of `ATTENTIONS`, or an `Attention` class, maps q, k, v (and x, where
  it takes it); of `MIXERS`, or any other builder of a layer, x of C = H·D
  channels. The tokens are a sequence, without padding, and `train` is False.

  Attributes:
    module: the attention.
    shape: the length and the rest.
    layer: whether it is a whole layer x → x, with its own projections.
    variables, inputs, given: shapes of the arguments, or after `make` arrays.
  """

  def __init__(self, value: str | Callable[..., nn.Module], shape: Shape):
    self.shape = shape
    self.module, self.layer = build(value, shape)
    self.made = False
    b, n, h, d, dtype = shape
    draw = lambda *s: jax.ShapeDtypeStruct(s, dtype)  # noqa: E731
    self.given = {}
    if self.layer:
      self.inputs = (draw(b, n, h * d),)
    else:
      self.inputs = (draw(b, n, h, d),) * 3
      if honours(self.module, 'x'):
        self.given = {'x': draw(b, n, h * d)}
    self._seen: dict[str, Any] = {}

  @functools.cached_property
  def variables(self) -> Any:
    """Shapes of the parameters and of what else the attention keeps."""
    return jax.eval_shape(self._init, *self.inputs, **self.given)

  def _init(self, *inputs: Any, **given: Any) -> Any:
    return self.module.init(jax.random.key(0), *inputs, **given)

  @functools.cached_property
  def flops(self) -> float:
    """Counted in the jaxpr, forward."""
    return flops.count(self.forward, *self.arguments('forward'))

  def declared_flops(self) -> float | None:
    """What the class declares, for the whole batch; None if it does not."""
    return self._declared('flops')

  def declared_bytes(self) -> float | None:
    """The class's bound on temporaries, forward and in float32, or None."""
    return self._declared('temporary')

  def _declared(self, name: str) -> float | None:
    if not isinstance(self.module, Described):
      return None
    if getattr(type(self.module), name) is getattr(Described, name):
      return None
    b, n, h, d, _ = self.shape
    return float(b * getattr(self.module, name)(n, h, d))

  def arguments(self, direction: str) -> tuple[Any, ...]:
    """Of `forward` or `backward`."""
    out = (self.variables, self.inputs, self.given)
    return out if direction == 'forward' else (*out, self._projection)

  @functools.cached_property
  def _projection(self) -> Any:
    """Shape of the random direction along which the output is derived."""
    out = jax.eval_shape(
      self.forward, self.variables, self.inputs, self.given
    )
    return jax.ShapeDtypeStruct(out.shape, jnp.float32)

  def forward(self, variables: Any, inputs: Any, given: Any) -> Any:
    """The attention's output."""
    return self.module.apply(variables, *inputs, **given)

  def backward(
    self, variables: Any, inputs: Any, given: Any, projection: Any
  ) -> Any:
    """⟨projection, output⟩ and its gradients by parameters and inputs."""
    rest = dict(variables)
    params = rest.pop('params', {})  # many have none

    def loss(params, inputs, given):
      out = self.forward({'params': params, **rest}, inputs, given)
      return jnp.vdot(projection, out.astype(jnp.float32))

    return jax.value_and_grad(loss, argnums=(0, 1, 2))(params, inputs, given)

  def compiled(self, direction: str) -> Any:
    """The compiled function of `arguments(direction)`; compiled once."""
    if direction not in self._seen:
      self._seen[direction] = self._compile(
        getattr(self, direction), *self.arguments(direction)
      )
    return self._seen[direction]

  def _compile(self, fn: Callable, *args: Any, **kwargs: Any) -> Any:
    return jax.jit(fn).lower(*args, **kwargs).compile()

  def _start(self) -> Any:
    """The compiled initialisation; None without variables."""
    if 'init' not in self._seen:
      self._seen['init'] = None
      if jax.tree.leaves(self.variables):
        self._seen['init'] = self._compile(
          self._init, *self.inputs, **self.given
        )
    return self._seen['init']

  def needed(self, direction: str) -> int:
    """Bytes at once, by XLA's plan: of the call, or of the initialisation."""
    found = benchmark.planned(self.compiled(direction))
    if self.made or self._start() is None:
      return found
    return max(found, benchmark.planned(self._start()))

  def held(self) -> int:
    """Bytes of the arguments that are there already."""
    if not self.made:
      return 0
    return memory.held((self.variables, self.inputs, self.given))

  def make(self) -> None:
    """Makes the arguments: the attention's own start, and normal noise."""
    if self.made:
      return
    rng = np.random.default_rng(self.shape.length)
    draw = lambda s: jnp.asarray(  # noqa: E731
      rng.standard_normal(s.shape, np.float32), s.dtype
    )
    start = self._start()
    self.inputs, self.given = jax.tree.map(draw, (self.inputs, self.given))
    if start is not None:
      self.variables = start(*self.inputs, **self.given)
    self.made = True

  def call(self, direction: str) -> Callable[[], Any]:
    """One call of the compiled function on the arguments, made if need be."""
    run = self.compiled(direction)
    args = self.arguments(direction)
    self.make()
    arrays = [self.variables, self.inputs, self.given]
    if direction == 'backward':
      noise = np.random.default_rng(1).standard_normal(
        args[-1].shape, np.float32
      )
      arrays.append(jnp.asarray(noise))
    return lambda: run(*arrays)


def build(
  value: str | Callable[..., nn.Module], shape: Shape
) -> tuple[nn.Module, bool]:
  """The attention, and whether it is a whole layer x → x.

  A bare word has the options with which its growth is stated (`grown`), a
  spec with options has those, and no other.

  Raises:
    ValueError: not one spec of the tables, or an option that it has not.
  """
  fields = {'num_heads': shape.heads, 'dtype': jnp.dtype(shape.dtype)}
  if callable(value):
    if isinstance(value, type) and issubclass(value, attention.Attention):
      return value(**value.grown(shape.length)), False
    cls = getattr(value, 'func', value)
    layer = not (
      isinstance(cls, type) and issubclass(cls, attention.Attention)
    )
    return value(**fields) if layer else value(), layer
  spec, entry = lookup(value)
  if not spec.options:
    spec = spec._replace(options=entry.grown(shape.length))
  layer = spec.name in attention.MIXERS
  return attention.build(str(spec), **(fields if layer else {})), layer


def lookup(value: str) -> tuple[specs.Spec, type[nn.Module]]:
  """The spec and the entry of the tables that it names.

  Raises:
    ValueError: not one spec, an unknown name, or an option that it has not.
  """
  found = specs.parse(value)
  if len(found) != 1:
    raise ValueError(
      f'a kernel alone is one attention, and {value!r} holds {len(found)}'
    )
  table = attention.ATTENTIONS | attention.MIXERS
  entry = specs.lookup(table, found[0].name, 'attention')
  specs.check_options(entry, found[0].options, f'the attention {value!r}')
  return found[0], entry


def baseline(layer: bool) -> str | Callable[..., nn.Module]:
  """Exact attention: alone, or as a layer with the same projections."""
  if not layer:
    return 'softmax'
  return functools.partial(
    attention.MultiHeadDotProductAttention, attend=attention.Softmax
  )
