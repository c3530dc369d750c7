"""What imports what: lazily, in one direction, and without heavy libraries."""

import ast
import functools
import pathlib
import subprocess
import sys

import pytest

import vit_jax

ROOT = pathlib.Path(vit_jax.__file__).parent
HEAVY = (
  'tensorflow', 'torch', 'grain', 'tensorflow_datasets', 'ml_collections',
  'matplotlib', 'sklearn', 'PIL', 'orbax.checkpoint', 'tensorboardX',
  'simplejpeg', 'safetensors', 'ott', 'plotly',
)  # fmt: skip

# What each module may import of vit_jax, besides itself; `data.transforms`
# allows that module only. Everything below an entry point is its toolbox.
ANY = ('shapes', 'specs')
LIBRARY = (
  'attention', 'checkpoints', 'data', 'evaluate', 'flops', 'identity',
  'layers', 'metrics', 'models', 'optimizers', 'plots', 'pretrained',
  'sharding', 'state', 'tasks', 'transport', 'writers', *ANY,
)  # fmt: skip
MAY_IMPORT = {
  'specs': (),
  'shapes': (),
  'identity': (),
  'flops': (),
  'writers': (),
  'checkpoints': (),
  'transport': ('shapes',),
  'metrics': ('shapes',),
  'plots': ('writers',),
  'data': ('specs',),
  'layers': ('attention.positions', *ANY),
  'attention': ('transport', *ANY),
  'models': ('layers', 'attention', *ANY),
  'tasks': ('metrics', 'transport', *ANY),
  'optimizers': ANY,
  'sharding': ('optimizers', *ANY),
  'state': ('optimizers', 'sharding', *ANY),
  'evaluate': ('metrics', 'sharding', *ANY),
  'smoothing': ('attention', *ANY),
  'pretrained': (
    'models', 'layers', 'checkpoints', 'data.transforms', *ANY,
  ),
  'fewshot': ('sharding', *ANY),
  'start': ('pretrained', 'data', 'identity', 'layers', *ANY),
  'predict': ('pretrained', 'plots', 'data', 'models', *ANY),
  'train': LIBRARY,
  'benchmark': ('train', *LIBRARY),
  'building': ('start', *LIBRARY),
  'arena': ('train', 'benchmark', 'building', 'start', *LIBRARY),
  'main': (
    'train', 'benchmark', 'arena', 'building', 'fewshot', 'start', *LIBRARY
  ),
}  # fmt: skip


@functools.cache
def sources(folder=ROOT):
  """path → syntax tree of every module."""
  return {
    path.relative_to(folder): ast.parse(path.read_text())
    for path in sorted(folder.rglob('*.py'))
  }


def module_of(path):
  """'attention.base' for attention/base.py, 'attention' for its __init__."""
  parts = path.with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


@functools.cache
def modules():
  return {module_of(path): tree for path, tree in sources().items()}


