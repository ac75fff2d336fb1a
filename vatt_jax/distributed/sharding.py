"""Sharding: the mesh of devices, and the arrays that are split over it."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any

from absl import logging
import jax
from jax.experimental import mesh_utils
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from vatt_jax.distributed import logical_axes
from vatt_jax.errors import UserError

# The batch is split over the first two, parameters over the last two: over `fsdp` to
# save memory (each is gathered where it is used), over `model` to share computation.
AXES = ('data', 'fsdp', 'model')

# The name of a parameter's axis (`logical_axes`), and of the mesh's that splits it.
Rule = tuple[str, str]

# `model` splits as in Megatron (arXiv 1909.08053, section 3): heads and hidden layers,
# of which devices exchange only the sum. `fsdp` splits every matrix.
RULES: tuple[Rule, ...] = (('heads', 'model'), ('mlp', 'model'),
                           ('vocabulary', 'model'), ('vocabulary', 'fsdp'),
                           ('width', 'fsdp'), ('mlp', 'fsdp'), ('heads', 'fsdp'),
                           (logical_axes.OTHER, 'fsdp'))


# Sizes of `fsdp='auto'`. On 256 cores more than 8 takes longer (docs/decisions/0006).
AUTO_FSDP = (8, 4, 2, 1)


def make_mesh(batch_size: int, data: int = -1, fsdp: int | str = 1, model: int = 1,
              devices: Sequence[Any] | None = None) -> Mesh:
  """Returns the mesh of the devices of all hosts.

  Args:
    batch_size: of all devices together.
    data: number of shares of the batch whose devices keep the same parameters.
    fsdp: number of shares of the batch whose devices keep a part of the parameters
      each; 'auto' is the largest of 8, 4, 2 and 1 that divides the number of devices
      left by the other two.
    model: number of devices that compute one share of the batch together. One of the
      three may be -1, for all devices that are left.
    devices: by default all devices; those of a topology can only be compiled for.

  Raises:
    UserError: the sizes do not fit the devices, or the batch does not split evenly.
  """
  devices = jax.devices() if devices is None else devices
  given = dict(data=data, fsdp=_fsdp(fsdp, data, model, len(devices)), model=model)
  sizes = _fill(given, len(devices))
  if sizes is None:
    asked = ', '.join(f'{k}={v}' for k, v in given.items())
    raise UserError(f'config.mesh: {asked}: expected a product of {len(devices)}, the '
                    'number of devices; one of them may be -1, for all that are left')
  shares = sizes['data'] * sizes['fsdp']
  if batch_size % shares:
    near = max(batch_size // shares, 1) * shares
    raise UserError(f'batch_size={batch_size}: expected a multiple of the {shares} '
                    'devices or groups of devices that share it (config.mesh), such as '
                    f'{near}')
  grid = mesh_utils.create_device_mesh(
      tuple(sizes.values()), devices, allow_split_physical_axes=True)
  for group in grid.reshape(-1, sizes['model']):
    if len({device.process_index for device in group}) > 1:
      raise UserError(f'config.mesh.model={sizes["model"]}: expected a divisor of the '
                      'number of devices of a host, since each host reads its own rows')
  return Mesh(grid, AXES)


def _fsdp(fsdp: int | str, data: int, model: int, count: int) -> int:
  """Returns the number that `fsdp` stands for, and logs it for 'auto'.

  A number may be a string: the command line passes one if the config has 'auto'.
  """
  if fsdp != 'auto':
    try:
      return int(fsdp)
    except ValueError as e:
      raise UserError(f"config.mesh.fsdp={fsdp!r}: expected a number, or 'auto'") from e
  left = count // max(data, 1) // max(model, 1)
  chosen = next(size for size in AUTO_FSDP if left % size == 0)
  logging.info("config.mesh.fsdp='auto': %d, of %d devices", chosen, count)
  return chosen


def _fill(sizes: Mapping[str, int], count: int) -> dict[str, int] | None:
  """Returns the sizes, with a number for a single -1; None if they do not fit."""
  product = math.prod(size for size in sizes.values() if size != -1)
  if min(sizes.values()) < -1 or product < 1 or list(sizes.values()).count(-1) > 1:
    return None
  filled = {k: count // product if v == -1 else v for k, v in sizes.items()}
  return filled if math.prod(filled.values()) == count else None


def check_rules(rules: Sequence[Rule]) -> tuple[Rule, ...]:
  """Returns the rules as tuples.

  Raises:
    UserError: a rule is not a pair of a parameter's axis and an axis of the mesh.
  """
  for rule in rules:
    if len(rule) != 2 or rule[0] not in logical_axes.NAMES or rule[1] not in AXES:
      raise UserError(f'config.sharding_rules: {rule!r}: expected a pair, one of '
                      f'{", ".join(logical_axes.NAMES)}, and one of {", ".join(AXES)}')
  return tuple(map(tuple, rules))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays that are whole on every device."""
  return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays that are split by rows, like the batch."""
  return NamedSharding(mesh, logical_axes.ROWS)


def of_parameters(tree: Any, mesh: Mesh, rules: Sequence[Rule] = RULES) -> Any:
  """Returns the sharding of each array of a tree that `logical_axes` takes."""
  def place(array, names):
    return NamedSharding(mesh, _spec(array.shape, names, mesh, rules))
  return jax.tree.map(place, tree, logical_axes.logical_axes(tree))


def _spec(shape: Sequence[int], names: Sequence[str], mesh: Mesh,
          rules: Sequence[Rule]) -> PartitionSpec:
  """Applies to each axis of an array, in order, the first rule that fits.

  The first axis comes first, because its pieces are gathered without reordering, unlike
  those of the last one. An axis that does not divide evenly stays whole.
  """
  spec: list[str | None] = []
  for size, array_axis in zip(shape, names, strict=True):
    spec.append(next((axis for name, axis in rules if (
        name == array_axis and axis not in spec and mesh.shape[axis] > 1
        and size % mesh.shape[axis] == 0)), None))
  return PartitionSpec(*spec)


def to_devices(batch: Mapping[str, Any], mesh: Mesh) -> Any:
  """Makes global arrays, split by rows over the devices, of this host's share."""
  return jax.tree.map(
      lambda x: jax.make_array_from_process_local_data(rows(mesh), x), batch)


