"""Saves and restores checkpoints; the only module that uses Orbax."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import time
from typing import Any

from absl import logging
from flax import traverse_util
import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp
from safetensors import numpy as safetensors
import tensorstore as ts

from vatt_jax.errors import is_full_disk
from vatt_jax.errors import UserError

CONFIG_FILE = 'config.json'    # in a workdir

_FOLDER = 'checkpoints'    # in a workdir
_ITEM = 'default'    # in a checkpoint: Orbax's name for the only item
_DISCARDED = 'checkpoints_discarded'    # in a workdir
_DELETING_SECONDS = 5.0    # longest time in which Orbax deletes a checkpoint's files


class Gone(UserError):
  """Signals that a step has no checkpoint (any more): only the newest are kept."""


class Damaged(UserError):
  """Signals that a file of a checkpoint is missing or incomplete."""


class Checkpoints:
  """Manages the checkpoints of a run, by step.

  A context manager: leaving it waits until all checkpoints are written. Checkpoints
  are written in the background, and each appears complete or not at all.
  """

  def __init__(self, folder: str | os.PathLike[str], keep: int, every_steps: int):
    """Opens or creates a folder of checkpoints.

    Args:
      folder: the folder.
      keep: the number of newest checkpoints to keep.
      every_steps: the number of steps between two checkpoints.
    """
    self._every_steps = every_steps
    self._folder = pathlib.Path(folder)
    self._manager = ocp.CheckpointManager(
        os.path.abspath(folder),
        options=ocp.CheckpointManagerOptions(max_to_keep=keep,
                                             cleanup_tmp_directories=True))

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *_) -> None:
    self._manager.close()

  def due(self, step: int) -> bool:
    """Returns whether to save now: every `every_steps`, unless already saved."""
    return step > 0 and step % self._every_steps == 0 and step != self.latest()

  def latest(self) -> int | None:
    """Returns the step of the newest checkpoint, or None."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any) -> None:
    """Saves a state, unless this step is already saved."""
    if step != self.latest():
      self._manager.save(step, args=ocp.args.StandardSave(_fields(state)))

  def wait(self) -> None:
    """Waits until all checkpoints are written; raises any error of writing."""
    self._manager.wait_until_finished()

  def clear(self) -> None:
    """Deletes all checkpoints."""
    for step in self._manager.all_steps():
      self._manager.delete(step)

  def restore(self, like: Any) -> Any:
    """Returns the newest state, with the shapes, types and shardings of `like`.

    Raises:
      Damaged: a file of the checkpoint is missing or incomplete.
    """
    self.wait()
    step = self.latest()
    if reason := damage(self._folder / str(step)):
      raise _damaged(self._folder.parent, step, reason, 'use --resume_from={step}, or '
                     'delete the damaged folder')
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _fields(like))
    restored = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
    return (restored if isinstance(like, Mapping) else
            dataclasses.replace(like, **restored))


def _fields(state: Any) -> dict[str, Any]:
  """Returns the fields that are set, so that later versions may add fields."""
  if not isinstance(state, Mapping):
    state = {field.name: getattr(state, field.name)
             for field in dataclasses.fields(state)}
  return {name: value for name, value in state.items() if value is not None}


def digest(params: Any) -> str:
  """Returns the SHA-256 of all parameters: names, types, shapes, bytes, by name.

  All hosts must call it, because each may hold only a part of the parameters.
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
    folder: the folder; new or empty.
    settings: the model's settings (`models.from_config`).
    variables: the model's variables.

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
  """Writes a config to a folder, completely or not at all.

  It is written last: its presence means that the rest of the folder is valid.
  """
  path = folder / CONFIG_FILE
  partial = path.with_suffix('.partial')
  partial.write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')
  partial.rename(path)


def read_config(folder: pathlib.Path) -> dict[str, Any]:
  """Reads the config that `write_config` wrote, with this version's key names."""
  return _renamed(json.loads((folder / CONFIG_FILE).read_text(encoding='utf-8')))


# Config keys up to version 0.5 -> their current names.
_KEYS = {'num_parts': 'num_microbatches', 'several_labels': 'multi_label',
         'max_words': 'max_tokens'}

# (Section, '' for any other; key) -> values up to version 0.6 -> their current names.
_VALUES = {
    ('model', 'attention'): {
        'plain': 'xla', 'weights': 'save_weights', 'scores': 'save_scores',
        'fused': 'pallas', 'fused_float32': 'pallas'},
    ('label', 'name'): {'sigmoid': 'bce'},    # a loss; the name had two meanings
    ('', 'name'): {'sigmoid': 'siglip'}}


