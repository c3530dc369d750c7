"""Deliberately wrong kernels: the contract must fail every one of them."""

import pytest

from attention import contract
from attention.oracles import FACTS
from planted import exact, learned, patterns
from vit_jax import attention
from vit_jax.arena import wrong_kernels

PLANTED = [
  # wrong kernel, the entry that it pretends to be, the checks that catch it
  (exact.WithoutScale, 'softmax', {'oracle', 'limits'}),
  (exact.PaddingIgnored, 'softmax', {'oracle', 'masked_keys', 'padding'}),
  (exact.SeesTheNext, 'softmax', {'oracle', 'causality'}),
  (learned.ChunkSeesTheNext, 'linear', {'oracle', 'causality', 'decoding'}),
  (wrong_kernels.UnmaskedLinear, 'linear', {'oracle', 'masked_keys'}),
  (
    wrong_kernels.KeysForValuesSinkhorn, 'sinkhorn',
    {'oracle', 'limits', 'linear'},
  ),
  (wrong_kernels.SummedSinkhorn, 'sinkhorn', {'oracle'}),
  (
    wrong_kernels.NoisySinkhorn, 'sinkhorn',
    {'oracle', 'evaluation_is_deterministic'},
  ),
  (wrong_kernels.UnsignedPerformer, 'performer', {'initial'}),
  (wrong_kernels.StridedWindow, 'window', {'oracle'}),
  (patterns.ShiftMaskLeftOut, 'swin', {'oracle'}),
  (patterns.PrefixRowDropped, 'window', {'oracle', 'limits'}),
]  # fmt: skip


def failures(wrong, name, checks):
  """The checks among `checks` that the wrong kernel fails."""
  found = set()
  built = contract.Built(name, facts=FACTS[name], table={name: wrong})
  for check in checks:
    try:
      contract.CHECKS[f'check_{check}'](built)
    except AssertionError:
      found.add(check)
  return found


@pytest.mark.parametrize(
  ('wrong', 'name', 'checks'), PLANTED, ids=[p[0].__name__ for p in PLANTED]
)
def test_the_contract_fails_a_wrong_kernel(wrong, name, checks):
  assert failures(wrong, name, checks) == checks


def test_there_are_ten_kinds_of_mistakes():
  assert len(PLANTED) >= 10
  both = attention.ATTENTIONS | attention.MIXERS
  assert all(issubclass(wrong, both[name]) for wrong, name, _ in PLANTED)
