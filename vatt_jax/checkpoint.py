"""Checkpoints: the only module that knows Orbax."""

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

CONFIG_FILE = 'config.json'    # of a workdir

_FOLDER = 'checkpoints'    # of a workdir
_ITEM = 'default'    # of a checkpoint: Orbax's name for the only item
_DISCARDED = 'checkpoints_discarded'    # of a workdir
_DELETING_SECONDS = 5.0    # at most, from the first file of a checkpoint to the last


class Gone(UserError):
  """The checkpoint of a step is not there, or no longer: only the newest are kept."""


class Damaged(UserError):
  """A checkpoint cannot be read, because a file of it is missing or incomplete."""


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
    """True every so many steps, but not where there is one already."""
    return step > 0 and step % self._every_steps == 0 and step != self.latest()

  def latest(self) -> int | None:
    """The step of the newest checkpoint."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any) -> None:
    """Saves a state, unless that of this step is there."""
    if step != self.latest():
      self._manager.save(step, args=ocp.args.StandardSave(_fields(state)))

  def wait(self) -> None:
    """Waits until what was saved is written; raises what went wrong with it."""
    self._manager.wait_until_finished()

  def clear(self) -> None:
    """Deletes all there are."""
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
      raise _damaged(self._folder.parent, step, reason, 'give --resume_from={step}, or '
                     'delete the damaged folder')
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _fields(like))
    restored = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
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
  """The config that `write_config` noted."""
  return json.loads((folder / CONFIG_FILE).read_text(encoding='utf-8'))


def split(path: str | os.PathLike[str]) -> tuple[pathlib.Path, int | None]:
  """The workdir that a path names, and the step if it is WORKDIR/checkpoints/STEP."""
  path = pathlib.Path(path)
  if path.parent.name == _FOLDER and path.name.isdigit():
    return path.parent.parent, int(path.name)
  return path, None


def of_step(folder: pathlib.Path, step: int | str) -> pathlib.Path:
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


def go_back(folder: pathlib.Path, step: int) -> None:
  """Moves the checkpoints after a step out of the way, so that it is the newest.

  They go to `checkpoints_discarded/STEP` of the workdir, and are never read again.

  Raises:
    UserError: the workdir holds no checkpoint of the step, or a damaged one.
  """
  known = steps(folder)
  if step not in known:
    raise UserError(f'--resume_from={step}: {folder} holds no checkpoint of that step; '
                    f'expected one of {", ".join(map(str, known)) or "none"}')
  if reason := damage(of_step(folder, step)):
    raise _damaged(folder, step, reason, 'give --resume_from={step}')
  for newer in (s for s in known if s > step):
    aside = folder / _DISCARDED / str(newer)
    copies = 0
    while aside.exists():    # that step was discarded before
      copies += 1
      aside = folder / _DISCARDED / f'{newer}.{copies}'
    aside.parent.mkdir(exist_ok=True)
    of_step(folder, newer).rename(aside)
    logging.warning('Discarded the checkpoint of step %d, now %s', newer, aside)


@contextlib.contextmanager
def naming_a_full_disk(folder: pathlib.Path) -> Iterator[None]:
  """Turns any error of writing to a full disk into one line.

  Args:
    folder: the workdir, whose newest whole checkpoint the line names.

  Raises:
    UserError: the disk is full.
  """
  try:
    yield
  except Exception as e:    # Orbax, TensorFlow and Python each have a class for it
    if not is_full_disk(e):
      raise
    whole = newest_whole(folder)
    kept = ('there is no whole checkpoint yet' if whole is None else
            f'the newest whole checkpoint is {of_step(folder, whole)}')
    raise UserError(f'{folder}: disk full; {kept}; free some space, and give the same '
                    'command again') from e


def follow(folder: pathlib.Path, after: int, last: int, wait: Callable[[], None],
           agree: Callable[[int], int] = lambda step: step) -> Iterator[int]:
  """Yields the steps of a workdir's checkpoints as they appear, oldest first.

  Args:
    folder: the workdir.
    after: a step; only later ones are yielded.
    last: the step after which no other comes.
    wait: called as long as there is no new one; may raise to end it.
    agree: the step that this process finds next, or -1 for none -> the step that all
      processes take (`multi_host.from_first`).
  """
  while after < last:
    # Looked up anew each time: the oldest may be deleted while its forerunner is used.
    new = agree(min((step for step in steps(folder) if step > after), default=-1))
    if new > after:
      after = new
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
  except Exception as e:    # Orbax says in many ways that files are missing
    if _is_vanishing(of_step(folder, step)):
      raise _gone(folder, step) from e
    raise
  if reason and not _is_vanishing(of_step(folder, step)):
    raise _damaged(folder, step, reason, f'name {of_step(folder, "{step}")}')
  if step not in steps(folder):    # what was read last may have been nothing
    raise _gone(folder, step)
  return config, variables


def newest_whole(folder: pathlib.Path, before: float = float('inf')) -> int | None:
  """Returns the newest step, before another, whose files are complete."""
  return next((step for step in reversed(steps(folder))
               if step < before and not damage(of_step(folder, step))), None)


def damage(path: pathlib.Path) -> str:
  """Finds a file of a checkpoint that is missing or shorter than it must be.

  Reads the tables of contents alone, not the arrays.

  Args:
    path: the checkpoint's folder.

  Returns:
    Which file, and what is wrong with it; empty if nothing is.
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
  except (ValueError, KeyError, IndexError) as e:    # TensorStore's, or no such entry
    return f'{_ITEM}: its table of arrays cannot be read: {str(e)[:200]}'
  return ''


def _missing(path: pathlib.Path, place: str | None) -> str:
  """Returns why a file lacks a value; empty if it has it, or if none is needed.

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
    found = (path / file).stat().st_size
  except OSError as e:
    return f'{file}: {e.strerror}'
  return '' if found >= needed else f'{file}: has {found} of {needed} bytes or more'


def _damaged(folder: pathlib.Path, step: int, reason: str, remedy: str) -> Damaged:
  """Returns the error; `{step}` in `remedy` becomes the whole checkpoint's step."""
  whole = newest_whole(folder, before=step)
  advice = ('no checkpoint before it is whole' if whole is None else
            f'step {whole} before it is whole: {remedy.format(step=whole)}')
  return Damaged(f'{of_step(folder, step)}: is damaged ({reason}); {advice}')


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
  """Reads the model's variables of a step, as NumPy arrays.

  Waits for no other process, unlike a checkpoint manager: each may find that the
  checkpoint was deleted.
  """
  path = of_step(folder, step).absolute() / _ITEM
  with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
    tree = handler.metadata(path).tree
    if 'model_state' not in tree:
      raise UserError(f'{folder}: was written by an older vatt_jax, whose checkpoints '
                      'this one cannot read')
    averaged = bool(tree.get('average'))
    wanted = {k: tree[k] for k in (    # not the optimiser's
        'average' if averaged else 'params', 'model_state')}
    loaded = handler.restore(path, args=ocp.args.PyTreeRestore(
        item=wanted, partial_restore=True, restore_args=jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)))
  params = loaded['average' if averaged else 'params']
  params = {k: v for k, v in params.items() if k != 'losses'}
  return {'params': params, **loaded['model_state']}
