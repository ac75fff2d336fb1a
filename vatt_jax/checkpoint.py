"""Checkpoints: the only module that knows Orbax."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import hashlib
import json
import os
import pathlib
import time
from typing import Any

from flax import traverse_util
import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp
from safetensors import numpy as safetensors

from vatt_jax.errors import UserError

CONFIG_FILE = 'config.json'    # of a workdir

_FOLDER = 'checkpoints'    # of a workdir
_DELETING_SECONDS = 5.0    # at most, from the first file of a checkpoint to the last


class Gone(UserError):
  """The checkpoint of a step is not there, or no longer: only the newest are kept."""


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
      self._manager.save(step, args=ocp.args.StandardSave(_fields(state)))

  def clear(self) -> None:
    """Deletes all there are."""
    for step in self._manager.all_steps():
      self._manager.delete(step)

  def restore(self, like: Any) -> Any:
    """The newest state, with the shapes, types and shardings of `like`."""
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _fields(like))
    restored = self._manager.restore(self.latest(),
                                     args=ocp.args.StandardRestore(abstract))
    return (restored if isinstance(like, Mapping) else
            dataclasses.replace(like, **restored))


def _fields(state: Any) -> dict[str, Any]:
  """Those of a state that it has, so that it may have others in a later version."""
  if not isinstance(state, Mapping):
    state = {field.name: getattr(state, field.name)
             for field in dataclasses.fields(state)}
  return {name: value for name, value in state.items() if value is not None}


def digest(params: Any) -> str:
  """SHA-256 over all parameters: names, types, shapes, bytes, in order of name.

  All hosts must ask for it, for each may hold but a part.
  """
  sha = hashlib.sha256()
  leaves = jax.tree_util.tree_leaves_with_path(params)
  for path, leaf in sorted(((jax.tree_util.keystr(p), x) for p, x in leaves),
                           key=lambda item: item[0]):
    array = np.ascontiguousarray(
        multihost_utils.process_allgather(leaf, tiled=True))
    sha.update(f'{path} {array.dtype} {array.shape}\n'.encode())
    sha.update(array.tobytes())
  return sha.hexdigest()


def save_model(folder: pathlib.Path, settings: Mapping[str, Any],
               variables: Mapping[str, Any]) -> None:
  """Writes a model as a folder that `load_model` reads: config, Orbax, safetensors.

  Args:
    folder: where; new, or empty.
    settings: of `models.build.build_model`.
    variables: of the model.

  Raises:
    UserError: the folder is not empty.
  """
  if folder.exists() and any(folder.iterdir()):
    raise UserError(f'{folder}: is not empty; choose another folder')
  folder.mkdir(parents=True, exist_ok=True)
  params, model_state = variables['params'], {
      k: v for k, v in variables.items() if k != 'params'}
  with Checkpoints(folder / _FOLDER, keep=1, every_steps=1) as saved:
    saved.save(0, dict(params=params, model_state=model_state))
  flat = traverse_util.flatten_dict(variables, sep='/')
  safetensors.save_file({k: np.ascontiguousarray(v) for k, v in flat.items()},
                        folder / 'model.safetensors')
  write_config(folder, {'model': settings})


def write_config(folder: pathlib.Path, config: Mapping[str, Any]) -> None:
  """Notes a config in a folder, whole or not at all. It vouches for all else there."""
  path = folder / CONFIG_FILE
  partial = path.with_suffix('.partial')
  partial.write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')
  partial.rename(path)


def read_config(folder: pathlib.Path) -> dict[str, Any]:
  """Reads the config that `write_config` noted, by this version's names."""
  config = json.loads((folder / CONFIG_FILE).read_text(encoding='utf-8'))
  for name, loss in (config.get('losses') or {}).items():
    if loss.get('name') == 'sigmoid':    # until 0.5
      loss['name'] = 'bce' if name == 'label' else 'siglip'
  return config


