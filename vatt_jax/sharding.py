"""Where arrays live: the mesh of devices and what is split over it."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from vatt_jax.errors import UserError


def make_mesh(batch_size: int) -> Mesh:
  """All devices of all hosts along one axis, `data`, which splits the batch.

  Raises:
    UserError: the batch does not split evenly.
  """
  devices = jax.devices()
  if batch_size % len(devices):
    raise UserError(f'batch_size={batch_size}: expected a multiple of the '
                    f'{len(devices)} devices')
  return Mesh(np.asarray(devices), ('data',))


def replicated(mesh: Mesh) -> NamedSharding:
  """Whole on every device: parameters and optimiser state."""
  return NamedSharding(mesh, PartitionSpec())


def to_devices(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
  """This host's share of a batch -> global arrays, split by rows over the devices."""
  rows = NamedSharding(mesh, PartitionSpec('data'))
  return {k: jax.make_array_from_process_local_data(rows, v) for k, v in batch.items()}
