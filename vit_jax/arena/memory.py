"""Memory of this process: what a program will need, and what it may take."""

import ctypes
import importlib.metadata
import importlib.util
import sys
from typing import Any

import jax

from vit_jax.arena import process

GIB = 2**30


def keep_freed() -> None:
  """On a CPU, has glibc keep freed memory: it is needed again next step.

  XLA's temporaries are otherwise unmapped and faulted in again at every call: a
  training step of ViT-S/16 on two cores took 1.17 times as long, softmax at
  2,048 tokens 2.7 times. Has no effect once a device was touched. Not for hosts
  of accelerators, whose many decoding threads want an arena each.
  """
  accelerator = importlib.metadata.entry_points(group='jax_plugins')
  libc = _glibc()
  if accelerator or importlib.util.find_spec('libtpu') or libc is None:
    return
  # M_ARENA_MAX=1, M_MMAP_MAX=0, M_TRIM_THRESHOLD=never, M_TOP_PAD=64 MiB
  for option, value in ((-8, 1), (-4, 0), (-1, -1), (-2, 2**26)):
    libc.mallopt(option, value)


def free_bytes() -> int:
  """What a program may take, with all that this process kept given back."""
  libc = _glibc()
  if libc is not None:
    libc.malloc_trim(0)
  return process.available_bytes()


def _glibc() -> Any:
  if not sys.platform.startswith('linux'):
    return None
  libc = ctypes.CDLL(None)
  return libc if hasattr(libc, 'malloc_trim') else None


def temporaries(compiled: Any) -> int:
  """Bytes of temporaries that XLA plans for a compiled function."""
  return compiled.memory_analysis().temp_size_in_bytes


def held(tree: Any) -> int:
  """Bytes of a tree of arrays or their shapes."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