def _renamed(config: dict[str, Any], section: str = '') -> dict[str, Any]:
  """Returns a config of an older version with this version's names."""
  renamed = {}
  for key, value in config.items():
    if section == 'data' and key == 'builder':    # no longer a key
      continue
    if isinstance(value, Mapping):
      value = _renamed(dict(value), key)
    elif isinstance(value, str):
      names = _VALUES.get((section, key), _VALUES.get(('', key), {}))
      value = names.get(value, value)
    renamed[_KEYS.get(key, key)] = value
  return renamed


def split(path: str | os.PathLike[str]) -> tuple[pathlib.Path, int | None]:
  """Splits a path into workdir and step (None unless WORKDIR/checkpoints/STEP)."""
  path = pathlib.Path(path)
  if path.parent.name == _FOLDER and path.name.isdigit():
    return path.parent.parent, int(path.name)
  return path, None


def of_step(folder: pathlib.Path, step: int | str) -> pathlib.Path:
  """Returns the path of a step's checkpoint in a workdir."""
  return folder / _FOLDER / str(step)


def steps(folder: pathlib.Path) -> list[int]:
  """Returns the steps of a workdir's completed checkpoints, oldest first."""
  return sorted(ocp.utils.checkpoint_steps((folder / _FOLDER).absolute()))


def newest(folder: pathlib.Path) -> int:
  """Returns the newest step of a workdir.

  Raises:
    UserError: the workdir has no checkpoint.
  """
  if not (present := steps(folder)):
    raise UserError(f'{folder}: holds no checkpoint yet')
  return present[-1]


def go_back(folder: pathlib.Path, step: int) -> None:
  """Moves all checkpoints after a step aside, so that the step is the newest.

  They are moved to `checkpoints_discarded/STEP` of the workdir and never read again.

  Raises:
    UserError: the workdir holds no checkpoint of the step, or a damaged one.
  """
  present = steps(folder)
  if step not in present:
    raise UserError(f'--resume_from={step}: {folder} holds no checkpoint of that step; '
                    f'expected one of {", ".join(map(str, present)) or "none"}')
  if reason := damage(of_step(folder, step)):
    raise _damaged(folder, step, reason, 'use --resume_from={step}')
  for newer in (s for s in present if s > step):
    aside = folder / _DISCARDED / str(newer)
    copies = 0
    while aside.exists():    # this step was discarded before
      copies += 1
      aside = folder / _DISCARDED / f'{newer}.{copies}'
    aside.parent.mkdir(exist_ok=True)
    of_step(folder, newer).rename(aside)
    logging.warning('Discarded the checkpoint of step %d; moved it to %s', newer, aside)


@contextlib.contextmanager
def naming_a_full_disk(folder: pathlib.Path) -> Iterator[None]:
  """Converts any error caused by a full disk to a UserError of one line.

  Args:
    folder: the workdir; the message names its newest complete checkpoint.

  Raises:
    UserError: the disk is full.
  """
  try:
    yield
  except Exception as e:    # Orbax, TensorFlow and Python raise different classes
    if not is_full_disk(e):
      raise
    whole = newest_whole(folder)
    kept = ('no checkpoint is complete yet' if whole is None else
            f'the newest complete checkpoint is {of_step(folder, whole)}')
    raise UserError(f'{folder}: the disk is full; {kept}; free some space, and run the '
                    'same command to resume') from e


def follow(folder: pathlib.Path, after: int, last: int, wait: Callable[[], None],
           agree: Callable[[int], int] = lambda step: step) -> Iterator[int]:
  """Yields the steps of a workdir's checkpoints as they appear, oldest first.

  Args:
    folder: the workdir.
    after: only later steps are yielded.
    last: the last step of the run; the iteration ends with it.
    wait: called while no new checkpoint exists; may raise to stop.
    agree: maps this process's next step (-1: none) to the step that all processes
      use (`hosts.from_first`).
  """
  while after < last:
    # The steps are listed again each time, because a checkpoint may be deleted while
    # the caller uses the one before it.
    new = agree(min((step for step in steps(folder) if step > after), default=-1))
    if new > after:
      after = new
      yield after
    else:
      wait()


