"""Installs vatt_jax: pip install -e '.[test]'."""

import setuptools

# Bounded on both sides, tightly where releases break their users, so that an
# install next month still works.
REQUIREMENTS = [
    'absl-py>=2.1,<3',
    'array-record>=0.8,<0.9; platform_system == "Linux"',
    'av>=17,<19',                        # decodes and writes media (FFmpeg)
    'clu>=0.0.12,<0.1',
    'dm-pix>=0.4.4,<0.5',                # changes colours on the device
    'flax>=0.12.6,<0.13',
    'jax>=0.10.2,<0.13',                 # Python 3.11 has no JAX above 0.10
    'jinja2>=3.1,<4',                    # report.html
    'matplotlib>=3.9,<4',                # its figures
    'ml_collections>=1.1,<2',
    'numpy>=2.0,<3',
    'opencv-python-headless>=4.10,<6',   # resizes pictures
    'optax>=0.2.6,<0.3',
    'orbax-checkpoint>=0.12.6,<0.13',
    'pillow>=11',                        # reads images
    'safetensors>=0.5,<1',               # weights for others to read
    'scikit-learn>=1.6,<2',              # linear probes, measures, t-SNE
    'scipy>=1.13,<2',                    # d-prime, densities
    'sentencepiece>=0.2.1,<0.3',         # its pieces of sentences, and training them
    'soxr>=0.5,<2',                      # resamples sound
    'tensorboard>=2.19,<3',              # clu's writer needs it
    # tf.data only. The CPU build, for it cannot take the accelerator; where there
    # is none of it, the only build.
    'tensorflow-cpu>=2.20,<2.22; platform_system == "Linux" '
    'and platform_machine == "x86_64"',
    'tensorflow>=2.20,<2.22; platform_system != "Linux" '
    'or platform_machine != "x86_64"',
    'tensorflow-datasets>=4.9.9,<5',
    'tensorstore>=0.1.84,<0.2',          # the files of a checkpoint; Orbax bounds it
    'threadpoolctl>=3.5,<4',             # t-SNE by one thread
    'tokenizers>=0.21,<0.24',            # BERT's WordPiece
]

PREP = [
    'apache-beam>=2.70,<3',              # vatt_jax prepare, on one machine or many
    'ijson>=3.3,<4',                     # data/howto100m.py: JSON larger than memory
]

EXTRAS = {
    'tpu': ['jax[tpu]'],
    'cuda': ['jax[cuda13]'],
    'prep': PREP,
    'plan': ['jax[tpu]'],                # brings the TPU's compiler, on any machine
    # for benchmarks/step.py and convnets.py, which compare with PyTorch
    'bench': ['torch>=2.6', 'torchvision>=0.21', 'timm>=1.0,<2'],
    'test': ['pytest>=8.3,<10', 'pytest-xdist>=3.6,<4', 'ruff>=0.9,<0.18',
             'imageio-ffmpeg>=0.6,<1',    # an FFmpeg to compare with
             *PREP],
}

setuptools.setup(
    name='vatt_jax',
    version='0.6.0',
    description='Video-Audio-Text Transformers in JAX: training from raw media.',
    license='Apache-2.0',
    packages=setuptools.find_packages(include=['vatt_jax', 'vatt_jax.*']),
    package_data={'vatt_jax.reports': ['*.jinja']},
    python_requires='>=3.11,<3.14',
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
)