def imports(tree):
  """Every module that is imported anywhere in the tree, dotted."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, 'imports are absolute'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def ours(tree):
  """The modules of vit_jax that the tree imports, without the prefix."""
  for name in imports(tree):
    if name.split('.')[0] == 'vit_jax':
      name = name.removeprefix('vit_jax').removeprefix('.')
      while name and name not in modules():  # a name inside a module
        name = name.rpartition('.')[0]
      if name:
        yield name


def test_every_module_has_its_place_in_the_order():
  found = {name.split('.')[0] for name in modules() if name}
  assert found <= set(MAY_IMPORT)


def test_modules_import_only_what_is_below_them():
  wrong = []
  for name, tree in modules().items():
    top = name.split('.')[0]
    if not top:  # vit_jax itself is lazy and imports nothing
      assert not list(ours(tree))
      continue
    allowed = (top, *MAY_IMPORT[top])
    wrong += [
      f'{name} imports {other}'
      for other in ours(tree)
      if not any(other == a or other.startswith(f'{a}.') for a in allowed)
    ]
  assert not wrong


def test_the_order_itself_has_no_cycle():
  def below(name, above=()):
    assert name not in above, ' → '.join((*above, name))
    for other in MAY_IMPORT[name.split('.')[0]]:
      # One module of a package may lie lower than the package.
      if '.' not in other:
        below(other, (*above, name))

  for name in MAY_IMPORT:
    below(name)


def test_no_module_imports_itself_by_way_of_others():
  graph = {name: set(ours(tree)) for name, tree in modules().items()}
  done = set()

  def visit(name, above):
    assert name not in above, ' → '.join((*above, name))
    if name not in done:
      for other in graph[name]:
        visit(other, (*above, name))
      done.add(name)

  for name in graph:
    visit(name, ())


def test_reading_data_needs_no_jax():
  wrong = [
    f'{name} imports {other}'
    for name, tree in modules().items()
    if name.split('.')[0] in ('data', 'specs')
    for other in imports(tree)
    if other.split('.')[0] in ('jax', 'jaxlib', 'flax', 'optax')
  ]
  assert not wrong


def test_configs_import_nothing_of_the_library():
  found = sources(ROOT.parent / 'configs')
  assert found
  for path, tree in found.items():
    for name in imports(tree):
      assert name.split('.')[0] != 'vit_jax', f'{path} imports {name}'


def test_only_main_knows_ml_collections():
  for name, tree in modules().items():
    if name != 'main':
      assert 'ml_collections' not in {i.split('.')[0] for i in imports(tree)}


def test_nothing_hides_behind_type_checking():
  for path, tree in sources().items():
    for node in ast.walk(tree):
      name = getattr(node, 'id', getattr(node, 'attr', None))
      assert name != 'TYPE_CHECKING', path


def test_no_get_has_a_default():
  # A default where a value is read hides a misspelt key.
  found = {
    (str(path), ast.unparse(node))
    for path, tree in sources().items()
    for node in ast.walk(tree)
    if isinstance(node, ast.Call)
    and isinstance(node.func, ast.Attribute)
    and node.func.attr == 'get'
    and len(node.args) + len(node.keywords) > 1
  }
  assert not found


def test_nothing_is_caught_without_a_name():
  for path, tree in sources().items():
    for node in ast.walk(tree):
      if isinstance(node, ast.ExceptHandler):
        assert node.type is not None, f'{path}:{node.lineno}'


def undocumented(tree, inside=''):
  kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
  for node in tree.body:
    if isinstance(node, kinds):
      name = f'{inside}{node.name}'
      if node.name != '__call__' and node.name.startswith('_'):
        continue
      if ast.get_docstring(node) is None:
        yield name
      if isinstance(node, ast.ClassDef):
        yield from undocumented(node, f'{name}.')


def test_everything_public_has_a_docstring():
  wrong = [
    f'{path}: {name}'
    for path, tree in sources().items()
    for name in undocumented(tree)
  ]
  wrong += [
    str(path)
    for path, tree in sources().items()
    if ast.get_docstring(tree) is None
  ]
  assert not wrong


def python(code):
  run = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT.parent, capture_output=True,
    text=True, check=False,
  )  # fmt: skip
  assert run.returncode == 0, run.stderr
  return run.stdout


def test_models_and_attention_import_nothing_heavy():
  found = python(
    'import sys, vit_jax\n'
    'assert "jax" not in sys.modules\n'
    'vit_jax.models; vit_jax.attention\n'
    'print(*sys.modules)'
  )
  assert not set(HEAVY) & set(found.split())


def test_models_work_where_only_jax_flax_and_numpy_are_installed():
  missing = ('jaxtyping', 'beartype', *HEAVY)
  out = python(
    'import sys\n'
    # flax brings orbax along, which is its affair.
    f'for name in {missing!r}:\n'
    '  if name != "orbax.checkpoint": sys.modules[name] = None\n'
    'import jax, vit_jax\n'
    'model = vit_jax.models.build("vit", variant="Ti/16", num_classes=3,\n'
    '  num_layers=1, image_size=32)\n'
    'x = jax.ShapeDtypeStruct((2, 32, 32, 3), "float32")\n'
    'out, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), x)\n'
    'print(out.shape)\n'
  )
  assert out.strip() == '(2, 3)'


@pytest.mark.parametrize(
  'name',
  [
    'attention', 'checkpoints', 'data', 'evaluate', 'layers', 'metrics',
    'models', 'optimizers', 'sharding', 'specs', 'tasks', 'train',
    'pretrained', 'smoothing', 'transport',
  ],
)
def test_every_public_module_is_reached_by_attribute(name):
  assert getattr(vit_jax, name).__name__ == f'vit_jax.{name}'
  assert name in dir(vit_jax)


def test_an_unknown_attribute_names_those_there_are():
  with pytest.raises(AttributeError, match=r"no 'model'; it has .*models"):
    vit_jax.model  # noqa: B018
