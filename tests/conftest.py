"""Strict JAX for every test: 8 fake devices, checked shapes, no promotion."""

import os
import tempfile

# Runs of the same program, in this process or in those that tests start,
# compile it once; xdist's workers inherit the variable and share the folder.
CACHE = tempfile.TemporaryDirectory()
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['JAX_NUM_CPU_DEVICES'] = '8'
# LLVM's higher levels take 3 times as long on these small programs.
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', CACHE.name)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

import jaxtyping
import pytest

hook = jaxtyping.install_import_hook('vit_jax', 'strict.check')
hook.__enter__()

import absl.flags
import jax

absl.flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags
jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
  """A worker runs a whole file, or all about one entry of the attentions."""
  for item in items:
    group = item.path.name
    for name in ('built', 'entry'):
      if hasattr(item, 'callspec') and name in item.callspec.params:
        group = f'attention {item.callspec.params[name]}'
    item.add_marker(pytest.mark.xdist_group(group))
