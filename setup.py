"""Installs vit_jax; `constraints.txt` pins what CI tested."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent
VERSION = re.search(
  r"__version__ = '(.+)'", (HERE / 'vit_jax' / '__init__.py').read_text()
).group(1)

# Version 0.x libraries break between minors: the upper bounds are the next
# minor (or major) after the newest that was tested.
CORE = [
  'jax>=0.10,<0.12',
  'flax>=0.12,<0.13',
  'optax>=0.2.8,<0.3',
  'orbax-checkpoint>=0.12,<0.13',
  'ml-collections>=1.1,<2',
  'tensorflow-datasets>=4.9.9,<5',
  'array-record>=0.8,<0.9',
  'importlib-resources>=6,<8',  # tfds imports it without declaring it
  'grain>=0.2.15,<0.3',
  'numpy>=2,<3',
  'scipy>=1.13,<2',
  'ott-jax>=0.6,<0.7',
  'pillow>=11,<14',
  'simplejpeg>=1.8,<2',
  'tensorboardX>=2.6.4,<3',
  'safetensors>=0.5,<0.9',
  'requests>=2.32,<3',
  'fsspec>=2025',
  'flatbuffers>=24,<27',
  'scikit-learn>=1.5,<2',
  'matplotlib>=3.9,<4',
  'plotly>=6,<8',
  'jaxtyping>=0.3,<0.4',
  'absl-py>=2,<3',
]
EXTRAS = {
  'test': [
    'pytest>=9,<10',
    'pytest-xdist>=3.8,<4',
    'beartype>=0.22,<0.24',
    'ruff>=0.15,<0.18',
    'nbclient>=0.10,<0.12',
    'nbformat>=5.10,<6',
    'ipykernel>=6,<8',
    'huggingface-hub>=1,<3',
  ],
  'hub': ['huggingface-hub>=1,<3', 'gcsfs>=2025'],  # hf-hub:… and gs://…
  'tf': ['tensorflow-cpu>=2.20,<3'],  # only to prepare TFDS sets that need it
  'gpu': ['jax[cuda12]>=0.10,<0.12'],
  'tpu': ['jax[tpu]>=0.10,<0.12'],
}

setuptools.setup(
  name='vit_jax',
  version=VERSION,
  description='Vision Transformers in JAX, with any attention in any model.',
  long_description=(HERE / 'README.md').read_text(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  packages=setuptools.find_packages(include=['vit_jax', 'vit_jax.*']),
  python_requires='>=3.11',
  install_requires=CORE,
  extras_require=EXTRAS,
)
