"""Conversion is strict and exact, in both directions."""

import ml_dtypes
import numpy as np
import pytest

from vit_jax.pretrained import convert

rng = np.random.default_rng(0)


def drawn(*shape):
  return rng.standard_normal(shape).astype(np.float32)


def one(layout, x):
  (out,) = layout.read(x)
  (back,) = layout.write(out)
  np.testing.assert_array_equal(back, x)
  return out


def test_dense_is_a_linear_layer():
  x, weight = drawn(3, 5), drawn(4, 5)
  expected = [[row @ w for w in weight] for row in x]  # torch: x Wᵀ
  np.testing.assert_allclose(x @ one(convert.DENSE, weight), expected, 1e-5)


def test_conv_is_a_patch_embedding():
  patch, weight = drawn(2, 3, 4), drawn(5, 4, 2, 3)  # [y x I]; [O I y x]
  expected = np.einsum('yxi,oiyx->o', patch, weight)
  out = np.einsum('yxi,yxio->o', patch, one(convert.CONV, weight))
  np.testing.assert_allclose(out, expected, 1e-5)


def test_heads_split_the_outputs_of_a_linear_layer():
  # torch: (x Wᵀ + b).reshape(H, D), and out takes them side by side.
  x, weight, bias, out = drawn(6), drawn(6, 6), drawn(6), drawn(6, 6)
  expected = (weight @ x + bias).reshape(3, 2)
  kernel = one(convert.heads(3), weight)
  split = np.einsum('c,chd->hd', x, kernel) + one(convert.heads_bias(3), bias)
  np.testing.assert_allclose(split, expected, 1e-5)
  merged = np.einsum('hd,hdc->c', split, one(convert.heads_out(3), out))
  np.testing.assert_allclose(merged, out @ expected.reshape(-1), 1e-5)


def test_fused_and_stacked_arrays_come_apart_and_together():
  x = drawn(6, 4)
  found = convert.fused(convert.DENSE, 3).read(x)
  for i, part in enumerate(found):
    np.testing.assert_array_equal(part, x[2 * i : 2 * i + 2].T)
  (back,) = convert.fused(convert.DENSE, 3).write(*found)
  np.testing.assert_array_equal(back, x)
  found = convert.stacked(6).read(x)
  np.testing.assert_array_equal(found, x)
  np.testing.assert_array_equal(convert.stacked(6).write(*found)[0], x)


def test_a_row_stands_for_as_many_pairs_as_its_indices():
  found = convert.pairs(
    [('a', 'b', convert.SAME), ('c.{i}.x', ('d_{i}', 'e_{i}'), convert.SAME)],
    i=range(9, 11),
  )
  assert [(p.theirs, p.ours) for p in found] == [
    (('a',), ('b',)),
    (('c.9.x',), ('d_9', 'e_9')),
    (('c.10.x',), ('d_10', 'e_10')),
  ]


def test_flat_names_are_those_of_params_unless_said():
  tree = {'params': {'a': {'b': 1}}, 'batch_stats': {'a': {'mean': 2}}}
  flat = convert.flatten(tree)
  assert flat == {'a/b': 1, 'batch_stats/a/mean': 2}
  assert convert.unflatten(flat, ['batch_stats']) == tree


TABLE = [
  convert.Pair(('w',), ('dense/kernel',), convert.DENSE),
  convert.Pair(('b',), ('dense/bias',), convert.SAME),
]
TARGET = {
  'dense/kernel': np.zeros((3, 2), np.float32),
  'dense/bias': np.zeros(2, np.float32),
}


def arrays(dtype='float32', **more):
  w, b = drawn(2, 3), drawn(2)
  w, b = (x.astype(np.float16).astype(dtype) for x in (w, b))
  return {'w': w, 'b': b, **more}


def read(given, table=TABLE, target=TARGET, dropped=()):
  return convert.read(given, table, target, 'the file', dropped)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float32', 'float64'])
def test_what_is_read_is_written_bit_by_bit_in_its_dtype(dtype):
  dtype = convert.named_dtype(dtype)
  given = arrays(dtype)
  found, dtypes = read(given)
  assert {x.dtype.name for x in found.values()} == {'float32'}
  np.testing.assert_array_equal(
    found['dense/kernel'], given['w'].T.astype(np.float32)
  )
  back = convert.write(found, TABLE, dtypes, 'a new file')
  for name, x in given.items():
    assert back[name].dtype == dtype
    assert back[name].tobytes() == x.tobytes()


def test_numbers_that_no_longer_fit_their_dtype_are_float32():
  found, dtypes = read(arrays('float16'))
  found['dense/bias'][0] = 70000.0  # float16 ends at 65504
  back = convert.write(found, TABLE, dtypes, 'a new file')
  assert (back['w'].dtype, back['b'].dtype) == (np.float16, np.float32)
  np.testing.assert_array_equal(back['b'], found['dense/bias'])