def load_model(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads a model from a workdir, or from a folder that `save_model` wrote.

  Args:
    path: a folder (its newest checkpoint is read), or WORKDIR/checkpoints/STEP.

  Returns:
    The config and the variables as NumPy arrays. The config's section `model` has
    the settings for `models.from_config`. The parameters are the averaged ones if the
    checkpoint has them.

  Raises:
    Gone: the folder holds no checkpoint of that step, or it was deleted meanwhile.
    Damaged: a file of the checkpoint is missing or incomplete.
    UserError: the folder holds no checkpoint.
  """
  folder, step = split(path)
  config, last = read_config(folder), newest(folder)
  if step is None:
    step = last
  elif step not in steps(folder):
    raise _gone(folder, step)
  reason = damage(of_step(folder, step))
  try:
    variables = None if reason else _load(folder, step)
  except UserError:
    raise
  except Exception as e:    # Orbax raises many different errors for missing files
    if _is_vanishing(of_step(folder, step)):
      raise _gone(folder, step) from e
    raise
  if reason and not _is_vanishing(of_step(folder, step)):
    raise _damaged(folder, step, reason, f'use {of_step(folder, "{step}")}')
  if step not in steps(folder):    # deleted meanwhile: the arrays may be incomplete
    raise _gone(folder, step)
  return config, variables


def newest_whole(folder: pathlib.Path, before: float = float('inf')) -> int | None:
  """Returns the newest step before another whose files are complete, or None."""
  return next((step for step in reversed(steps(folder))
               if step < before and not damage(of_step(folder, step))), None)


def damage(path: pathlib.Path) -> str:
  """Finds a missing or truncated file in a checkpoint.

  Reads only the metadata, not the arrays.

  Args:
    path: the checkpoint's folder.

  Returns:
    The file and its defect, or an empty string if no file is damaged.
  """
  item = path / _ITEM
  tables = [item / '_METADATA', *item.glob('_sharding'),
            *item.glob('array_metadatas/*')]
  for table in tables:
    try:
      json.loads(table.read_bytes())
    except (OSError, ValueError) as e:
      why = e.strerror if isinstance(e, OSError) else 'incomplete'
      return f'{table.relative_to(path)}: {why}'
  try:
    store = ts.KvStore.open({'driver': 'file', 'path': f'{item.absolute()}/'}).result()
    manifest = ts.ocdbt.dump(store).result()
    nodes = [manifest['versions'][-1]['root']['location']]
    while nodes:
      for entry in ts.ocdbt.dump(store, nodes.pop()).result()['entries']:
        if 'location' in entry:
          nodes.append(entry['location'])
        elif reason := _missing(path, entry.get('indirect_value')):
          return reason
  except (ValueError, KeyError, IndexError) as e:    # TensorStore, or a missing entry
    return f'{_ITEM}: the index of its arrays cannot be read: {str(e)[:200]}'
  return ''


def _missing(path: pathlib.Path, place: str | None) -> str:
  """Returns why a file lacks a value, or '' if it has it or the value needs no file.

  Args:
    path: the checkpoint's folder.
    place: `value:FOLDER:FILE:OFFSET:LENGTH`, or None.
  """
  if place is None:
    return ''
  _, folder, name, offset, length = place.split(':')
  file = pathlib.Path(_ITEM, folder + name)
  needed = int(offset) + int(length)
  try:
    size = (path / file).stat().st_size
  except OSError as e:
    return f'{file}: {e.strerror}'
  return '' if size >= needed else (
      f'{file}: has {size} bytes, expected {needed} or more')


def _damaged(folder: pathlib.Path, step: int, reason: str, remedy: str) -> Damaged:
  """Returns the error for a damaged checkpoint.

  `{step}` in `remedy` stands for the newest complete checkpoint before it.
  """
  whole = newest_whole(folder, before=step)
  advice = ('no earlier checkpoint is complete' if whole is None else
            f'the newest complete one before it is step {whole}: '
            f'{remedy.format(step=whole)}')
  return Damaged(f'{of_step(folder, step)}: is damaged ({reason}); {advice}')


def _gone(folder: pathlib.Path, step: int) -> Gone:
  present = ', '.join(map(str, steps(folder)))
  return Gone(f'{of_step(folder, step)}: no such checkpoint (any more); expected one '
              f'of {present}')


def _is_vanishing(path: pathlib.Path) -> bool:
  """Returns whether an unreadable checkpoint is deleted or about to be."""
  deadline = time.monotonic() + _DELETING_SECONDS
  while path.exists():
    if time.monotonic() > deadline:
      return False
    time.sleep(0.1)
  return True


def _load(folder: pathlib.Path, step: int) -> dict[str, Any]:
  """Returns the model's variables of a step, as NumPy arrays.

  Unlike a checkpoint manager, it does not wait for other processes, because any of
  them may find that the checkpoint was deleted.
  """
  path = of_step(folder, step).absolute() / _ITEM
  with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
    tree = handler.metadata(path).tree
    if 'model_state' not in tree:
      raise UserError(f'{folder}: was written by an older vatt_jax; this version '
                      'cannot read its checkpoints')
    averaged = bool(tree.get('average'))
    wanted = {k: tree[k] for k in (    # without the optimizer's state
        'average' if averaged else 'params', 'model_state')}
    loaded = handler.restore(path, args=ocp.args.PyTreeRestore(
        item=wanted, partial_restore=True, restore_args=jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)))
  params = loaded['average' if averaged else 'params']
  params = {k: v for k, v in params.items() if k != 'losses'}
  return {'params': params, **loaded['model_state']}
