"""Strict JAX for every test: 8 fake devices, checked shapes, no promotion."""

import importlib.metadata
import os
import tempfile

# Runs of the same program, in this process or in those that tests start,
# compile it once; xdist's workers inherit the variable and share the folder.
CACHE = tempfile.TemporaryDirectory()
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['JAX_NUM_CPU_DEVICES'] = '8'
# These small programs take longer to compile than to run: LLVM's higher levels
# take 3 times as long, the fusion emitters of jaxlib 0.10 1.7 times.
FLAGS = '--xla_backend_optimization_level=0'
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  FLAGS += (
    ' --xla_cpu_use_fusion_emitters=false'
    ' --xla_cpu_parallel_codegen_split_count=1'
  )
os.environ.setdefault('XLA_FLAGS', FLAGS)
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', CACHE.name)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

import jaxtyping

hook = jaxtyping.install_import_hook('vit_jax', 'strict.check')
hook.__enter__()

import absl.flags
import jax

absl.flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags
jax.config.update('jax_numpy_rank_promotion', 'raise')
