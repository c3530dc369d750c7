"""Converts a checkpoint: python -m vit_jax.pretrained SRC DST --format=FORMAT.

Without DST it only says what SRC is.
"""

import argparse
import sys
from collections.abc import Sequence

import jax

from vit_jax import pretrained


def main(argv: Sequence[str] | None = None) -> int:
  """The command; returns the exit status."""
  writable = [k for k, m in pretrained.FORMATS.items() if hasattr(m, 'write')]
  parser = argparse.ArgumentParser(
    prog='python -m vit_jax.pretrained',
    description='Converts a checkpoint, strictly; prints what became what.',
  )
  parser.add_argument('src', metavar='SRC', help='what pretrained.load reads')
  parser.add_argument('dst', metavar='DST', nargs='?', help='a new name')
  parser.add_argument('--format', choices=writable, default='vit_jax')
  parser.add_argument(
    '--quiet', action='store_true', help='without the list of arrays'
  )
  args = parser.parse_args(argv)
  try:
    found = pretrained.load(args.src)
    _show(args.src, found, args.quiet)
    if args.dst:
      mapping = pretrained.save(args.dst, found, args.format)
      if not args.quiet:
        _show_mapping('written as', mapping)
      print(f'{args.dst}: written in the format {args.format}')
  except (ValueError, OSError) as e:
    print(f'error: {e}', file=sys.stderr)
    return 2
  return 0


def _show(src: str, found: pretrained.Pretrained, quiet: bool) -> None:
  size = sum(x.size for x in jax.tree.leaves(found.variables['params']))
  fields = ', '.join(f'{k}={v!r}' for k, v in found.config.items())
  if not quiet:
    _show_mapping('read from', found.mapping)
  print(f'{src}: {size:,} parameters')
  print(f'  model       {fields}')
  print(f'  preprocess  {found.preprocess["transform"]}')
  print(f'  labels      {len(found.labels)}')


def _show_mapping(what: str, mapping: Sequence[tuple[str, str]]) -> None:
  for theirs, ours in mapping:
    print(f'{ours}  {what}  {theirs}')


if __name__ == '__main__':
  sys.exit(main())
