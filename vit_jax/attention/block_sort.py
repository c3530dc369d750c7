"""The soft order of blocks of keys, and attention to what it brings."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.attention import base
from vit_jax.attention.base import Attention
from vit_jax.attention.weights import logits_of, mixed
from vit_jax.shapes import Array, Bool, Float
from vit_jax.transport import balance

Mask = Array | np.ndarray  # NumPy's where it follows from the shapes alone
LEAST = 1e-37  # a share below it, of float32's least numbers, is none


class BlockSort(Attention):
  """What Sinkhorn attention and SortCut share: the soft order of key blocks.

  P = Sinkhorn((R + gumbel) / τ) over blocks of b = ⌈N / blocks⌉ tokens, noise
  in training only; P_uv is the share of key block v in place u, and a place
  gets (P ⊗ I_b) K and V. Tay et al. 2020, sections 3.1 and 3.2; the rows are
  normalised last, so that a place's shares sum to one exactly. R is, by `sort`,

    'dot'  mean(Q_u) · mean(K_v) / √D: no parameters, any number of blocks;
    'net'  F₂ relu(F₁ mean(X_u)), for each head a score for each v, from the
           layer's input x: the parameters fix the number of blocks.

  Summaries are means where the paper has sums: F₁ holds the scale, and in the
  causal form it does not grow with the position. F₂ has no bias, which
  balancing would cancel.

  A key that is masked, or absent because b does not divide N, puts nothing in
  its place: with w_ui = Σ_v P_uv there_vi, the key i of place u is the mean of
  what is there, Σ_v P_uv there_vi K_vi / w_ui, and log w_ui adds to its logits.
  A block without a token takes no part. Masked tokens are padding: they are
  left out of the summaries of queries and of x as well.

  Prefix tokens are outside the order: they attend and are attended to
  everywhere, under the same softmax.

  Attributes:
    blocks: how many; by default round(√(N - prefix)). Their borders follow
      from N, so appended padding moves them.
    sort: 'dot' or 'net'.
    iterations: of Sinkhorn; the paper finds 5 to 10 best.
    temperature: τ; the paper's best.
    dropout_rate: of the attention weights, in training.
  """

  blocks: int | None = None
  sort: str = 'dot'
  iterations: int = 8
  temperature: float = 0.75
  dropout_rate: float = 0.0

  def _check(self, q: Array, k: Array) -> None:
    base.refuse_cross(self, q, k)
    base.refuse_other_grid(self, q.shape[1])
    if self.sort not in ('dot', 'net'):
      raise ValueError(f"sort={self.sort!r}; choices: 'dot', 'net'")
    if self.blocks is not None and self.blocks < 1:
      raise ValueError(f'blocks={self.blocks} must be 1 or more')
    if self.iterations < 1:
      raise ValueError(f'iterations={self.iterations} must be 1 or more')
    if not self.temperature > 0:
      raise ValueError(f'temperature={self.temperature} must be positive')

  def _sizes(self, n: int) -> tuple[int, int]:
    """Number and length of the blocks, for n tokens with the prefix."""
    n = max(n - self.prefix, 1)
    blocks = round(n**0.5) if self.blocks is None else self.blocks
    return blocks, -(-n // blocks)

  def _blocks(self, x: Array) -> Array:
    """[B H N ·] → [B H U I ·] without the prefix, padded with zeros."""
    blocks, size = self._sizes(x.shape[2])
    x = x[:, :, self.prefix :]
    pad = blocks * size - x.shape[2]
    x = jnp.pad(x, ((0, 0), (0, 0), (0, pad), (0, 0)))
    return x.reshape(*x.shape[:2], blocks, size, x.shape[-1])

  def _there(self, n: int, key_mask: Array | None) -> Mask | None:
    """The tokens [#B 1 U I 1] that exist and are kept; None: all of them."""
    blocks, size = self._sizes(n)
    if key_mask is not None:
      return self._blocks(key_mask[:, None, :, None])
    if n - self.prefix == blocks * size:
      return None
    there = np.arange(blocks * size) < n - self.prefix
    return there.reshape(1, 1, blocks, size, 1)

  def _scores(self, q, k, x, there, causal):
    """R [B H U V]; in the causal form column 0 is the null block."""
    if self.sort == 'dot':
      asked, keys = mean(q, there, causal), mean(k, there)
      keys = later(keys) if causal else keys
      return jnp.einsum('bhud,bhvd->bhuv', asked, keys) * q.shape[-1] ** -0.5
    if x is None:
      raise ValueError("sort='net' orders by the layer's input: give x=")
    summary = mean(self._blocks(x[:, None]), there, causal)[:, 0]
    hidden = nn.relu(nn.Dense(x.shape[-1], name='sort_hidden')(summary))
    kernel = base.sized_param(
      self, 'sort_out', nn.initializers.lecun_normal(0, (1, 2)),
      (x.shape[-1], q.shape[1], q.shape[2]),
    )  # fmt: skip
    return jnp.einsum('buc,chv->bhuv', hidden, kernel)

  def _sort(self, q, kv, x, there, *, train, causal=False, places=None):
    """Keys beside values of the first places, and the log of their mass."""
    scores = self._scores(q, kv[..., : q.shape[-1]], x, there, causal)
    if train:
      noise = jax.random.gumbel(self.make_rng('gumbel'), scores.shape)
      scores = scores + noise
    keep = None
    if there is not None:
      rows = there.any(3)  # [B 1 U 1]
      columns = later(rows, fill=True) if causal else rows
      keep = jnp.asarray(rows & columns.swapaxes(2, 3))
    if causal:
      log_shares = balance_causal(
        scores / self.temperature, self.iterations, keep
      )
      if there is None:
        there = np.ones((1, 1, *kv.shape[2:4], 1), bool)
      kv, there = later(kv), later(there)
    else:
      log_shares = balance(
        scores, self.iterations, temperature=self.temperature, keep=keep
      )
    shares = jnp.exp(log_shares)
    if places is not None:
      if there is not None:  # places of blocks without a token come last
        first = jnp.argsort(~rows, axis=2, stable=True)
        shares = jnp.take_along_axis(shares, first, axis=2)
      shares = shares[:, :, :places]
    return mix(shares, kv, there)

  def _attend(self, q, kv, mass, train):
    """softmax(q kᵀ / √D + mass) v over the last but one axis of [k, v]."""
    width = q.shape[-1]
    mass = None if mass is None else jnp.asarray(mass)
    keep = None if mass is None else mass > -jnp.inf
    logits = logits_of(q, kv[..., :width], mass)
    drop = nn.Dropout(self.dropout_rate, deterministic=not train)
    return mixed(logits, kv[..., width:], keep, drop).astype(kv.dtype)

  def _with_prefix(self, out, q, kv, key_mask, train, causal=False):
    """[B N H E]: the prefix tokens' exact attention, then `out` [B H · E]."""
    if self.prefix:
      mass = None if key_mask is None else log_of(key_mask[:, None, None])
      if causal:
        past = log_of(np.tri(self.prefix, kv.shape[2]))[None, None]
        mass = past if mass is None else past + mass
      rows = self._attend(q[:, :, : self.prefix], kv, mass, train)
      out = jnp.concatenate([rows, out], axis=2)
    return out.swapaxes(1, 2)

  def _first(self, key_mask: Array | None) -> Mask:
    """The mass [#B 1 1 P] of the prefix tokens as keys."""
    if key_mask is None:
      return np.zeros((1, 1, 1, self.prefix), np.float32)
    return log_of(key_mask[:, None, None, : self.prefix])

  def _sort_flops(self, n: int, heads: int, width: int, places: int) -> float:
    """R; P applied to keys and values in `places` blocks; the prefix rows."""
    blocks, size = self._sizes(n)
    scores = 2.0 * blocks * blocks * heads * width
    if self.sort == 'net':
      channels = heads * width
      scores = 2.0 * blocks * channels * (channels + heads * blocks)
    apply = 4.0 * places * blocks * size * heads * width
    return scores + apply + 4.0 * self.prefix * n * heads * width


def balance_causal(
  log_scores: Float[Array, '*B U V'],
  iterations: int,
  keep: Bool[Array, '*#B #U #V'] | None = None,
) -> Float[Array, '*B U V']:
  """Log of a lower triangular P: causal Sinkhorn balancing.

  Each iteration divides an entry by the sum of its column over the rows so
  far, u' ≤ u, then the rows by their sums: no row depends on a later one, and
  the rows are exact. The iterations drift to the identity, the only doubly
  stochastic triangular matrix, so they stay few. Tay et al. 2020, section 3.3.

  Returns:
    log P in float32; where v > u or `keep` is False, a finite number whose
    exponential is zero.
  """
  axis = log_scores.ndim - 2
  there = np.tri(*log_scores.shape[-2:], dtype=bool)
  there = there.reshape((1,) * axis + there.shape)
  there = jnp.asarray(there) if keep is None else there & keep
  none = -1e30  # finite, so that the gradients are

  def step(log_p, _):
    log_p = log_p - jax.lax.cumlogsumexp(log_p, axis)
    log_p = jnp.where(there, log_p, none)
    log_p = log_p - jax.nn.logsumexp(log_p, axis=-1, keepdims=True)
    return jnp.where(there, log_p, none), None

  start = jnp.where(there, log_scores.astype(jnp.float32), none)
  return jax.lax.scan(step, start, length=iterations)[0]


def mix(
  shares: Float[Array, 'B H U V'],
  x: Float[Array, 'B H V I D'],
  there: Bool[Mask, '#B 1 V I 1'] | None = None,
) -> tuple[Float[Array, 'B H U I D'], Float[Array, 'B H U I'] | None]:
  """(P ⊗ I_b) X as a mean over what is there, and the log of what is there.

  Place u gets Σ_v P_uv X_v: one sum over v for each u, at U·V·I·D.
  """
  if there is not None:
    x = jnp.where(there, x, 0)
    there = jnp.broadcast_to(there, (*x.shape[:4], 1)).astype(x.dtype)
    x = jnp.concatenate([x, there], axis=-1)
  y = jnp.einsum(
    'bhuv,bhvid->bhuid', shares.astype(x.dtype), x,
    preferred_element_type=jnp.float32,
  )  # fmt: skip
  if there is None:
    return y.astype(x.dtype), None
  y, share = y[..., :-1], y[..., -1:]
  some = share > LEAST
  log_share = jnp.log(jnp.where(some, share, 1.0))
  mass = jnp.where(some, log_share, -jnp.inf)
  # Not y / share, whose gradient has share⁻², which is too large at 1e-20.
  return (y * jnp.exp(-log_share)).astype(x.dtype), mass[..., 0]


def mean(
  x: Float[Array, 'B H U I D'],
  there: Bool[Mask, '#B 1 U I 1'] | None,
  before: bool = False,
) -> Float[Array, 'B H U D']:
  """Means of blocks; `before`: of all tokens up to a block's first token."""
  if there is None:
    there = np.ones((1, 1, *x.shape[2:4], 1), bool)
  x = jnp.where(there, x.astype(jnp.float32), 0.0)
  total, count = x.sum(3), there.sum(3)
  if before:
    # Sums of the earlier blocks, not of all less this one: nothing leaks.
    total, count = (
      later(y).cumsum(2) + z[:, :, :, 0]
      for y, z in ((total, x), (count, there))
    )
  return total / count.clip(1)


def later(x: Mask, fill: float | bool = 0) -> Mask:
  """Blocks one place later: a null block first, the last one gone."""
  lib = np if isinstance(x, np.ndarray) else jnp
  first = lib.full_like(x[:, :, :1], fill)
  return lib.concatenate([first, x[:, :, :-1]], axis=2)


def log_of(keep: Mask) -> Mask:
  """What is added to logits: 0 where True, −inf elsewhere."""
  lib = np if isinstance(keep, np.ndarray) else jnp
  return lib.where(keep, np.float32(0), np.float32(-np.inf))
