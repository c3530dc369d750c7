"""Known-wrong kernels have their fault; the right ones beside them do not."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import arena as configs
from vit_jax import attention, identity
from vit_jax.arena import board as boards
from vit_jax.arena import page, report_wrong, trainer, wrong, wrong_kernels
from vit_jax.arena.standings import Standing
from vit_jax.attention import performer
from vit_jax.attention.probe import attention_map

BOTH = attention.ATTENTIONS | attention.MIXERS


def normal(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def qkv(n=8, batch=2, heads=2, width=4):
  return [normal(batch, n, heads, width, seed=i) for i in range(3)]


def both(name, **options):
  """The right kernel and the wrong one, with the same options."""
  entry = wrong.WRONG[name]
  return [cls(**options) for cls in (BOTH[entry.right], entry.kernel)]


def started(kernel, *arrays, **more):
  return jax.jit(kernel.init)(jax.random.key(0), *arrays, **more)


def applied(kernel, *arrays, **more):
  """Compiled as one program: by itself each operation would be one."""
  return np.asarray(jax.jit(kernel.apply)(*arrays, **more))


def test_every_wrong_kernel_is_a_variant_of_the_right_one_with_its_options():
  for name, entry in wrong.WRONG.items():
    assert name.startswith(wrong.PREFIX + entry.right)
    right = BOTH[entry.right]
    assert issubclass(entry.kernel, right)
    assert entry.kernel not in BOTH.values()
    fields = entry.kernel.__dataclass_fields__
    assert list(fields) == list(right.__dataclass_fields__)
    for array in attention.base.OPTIONAL_ARRAYS:
      if attention.base.honours(entry.kernel, array):
        assert attention.base.honours(right, array), (name, array)


def bias(draw, count=4000, width=8):
  """Mean error of E φ(q)·φ(k) against exp(q·k/√D), in standard errors.

  Over one orthogonal block a draw; q = k is the first unit vector.
  """
  q = jnp.zeros(width).at[0].set(1.0)
  x = jnp.stack([q, q])[None, :, None]

  def estimate(key):
    exponents = performer.log_features(x, draw(key, width, width))[0, 0]
    return jnp.exp(exponents[0] + exponents[1]).mean()

  found = jax.jit(lambda keys: jax.lax.map(estimate, keys))(
    jax.random.split(jax.random.key(1), count)
  )
  exact = math.exp(float(q @ q) / math.sqrt(width))
  found = np.asarray(found, np.float64)
  return (found.mean() - exact) / (found.std() / math.sqrt(count))


def test_unsigned_directions_bias_the_kernel_and_signed_ones_do_not():
  assert abs(bias(wrong_kernels.draw_unsigned)) > 6
  assert abs(bias(performer.draw_features)) < 4


def test_directions_without_the_signs_of_r_point_one_way():
  def mean(draw):
    """Of the first component of the first row, in standard errors."""
    keys = jax.random.split(jax.random.key(2), 500)
    found = jax.jit(lambda keys: jax.lax.map(
      lambda key: draw(key, 4, 4)[0, 0], keys
    ))(keys)  # fmt: skip
    found = np.asarray(found)
    return abs(found.mean()) / found.std() * math.sqrt(500)

  assert mean(wrong_kernels.draw_unsigned) > 10
  assert mean(performer.draw_features) < 4


def test_the_wrong_performer_is_performer_with_the_unsigned_features():
  q, k, v = qkv(width=8)
  drawn = []
  for cls in both('wrong_performer', features=8):
    variables = started(cls, q, k, v)
    w = variables['attention_state']['features']
    drawn.append(np.asarray(w))
    out = applied(cls, variables, q, k, v)
    phi = [jnp.exp(performer.log_features(x, w)) for x in (q, k)]
    weights = jnp.einsum('bhnf,bhmf->bhnm', *phi)
    weights = weights / weights.sum(-1, keepdims=True)
    exact = jnp.einsum('bhnm,bmhd->bnhd', weights, v)
    np.testing.assert_allclose(out, exact, atol=1e-5)
  assert drawn[0].shape == drawn[1].shape == (8, 8)
  # LAPACK's first column of Q has the sign of −x, whatever x is.
  assert drawn[1][0, 0] < 0
  with pytest.raises(ValueError, match='redraw=True'):
    started(wrong_kernels.UnsignedPerformer(redraw=True), q, k, v)


def test_a_local_block_that_is_a_stride_reaches_over_the_whole_sequence():
  right, strided = both('wrong_window', size=4)
  of = lambda kernel: np.flatnonzero(kernel.support(16)[0])  # noqa: E731
  assert of(right).tolist() == [0, 1, 2, 3]
  assert of(strided).tolist() == [0, 4, 8, 12]
  right, strided = both('wrong_window', size=2, grid=(4, 4), prefix=1)
  assert strided.support(17).sum() == right.support(17).sum()
  assert of_place(strided, 1) == [0, 1, 5, 9, 13]
  with pytest.raises(ValueError, match='size ≥ 1'):
    both('wrong_window', size=0)[1].support(4)


def of_place(kernel, row):
  """Keys of a token, read from the kernel itself."""
  q, k, _ = qkv(17, batch=1)
  found = attention_map(kernel, {}, q, k)[0, 0, row]
  return np.flatnonzero(np.asarray(found)).tolist()


def sort_gradient(kernel):
  q, k, v = qkv()
  x = normal(2, 8, 8, seed=5)
  variables = started(kernel, q, k, v, x=x)
  loss = lambda p: (kernel.apply(p, q, k, v, x=x) ** 2).sum()  # noqa: E731
  leaves = jax.tree.leaves(jax.jit(jax.grad(loss))(variables))
  assert leaves
  return max(float(abs(g).max()) for g in leaves)


def test_the_sort_net_of_summed_blocks_gets_no_gradient():
  right, summed = both('wrong_sinkhorn', blocks=4, sort='net')
  assert sort_gradient(summed) == 0
  assert sort_gradient(right) > 1e-4


def test_each_place_of_summed_blocks_holds_the_sum_of_all():
  right, summed = both('wrong_sinkhorn', blocks=2)
  q, k, v = qkv()
  v = jnp.ones_like(v)
  # The weights sum to 1: of sorted values that are means, so do the outputs.
  np.testing.assert_allclose(applied(right, {}, q, k, v), 1.0, atol=1e-5)
  out = applied(summed, {}, q, k, v)
  assert out.max() > 1.05
  assert out.min() >= 1.0 - 1e-5
  assert out.max() <= 2.0 + 1e-5
  mask = jnp.arange(8)[None] < jnp.array([[5], [8]])
  out = applied(summed, {}, q, k, v, key_mask=mask)
  other = applied(summed, {}, q, k, v.at[0, 5:].set(9.0), key_mask=mask)
  assert np.array_equal(out, other)  # it has that fault and not another
  with pytest.raises(ValueError, match='causal=True'):
    both('wrong_sinkhorn', causal=True)[1].apply({}, q, k, v)


def test_values_replaced_by_keys_are_there_when_all_values_are_zero():
  right, replaced = both('wrong_sinkhorn_keys', blocks=2)
  q, k, v = qkv()
  assert not applied(right, {}, q, k, 0 * v).any()
  assert applied(replaced, {}, q, k, 0 * v).any()


def test_noise_at_evaluation_lets_one_example_change_another():
  right, noisy = both('wrong_sinkhorn_noise', blocks=4)
  q, k, v = qkv()
  for kernel, equal in ((right, True), (noisy, False)):
    one = applied(kernel, {}, q, k, v)[0]
    other = applied(kernel, {}, q.at[1].set(2.0), k, v)[0]
    assert np.allclose(one, other, atol=1e-6) == equal
  # With noise by right both draw the same.
  rngs = {'gumbel': jax.random.key(3)}
  one, other = (
    kernel.apply({}, q, k, v, train=True, rngs=rngs)
    for kernel in (right, noisy)
  )
  np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize('name', [
  name for name, entry in wrong.WRONG.items() if entry.padding
])  # fmt: skip
def test_an_ignored_mask_lets_padding_in_and_without_one_nothing_is_wrong(name):
  mask = jnp.arange(8)[None] < jnp.array([[5], [8]])
  q, k, v = qkv()
  options = {'rank': 4} if 'linformer' in name else {}
  right, ignoring = both(name, **options)
  variables = started(right, q, k, v)
  changed = (k.at[0, 5:].add(1.0), v.at[0, 5:].add(1.0))
  for kernel, equal in ((right, True), (ignoring, False)):
    one = applied(kernel, variables, q, k, v, key_mask=mask)
    other = applied(kernel, variables, q, *changed, key_mask=mask)
    assert np.allclose(one[0], other[0], atol=1e-6) == equal
  one, other = (applied(x, variables, q, k, v) for x in (right, ignoring))
  assert np.array_equal(one, other)


def test_a_reshape_for_a_transpose_lets_other_tokens_choose_ones_weights():
  x = normal(1, 4, 8)
  for kernel, own in zip(
    both('wrong_synthesizer_dense', num_heads=2), (True, False), strict=True
  ):
    variables = jax.tree.map(jnp.asarray, started(kernel, x))
    # Values come from the first channels alone, weights from the last.
    params = variables['params']
    for name, none in (('value', slice(4, 8)), ('query', slice(0, 4))):
      params[name]['kernel'] = params[name]['kernel'].at[none].set(0)
    found = jax.jit(jax.jacobian(lambda x, k=kernel, p=params: k.apply(
      {'params': p}, x
    )))(x)[0, :, :, 0, :, 4:]  # [N C N 4]
    reached = np.asarray(abs(found).sum((1, 3)) > 0)
    assert np.array_equal(reached, np.eye(4, dtype=bool)) == own


def test_the_wrong_reformer_is_softmax_of_unnormalised_tokens_times_root_d():
  x = normal(2, 8, 8)
  right, kernel = both(
    'wrong_reformer', num_heads=2, chunk=8, buckets=2, rounds=1
  )
  variables = started(kernel, x)
  assert set(variables['params']) == {'query', 'value'}
  assert set(started(right, x)['params']) == {'query', 'value', 'out'}
  q, v = (
    jnp.einsum('bnc,chd->bnhd', x, variables['params'][name]['kernel'])
    for name in ('query', 'value')
  )
  weights = nn.softmax(jnp.einsum('bnhd,bmhd->bhnm', q, q) * 4**0.5)
  exact = jnp.einsum('bhnm,bmhd->bnhd', weights, v).reshape(x.shape)
  found = functools.partial(applied, kernel, variables, x)
  np.testing.assert_allclose(found(), exact, atol=2e-5)
  # Neither padding nor training changes anything.
  mask = jnp.arange(8)[None].repeat(2, 0) < 5
  rngs = {'hash': jax.random.key(1)}
  np.testing.assert_array_equal(found(key_mask=mask), found())
  found = functools.partial(kernel.apply, variables, x)
  training = jax.jit(functools.partial(found, train=True))(rngs=rngs)
  np.testing.assert_array_equal(training, jax.jit(found)())


def test_the_wrong_reformer_stays_within_two_sorted_chunks():
  x = normal(1, 10, 8)
  _, kernel = both('wrong_reformer', num_heads=1, chunk=4, rounds=2)
  variables = started(kernel, x)
  found = jax.jit(jax.jacobian(lambda x: kernel.apply(variables, x)))(x)
  reached = np.asarray(abs(found[0, :, :, 0]).sum((1, 3)) > 0)
  assert reached.diagonal().all()
  assert np.isfinite(found).all()
  assert reached.sum(1).max() <= 2 * 2 * 4
  assert np.isfinite(applied(kernel, variables, x)).all()
  assert kernel.flops(10, 1, 8) == (
    both('wrong_reformer', chunk=4, rounds=2)[0].flops(10, 1, 8)
    - 2 * 10 * 8 * 8
  )
  with pytest.raises(ValueError, match='no causal'):
    both('wrong_reformer', num_heads=1, causal=True)[1].init(
      jax.random.key(0), x
    )


def test_pairs_hold_each_kernel_once_with_the_options_of_its_pair():
  found = wrong.pairs({'window': 'size=2', 'reformer': 'chunk=4'})
  assert found[0] == 'softmax'
  assert len(set(found)) == len(found)
  assert {'window(size=2)', 'wrong_window(size=2)', 'sinkhorn'} <= set(found)
  for choice in found:
    if wrong.of(choice) is not None:
      assert wrong.right(choice) in found
  assert boards.choices_of(found, 'model.attention', 'softmax').keys() == set(
    found
  )
  with pytest.raises(ValueError, match="'linaer'.*did you mean 'linear'"):
    wrong.pairs({'linaer': 'x=1'})


@pytest.mark.parametrize(('value', 'message'), [
  ('wrong_windo', "unknown known-wrong kernel.*'wrong_window'"),
  ('wrong_window(sise=2)', "did you mean 'size'"),
  ('wrong_window, softmax', 'give it alone'),
])  # fmt: skip
def test_words_that_name_no_wrong_kernel_are_refused(value, message):
  with pytest.raises(ValueError, match=message):
    wrong.layer(value)


def test_other_words_and_labels_are_not_touched():
  for value in ('softmax', 'linear, softmax', wrong_kernels.UnmaskedLinear, 3):
    assert wrong.layer(value) is value
  for label in ('softmax', 'mine: half', '[1, 2]', 'wrong_linear, linear', ''):
    assert wrong.of(label) is None
  with pytest.raises(ValueError, match='no known-wrong kernel'):
    wrong.right('window')
  assert wrong.right('wrong_window(size=3)') == 'window(size=3)'


def test_a_board_trains_a_wrong_kernel_by_its_name(tmp_path):
  found = configs.get_config().to_dict()
  found['model'] |= {
    'hidden_size': 8, 'num_layers': 1, 'num_heads': 2, 'mlp_dim': 8,
    'patch_size': 4,
  }  # fmt: skip
  found |= {'steps': 2, 'batch_size': 16}
  board = boards.Board(
    'b', identity.plain(found), 'model.attention', (1e-2,), 1, 0.1, 1
  )
  built = trainer.Trainer(board, 'wrong_linear', tmp_path)
  assert built.fixed['masked'] is False
  assert built.model.attention.keywords['attend'].func is (
    wrong_kernels.UnmaskedLinear
  )
  right = trainer.Trainer(board, 'linear', tmp_path)
  one, other = (x.cell(1e-2, 0) for x in (built, right))
  # Without padding it is the right kernel, to the last bit.
  for field in ('accuracy', 'loss', 'train_loss', 'start', 'order'):
    assert one[field] == other[field]


def test_masks_of_padding_are_seen_where_a_model_hands_them_on():
  from vit_jax import models

  tokens = jnp.array([[3, 4, 5, 0]])
  for padded in (True, False):
    model = models.build(
      'sequence', num_classes=2, vocabulary_size=8, length=4, hidden_size=8,
      num_layers=1, num_heads=2, mlp_dim=8, padded=padded,
    )  # fmt: skip
    with wrong.watched() as masked:
      jax.eval_shape(model.init, jax.random.key(0), tokens)
    assert masked() is padded


def standing(choice, accuracies, **fields):
  rows = {
    seed: {
      'accuracy': a, 'loss': 1 - a, 'validation': a, 'validation_loss': 1 - a,
      'test_size': 10_000, 'rates': [0.1], 'masked': False, **fields,
    }
    for seed, a in enumerate(accuracies)
  }  # fmt: skip
  return Standing(choice, 0.1, rows, {}, [])


def around(middle):
  return (middle - 0.001, middle, middle + 0.001)


def said(*found):
  return page.markdown(report_wrong.section(found))


def test_a_board_without_wrong_kernels_has_no_section():
  found = [standing('softmax', around(0.9)), standing('window', around(0.8))]
  assert report_wrong.section(found) == []


def test_the_section_holds_each_pair_with_its_difference_and_its_places():
  text = said(
    standing('softmax', around(0.9)), standing('window(size=2)', around(0.8)),
    standing('performer', around(0.7)),
    standing('wrong_window(size = 2)', around(0.6)),
    standing('wrong_performer', around(0.5)),
  )
  assert '60.00 ± 0.06' in text
  assert '80.00 ± 0.06' in text
  assert 'a block a stride' in text
  row = next(x for x in text.splitlines() if x.startswith('| `wrong_window'))
  cells = [x.strip() for x in row.split('|')]
  assert cells[3] == '4'
  assert cells[6] == '2'
  # The seeds moved both alike: only the rounding of an accuracy is left.
  assert cells[7].replace('\\', '') == '▽ -20.00 [-20.01, -19.99]'
  assert cells[10] == 'yes'


def test_a_pair_that_changes_order_is_named_and_so_are_its_places():
  text = said(
    standing('window', around(0.9)), standing('softmax', around(0.8)),
    standing('linear', around(0.7)), standing('wrong_window', around(0.75)),
  )
  assert '1 of 3 pairs change order, 1 of them with intervals' in text
  assert 'Changed: window over softmax' in text
  assert f'τ-b = {1 / 3:.2f}' in text
  assert '| `window` | `wrong_window` | 1 | 2 | -1 |' in text
  assert '| `softmax` | – | 2 | 1 | +1 |' in text
  # The same by chance: seeds scatter more than the difference.
  text = said(
    standing('window', (0.5, 0.9, 0.85)), standing('softmax', around(0.74)),
    standing('wrong_window', (0.9, 0.5, 0.8)),
  )
  assert '1 of 1 pairs change order, 0 of them' in text


def test_a_fault_that_could_not_show_is_no_difference():
  linear = around(0.8)
  text = said(
    standing('linear', linear), standing('wrong_linear', around(0.81)),
    standing('linformer', linear, masked=True),
    standing('wrong_linformer', around(0.7), masked=True),
    standing('performer', linear), standing('wrong_performer', linear),
  )
  assert 'wrong_linear: no mask of padding on this board' in text
  assert 'wrong_performer: the same numbers with every seed' in text
  row = lambda name: next(  # noqa: E731
    x for x in text.splitlines() if x.startswith(f'| `{name}`')
  )
  assert '+1.00' not in row('wrong_linear')
  assert '-10.00' in row('wrong_linformer')
  assert row('wrong_linformer').endswith('| yes |')
  old = standing('linear', linear), standing('wrong_linear', around(0.7))
  for s in old:  # rows from before masks were recorded
    for fields in s.rows.values():
      del fields['masked']
  assert '| unknown: masks were not recorded |' in said(*old)
  # Nor is it put into the ranking.
  assert '1 of them replaced' in text


def test_one_without_its_right_kernel_is_said_and_of_two_the_first_counts():
  text = said(
    standing('sinkhorn', around(0.9)), standing('softmax', around(0.8)),
    standing('wrong_sinkhorn_keys', around(0.7)),
    standing('wrong_sinkhorn', around(0.85)),
    standing('wrong_reformer', around(0.1)),
  )
  assert 'wrong_reformer (no reformer)' in text
  assert 'left out here: wrong_sinkhorn_keys' in text.replace(r'\_', '_')
  assert '0 of 1 pairs change order.' in text
