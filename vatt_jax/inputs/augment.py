"""What the device does to a batch before the model sees it."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp


def normalize(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """Video uint8 -> float32 in [-1, 1]; audio int16 -> float32 in [-1, 1]."""
  batch = dict(batch)
  if 'video' in batch:
    batch['video'] = batch['video'].astype(jnp.float32) / 127.5 - 1
  if 'audio' in batch:
    batch['audio'] = batch['audio'].astype(jnp.float32) / 32768
  return batch
