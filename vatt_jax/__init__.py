"""vatt_jax: Video-Audio-Text Transformers in JAX, from raw media to scores."""

import os

# Set before anything imports TensorFlow. It only reads data here, and its messages at
# start do not concern users (the second line silences one about oneDNN).
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