def take_rows(tree: Any, index: jax.typing.ArrayLike, stride: int, group: int = 1
              ) -> Any:
  """Returns rows index, index + stride, ... of every array.  [B, ...] -> [B / n, ...].

  Rows are strided, so that no row moves to another device.

  Args:
    tree: arrays [B, ...].
    index: of the first group of rows.
    stride: n, from one group to the next.
    group: number of adjacent rows that stay together, and that are counted as one.
  """
  def take(x):
    groups = x.reshape(-1, stride, group, *x.shape[1:])
    rows = jax.lax.dynamic_index_in_dim(groups, index, axis=1, keepdims=False)
    return rows.reshape(-1, *x.shape[1:])

  return jax.tree.map(take, tree)


def join_rows(trees: Any, group: int = 1) -> Any:
  """Reverses `take_rows` for all indices.  [n, B / n, ...] -> [B, ...]."""
  def join(x):
    groups = x.reshape(len(x), -1, group, *x.shape[2:])
    return jnp.moveaxis(groups, 0, 1).reshape(-1, *x.shape[2:])

  return jax.tree.map(join, trees)


def local_rows(tree: Any) -> Any:
  """Returns this host's rows of arrays split by rows, in the order of `to_devices`."""
  if jax.process_count() == 1:
    return jax.device_get(tree)

  def fetch(x):
    parts = {s.index[0].start or 0: s.data for s in x.addressable_shards}
    return np.concatenate([jax.device_get(parts[start]) for start in sorted(parts)])
  return jax.tree.map(fetch, tree)
