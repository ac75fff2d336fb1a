"""Imports TensorFlow for the host alone: `from ...host_tensorflow import tf`.

The import takes seconds. Modules on the path of `vatt_jax.embed`, `vatt_jax.models` or
`vatt_jax.weights` import it in the function that needs it.
"""

import tensorflow as tf

__all__ = ['tf']

# Only JAX may use the accelerator.
for _kind in ('GPU', 'TPU'):
  tf.config.set_visible_devices([], _kind)