def split(path: str | os.PathLike[str]) -> tuple[pathlib.Path, int | None]:
  """The workdir that a path names, and the step if it is WORKDIR/checkpoints/STEP."""
  path = pathlib.Path(path)
  if path.parent.name == _FOLDER and path.name.isdigit():
    return path.parent.parent, int(path.name)
  return path, None


def of_step(folder: pathlib.Path, step: int) -> pathlib.Path:
  """The path of a step's checkpoint in a workdir."""
  return folder / _FOLDER / str(step)


def steps(folder: pathlib.Path) -> list[int]:
  """The steps of which a workdir holds a checkpoint, whole; oldest first."""
  return sorted(ocp.utils.checkpoint_steps((folder / _FOLDER).absolute()))


def newest(folder: pathlib.Path) -> int:
  """The newest of these steps.

  Raises:
    UserError: there is none.
  """
  if not (there := steps(folder)):
    raise UserError(f'{folder}: holds no checkpoint yet')
  return there[-1]


def follow(folder: pathlib.Path, after: int, last: int,
           wait: Callable[[], None]) -> Iterator[int]:
  """Yields the steps of a workdir's checkpoints as they appear, oldest first.

  Args:
    folder: the workdir.
    after: a step; only later ones are yielded.
    last: the step after which no other comes.
    wait: called as long as there is no new one; may raise to end it.
  """
  while after < last:
    # Looked up anew each time: the oldest may be deleted while its forerunner is used.
    new = [step for step in steps(folder) if step > after]
    if new:
      after = new[0]
      yield after
    else:
      wait()


def load_model(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads a model of a workdir, or one that `save_model` wrote.

  Args:
    path: the folder, for its newest model, or WORKDIR/checkpoints/STEP.

  Returns:
    The config, of which `model` is the settings of `models.build.build_model`, and
    the variables as NumPy arrays; the averaged parameters, where there are such.

  Raises:
    Gone: the folder holds no checkpoint of that step, or it is deleted meanwhile.
    UserError: the folder holds no checkpoint.
  """
  folder, step = split(path)
  config, last = read_config(folder), newest(folder)
  if step is None:
    step = last
  elif step not in steps(folder):
    raise _gone(folder, step)
  try:
    variables = _load(folder, step)
  except UserError:
    raise
  except Exception as e:    # Orbax says in many ways that files are missing
    if _is_vanishing(of_step(folder, step)):
      raise _gone(folder, step) from e
    raise
  if step not in steps(folder):    # what was read last may have been nothing
    raise _gone(folder, step)
  return config, variables


def _gone(folder: pathlib.Path, step: int) -> Gone:
  there = ', '.join(map(str, steps(folder)))
  return Gone(f'{of_step(folder, step)}: no such checkpoint (any more); expected one '
              f'of {there}')


def _is_vanishing(path: pathlib.Path) -> bool:
  """Whether a checkpoint that could not be read is gone, or soon will be."""
  deadline = time.monotonic() + _DELETING_SECONDS
  while path.exists():
    if time.monotonic() > deadline:
      return False
    time.sleep(0.1)
  return True


def _load(folder: pathlib.Path, step: int) -> dict[str, Any]:
  """The model's variables of a step, as NumPy arrays."""
  with ocp.CheckpointManager(
      (folder / _FOLDER).absolute(),
      item_handlers=ocp.PyTreeCheckpointHandler()) as manager:
    tree = manager.item_metadata(step).tree
    if 'model_state' not in tree:
      raise UserError(f'{folder}: was written by an older vatt_jax, whose checkpoints '
                      'this one cannot read')
    averaged = bool(tree.get('average'))
    wanted = {k: tree[k] for k in (    # not the optimiser's
        'average' if averaged else 'params', 'model_state')}
    loaded = manager.restore(step, args=ocp.args.PyTreeRestore(
        item=wanted, partial_restore=True, restore_args=jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)))
  params = loaded['average' if averaged else 'params']
  params = {k: v for k, v in params.items() if k != 'losses'}
  return {'params': params, **loaded['model_state']}