def test_scalars_and_other_kinds_of_numbers_stay_what_they_are():
  table = [
    convert.Pair((n,), (n,), convert.SAME) for n in ('scale', 'state/count')
  ]
  target = {'scale': np.float32(0), 'state/count': np.zeros(2, np.int32)}
  given = {'scale': np.array(2.5, np.float16), 'state/count': np.arange(2)}
  given['state/count'] = given['state/count'].astype(np.int32)
  found, dtypes = read(given, table, target)
  assert found['scale'].shape == ()
  assert found['state/count'].dtype == np.int32
  for known in (dtypes, {}):
    back = convert.write(found, table, known, 'a new file')
    assert back['state/count'].dtype == np.int32
    assert back['scale'].shape == ()


def test_all_faults_are_listed_with_the_nearest_names():
  given = {'kernel_a': drawn(2, 3), 'b': drawn(3), 'more': drawn(1)}
  table = [
    convert.Pair(('kernel.a',), ('dense/kernel',), convert.DENSE), TABLE[1],
    convert.Pair(('more',), ('dense/scale',), convert.SAME),
  ]  # fmt: skip
  target = {**TARGET, 'head/kernel': np.zeros((2, 2), np.float32)}
  with pytest.raises(convert.ConversionError) as error:
    read({**given, 'other': drawn(1)}, table, target)
  assert str(error.value).splitlines() == [
    'the file does not fit:',
    '  no such array: kernel.a (nearest: kernel_a)',
    '  arrays that nothing uses: kernel_a (nearest: kernel.a); other',
    '  variables that nothing fills: head/kernel',
    '  variables that the model has not: dense/scale',
    '  wrong shapes or dtypes: b (3,) gives dense/bias (3,) float32; the model '
    'has (2,) float32',
  ]


@pytest.mark.parametrize(
  ('given', 'text'),
  [
    ({'w': drawn(2)}, r'w \(2,\) cannot become dense/kernel: 1 dimensions'),
    ({'w': drawn(3, 2)}, r'gives dense/kernel \(2, 3\) float32; the model'),
    ({'b': np.zeros(2, np.int8)}, "'b' is int8; weights are float16, bfloat16"),
    ({'b': np.array([0.1, 1])}, "'b' is float64 and would lose digits"),
    ({'b': np.array([1e300, 1])}, "'b' is float64 and would lose digits"),
    ({'b': np.zeros(2, np.complex64)}, "'b' is complex64; weights are"),
  ],
)
def test_wrong_shapes_and_dtypes_are_refused(given, text):
  with pytest.raises(convert.ConversionError, match=text):
    read(arrays(**given))


def test_a_float_for_a_count_is_refused():
  target = {**TARGET, 'dense/bias': np.zeros(2, np.int32)}
  with pytest.raises(convert.ConversionError, match=r'the model has .* int32'):
    read(arrays(), target=target)


def test_only_what_is_listed_is_dropped():
  given = arrays(**{'opt/step': np.ones(1), 'opt_extra': np.ones(1)})
  with pytest.raises(convert.ConversionError, match='uses: opt_extra$'):
    read(given, dropped=(r'^opt/',))
  read(given, dropped=(r'^opt/', r'^opt_'))


def test_a_long_list_is_cut_and_counted():
  given = arrays(**{f'other_{i}': np.ones(1) for i in range(20)})
  with pytest.raises(convert.ConversionError, match='other_11; and 8 more'):
    read(given)


def test_names_of_any_number_and_length_are_looked_through_quickly():
  # The nearest of a million names would take minutes to find.
  given = {f'{i:06d}' + 'x' * 40: np.zeros(()) for i in range(100_000)}
  given['y' * 10**6] = np.zeros(())
  with pytest.raises(convert.ConversionError, match='and 9.* more') as error:
    read(given)
  assert len(str(error.value)) < 10**4


def test_writing_is_strict_too():
  flat = {'dense/kernel': drawn(3, 2), 'dense/biases': drawn(2)}
  with pytest.raises(convert.ConversionError) as error:
    convert.write(flat, TABLE, {}, 'a new file')
  assert str(error.value).splitlines() == [
    'a new file does not fit:',
    '  variables that the format has no place for: dense/biases',
    '  variables that the format wants: dense/bias (nearest: dense/biases)',
  ]


def test_parts_of_one_array_share_the_dtype_that_holds_them_all():
  table = [
    convert.Pair(('qk',), ('q', 'k'), convert.fused(convert.SAME, 2))
  ]
  flat = {'q': np.float32([1.5]), 'k': np.float32([0.1])}
  dtypes = {'q': 'bfloat16', 'k': 'bfloat16'}
  found = convert.write(flat, table, dtypes, 'a new file')
  np.testing.assert_array_equal(found['qk'], np.float32([1.5, 0.1]))
  flat['k'] = np.float32([0.125])
  found = convert.write(flat, table, dtypes, 'a new file')
  assert found['qk'].dtype == ml_dtypes.bfloat16
