"""vatt_jax: Video-Audio-Text Transformers in JAX, from raw media to scores."""

import ctypes
import os

# Before anything imports TensorFlow: it only feeds us, and what it says when it
# starts is no news to our users (the second line silences one about oneDNN).
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')


def _keep_memory() -> None:
  """Lets the C library keep large blocks that were freed, for the next step.

  XLA's CPU client allocates the memory of a program anew in every call. By default
  glibc gives it back in between, and the system clears every page again: a sixth of
  an encoder's training step. The price is that a process stays as large as it once
  was. One heap, for only the first can grow by more than 64 MB.
  """
  libc = ctypes.CDLL(None)
  if hasattr(libc, 'mallopt'):    # glibc; its malloc.h has the numbers
    trim_threshold, mmap_max, arena_max = -1, -4, -8
    libc.mallopt(trim_threshold, -1)
    libc.mallopt(mmap_max, 0)
    libc.mallopt(arena_max, 1)


_keep_memory()
