"""The form of a paper's statements about one attention."""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy import special


def rows(logits, keep=True):
  """Softmax of the last axis over what `keep` keeps; empty rows are zeros."""
  keep = np.broadcast_to(keep, logits.shape)
  weights = np.zeros_like(logits)
  for index in np.ndindex(logits.shape[:-1]):
    some = keep[index]
    if some.any():
      weights[index][some] = special.softmax(logits[index][some])
  return weights


def softmax(q, k, v, keep=True, bias=0.0):
  """Exact attention in float64: q [N H D], k [M H D], v [M H E] → [N H E]."""
  logits = np.einsum('nhd,mhd->hnm', q, k) / np.sqrt(q.shape[-1]) + bias
  return np.einsum('hnm,mhe->nhe', rows(logits, keep), v)


def same(x):
  """Changes nothing."""
  return x


@dataclasses.dataclass(frozen=True)
class Limit:
  """A spec, and inputs and parameters, at which something simpler is equal.

  Attributes:
    spec: the attention at its limit, 'linformer(rank=13)'.
    note: the equality in words, for the list of what equals what.
    variables: changes the jittered variables, {'params': …} → the same tree
      (Linformer's E = F = I); by default as they are.
    inputs: changes (q, k, v), or (x,) for a mixer; numpy [B N H D].
    equals: what it is equal to: (q, k, v) → out of one example, float64; for a
      mixer (x, variables) → out. The default is exact softmax attention.
    grid, prefix: the tokens' layout at the limit; by default the contract's.
    atol: absolute tolerance in float32; a looser one needs a reason.
  """

  spec: str
  note: str
  variables: Callable = same
  inputs: Callable = lambda *arrays: arrays
  equals: Callable = softmax
  grid: tuple[int, int] | None = (3, 4)
  prefix: int = 1
  atol: float = 1e-5


@dataclasses.dataclass(frozen=True)
class Facts:
  """What the paper says of an attention.

  Attributes:
    oracle: `oracle(kernel, variables, q, k, v, **arrays)` → out [N H E] of one
      example, in float64; for a mixer `oracle(kernel, variables, x, **arrays)`
      → [N C]. `kernel` serves only to read its fields (grid, prefix, options);
      `variables` is the tree of NumPy float64 arrays; arrays are what was
      given of key_mask [M], mask [H N M], bias [H N M], segments [N], x [N C].
    cases: specs that are held to the oracle; the first is the one of the whole
      contract, at 13 tokens: prefix 1, grid 3×4.
    limits: at least one.
    row_sum: of its map of the values; None where rows have no fixed sum (and
      for a mixer).
    adjust: changes the jittered variables where the contract needs valid ones
      (positive temperatures), tree → tree of jax arrays.
    initial: asserts what the paper says of the variables as they are drawn,
      given 4,000 draws of them: a tree with a leading axis.
    causal: spec of the causal form, None without one. It is held to the oracle
      too, and to its own step-by-step decoding.
    inputs: changes the contract's (q, k, v) or (x,), e.g. scales them.
    discrete: it sorts, hashes or chooses, so finite differences do not hold.
    noisy: training differs by more than dropout: it draws other random numbers
      too, or normalises over the batch.
    depends_on_length: block or landmark sizes follow from N, so that padding
      moves their borders; say in the docstring of the kernel that it does.
    fixed_length: it has weights sized by N and refuses another N.
    null_key: a learned key that every query sees: no row is empty.
    atol: of the oracle comparison in float32; a looser one needs a reason.
  """

  oracle: Callable
  cases: tuple[str, ...]
  limits: tuple[Limit, ...]
  row_sum: float | None = 1.0
  adjust: Callable = same
  initial: Callable | None = None
  causal: str | None = None
  inputs: Callable = lambda *arrays: arrays
  discrete: bool = False
  noisy: bool = False
  depends_on_length: bool = False
  fixed_length: bool = False
  null_key: bool = False
  atol: float = 1e-5
