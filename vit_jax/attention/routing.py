"""Routing Transformer: online k-means chooses who attends to whom."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.attention.base import Attention, refuse_cross
from vit_jax.attention.weights import logits_of, mixed
from vit_jax.shapes import Array, Bool, Float, Int


class Routing(Attention):
  """Softmax within the top-w tokens of each centroid. Roy et al. 2021, alg. 1.

  Queries and keys are layer-normalised (no scale, no bias). Centroid μ_c takes
  the w queries and the w keys with the largest μ_c·q and μ_c·k, and its queries
  attend to its keys. O(N·clusters·D + clusters·window²·D), N^1.5·D at √N
  clusters. A query that several centroids take gets the mean of their results;
  one that none takes gets zeros, as in the paper, so its residual branch alone
  passes it on. Masked tokens are taken neither as keys nor as queries.

  In training, and only if 'attention_state' is mutable, each centroid moves to
  the mean of the queries and of the keys nearest to it, μ ← λμ + (1 - λ)(mean
  q + mean k)/2.

  Departures. Scores use μ/‖μ‖: with vectors of one length the largest product
  is then the nearest centroid, which is what the paper assumes. The update
  takes means, not the paper's sums, whose length would grow with the batch; a
  side without tokens leaves its half as it is. Causal: a top-w choice over the
  whole sequence depends on later tokens, so here each token joins the centroid
  that is nearest to its query (queries and keys share the choice, as in the
  paper's causal form) and sees itself and the w - 1 tokens before it there. No
  token is left out, and no later token matters.

  Attributes:
    clusters: number of centroids; √N is the paper's choice.
    window: w; None is N / clusters, rounded up, so that it depends on N.
    decay: λ; 0.999 in the paper.
    causal: see above.
    dropout_rate: of the attention weights, in training.
    epsilon: of the layer norms.
  """

  family = 'learned pattern'
  published = 'N·√N'
  cost = 'N·clusters + clusters·window²'
  source = 'Roy et al. 2021'
  equivariant = True

  clusters: int = 8
  window: int | None = None
  decay: float = 0.999
  causal: bool = False
  dropout_rate: float = 0.0
  epsilon: float = 1e-6

  @nn.compact
  def __call__(
    self,
    q: Float[Array, 'B N H D'],
    k: Float[Array, 'B M H D'],
    v: Float[Array, 'B M H E'],
    *,
    key_mask: Bool[Array, 'B M'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'B N H E']:
    """Attends inside the clusters; norms and softmax are in float32."""
    refuse_cross(self, q, k)
    q, k = self._normalize(q), self._normalize(k)
    v = v.swapaxes(1, 2)
    centroids = self._centroids(q.shape[1], q.shape[3])
    if key_mask is None:
      key_mask = jnp.ones((q.shape[0], q.shape[2]), bool)
    attend = self._causal if self.causal else self._top
    out = attend(q, k, v, centroids.value, key_mask, train)
    if (
      train
      and self.is_mutable_collection('attention_state')
      and not self.is_initializing()
    ):
      centroids.value = self._moved(centroids.value, q, k, key_mask)
    return out.swapaxes(1, 2).astype(v.dtype)

  def init_state(
    self, batch: int, length: int, heads: int, width: int, dtype: Any
  ) -> Any:
    """The last `window` keys and values of each cluster, as rings."""
    if not self.causal:
      return super().init_state(batch, length, heads, width, dtype)
    shape = (batch, heads, self.clusters, self._window(length))
    ring = jnp.zeros((*shape, width), dtype)
    return {'k': ring, 'v': ring, 'count': jnp.zeros(shape[:3], jnp.int32)}

  @nn.compact
  def step(
    self,
    state: Any,
    q: Float[Array, 'B 1 H D'],
    k: Float[Array, 'B 1 H D'],
    v: Float[Array, 'B 1 H D'],
  ) -> tuple[Float[Array, 'B 1 H D'], Any]:
    """One step, O(clusters·D + window·D) whatever the length."""
    q, k = self._normalize(q), self._normalize(k)
    centroids = self._centroids(q.shape[1], q.shape[3]).value
    c = jnp.argmax(_scores(q, centroids)[..., 0], axis=-1)  # [B H]
    b, h = jnp.indices(c.shape)
    count = state['count'][b, h, c]
    size = state['k'].shape[3]
    put = lambda ring, x: ring.at[b, h, c, count % size].set(  # noqa: E731
      x[:, :, 0].astype(ring.dtype)
    )
    state = {
      'k': put(state['k'], k), 'v': put(state['v'], v.swapaxes(1, 2)),
      'count': state['count'].at[b, h, c].add(1),
    }  # fmt: skip
    filled = jnp.arange(size)[None, None] <= count[..., None]
    out = self._attend(
      q, state['k'][b, h, c], state['v'][b, h, c], filled[:, :, None], False
    )
    return out.swapaxes(1, 2).astype(v.dtype), state

  def flops(self, n: int, heads: int, width: int) -> float:
    """Scores of queries and keys, then w² pairs a centroid."""
    w = self._window(n)
    if self.causal:
      inside = (n + -n % w) * 2 * w
      return heads * width * (2.0 * n * self.clusters + 4.0 * inside)
    inside = self.clusters * w * w
    return heads * width * (4.0 * n * self.clusters + 4.0 * inside)

  def temporary(self, n: int, heads: int, width: int) -> float:
    """Scores and their sort, logits and weights, and gathered tokens."""
    w, c = self._window(n), self.clusters
    pairs = 2 * (n + w) * w if self.causal else c * w * w
    taken = n + w if self.causal else c * w
    return 4.0 * heads * (
      6 * n * c + 3 * pairs + (4 * n + 4 * taken) * (width + 1)
    )

  @staticmethod
  def grown(n: int) -> dict[str, Any]:
    """√N clusters, the paper's choice."""
    return {'clusters': round(n**0.5)}

  def _window(self, n: int) -> int:
    if self.clusters < 1 or (self.window is not None and self.window < 1):
      raise ValueError(
        f'clusters={self.clusters} and window={self.window} must be at least 1'
      )
    return min(n, self.window or -(-n // self.clusters))

  def _normalize(self, x: Float[Array, 'B N H D']) -> Float[Array, 'B H N D']:
    """Layer norm in float32, by which tokens are chosen; heads first."""
    normal = nn.LayerNorm(
      epsilon=self.epsilon, use_bias=False, use_scale=False, dtype=jnp.float32,
      parent=None,
    )  # fmt: skip
    return normal.apply({}, x).swapaxes(1, 2)

  def _centroids(self, heads: int, width: int) -> Any:
    return self.variable(
      'attention_state', 'centroids',
      lambda: jax.random.normal(
        self.make_rng('params'), (heads, self.clusters, width)
      ),
    )  # fmt: skip

  def _attend(self, q, k, v, keep, train):
    """Softmax attention along the last axis but one, products as of v."""
    drop = nn.Dropout(self.dropout_rate, deterministic=not train)
    logits = logits_of(q.astype(v.dtype), k.astype(v.dtype))
    return mixed(logits, v, keep, drop)

  def _top(self, q, k, v, centroids, key_mask, train):
    """Each centroid's top-w queries attend to its top-w keys."""
    n = q.shape[2]
    lowest = jnp.finfo(jnp.float32).min

    def choose(x):
      scores = jnp.where(key_mask[:, None, None], _scores(x, centroids), lowest)
      found, index = jax.lax.top_k(scores, self._window(n))
      return found > lowest, index

    asks, queries = choose(q)
    answers, keys = choose(k)
    out = self._attend(
      _take(q, queries), _take(k, keys), _take(v, keys),
      answers[..., None, :], train,
    )  # fmt: skip
    # One column counts the centroids that took the query.
    out = jnp.concatenate([out, jnp.ones_like(out[..., :1])], axis=-1)
    out = jnp.where(asks[..., None], out, 0.0)
    add = lambda i, o: jnp.zeros((n, o.shape[-1])).at[i].add(o)  # noqa: E731
    total = jax.vmap(jax.vmap(add))(queries, out)
    return total[..., :-1] / jnp.maximum(total[..., -1:], 1.0)

  def _causal(self, q, k, v, centroids, key_mask, train):
    """Sorted by (cluster, position), a token sees the w - 1 places before."""
    n, masked = q.shape[2], self.clusters
    cluster = jnp.argmax(_scores(q, centroids), axis=2)
    cluster = jnp.where(key_mask[:, None], cluster, masked)  # [B H N]
    order = jnp.argsort(cluster, axis=-1)
    w = self._window(n)
    slots = lambda a, value: jnp.pad(  # noqa: E731
      a, ((0, 0), (0, 0), (0, -n % w)), constant_values=value
    ).reshape(*a.shape[:2], -1, w)
    mine = slots(jnp.take_along_axis(cluster, order, axis=-1), masked)
    both = _with_previous(mine, masked)
    place = jnp.arange(w)[:, None] + w - jnp.arange(2 * w)[None]
    near = ((place >= 0) & (place < w))[None, None, None]
    keep = near & (mine[..., None] == both[..., None, :])
    keep &= mine[..., None] < masked
    token = slots(order, 0)
    out = self._attend(
      _take(q, token), _with_previous(_take(k, token)),
      _with_previous(_take(v, token)), keep, train,
    )  # fmt: skip
    put = lambda i, o: jnp.zeros_like(o).at[i].set(o)  # noqa: E731
    out = out.reshape(*out.shape[:2], -1, out.shape[-1])[:, :, :n]
    return jax.vmap(jax.vmap(put))(order, out)

  def _moved(self, centroids, q, k, key_mask):
    """The centroids after one step of the moving average."""
    moved = 0.0
    for x in (q, k):
      nearest = jnp.argmax(_scores(x, centroids), axis=2)
      member = jax.nn.one_hot(nearest, self.clusters)  # [B H N c]
      member *= key_mask[:, None, :, None]
      count = member.sum(axis=(0, 2))[..., None]
      total = jnp.einsum('bhnc,bhnd->hcd', member, x.astype(jnp.float32))
      mean = total / jnp.maximum(count, 1.0)
      moved += jnp.where(count > 0, mean, centroids) / 2
    return self.decay * centroids + (1 - self.decay) * moved


def _scores(
  x: Float[Array, 'B H N D'], centroids: Float[Array, 'H c D']
) -> Float[Array, 'B H c N']:
  """Products with the centroids' directions, in float32, without gradient."""
  norm = jnp.linalg.norm(centroids, axis=-1, keepdims=True)
  x = jax.lax.stop_gradient(x).astype(jnp.float32)
  return jnp.einsum('hcd,bhnd->bhcn', centroids / jnp.maximum(norm, 1e-9), x)


def _take(
  x: Float[Array, 'B H N D'], index: Int[Array, 'B H c w']
) -> Float[Array, 'B H c w D']:
  return jax.vmap(jax.vmap(lambda x, i: x[i]))(x, index)


def _with_previous(a: Any, value: int = 0) -> Any:
  """[B H chunks w …] → [B H chunks 2·w …]: the chunk before, then it."""
  before = jnp.pad(
    a[:, :, :-1], [(0, 0), (0, 0), (1, 0)] + [(0, 0)] * (a.ndim - 3),
    constant_values=value,
  )  # fmt: skip
  return jnp.concatenate([before, a], axis=3)
