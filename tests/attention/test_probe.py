"""The map of any attention by the identity probe, and path lengths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from vit_jax import attention
from vit_jax.attention import probe


def test_the_map_of_softmax_is_its_weights():
  rng = np.random.default_rng(0)
  q, k = (jnp.asarray(rng.standard_normal((2, n, 3, 4)), jnp.float32)
          for n in (5, 7))  # fmt: skip
  found = probe.attention_map(attention.Softmax(), {}, q, k)
  logits = np.einsum('bnhd,bmhd->bhnm', q, k) / 2
  np.testing.assert_allclose(found, special.softmax(logits, -1), atol=1e-6)


def test_influence_is_the_jacobian():
  rng = np.random.default_rng(1)
  weights = rng.standard_normal((4, 4)) * (rng.random((4, 4)) < 0.5)
  weights = jnp.asarray(weights, jnp.float32)
  x = jnp.asarray(rng.standard_normal((2, 4, 3)), jnp.float32)
  found = probe.influence(lambda x: jnp.einsum('nm,bmc->bnc', weights, x), x)
  np.testing.assert_array_equal(found[0] > 0, weights != 0)
  # A scalar weight moves every direction alike: the rows are proportional.
  ratio = np.asarray(found[0])[weights != 0] / np.abs(weights)[weights != 0]
  np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)


class Normalised(attention.Attention):
  linear_in_values = False

  def __call__(self, q, k, v, *, train=False):
    return v / jnp.abs(v).sum()


def test_a_map_is_refused_where_there_is_none():
  x = jnp.ones((1, 2, 1, 2))
  with pytest.raises(ValueError, match='Normalised has no N×M map'):
    probe.attention_map(Normalised(), {}, x, x)


def band(n, reach):
  index = np.arange(n)
  return np.abs(index[:, None] - index) <= reach


@pytest.mark.parametrize(
  ('support', 'layers'),
  [
    (np.ones((9, 9), bool), 1),
    (np.eye(4, dtype=bool), np.inf),
    (np.kron(np.eye(3), np.ones((4, 4))) > 0, np.inf),
    *((band(n, w // 2), -(-(n - 1) // (w // 2))) for n, w in
      ((30, 5), (64, 7), (10, 3))),
    (np.tri(6, dtype=bool), np.inf),
  ],
)  # fmt: skip
def test_path_lengths_of_known_patterns(support, layers):
  assert probe.path_length(support) == layers


@pytest.mark.parametrize(
  ('spec', 'n', 'layers'),
  [
    ('softmax', 16, 1),
    ('window(size=4)', 16, np.inf),
    ('sliding(size=5)', 30, 15),
    ('strided(size=4)', 16, 2),
  ],
)
def test_path_lengths_of_kernels(spec, n, layers):
  found = probe.support(attention.build(spec), n, width=4)
  assert probe.path_length(found) == layers


def test_a_layers_support_is_read_from_its_jacobian():
  entries = attention.MIXERS
  assert entries
  kernel = next(iter(entries.values()))(num_heads=2)
  assert probe.support(kernel, 6, width=4).shape == (6, 6)


def test_probing_compiles_with_the_kernels_optional_x():
  with jax.checking_leaks():
    found = probe.support(attention.build('sinkhorn(blocks=2)'), 8, width=4)
  assert found.any()
