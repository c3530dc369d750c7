"""Strict JAX for every test: 8 fake devices, checked shapes, no promotion."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['JAX_NUM_CPU_DEVICES'] = '8'

import jaxtyping

hook = jaxtyping.install_import_hook('vit_jax', 'beartype.beartype')
hook.__enter__()

import absl.flags
import jax

absl.flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags
jax.config.update('jax_numpy_rank_promotion', 'raise')
