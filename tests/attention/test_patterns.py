"""The algebra of patterns, its tables of blocks, and what is built of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention.oracles.facts import softmax
from vit_jax import attention
from vit_jax.attention import blocks, patterns, tables
from vit_jax.attention.algebra import Layout

EXPRESSIONS = (
  'full', 'causal', 'globals(count=2)', 'window(size=3)',
  'window(size=4, shift=2)', 'sliding(size=4)', 'neighborhood(size=5)',
  'dilated(size=5, dilation=3)', 'row', 'column', 'band(size=3)', 'chunk',
  'strided', 'summary(size=5, count=2)', 'image1d(size=4, memory=3)',
  'image2d(size=3, memory=2)', 'blocks(size=3, reach=2)', 'ends(size=4)',
  'random(size=3, count=2)', 'row | column', 'band | strided & ~causal',
  'sliding(size=3) & ~column | globals(count=1) | random(size=2)',
  '(row | column | window(size=2)) & causal', '~(window(size=3) | prefix)',
  'row & ~row',
)  # fmt: skip
LAYOUTS = (
  Layout.of(1), Layout.of(16), Layout.of(30, (5, 6)),
  Layout.of(197, (14, 14), 1), Layout.of(31, None, 2),
  Layout.of(29, None, 1, planar=True), Layout.of(3, None, 3),
)  # fmt: skip


@pytest.mark.parametrize('block', [0, 1, 5])
@pytest.mark.parametrize('text', EXPRESSIONS)
def test_the_blocks_hold_every_kept_pair_exactly_once(text, block):
  # Kernels join the prefix, without which its pairs are undefined.
  pattern = patterns.parse(text) | patterns.Prefix()
  for layout in LAYOUTS:
    n = layout.n
    found = np.zeros((n + 1, n + 1), int)
    parts = tables.plan(pattern, layout, layout, block)
    for part in parts:
      seen = []
      for table in part.tables:
        keys, rows = table.keys, table.queries
        for some, several in zip(rows, keys, strict=True):
          some, several = some[some < n], several[several < n]
          kept = part.pattern.keep(
            layout.tokens(some)[:, None], layout.tokens(several)[None]
          )
          found[np.ix_(some, several)] += np.broadcast_to(
            kept, (len(some), len(several))
          )
        seen += list(rows.ravel())
      for query, row in enumerate(part.rows):
        assert row == len(seen) or seen[row] == query, (layout, query)
    np.testing.assert_array_equal(
      found[:n, :n], patterns.kept(pattern, layout), err_msg=f'{text} {layout}'
    )


def test_predicates_are_the_same_traced_and_in_numpy():
  layout = Layout.of(41, (5, 8), 1)
  found = [patterns.parse(text) for text in EXPRESSIONS]

  @jax.jit
  def masks(index):
    tokens = layout.tokens(index)
    kept = [p.keep(tokens[:, None], tokens[None]) for p in found]
    return [jnp.broadcast_to(k, (layout.n, layout.n)) for k in kept]

  for text, pattern, mask in zip(
    EXPRESSIONS, found, masks(jnp.arange(layout.n)), strict=True
  ):
    np.testing.assert_array_equal(
      mask, patterns.kept(pattern, layout), err_msg=text
    )


@pytest.mark.parametrize(
  ('text', 'most'),
  [
    ('window(size=8)', 1.0), ('sliding(size=65)', 2.1), ('row | column', 1.1),
    ('neighborhood(size=7)', 4.1), ('strided | band', 2.0),
    ('chunk | summary', 1.1), ('dilated(size=33, dilation=4)', 3.1),
    ('blocks(size=16) | ends(size=16) | random(size=16)', 1.3),
    ('sliding(size=65) | globals(count=3)', 2.1), ('causal', 1.3),
  ],
)  # fmt: skip
def test_blocks_hold_few_pairs_that_are_not_kept(text, most):
  grid = (64, 64) if 'neigh' in text or 'window' in text else None
  layout = Layout.of(4096, grid)
  pattern = patterns.parse(text)
  pairs = tables.pairs(tables.plan(pattern, layout, layout))
  assert pairs <= most * patterns.kept(pattern, layout).sum()


def test_at_most_four_sizes_of_blocks_are_compiled():
  layout = Layout.of(1000)
  (part,) = tables.plan(patterns.Causal(), layout, layout, 16)
  assert len(part.tables) == 4


# Masks known by hand.


def rows_of(text, n, **layout):
  mask = patterns.mask(patterns.parse(text), n, **layout)
  return [list(np.flatnonzero(row)) for row in mask]


def test_a_chunk_is_consecutive_tokens_and_not_a_stride():
  # Long-Range Arena's local attention has {0, 4, 8, 12} for token 0.
  assert rows_of('window(size=4)', 16)[0] == [0, 1, 2, 3]
  assert rows_of('window(size=4)', 16)[6] == [4, 5, 6, 7]
  assert rows_of('strided(size=4)', 16)[0] == [0, 4, 8, 12]


def test_windows_and_slides_in_a_sequence_by_hand():
  assert rows_of('window(size=2)', 5) == [[0, 1], [0, 1], [2, 3], [2, 3], [4]]
  assert rows_of('sliding(size=3)', 4) == [[0, 1], [0, 1, 2], [1, 2, 3], [2, 3]]
  assert rows_of('neighborhood(size=3)', 4) == [
    [0, 1, 2], [0, 1, 2], [1, 2, 3], [1, 2, 3],
  ]  # fmt: skip
  assert rows_of('window(size=2, shift=1)', 4) == [[0], [1, 2], [1, 2], [3]]
  assert rows_of('sliding(size=3) & causal', 3) == [[0], [0, 1], [1, 2]]


def test_windows_on_a_grid_by_hand():
  # 0 1 2
  # 3 4 5
  found = rows_of('window(size=2)', 6, grid=(2, 3))
  assert found[0] == found[4] == [0, 1, 3, 4]
  assert found[2] == found[5] == [2, 5]
  assert rows_of('sliding(size=3)', 6, grid=(2, 3))[0] == [0, 1, 3, 4]
  assert rows_of('row | column', 6, grid=(2, 3))[1] == [0, 1, 2, 4]


def test_a_sequence_is_the_smallest_nearly_square_grid():
  for n, rows, columns in ((1, 1, 1), (4, 2, 2), (5, 2, 3), (13, 4, 4)):
    layout = Layout.of(n + 2, prefix=2)
    assert (layout.rows, layout.columns) == (rows, columns)
  assert rows_of('column', 5) == [[0, 3], [1, 4], [2], [0, 3], [1, 4]]


def test_every_row_of_random_blocks_is_drawn_once_by_the_seed():
  mask = lambda seed: patterns.mask(patterns.Random(2, 3, seed), 40)  # noqa: E731
  np.testing.assert_array_equal(mask(0), mask(0))
  assert (mask(0) != mask(1)).any()
  assert (mask(0)[10:30].sum(1) == 6).all()
  other = patterns.mask(patterns.Blocks(2) | patterns.Ends(2), 40)
  assert not (mask(0) & other)[2:-2].any()  # the ends see everything


def test_and_binds_tighter_than_or_and_not_tightest():
  a, b, c = patterns.Row(), patterns.Column(), patterns.Causal()
  assert patterns.parse('row | column & causal') == a | (b & c)
  assert patterns.parse('~row & column') == ~a & b


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('slding(size=3)', "unknown pattern 'slding'; did you mean 'sliding'"),
    ('sliding(3)', 'write the options'),
    ('sliding(length=3)', "no option 'length'"),
    ('sliding(size=0)', 'Sliding needs size ≥ 1, not 0'),
    ('neighborhood(size=4)', 'size is odd, not 4'),
    ('row |', 'cannot read the pattern'),
    ('row + column', 'neither'),
    ('', 'cannot read the pattern'),
    ('row\0', 'cannot read the pattern'),
  ],
)
def test_a_wrong_expression_names_the_choices(text, message):
  with pytest.raises(ValueError, match=message):
    patterns.parse(text)


# The engines.


def inputs(n, heads=2, width=4, scale=1.0):
  rng = np.random.default_rng(n)
  return [
    jnp.asarray(scale * rng.standard_normal((1, n, heads, width)), jnp.float32)
    for _ in range(3)
  ]


def dense(mask, q, k, v, bias=0.0):
  return softmax(*(np.asarray(x[0], np.float64) for x in (q, k, v)), mask, bias)


@pytest.mark.parametrize(
  ('spec', 'n', 'grid', 'prefix'),
  [
    ('criss_cross', 197, (14, 14), 1),
    ('longformer(size=5, causal=True)', 30, (5, 6), 0),
    ('strided', 30, None, 0),
    ("pattern(keep=('strided', 'row', 'full'))", 16, (4, 4), 0),
    ('bigbird(block=8)', 197, None, 0),
    ('neighborhood(size=5)', 1, (1, 1), 0),
  ],
)
@pytest.mark.parametrize('constant', [0, 2**16])
def test_blocks_equal_the_dense_softmax(
  spec, n, grid, prefix, constant, monkeypatch
):
  """With masks from NumPy, and with masks made on the device."""
  monkeypatch.setattr(blocks, 'CONSTANT', constant)
  kernel = attention.build(spec, grid=grid, prefix=prefix, engine='blocks')
  q, k, v = inputs(n, heads=3)
  mask = patterns.mask(kernel, n)
  if mask.ndim == 3:
    mask = mask[np.arange(3) % len(mask)]
  out = jax.jit(kernel.apply)({}, q, k, v)
  np.testing.assert_allclose(out[0], dense(mask, q, k, v), atol=1e-5)


def test_parts_of_a_union_merge_exactly_where_logits_differ_by_hundreds():
  q, k, v = inputs(16, scale=15.0)
  kernel = attention.build("criss_cross(engine='blocks')", grid=(4, 4))
  assert len(kernel.plans(16, 2)[0][1]) == 2
  out = jax.jit(kernel.apply)({}, q, k, v)
  expected = dense(patterns.mask(kernel, 16), q, k, v)
  np.testing.assert_allclose(out[0], expected, atol=1e-4)


@pytest.mark.parametrize('name', ['swin', 'etc'])
def test_relative_biases_are_the_same_on_the_device(name, monkeypatch):
  q, k, v = inputs(17)
  kernel = attention.build(f"{name}(engine='blocks')", grid=(4, 4), prefix=1)
  shapes = jax.eval_shape(kernel.init, jax.random.key(0), q, k, v)
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda s: jnp.asarray(rng.standard_normal(s.shape), s.dtype), shapes
  )
  run = lambda: jax.jit(lambda *a: kernel.apply(*a))(params, q, k, v)  # noqa: E731
  expected = run()
  monkeypatch.setattr(blocks, 'CONSTANT', 0)
  np.testing.assert_allclose(run(), expected, atol=1e-6)


def test_gradients_of_a_bias_equal_those_of_the_dense_engine():
  q, k, v = inputs(13)
  rng = np.random.default_rng(2)
  bias = jnp.asarray(rng.standard_normal((1, 1, 13, 13)), jnp.float32)
  grads = {}
  for engine in ('blocks', 'dense'):
    kernel = attention.build(
      'fixed(size=4)', prefix=1, grid=(3, 4), engine=engine
    )

    @jax.jit
    def gradient(bias, kernel=kernel):
      return jax.grad(
        lambda b: jnp.sum(kernel.apply({}, q, k, v, bias=b) ** 2)
      )(bias)

    grads[engine] = np.asarray(gradient(bias))
  np.testing.assert_allclose(grads['blocks'], grads['dense'], atol=1e-5)
  kept = patterns.mask(kernel, 13)
  assert np.abs(grads['blocks'][0, 0][kept]).min() > 0
  assert not grads['blocks'][0, 0][~kept].any()


def test_auto_is_dense_where_blocks_would_hold_half_of_all_pairs():
  held = lambda spec, n: tables.pairs(  # noqa: E731
    attention.build(spec).plans(n, 1)[0][1]
  )
  assert held('sliding(size=9)', 16) == 16 * 16
  assert held('sliding(size=9)', 256) < 256 * 40


def test_axial_reaches_every_token_by_way_of_its_column():
  kernel = attention.build('axial', grid=(3, 4), prefix=1)
  assert patterns.mask(kernel, 13).all()
  causal = kernel.clone(causal=True)
  mask = patterns.mask(causal, 13)
  assert not np.triu(mask, 1).any()
  # Row 2's first column does not see row 1's last, as its own column does not.
  assert not mask[1 + 8, 1 + 7]
  assert mask[1 + 11, 1 + 5]


def test_heads_that_take_turns_have_one_pattern_each():
  kernel = attention.build('strided(size=3, per_head=True)')
  masks = patterns.mask(kernel, 12)
  np.testing.assert_array_equal(
    masks[0] | masks[1], patterns.mask(attention.build('strided(size=3)'), 12)
  )
  assert masks.shape == (2, 12, 12)


def test_swin_weights_are_the_originals_table():
  """Row (r, c) of the bias table is the offset query - key, plus size - 1."""
  kernel = attention.build('swin(size=2)', grid=(2, 2))
  q, k, v = inputs(4, heads=1)
  table = np.zeros((9, 1), np.float32)
  table[(1 + 1) * 3 + (-1 + 1)] = 20.0  # one row below, one column to the left
  out = kernel.apply(
    {'params': {'relative_bias': jnp.asarray(table)}}, q, k, v
  )
  # Token 2, at (1, 0), is one row below and one column left of 1, at (0, 1).
  np.testing.assert_allclose(out[0, 2], v[0, 1], atol=1e-4)


@pytest.mark.parametrize(
  'name', ['window', 'focal', 'axial', 'longformer', 'bigbird', 'etc']
)
def test_a_sequence_that_is_all_prefix_is_full_attention(name):
  kernel = attention.build(name, prefix=5)
  q, k, v = inputs(5)
  out, _ = jax.jit(kernel.init_with_output)(jax.random.key(0), q, k, v)
  once = dense(True, q, k, v)
  if name == 'axial':  # twice
    once = softmax(np.asarray(q[0]), np.asarray(k[0]), once)
  np.testing.assert_allclose(out[0], once, atol=1e-5)


def test_blocks_work_under_vmap_gradients_and_rematerialisation(monkeypatch):
  monkeypatch.setattr(blocks, 'CONSTANT', 0)  # with the barrier
  kernel = attention.build("window(size=2, engine='blocks')", grid=(3, 4))
  q, k, v = inputs(12)
  value = lambda q: jnp.sum(kernel.apply({}, q, k, v) ** 2)  # noqa: E731
  both = jnp.stack([q, 2 * q])
  found = jax.jit(jax.vmap(jax.grad(jax.checkpoint(value))))(both)
  np.testing.assert_allclose(found[1], jax.grad(value)(2 * q), atol=1e-5)


# Bad input.


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ("window(engine='fast')", "engine='fast'; choices: auto, blocks, dense"),
    ('window(size=0)', 'Window needs size ≥ 1, not 0'),
    ('swin(size=2, shift=2)', 'shift=2 is not between 0 and size - 1 = 1'),
    ('neighborhood(size=2)', 'size is odd, not 2'),
    ('longformer(global_projections=True)', 'give x, or take'),
    ("pattern(keep='windw(size=2)')", "did you mean 'window'"),
  ],
)
def test_a_bad_option_is_refused(spec, message):
  kernel = attention.build(spec)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(kernel.init, jax.random.key(0), *inputs(5))


def test_longformer_with_projections_cannot_decode_without_x():
  kernel = attention.build('longformer(global_projections=True, causal=True)')
  with pytest.raises(ValueError, match='no x to project'):
    kernel.init_state(1, 4, 1, 2, jnp.float32)
