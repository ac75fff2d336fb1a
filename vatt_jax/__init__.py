"""vatt_jax: Video-Audio-Text Transformers in JAX, from raw media to scores."""

import os

# Before anything imports TensorFlow: it only feeds us, and what it says when it
# starts is no news to our users (the second line silences one about oneDNN).
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
