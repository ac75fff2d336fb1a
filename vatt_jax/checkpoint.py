"""Checkpoints: the only module that knows Orbax."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp


class Checkpoints:
  """The checkpoints of a run, by step; a context manager that waits for writing.

  Writing goes on behind the run. A checkpoint appears whole or not at all.
  """

  def __init__(self, folder: str | os.PathLike[str], keep: int, every_steps: int):
    """Opens or makes a folder of checkpoints.

    Args:
      folder: where.
      keep: how many of the newest to keep.
      every_steps: when one is due.
    """
    self._every_steps = every_steps
    self._manager = ocp.CheckpointManager(
        os.path.abspath(folder),
        options=ocp.CheckpointManagerOptions(max_to_keep=keep,
                                             cleanup_tmp_directories=True))

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *_) -> None:
    self._manager.close()

  def due(self, step: int) -> bool:
    """True every so many steps, but not where there is one already."""
    return step > 0 and step % self._every_steps == 0 and step != self.latest()

  def latest(self) -> int | None:
    """The step of the newest checkpoint."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any) -> None:
    """Saves a state, unless that of this step is there."""
    if step != self.latest():
      self._manager.save(step, args=ocp.args.StandardSave(state))

  def restore(self, like: Any) -> Any:
    """The newest state, with the shapes, types and shardings of `like`."""
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    return self._manager.restore(self.latest(), args=ocp.args.StandardRestore(abstract))


def digest(params: Any) -> str:
  """SHA-256 over all parameters: names, types, shapes, bytes, in order of name."""
  sha = hashlib.sha256()
  leaves = jax.tree_util.tree_leaves_with_path(params)
  for path, leaf in sorted(((jax.tree_util.keystr(p), x) for p, x in leaves),
                           key=lambda item: item[0]):
    array = np.ascontiguousarray(jax.device_get(leaf))
    sha.update(f'{path} {array.dtype} {array.shape}\n'.encode())
    sha.update(array.tobytes())
  return sha.hexdigest()
