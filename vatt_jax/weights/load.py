"""Weights from wherever they are, into the model that wants them."""

from __future__ import annotations

from collections.abc import Mapping
import glob
import os
import pathlib
from typing import Any

from absl import logging
from flax import traverse_util
import numpy as np

from vatt_jax import checkpoint
from vatt_jax import models
from vatt_jax.errors import UserError
from vatt_jax.models import positions
from vatt_jax.weights import vatt_tf2


def load(path: str | os.PathLike[str]
         ) -> tuple[models.MultimodalModel, dict[str, Any]]:
  """Loads a model: of a workdir, of `vatt_jax import_vatt`, or a released checkpoint.

  Of a workdir the newest, or that of WORKDIR/checkpoints/STEP.

  Returns:
    The model, and its variables as NumPy arrays: `model.apply(variables, batch)`.

  Raises:
    UserError: there is nothing to load.
  """
  config, variables = read(path)
  return models.from_config(config['model']), variables


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
  """As `load`, but for the model the config, or what is known of it.

  Its `model` is the settings of `models.from_config`.
  """
  check_exists(path)
  folder, _ = checkpoint.split(path)
  if (folder / checkpoint.CONFIG_FILE).exists():
    return checkpoint.load_model(path)
  settings, variables = vatt_tf2.read(path)
  return {'model': settings}, variables


def check_exists(path: str | os.PathLike[str]) -> None:
  """Raises UserError unless there is a folder or file, or a released checkpoint."""
  where = pathlib.Path(path)
  folder, step = checkpoint.split(where)
  if where.exists() or (step is not None and folder.exists()):    # or which steps are
    return
  # The name of a released checkpoint is the beginning of its files' names.
  if not any(where.parent.glob(f'{glob.escape(where.name)}.*')):
    raise UserError(f'{path}: no such folder or file')


def merge(ours: Mapping[str, Any], theirs: Mapping[str, Any], where: str,
          spline: bool, allow_random_head: bool = True) -> dict[str, Any]:
  """The variables of a model, with the values of a checkpoint.

  Tables of positions are fitted where the grid differs. What the checkpoint has
  for other modalities is left out. A head that it has not, and a classifier of
  another number of classes, stay as they are, and the log says so.

  Args:
    ours: variables of the model, or their shapes.
    theirs: of the checkpoint.
    where: the checkpoint, for the message.
    spline: fit positions as the released code does (`models.positions.fit`).
    allow_random_head: take a checkpoint that has no head for the model.

  Raises:
    UserError: the model needs what the checkpoint lacks or has of another shape, or
      the checkpoint has more of what the model has, or no head for it.
  """
  ours, theirs = (traverse_util.flatten_dict(dict(x)) for x in (ours, theirs))
  new = _new_head(ours, theirs)
  missing = ours.keys() - theirs.keys() - new
  left_out = theirs.keys() - ours.keys()
  modules = {path[1] for path in ours} - {'head'}
  modules |= {m.replace('tokenizers', 'projectors') for m in modules}
  unused = {path for path in left_out if path[1] in modules}
  if missing or unused:
    raise UserError(
        f'{where}: is of another model. This one needs and it lacks: '
        f'{_listed(missing)}. It has and this one lacks: {_listed(unused)}')
  reason = f'{where} has no head for this model{_classes(ours, theirs)}'
  if new and not allow_random_head:
    raise UserError(f'{reason}, whose head would be random; set config.model.head to '
                    'what it has, or to None for features alone, or give '
                    '--allow_random_head')
  if new:
    logging.warning('%s, whose head starts from random weights', reason)
  if left_out:
    modules = sorted({path[1] for path in left_out})
    logging.info('Left out of %s: %s', where, ', '.join(modules))
  return traverse_util.unflatten_dict({
      path: value if path in new else _fit(path, value, theirs[path], where, spline)
      for path, value in ours.items()})


def _new_head(ours, theirs):
  """The paths of the head, if the checkpoint has none for it."""
  head = {path for path in ours if path[1] == 'head'}
  known = {path for path in head if path in theirs}
  same = all(ours[path].shape == theirs[path].shape
             for path in known if path[2] == 'logits')
  return set() if known and same else head


def _classes(ours, theirs):
  """Of two classifiers, how many classes they have, for messages."""
  path = ('params', 'head', 'logits', 'bias')
  if path not in ours or path not in theirs:
    return ''
  return (f' (it is a classifier of {theirs[path].size} classes, this one of '
          f'{ours[path].size})')


def _listed(paths):
  """The modules of which they are, such as `params/backbones_video/block_4`."""
  return ', '.join(sorted({'/'.join(path[:3]) for path in paths})) or 'nothing'


def _fit(path, ours, theirs, where, spline):
  """Their value, in the shape of ours."""
  if theirs.shape == ours.shape:
    return theirs
  if path[-1].endswith('positions') and theirs.shape[1:] == ours.shape[1:]:
    return np.asarray(positions.fit(theirs, path[-1], ours.shape[0], spline))
  raise UserError(f'{where}: {"/".join(path)} has shape {theirs.shape}; this model '
                  f'needs {ours.shape}')
