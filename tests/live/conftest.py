"""Comparisons with PyTorch packages, skipped where torch is not installed.

pip install torch timm transformers && pytest tests/live
"""

import importlib.util
import sys

OPERATORS = ('nms', 'qnms')  # that torchvision's import asks for


def pytest_addoption(parser):
  parser.addoption(
    '--regenerate', action='store_true', help='write the goldens anew'
  )


def pytest_runtest_setup(item):
  # Under a plain `pytest` this file is found after the options were parsed.
  if not hasattr(item.config.option, 'regenerate'):
    item.config.option.regenerate = False


def declare_operators():
  """Lets torchvision import without its compiled part, if that does not load.

  On PyPI that part is built for PyTorch with CUDA; beside PyTorch for CPUs the
  whole import fails. timm and transformers use the transforms only.
  """
  import torch

  try:
    import torchvision  # noqa: F401
  except RuntimeError as e:
    if 'operator torchvision::' not in str(e):
      raise
    for name in [n for n in sys.modules if n.split('.')[0] == 'torchvision']:
      del sys.modules[name]
    for name in OPERATORS:
      torch.library.define(
        f'torchvision::{name}',
        '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
      )


if all(importlib.util.find_spec(n) for n in ('torch', 'torchvision')):
  declare_operators()
