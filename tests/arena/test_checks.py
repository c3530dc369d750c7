"""The checks flag planted kernels, and no sound one."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from planted import exact, learned, patterns
from vit_jax import attention
from vit_jax.arena import checks, promises, wrong_kernels

SORT = {'blocks': 4, 'iterations': 3}
PLANTED = [
  (exact.WithoutScale, {}, 'exact'),
  (exact.PaddingIgnored, {}, 'masked_keys'),
  (exact.SeesTheNext, {}, 'causal'),
  (learned.ChunkSeesTheNext, {'chunk': 4}, 'causal'),
  (wrong_kernels.UnmaskedLinear, {}, 'masked_keys'),
  (wrong_kernels.KeysForValuesSinkhorn, SORT, 'linear'),
  (wrong_kernels.SummedSinkhorn, SORT, 'row_sums'),
  (wrong_kernels.NoisySinkhorn, SORT, 'deterministic'),
  (wrong_kernels.UnsignedPerformer, {'features': 24}, 'features'),
  (wrong_kernels.StridedWindow, {'size': 2}, 'support'),
  (patterns.ShiftMaskLeftOut, {'size': 2, 'shift': 1}, 'support'),
  (patterns.PrefixRowDropped, {'size': 2}, 'support'),
]


@pytest.mark.parametrize(
  ('wrong', 'options', 'name'), PLANTED, ids=[p[0].__name__ for p in PLANTED]
)
def test_a_planted_kernel_is_flagged_and_the_right_one_is_not(
  wrong, options, name
):
  right = wrong.__mro__[1]
  said = [
    checks.check(cls, only=(name,), grid=(3, 4), **options)[name]
    for cls in (wrong, right)
  ]
  assert said[0]
  assert not said[0].startswith('raised')
  assert not said[1]


def test_all_planted_kernels_are_seen():
  made = {
    cls
    for module in (exact, learned, patterns)
    for cls in vars(module).values()
    if isinstance(cls, type)
    and cls.__module__ == module.__name__ and issubclass(cls, nn.Module)
  }  # fmt: skip
  assert made <= {wrong for wrong, _, _ in PLANTED}


class Pulled(attention.Attention):
  """Wrong in many ways: the batch and the last key leak, weights below 0."""

  family = 'exact'
  equivariant = True

  def __call__(self, q, k, v, *, train=False):
    n = q.shape[1]
    pull = jnp.mean(v, axis=(0, 1), keepdims=True)
    step = jnp.asarray(np.arange(n) - 2.0, jnp.float32)
    out = v * step[None, :, None, None] + 1.0 + pull
    return jnp.where(q[..., :1] > 9, jnp.nan, out)

  def flops(self, n, heads, width):
    return 4.0 * n * n * heads * width


def test_every_check_says_what_is_wrong_with_a_kernel_of_ones_own():
  found = checks.check(Pulled, promise=promises.MEAN, grid=(3, 4))
  wrong = {name for name, said in found.items() if said}
  assert wrong == {
    'batch', 'linear', 'row_sums', 'positive', 'equivariant', 'flops', 'dtype'
  }  # fmt: skip
  assert found['flops'] == '0 FLOPs counted, 1.34e+08 declared'
  assert 'values of zero give' in found['linear']


def test_a_kernel_that_raises_is_flagged():
  class Raises(attention.Softmax):
    def __call__(self, q, k, v, *, train=False):
      raise KeyError('nothing')

  assert checks.check(Raises)['finite'] == "raised KeyError: 'nothing'"


@pytest.mark.parametrize('entry', ['softmax', 'linformer(rank=4)', 'fnet'])
def test_sound_kernels_are_not_flagged(entry):
  found = checks.check(entry, grid=(3, 4))
  assert not any(found.values()), found
  assert {'finite', 'jit', 'batch', 'flops'} <= set(found)


@pytest.mark.slow
@pytest.mark.parametrize(
  'entry', sorted({**attention.ATTENTIONS, **attention.MIXERS})
)
def test_no_entry_of_the_tables_is_flagged(entry):
  found = checks.check(entry)
  assert not any(found.values()), found


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    (('softmax', {'only': ('liner',)}), "did you mean 'linear'"),
    (('softmax', {'sise': 3}), "no option 'sise'"),
    ((nn.Dense, {}), 'Dense is neither an Attention nor a Mixer'),
  ],
)
def test_what_cannot_be_checked_is_refused(given, message):
  entry, options = given
  with pytest.raises(ValueError, match=message):
    checks.check(entry, **options)
