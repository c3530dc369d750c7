"""Memories from segment to segment: Transformer-XL and Compressive."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import contract
from attention.contract import B, C, H
from attention.oracles.recurrence import dense, relative_attention
from vit_jax.attention.compressive import Compressive
from vit_jax.attention.transformer_xl import TransformerXL

LENGTH, SEGMENT = 12, 4


def sequence(length=LENGTH, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.standard_normal((B, length, C)), jnp.float32)


def variables(layer, x):
  """Jittered parameters and the empty state of a first call."""
  shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
  zeros = lambda s: jnp.zeros(s.shape, s.dtype)  # noqa: E731
  state = jax.tree.map(zeros, shapes.get('attention_state', {}))
  return contract.jitter(shapes['params']), state


def segments(layer, params, state, x, **options):
  """Outputs of one segment after the other, and the last state."""
  run = jax.jit(
    functools.partial(layer.apply, mutable=['attention_state'], **options)
  )
  outs = []
  for i in range(0, x.shape[1], SEGMENT):
    now = {'params': params, 'attention_state': state}
    out, changed = run(now, x[:, i : i + SEGMENT])
    state = changed['attention_state']
    outs.append(out)
  return jnp.concatenate(outs, axis=1), state


def test_segments_with_all_of_the_past_equal_one_pass():
  x = sequence()
  layer = TransformerXL(num_heads=H, causal=True, memory=LENGTH)
  params, state = variables(layer, x[:, :SEGMENT])
  found, _ = segments(layer, params, state, x)
  whole = TransformerXL(num_heads=H, causal=True)
  np.testing.assert_allclose(
    found, jax.jit(whole.apply)({'params': params}, x), atol=1e-5
  )


@pytest.mark.parametrize('memory', [2, 4, 6])
def test_segments_with_memory_equal_one_pass_with_their_band(memory):
  x = sequence()
  layer = TransformerXL(num_heads=H, causal=True, memory=memory)
  params, state = variables(layer, x[:, :SEGMENT])
  found, state = segments(layer, params, state, x)
  i, j = np.indices((LENGTH, LENGTH))
  band = (j <= i) & (j >= i // SEGMENT * SEGMENT - memory)
  for b in range(B):
    one = contract.wide(x[b])
    expected = relative_attention(
      contract.wide(params), one, one[:0], band[None]
    )
    np.testing.assert_allclose(found[b], expected, atol=1e-5)
  np.testing.assert_array_equal(state['memory'], x[:, -memory:])


def test_memory_starts_empty_and_stays_so_unless_it_may_change():
  x = sequence(SEGMENT)
  layer = TransformerXL(num_heads=H, memory=3)
  made = jax.jit(layer.init)(jax.random.key(0), x)
  assert not made['attention_state']['memory_there'].any()
  without = TransformerXL(num_heads=H)
  np.testing.assert_allclose(
    layer.apply(made, x), without.apply({'params': made['params']}, x),
    atol=1e-6,
  )  # fmt: skip


def test_masked_inputs_are_not_there_in_the_memory():
  x = sequence(SEGMENT)
  layer = TransformerXL(num_heads=H, memory=3)
  params, state = variables(layer, x)
  mask = jnp.asarray([[True, True, False, True]] * B)
  _, changed = layer.apply(
    {'params': params, 'attention_state': state}, x, key_mask=mask,
    mutable=['attention_state'],
  )  # fmt: skip
  np.testing.assert_array_equal(
    changed['attention_state']['memory_there'], mask[:, 1:]
  )


def test_without_memory_there_is_no_state():
  for cls in (TransformerXL, Compressive):
    shapes = jax.eval_shape(cls().init, jax.random.key(0), sequence())
    assert set(shapes) == {'params'}


def test_another_batch_size_is_an_error():
  x = sequence()
  layer = TransformerXL(num_heads=H, memory=3)
  params, state = variables(layer, x)
  with pytest.raises(ValueError, match=r'batch size is fixed .*new .*state'):
    layer.apply({'params': params, 'attention_state': state}, x[:1])


# Compressive.


@pytest.mark.parametrize('compress', ['mean', 'max'])
def test_a_rate_of_1_is_a_longer_memory(compress):
  x = sequence()
  layer = Compressive(
    num_heads=H, memory=3, compressed=4, rate=1, compress=compress
  )
  params, state = variables(layer, x[:, :SEGMENT])
  found, _ = segments(layer, params, state, x)
  longer = TransformerXL(num_heads=H, memory=7)
  _, state = variables(longer, x[:, :SEGMENT])
  expected, _ = segments(longer, params, state, x)
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize('compress', ['mean', 'max', 'conv'])
def test_what_falls_out_of_the_memory_is_compressed(compress):
  x = sequence()
  layer = Compressive(
    num_heads=H, memory=4, compressed=3, rate=3, compress=compress
  )
  params, state = variables(layer, x[:, :SEGMENT])
  _, state = segments(layer, params, state, x)
  np.testing.assert_array_equal(state['memory'], x[:, -4:])
  # Two segments of four fell out, each as a group of one and one of three.
  groups = [x[:, 0:1], x[:, 1:4], x[:, 4:5], x[:, 5:8]]
  if compress == 'conv':
    pad = lambda g: np.pad(g, ((0, 0), (3 - g.shape[1], 0), (0, 0)))  # noqa: E731
    conv = contract.wide(params['compress'])
    expected = [
      np.einsum('brc,rce->be', pad(g), conv['kernel']) + conv['bias']
      for g in groups
    ]
  else:
    expected = [getattr(np, compress)(g, axis=1) for g in groups]
  np.testing.assert_allclose(
    state['compressed'], np.stack(expected[1:], axis=1), atol=1e-5
  )
  assert state['compressed_there'].all()


def test_the_compression_loss_is_what_attention_no_longer_reads():
  x = sequence(SEGMENT)
  layer = Compressive(num_heads=H, memory=4, compressed=2, rate=2)
  params, state = variables(layer, x)
  state = {**state, 'memory': sequence(4, seed=1)}
  state['memory_there'] = jnp.ones((B, 4), bool)

  @jax.jit
  def run(params):
    _, changed = layer.apply(
      {'params': params, 'attention_state': state}, x, train=True,
      mutable=['attention_state', 'losses'],
    )  # fmt: skip
    (loss,) = changed['losses']['compression']
    return loss, changed['attention_state']['compressed']

  (loss, new), grads = jax.value_and_grad(run, has_aux=True)(params)
  p, expected = contract.wide(params), []
  for b in range(B):
    read = []
    for old in (state['memory'][b], new[b]):
      q, k, v = (
        dense(contract.wide(a), p[name])
        for a, name in ((x[b], 'query'), (old, 'key'), (old, 'value'))
      )
      logits = np.einsum('nhd,mhd->hnm', q, k) / np.sqrt(C // H)
      weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
      read.append(np.einsum('hnm,mhd->nhd', weights, v))
    expected.append(((read[0] - read[1]) ** 2).mean())
  np.testing.assert_allclose(loss, np.mean(expected), atol=1e-6)
  moved = {
    jax.tree_util.keystr(path)
    for path, g in jax.tree.leaves_with_path(grads)
    if np.abs(g).max() > 0
  }
  assert moved == {"['compress']['kernel']", "['compress']['bias']"}


def test_evaluation_sows_no_loss():
  x = sequence(SEGMENT)
  layer = Compressive(num_heads=H, memory=4, compressed=2, rate=2)
  params, state = variables(layer, x)
  _, changed = layer.apply(
    {'params': params, 'attention_state': state}, x,
    mutable=['attention_state', 'losses'],
  )  # fmt: skip
  assert not changed.get('losses', {})


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'compress': 'sum'}, "compress='sum'; choices: conv, mean, max"),
    ({'compressed': 2}, 'compressed=2 needs a memory'),
    ({'rate': 0}, 'rate=0 must be at least 1'),
    ({'normalize_qk': True}, 'Compressive has no normalize_qk'),
  ],
)
def test_wrong_options_of_compressive_are_errors(options, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(Compressive(**options).init, jax.random.key(0), sequence())
